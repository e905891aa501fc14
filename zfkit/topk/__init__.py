"""The strongest activations of every feature map, and what the deconvnet makes of them.

Read `table` (what is found), `running` (how it is found as pictures go by), `mine` (the pass over the pictures: here,
in several processes or on a cluster), `estimate` (how long that takes), `bundled` (tables and records that ship),
then `patches` (projections beside pictures).
"""

from .bundled import mined, reach, reached, records
from .estimate import Estimate, estimate_mining
from .mine import MiningPlan, mine, mine_part
from .patches import (
    FORWARD_PIXELS,
    GREY,
    REVERSE_BYTES,
    Crop,
    Patches,
    Units,
    cut_top,
    cut_windows,
    project_many,
    project_top,
    project_units,
    sample_maps,
)
from .profile import activations
from .running import RunningTop
from .table import FORMAT, LayerTop, TopK, expect_both

__all__ = [
    "FORMAT", "FORWARD_PIXELS", "GREY", "REVERSE_BYTES", "Crop", "Estimate", "LayerTop", "MiningPlan", "Patches",
    "RunningTop", "TopK", "Units", "activations", "cut_top", "cut_windows", "estimate_mining", "expect_both", "mine",
    "mine_part", "mined", "project_many", "project_top", "project_units", "reach", "reached", "records", "sample_maps",
]  # fmt: skip
