"""The paper's recipe for training (section 3), as numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ..checks import number, one_of, whole_number
from ..errors import TrainingError


def _setting(default: Any, why: str, *limits: Any) -> Any:
    """A field of the recipe: its reason or source, and its lowest and highest value, or the names it may have."""
    return field(default=default, metadata={"why": why, "limits": limits})


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the paper's (section 3) wherever it says. `Recipe.table()` gives reasons.

    Raises TrainingError for a setting outside its limits.
    """

    epochs: int = _setting(70, "the paper's, on 1.3 million pictures", 1, 10_000)
    batch_size: int = _setting(128, "the paper's; over all processes together", 1, 1_000_000)
    lr: float = _setting(1e-2, "the paper's", 0, 1e3)
    momentum: float = _setting(0.9, "the paper's", 0, 1)
    weight_decay: float = _setting(5e-4, "unstated in the paper; Krizhevsky's, on weights only", 0, 1)
    dropout: float = _setting(0.5, "the paper's, on fc6 and fc7", 0, 0.99)
    rms_clip: float | None = _setting(0.1, "the paper's, of a conv filter; None: Fig. 6a", 1e-9, 1e9)
    init: Literal["paper", "he"] = _setting(
        "paper",
        "N(0, 0.01^2), biases 0: read out of 'initialized to 10^-2'. In a network narrower than the paper's, 0.01 "
        "times the root of how many times fewer inputs a layer has, so that signals fade no faster than in the "
        "wide one. 'he': N(0, 2 / inputs)", "paper", "he",
    )  # fmt: skip
    inputs: Literal["mean", "std"] = _setting(
        "mean", "RGB 0-255 minus its mean, about +-128, as in the paper; 'std': then divided by its std", "mean", "std"
    )  # fmt: skip
    lr_factor: float = _setting(0.1, "the paper lowers lr by hand at plateaus; x0.1: Krizhevsky's", 1e-6, 1)
    patience: int = _setting(3, "epochs without progress before lr falls: how we read 'plateaus'", 0, 10_000)
    progress: float = _setting(0.005, "validation error lower by this share is progress (0.5 points)", 0, 1)
    shift: int | None = _setting(
        None, "pixels a crop may hang over; None: 6 of 64 where pictures are as large as the input, else 0", 0, 10_000
    )  # fmt: skip
    brightness: float | None = _setting(
        None, "up to this factor brighter or darker; None: 0.2 where pictures are as large as the input, else 0", 0, 1
    )  # fmt: skip
    snapshots: tuple[int, ...] = _setting((0, 1, 2, 5, 10, 20, 30, 40, 64), "Fig. 4's epochs, 0 and the last")
    random_seed: int = _setting(0, "of weights, order, crops and dropout", 0, 2**63 - 1)
    flat_epochs: int = _setting(3, "at the loss of guessing before training stops; 0: never", 0, 10_000)
    flat_steps: int = _setting(3000, "and at least so many steps: the paper's start is slow", 0, 10**9)

    def __post_init__(self) -> None:
        for f in fields(self):
            value, kind, limits = getattr(self, f.name), str(f.type), f.metadata["limits"]
            if not limits or (value is None and kind.endswith("None")):
                continue
            if kind.startswith("Literal"):
                one_of(value, f.name, limits, TrainingError)
            else:
                check = whole_number if kind.startswith("int") else number
                check(value, f.name, limits[0], limits[1], TrainingError)

    @classmethod
    def table(cls) -> Any:
        """Data frame of every setting: default, and reason with source."""
        import pandas as pd

        rows = [{"setting": f.name, "default": f.default, "why": f.metadata["why"]} for f in fields(cls)]
        return pd.DataFrame(rows).set_index("setting")


RECIPES = {
    "paper": Recipe(),
    "he": Recipe(init="he", inputs="std"),  # what one would do today: starts at any input scale
}
