"""The deconvnet. Read `project` (the two passes), then `rules` (what each operation does on the way back).

`generic` is the way back through operations that have no rule of their own. `receptive_field` says what part of the
picture a unit sees; `windows` carries only that part back, which is quicker and gives the same. `stages` keeps what
flows there and back in between.
"""

from .project import Deconvnet, Tape, WholeMaps, by_gradient, forward, project, refusals, way_back
from .receptive_field import (
    Box,
    Field,
    Interval,
    extents,
    field_in,
    fits_inside,
    receptive_field,
    units_inside,
)
from .rules import RULES, Context, Norm, OperationRule, Options, Rule, Seed, register_rule
from .stages import Stage, stages
from .windows import Window, Windows, paste

__all__ = [
    "RULES", "Box", "Context", "Deconvnet", "Field", "Interval", "Norm", "OperationRule", "Options", "Rule", "Seed",
    "Stage", "Tape", "WholeMaps", "Window", "Windows", "by_gradient", "extents", "field_in", "fits_inside", "forward",
    "paste", "project", "receptive_field", "refusals", "register_rule", "stages", "units_inside", "way_back",
]  # fmt: skip
