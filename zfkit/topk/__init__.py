"""..."""

from __future__ import annotations

from .mine import (  # noqa: F401
    Estimate,
    duration,
    estimate_mining,
    mine,
    mine_share,
    size_of,
    state_of,
)
from .patches import (  # noqa: F401
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
from .table import FORMAT, UNKNOWN, LayerTop, TopK, expect_both  # noqa: F401
