"""The paper's recipe for training (section 3), as numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ..errors import TrainingError, unknown


def _why(default: Any, reason: str) -> Any:
    """A field of the recipe with its reason and source."""
    return field(default=default, metadata={"why": reason})


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the paper's (section 3) wherever it says. `Recipe.table()` gives reasons."""

    epochs: int = _why(70, "the paper's, on 1.3 million pictures")
    batch_size: int = _why(128, "the paper's; over all processes together")
    lr: float = _why(1e-2, "the paper's")
    momentum: float = _why(0.9, "the paper's")
    weight_decay: float = _why(5e-4, "unstated in the paper; Krizhevsky's. On weights, not on biases")
    dropout: float = _why(0.5, "the paper's, on fc6 and fc7")
    rms_clip: float | None = _why(
        0.1, "the paper's: a conv filter of larger RMS is scaled back; None: Fig. 6a"
    )
    init: Literal["paper", "he"] = _why(
        "paper",
        "N(0, 0.01^2), biases 0: read out of 'initialized to 10^-2'. In a network narrower than the paper's, 0.01 "
        "times the root of how many times fewer inputs a layer has, so that signals fade no faster than in the "
        "wide one. 'he': N(0, 2 / inputs)",
    )
    inputs: Literal["mean", "std"] = _why(
        "mean", "RGB 0-255 minus its mean, about +-128, as in the paper; 'std': then divided by its std"
    )
    lr_factor: float = _why(
        0.1, "the paper lowers lr by hand when validation error plateaus; x0.1 is Krizhevsky's"
    )
    patience: int = _why(3, "epochs without progress before lr falls: our reading of 'plateaus'")
    progress: float = _why(0.005, "progress is validation error lower by this share (0.5 percentage points)")
    shift: int | None = _why(
        None, "pixels a crop may hang over; None: 6 of 64 where pictures are as large as the input, else 0"
    )
    brightness: float | None = _why(
        None,
        "up to this factor brighter or darker; None: 0.2 where pictures are as large as the input, else 0",
    )
    snapshots: tuple[int, ...] = _why(
        (0, 1, 2, 5, 10, 20, 30, 40, 64), "Fig. 4's epochs, and before training; the last is always kept"
    )
    seed: int = _why(0, "of weights, order, crops and dropout")
    flat_epochs: int = _why(
        3, "epochs at the loss of guessing before training stops with a diagnosis; 0: never"
    )
    flat_steps: int = _why(3000, "and at least so many steps: the paper's start is slow")

    def __post_init__(self) -> None:
        for name, low, high in _LIMITS:
            value = getattr(self, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            if value is None or not low <= value <= high:
                raise TrainingError(f"{name} must lie between {low} and {high}, not be {value!r}")
        for name, allowed in (("init", ("paper", "he")), ("inputs", ("mean", "std"))):
            if getattr(self, name) not in allowed:
                raise TrainingError(unknown(name, getattr(self, name), allowed))

    @classmethod
    def table(cls) -> Any:
        """Data frame of every setting: default, and reason with source."""
        import pandas as pd

        rows = [{"setting": f.name, "default": f.default, "why": f.metadata["why"]} for f in fields(cls)]
        return pd.DataFrame(rows).set_index("setting")


_LIMITS = (
    ("epochs", 1, 10_000), ("batch_size", 1, 1_000_000), ("lr", 0, 1e3), ("momentum", 0, 1), ("weight_decay", 0, 1),
    ("dropout", 0, 0.99), ("rms_clip", 1e-9, 1e9), ("lr_factor", 1e-6, 1), ("patience", 0, 10_000),
    ("progress", 0, 1), ("shift", 0, 10_000), ("brightness", 0, 1), ("flat_epochs", 0, 10_000),
    ("flat_steps", 0, 1_000_000_000), ("seed", 0, 2**63 - 1),
)  # fmt: skip


_MAY_BE_NONE = ("rms_clip", "shift", "brightness")


RECIPES = {
    "paper": Recipe(),
    "he": Recipe(init="he", inputs="std"),  # what one would do today: starts at any input scale
}
