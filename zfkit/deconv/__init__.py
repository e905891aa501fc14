"""..."""

from __future__ import annotations

from .project import Deconvnet, Tape, forward, project
from .receptive_field import (
    POINTWISE,
    Box,
    Extent,
    Field,
    Filter,
    Interval,
    extent_before,
    extents,
    field_in,
    filters,
    fits_inside,
    receptive_field,
    units_inside,
)
from .rules import (
    RULES,
    Context,
    Norm,
    Options,
    Record,
    Reverse,
    Rule,
    Seed,
    adaptive_avg_unpool,
    adaptive_max_unpool,
    add,
    adjoint,
    avg_unpool,
    batch_norm,
    blur_unpool,
    channel_slice,
    concat,
    conv,
    identity,
    linear,
    local_response_norm,
    max_unpool,
    rearrange,
    register_rule,
    relu,
    reshape,
    scale,
)
from .windows import Window, paste
