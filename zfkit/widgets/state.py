"""What the explorer shows, as one small value: `State`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, get_args

from ..checks import number, one_of, whole_number, whole_numbers
from ..deconv.rules import Rule
from ..errors import ZfkitError

TABS = {"maps": "Maps", "image": "Your own image", "compare": "Compare"}
RULES = get_args(Rule)
ORDERS = ("index", "max activation", "selectivity", "mean frequency", "dead first")
GAINS = (0.25, 8.0)
METHODS = "methods"


@dataclass(frozen=True)
class State:
    """One view of the explorer. Every field may be given to `zfkit.explore` and to `Explorer.set`.

    Attributes:
        layer: one of those that were mined; "" for the first of them.
        channel: feature map, from 0.
        rank: which of its strongest pictures is shown large; 0 is the strongest.
        position: (row, col) of the unit to project in that picture; None for the one found by `mine`.
        tab: "maps", "image" (your own) or "compare".
        rule: of the projections: "deconvnet", "guided" or "gradient".
        gain: full colour is reached at the 99.5th percentile of |values| divided by this; 0.25 to 8.
        order: of the maps on the slider: "index", "max activation", "selectivity", "mean frequency" or
            "dead first".
        search: part of the name of a class or photograph: only maps with it among their strongest pictures.
        image: path of a picture of your own; "" for none.
        versus: what the third tab compares: "methods", or the name of another model.
    """

    layer: str = ""
    channel: int = 0
    rank: int = 0
    position: tuple[int, int] | None = None
    tab: str = "maps"
    rule: Rule = "deconvnet"
    gain: float = 1.0
    order: str = "index"
    search: str = ""
    image: str = ""
    versus: str = METHODS

    def __post_init__(self) -> None:
        for name, choices in (("tab", TABS), ("rule", RULES), ("order", ORDERS)):
            one_of(getattr(self, name), name, choices)
        for name in ("channel", "rank"):
            whole_number(getattr(self, name), name, 0)
        number(self.gain, "gain", *GAINS)
        for name in ("layer", "search", "image", "versus"):
            if not isinstance(getattr(self, name), str):
                raise ZfkitError(f"{name} must be text, not {getattr(self, name)!r}")
        if self.position is not None:
            place = whole_numbers(self.position)
            if place is None or place.shape != (2,) or int(place.min()) < 0:
                raise ZfkitError(f"position must be (row, column) from 0 on, or None, not {self.position!r}")
            object.__setattr__(
                self, "position", tuple(place.tolist())
            )  # a list, say, from papermill's parameters

    def changes(self) -> dict[str, Any]:
        """The fields that differ from a fresh view."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
