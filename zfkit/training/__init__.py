"""..."""

from __future__ import annotations

from .data import (
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
from .evaluate import Accuracy, evaluate
from .fit import Trainer, Watched, clip_rms, crops_of, dominance, fit
from .layers import ContrastNorm, Dropout
from .recipe import RECIPES, Recipe
from .run import KEY, PREVIOUS, SNAPSHOT, STATE, Run, State
