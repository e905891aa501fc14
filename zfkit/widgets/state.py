"""What the explorer shows, as one small value: `State`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args
from urllib.parse import parse_qsl, urlencode

from ..checks import number, one_of, whole_number, whole_numbers
from ..deconv.rules import Rule
from ..errors import ZfkitError, unknown
from ..figures.natural import Colours

TABS = {"maps": "Maps", "image": "Your picture", "compare": "Compare"}
RULES = get_args(Rule)
COLOURS = get_args(Colours)
ORDERS = ("index", "max activation", "selectivity", "mean frequency", "dead first", "your picture")
GAINS = (0.25, 8.0)
SHOWS = ("projections", "patches", "points")
METHODS = "methods"
# What stands in a link, and the field of `State` that it sets.
LINK = {
    "layer": "layer", "map": "channel", "tile": "rank", "place": "position", "tab": "tab", "rule": "rule",
    "colours": "colours", "contrast": "gain", "sort": "order", "find": "search", "all": "wall", "show": "show",
    "with": "versus",
}  # fmt: skip


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
        colours: of the projections: "signed", grey where they are 0, or "natural" (`figures.natural`).
        gain: contrast: full colour is reached at the 99.5th percentile of |values| divided by this; 0.25 to 8.
        order: of the maps: "index", "max activation", "selectivity", "mean frequency", "dead first", or "your picture",
            which is how strongly they answer to it.
        wall: all maps of the layer at once, in place of one.
        show: of them "projections" or "patches"; or "points", a map of all maps of all layers.
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
    colours: Colours = "signed"
    gain: float = 1.0
    order: str = "index"
    search: str = ""
    wall: bool = False
    show: str = "projections"
    image: str = ""
    versus: str = METHODS

    def __post_init__(self) -> None:
        for name, choices in (("tab", TABS), ("rule", RULES), ("colours", COLOURS), ("order", ORDERS)):
            one_of(getattr(self, name), name, choices)
        one_of(self.show, "show", SHOWS)
        for name in ("channel", "rank"):
            whole_number(getattr(self, name), name, 0)
        number(self.gain, "gain", *GAINS)
        for name in ("layer", "search", "image", "versus"):
            if not isinstance(getattr(self, name), str):
                raise ZfkitError(f"{name} must be text, not {getattr(self, name)!r}")
        if not isinstance(self.wall, bool):
            raise ZfkitError(f"wall must be True or False, not {self.wall!r}")
        if self.position is not None:
            place = whole_numbers(self.position)
            if place is None or place.shape != (2,) or int(place.min()) < 0:
                raise ZfkitError(f"position must be (row, column) from 0 on, or None, not {self.position!r}")
            object.__setattr__(self, "position", tuple(place.tolist()))  # of a list, say, from papermill

    def changes(self) -> dict[str, Any]:
        """The fields that differ from a fresh view."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    @property
    def link(self) -> str:
        """The view as the end of an address: "?layer=conv4&map=7&tile=3&rule=guided"; tiles count from 1."""
        changed = {f: v for f, v in self.changes().items() if f != "show" or self.wall}
        words = {"rank": self.rank + 1, "wall": 1, "position": "{},{}".format(*self.position or (0, 0))}
        return "?" + urlencode({name: words.get(f, changed[f]) for name, f in LINK.items() if f in changed})

    @staticmethod
    def link_in(query: str) -> str:
        """The part of an address's query that is a link of `link`, without the server's or a newsletter's words."""
        return "?" + urlencode([(name, value) for name, value in parse_qsl(query) if name in LINK])

    @classmethod
    def of_link(cls, text: str) -> Mapping[str, Any]:
        """The fields that a link sets. Raises ZfkitError for one that sets something else, or to no such value."""
        found: dict[str, Any] = {}
        for name, value in parse_qsl(text.rpartition("?")[2], keep_blank_values=True):
            if name not in LINK:
                raise ZfkitError(unknown("word in the link", name, list(LINK)))
            try:
                field = LINK[name]
                found[field] = (
                    int(value) - (field == "rank") if field in ("channel", "rank")
                    else float(value) if field == "gain"
                    else value == "1" if field == "wall"
                    else tuple(int(v) for v in value.split(",")) if field == "position"
                    else value
                )  # fmt: skip
            except ValueError:
                raise ZfkitError(f"the link says {name}={value}, which is no number") from None
        cls(**found)
        return found
