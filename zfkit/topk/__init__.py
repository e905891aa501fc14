"""..."""

from __future__ import annotations

from .mine import (
    Estimate,
    duration,
    estimate_mining,
    mine,
    mine_share,
    size_of,
    state_of,
)
from .patches import (
    FORWARD_PIXELS,
    GREY,
    REVERSE_BYTES,
    Crop,
    Patches,
    Projected,
    Tapes,
    project_many,
    project_top,
    sample_maps,
)
from .table import FORMAT, UNKNOWN, LayerTop, TopK, expect_both
