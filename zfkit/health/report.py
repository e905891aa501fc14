"""What can be wrong, from which number on it is, and the report that says so."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from PIL import Image
from torch import Tensor

from ..checks import Size, in_px
from ..errors import ZfkitError
from ..results import Result

if TYPE_CHECKING:
    import pandas as pd

Severity = Literal["note", "warning", "fault"]


class Fault(NamedTuple):
    """Something that can be wrong: what is measured, what mends it, and where the paper speaks of it."""

    measure: str
    remedy: str
    paper: str


SECTION_3 = "section 3, training details"
FIG_6A = "section 3 and Fig. 6a: a few first-layer filters dominate"
FIG_6BC = "section 4.1, Fig. 6b and c: dead and indistinct features of the first layer"
SECTION_41 = "section 4.1: high and low frequencies without the middle, and aliasing from stride 4"
BEYOND = "not in the paper"

FAULTS = {
    "not finite": Fault(
        "weights or activations that are no finite numbers",
        "go back to the last snapshot without them and train on with a lower lr (a tenth)",
        BEYOND,
    ),
    "dead maps": Fault(
        "share of the layer's maps that are 0 on every picture",
        "lower the lr (a tenth), and start again from the last snapshot in which they lived: a dead ReLU has no "
        "gradient; for a first layer also smaller stride and kernel, as the paper did",
        FIG_6BC,
    ),
    "rarely active": Fault(
        "share of the layer's maps that are active on few of the pictures",
        "look at what excites them (`mine`, `project_top`): a map may be rare because what it stands for is; if "
        "there are many, a lower lr or fewer maps",
        FIG_6BC,
    ),
    "weak filters": Fault(
        "smallest ||w||_inf of a filter over the layer's largest",
        "less weight decay, another initialisation, or fewer maps: these do nothing and can be left out",
        FIG_6BC,
    ),
    "one filter dominates": Fault(
        "largest RMS of a filter over the layer's median",
        "clip each filter's RMS during training (Recipe(rms_clip=0.1)), or divide this one by the number",
        FIG_6A,
    ),
    "duplicates": Fault(
        "largest cosine of two filters, or correlation of two maps",
        "fewer maps, more dropout or weight decay, or other random numbers at the start: the copies add nothing",
        FIG_6BC,
    ),
    "filters all alike": Fault(
        "share of the layer's filters that are copies of others",
        "start from random weights, N(0, 0.01^2) with inputs of +-128, or He's: equal filters get equal gradients "
        "and stay equal for ever",
        f"{SECTION_3}: weights start at 10^-2, which has to be the spread of random numbers",
    ),
    "extreme frequencies": Fault(
        "share of first-layer filters with nearly all energy below 1/12 or above 1/3 cycles/px",
        "a smaller kernel (7x7 for 11x11) and a smaller stride (2 for 4); check that no preprocessing sharpens",
        SECTION_41,
    ),
    "middle band missing": Fault(
        "share of the band from 1/12 to 1/3 cycles/px that some first-layer filter is tuned to",
        "a smaller kernel (7x7 for 11x11) and a smaller stride (2 for 4); check the data for the band",
        SECTION_41,
    ),
    "aliasing": Fault(
        "share of the layer's output energy at frequencies that its stride folds onto lower ones",
        "a smaller stride (2 for 4), or a low-pass before subsampling: Architecture(blur=3)",
        SECTION_41,
    ),
    "exploding activations": Fault(
        "spread of the layer's activations over pictures, as a multiple of the input's",
        "lower the lr, clip the filters' RMS, or start from smaller weights",
        FIG_6A,
    ),
    "saturated": Fault(
        "share of the layer's activations at the end of their range",
        "smaller weights or inputs before it, or batch normalisation",
        BEYOND,
    ),
    "input has no effect": Fault(
        "how far pictures move the layer's output",
        "train it, if it is untrained; if that did not help, feed RGB minus its mean *without* dividing by a "
        "standard deviation when weights start at N(0, 0.01^2), or start from He's",
        f"{SECTION_3}: inputs of +-128 and weights of 10^-2 belong together",
    ),
    "no learning signal": Fault(
        "smallest change that one step of SGD (lr 0.01) makes to a layer, relative to its weights",
        "larger inputs (RGB minus its mean, in +-128, not divided by a standard deviation), or He's initialisation",
        f"{SECTION_3}: inputs of +-128 and weights of 10^-2 belong together",
    ),
    "one class for most": Fault(
        "share of the pictures that get the same class, above what is to be expected",
        "balance the classes of the training data or their loss; check the labels; if the share is 100%, look for "
        "the finding that says where the input is lost",
        BEYOND,
    ),
    "sure of blank pictures": Fault(
        "largest probability of a class on a picture of one colour",
        "remember it when reading occlusion maps; add blank pictures, or a class for them, to the training data",
        "section 4.2, Fig. 7: a grey square covers parts of the picture",
    ),
    "colour order": Fault(
        "by how many standard errors the network prefers its pictures with colours in another order",
        "reverse the order: flip conv1's input channels, or feed BGR",
        BEYOND,
    ),
    "filters look like noise": Fault(
        "mean orientation selectivity of the first layer's filters",
        "train longer; on little data or with a short training, expect no better",
        "section 4.1, Fig. 6: what trained first layers look like",
    ),
}

# Of these the alarm begins where the number is too low, of all others where it is too high.
BELOW = {
    "weak filters", "middle band missing", "filters look like noise", "input has no effect", "no learning signal",
}  # fmt: skip
COLOURS = {"fault": "#D55E00", "warning": "#E69F00", "note": "#56B4E9"}  # Okabe & Ito's, as in figures


def _why(default: float, reason: str) -> Any:
    """A threshold with its reason and source."""
    return field(default=default, metadata={"why": reason})


# Of the last group of reasons: the networks that were measured, with the highest or lowest healthy value.
@dataclass(frozen=True)
class Thresholds:
    """Where a number becomes a finding. `Thresholds.table()` gives the reasons and sources.

    >>> diagnose(model, photos, thresholds=Thresholds(dominance=5))
    """

    dead: float = _why(
        0.25,
        "of maps; below it a note. Too high an lr kills 40% and more (Karpathy, CS231n); networks that learn well "
        "have none (zfnet64) to 23% (24 to 64 maps wide, He's initialisation, lr 0.02)",
    )
    rare: float = _why(0.25, "of maps, as for dead ones; below it a note")
    rare_pictures: float = _why(0.01, "share of pictures; a hundredth of what a map sees is worth a look")
    weak: float = _why(0.01, "1% of the layer's largest ||w||_inf; the bundled pair's weakest have 2%")
    dominance: float = _why(3.0, "the bundled pair, with the paper's clip, reach 2.5 (alexnet64 conv2)")
    cosine: float = _why(0.95, "of two filters; the bundled pair reach 0.92 (alexnet64 conv1)")
    correlation: float = _why(0.995, "of two maps over pictures and places; zfnet64 reaches 0.991 (conv1)")
    alike: float = _why(0.5, "share of filters that are copies: no training makes half a layer equal")
    band_share: float = _why(0.8, "of a filter's energy in one band: white filters have 0.65 in the highest")
    extreme: float = _why(1 / 3, "share of such filters; zfnet64 has 0.15, alexnet64 0.19")
    mid_coverage: float = _why(0.8, "of the band's area; zfnet64 has 0.93, alexnet64 0.64, white filters 1")
    mid_share: float = _why(0.5, "and of the energy, of which few filters cover little; 0.56 and 0.48")
    aliasing: float = _why(0.15, "of energy; photographs 0.06 to 0.13 at stride 2, 0.17 to 0.23 at stride 4")
    aliasable: float = _why(0.5, "and of the filters' own power, or the pictures are to blame; 0.40 and 0.56")
    exploding: float = _why(100.0, "times the input's spread (trained layers: 0.02 to 2); nats, for classes")
    saturated: float = _why(0.5, "of activations: where most are at the end, the layer has become binary")
    dependence: float = _why(0.01, "spread over pictures, over RMS; trained layers give 0.3 to 1")
    logits: float = _why(0.1, "nats; the bundled pair's move by 2 to 3, an untrained network's by 0.001")
    learning: float = _why(
        2.5e-6,
        "N(0, 0.01^2): from 2e-5 training starts (zfnet64), at 6e-7 (24 to 64 maps wide) and at 3e-7 (inputs divided "
        "by their standard deviation) it does not",
    )
    one_class: float = _why(0.5, "of pictures beyond the class's own share: a coin would be as good")
    blank: float = _why(0.5, "probability; the bundled pair give 0.17 at most")
    colour: float = _why(5.0, "standard errors: under 1 in 10^6 by chance, with five other orders")

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ZfkitError(f"threshold {f.name} must be a number from 0 on, not {value!r}")

    @classmethod
    def table(cls) -> pd.DataFrame:
        """Data frame of every threshold: default, and reason with source."""
        import pandas as pd

        rows = [{"threshold": f.name, "default": f.default, "why": f.metadata["why"]} for f in fields(cls)]
        return pd.DataFrame(rows).set_index("threshold")

    @classmethod
    def source(cls, name: str) -> str:
        """Reason and source of one threshold."""
        return str(cls.__dataclass_fields__[name].metadata["why"])


DEFAULTS = Thresholds()


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        fault: its name, a key of `FAULTS`.
        severity: "fault" (the network cannot do its work), "warning" (it does, and could do better), or "note"
            (worth knowing; nothing need be done).
        layer: its name; "" for the network as a whole.
        number, threshold: what was measured, and where the alarm begins. `measure` says what it is.
        told: one sentence about this case.
        channels: the maps concerned, worst first; empty where it is not about single maps.
        source: where the threshold comes from.
        pictures: uint8 (n, 3, S, S): some of these maps. In a first layer the filters; elsewhere the picture
            that excites the map most, lit where the map is active.
        advice: a remedy for this network, where the general one does not fit it.
    """

    fault: str
    severity: Severity
    layer: str
    number: float
    threshold: float
    told: str
    channels: tuple[int, ...] = ()
    source: str = ""
    pictures: Tensor | None = field(default=None, repr=False, compare=False)
    advice: str = ""

    @property
    def measure(self) -> str:
        """What the number is."""
        return FAULTS[self.fault].measure

    @property
    def limit(self) -> str:
        """From where on the number is an alarm: "↑ 3" from 3 up, "↓ 0.8" below 0.8."""
        return f"{'↓' if self.fault in BELOW else '↑'} {self.threshold:.3g}"

    @property
    def remedy(self) -> str:
        """What to do."""
        return self.advice or FAULTS[self.fault].remedy

    @property
    def paper(self) -> str:
        """The part of Zeiler & Fergus 2013 that it goes back to."""
        return FAULTS[self.fault].paper

    def __str__(self) -> str:
        place = f"{self.layer}: " if self.layer else ""
        return f"{place}{self.fault}. {self.told}"


@dataclass(frozen=True)
class Report(Result, figure="report_figure"):
    """What `diagnose` found. Print it, or leave it at the end of a cell; `report_figure` makes a page of it.

    Attributes:
        model, images: their names.
        count: pictures looked at. side: their side in pixels, or height and width.
        findings: worst first, then in the order of layers.
        layers: data frame by layer, of all that was measured, healthy or not; see `layer_table`.
        remarks: what could not be looked at, or not be decided, and why.
        thresholds: that were used.
        verdict: the cause that explains most of the findings, in a sentence; "" where there is none. It comes first
            when the report is printed.
    """

    model: str
    images: str
    count: int
    side: Size
    findings: tuple[Finding, ...]
    layers: pd.DataFrame = field(repr=False)
    remarks: tuple[str, ...] = ()
    thresholds: Thresholds = field(default=DEFAULTS, repr=False)
    verdict: str = ""

    @property
    def alarms(self) -> tuple[Finding, ...]:
        """The findings that call for something to be done: faults and warnings, without notes."""
        return tuple(f for f in self.findings if f.severity != "note")

    @property
    def healthy(self) -> bool:
        """No alarm?"""
        return not self.alarms

    def find(self, fault: str, layer: str | None = None) -> tuple[Finding, ...]:
        """The findings of that name, in one layer or anywhere. Raises ZfkitError for a fault not looked for."""
        if fault not in FAULTS:
            raise ZfkitError(f"nothing is called {fault!r}; diagnose looks for: {', '.join(FAULTS)}")
        return tuple(f for f in self.findings if f.fault == fault and layer in (None, f.layer))

    def table(self) -> pd.DataFrame:
        """Data frame, a row for each finding: severity, layer, fault, number, threshold, maps, and the texts."""
        import pandas as pd

        names = "severity layer fault number threshold told measure source remedy paper".split()
        rows = [{n: getattr(f, n) for n in names} | {"channels": f.channels} for f in self.findings]
        columns = [*names[:5], "channels", *names[5:]]
        return pd.DataFrame(rows, columns=columns)

    @property
    def title(self) -> str:
        """One line: the network, the pictures, how many alarms."""
        alarms, notes = len(self.alarms), len(self.findings) - len(self.alarms)
        told = f"{alarms} alarm{'s' * (alarms != 1)}" if alarms else "no alarm"
        told += f", {notes} note{'s' * (notes != 1)}" if notes else ""
        return f"{self.model} on {self.count} pictures of {self.images!r} ({in_px(self.side)}): {told}"

    def __str__(self) -> str:
        lines = [_wrap(self.verdict)] * bool(self.verdict) + [self.title]
        if self.layers["reach"].notna().any():  # the bundled networks
            shares = ", ".join(f"{name} {r:.0%}" for name, r in self.layers["reach"].dropna().items())
            lines.append(_wrap(f"maps reach, of their records on their network's kind of pictures: {shares}"))
        for f, others in self._kinds():
            alarm = f.severity != "note"
            also = f" Also in {len(others)} other layers: {', '.join(others)}." if others else ""
            lines += [""] * alarm + [_wrap(f"[{f.severity}] {f}{also}")]
            if alarm:
                told = f"number: {f.number:.3g}, {f.measure}; alarm at {f.threshold:.3g} ({f.source})"
                lines += [_wrap(t, "    ") for t in (told, f"remedy: {f.remedy}", f"paper: {f.paper}")]
        lines += [_wrap(f"[not looked at] {remark}") for remark in self.remarks]
        return "\n".join(lines)

    __repr__ = __str__  # for a plain console

    def _kinds(self) -> list[tuple[Finding, list[str]]]:
        """The first finding of each kind, and in which other layers it was found."""
        kinds: dict[tuple[str, str], list[Finding]] = {}
        for f in self.findings:
            kinds.setdefault((f.severity, f.fault), []).append(f)
        return [(first, [f.layer for f in others]) for first, *others in kinds.values()]

    def _repr_html_(self) -> str:
        """A table of the findings, worst first, with pictures of the maps concerned, and one of the layers' numbers."""
        from jinja2 import Environment, PackageLoader

        numbers = self.layers.to_html(float_format="{:.3g}".format, na_rep="", border=0)
        pages = Environment(loader=PackageLoader("zfkit.health"), autoescape=True, trim_blocks=True)
        page = pages.get_template("report.html")
        return page.render(report=self, numbers=numbers, colours=COLOURS, pictures=_pictures)


def _pictures(finding: Finding) -> Iterator[tuple[str, int, str]]:
    """Up to eight of the maps concerned: each one's name, its side in px, and a PNG in base64."""
    shown = () if finding.pictures is None else finding.pictures[:8]
    for pixels, channel in zip_longest(shown, finding.channels[: len(shown)]):
        buffer = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG")
        name = "" if channel is None else f"map {channel}"
        yield name, pixels.shape[-1], base64.b64encode(buffer.getvalue()).decode()


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 110, initial_indent=indent, subsequent_indent=indent + "  ")
