"""Training: the paper's recipe, its loop, and what a run leaves.

Read `recipe` (the numbers), `fit` (the loop) and `trainer` (one step) first. `plan` checks that network, data and
recipe fit, `network` makes the untrained network, `data` feeds it, `evaluate` measures it, and `run` is what is left.
"""

from __future__ import annotations

from .data import Geometry, centre_crop, crops_of, generator, ten_crops
from .evaluate import Accuracy, evaluate
from .fit import Watched, fit, make_fabric
from .plan import TrainingPlan
from .recipe import RECIPES, Recipe
from .run import Run
from .trainer import Trainer, clip_rms, dominance

__all__ = [
    "RECIPES", "Accuracy", "Geometry", "Recipe", "Run", "Trainer", "TrainingPlan", "Watched", "centre_crop",
    "clip_rms", "crops_of", "dominance", "evaluate", "fit", "generator", "make_fabric", "ten_crops",
]  # fmt: skip
