"""..."""

from __future__ import annotations

from .data import (  # noqa: F401
    BLOCKS_MIXED,
    Draws,
    Feed,
    Geometry,
    Resident,
    Streamed,
    augment,
    centre_crop,
    draw,
    generator,
    ten_crops,
)
from .evaluate import Accuracy, evaluate  # noqa: F401
from .fit import Trainer, Watched, clip_rms, crops_of, dominance, fit  # noqa: F401
from .layers import ContrastNorm, Dropout  # noqa: F401
from .recipe import RECIPES, Recipe  # noqa: F401
from .run import KEY, PREVIOUS, SNAPSHOT, STATE, Run, State  # noqa: F401
