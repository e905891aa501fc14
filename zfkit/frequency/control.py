"""Random filters of the same shape, to compare spectra with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from ..checks import between, one_of, whole_number
from ..errors import ZfkitError
from ..nets.model import VisionModel
from ..results import Result
from .intervals import interval
from .plane import SIZE, plane, power_of_autocorrelation
from .spectra import LINEAR, MEASURES, FilterSpectra, filter_spectra, take_part

if TYPE_CHECKING:
    import pandas as pd

ControlKind = Literal["normal", "shuffled"]


@dataclass(frozen=True, eq=False)
class RandomControl(Result, figure="radial_spectra"):
    """What filters that learned nothing give, beside what a layer has; made by `random_control`.

    Attributes:
        spectra: of the layer.
        kind: of the random filters, "normal" or "shuffled".
        random_seed: they were drawn with.
        level: of the intervals, 0.95 for 95 %.
        drawn: for each of `MEASURES`, (draws,): what each random layer gives.
        profiles: (draws, size // 2 + 1), each random layer's radial profile.
        expected: closed forms of the random layers' mean, for the measures that have one.
    """

    spectra: FilterSpectra
    kind: ControlKind
    random_seed: int
    level: float
    drawn: dict[str, Tensor]
    profiles: Tensor
    expected: dict[str, float]

    def __repr__(self) -> str:
        drawn = f"{len(self.profiles)} layers of {self.kind} filters, random_seed {self.random_seed}"
        return f"RandomControl({self.spectra.title}: {drawn})"

    def interval(self, measure: str) -> tuple[float, float]:
        """Between these two lie `level` of the random layers."""
        low, high = interval(self.drawn[one_of(measure, "measure", self.drawn)], self.level).tolist()
        return low, high

    def profile_interval(self) -> tuple[Tensor, Tensor]:
        """For each ring of `FilterSpectra.profile`, the two values between which `level` of the layers lie."""
        low, high = interval(self.profiles, self.level)
        return low, high

    def table(self) -> pd.DataFrame:
        """Data frame by measure: value of the layer, expected of random filters, low and high of the interval.

        `expected` is a closed form where there is one, the mean of the draws elsewhere; `outside` says whether
        the value lies outside the interval. NaN where the measure has no meaning for the layer.
        """
        import pandas as pd

        rows = {}
        for name, value in self.spectra.summary().items():
            low, high = self.interval(name)
            middle = self.expected.get(name, float(self.drawn[name].mean()))
            margin = 1e-9  # a 1x1 filter's interval is one number
            outside = value < low - margin or value > high + margin
            rows[name] = {"value": value, "expected": middle, "low": low, "high": high, "outside": outside}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("measure")


def random_control(
    spectra: FilterSpectra,
    *,
    kind: ControlKind = "normal",
    draws: int = 100,
    random_seed: int = 0,
    level: float = 0.95,
) -> RandomControl:
    """What as many filters of the same size would give if they had learned nothing.

    Args:
        kind: "normal": weights drawn from one normal distribution each by itself, as in an untrained layer. Their
            spectra, each divided by its sum, are flat on average: padding with zeros only smooths. So the mean
            of a band's share is the band's share of the plane, and that of luminance 1/3.
            "shuffled": each filter's own weights with its taps in random order, the same for all of its input
            channels: that keeps the weights, their sum (so the power at frequency 0) and the colours, and loses
            the arrangement.
        draws: random layers, each with as many filters as the layer has.
        random_seed: of the draws.
        level: share of the draws within the intervals.

    >>> zfkit.frequency.random_control(zfkit.filter_spectra("zfnet64")).table().round(2)
    """
    one_of(kind, "kind of control", get_args(ControlKind))
    whole_number(draws, "draws", low=2)  # an interval needs several
    between(level, "level")
    generator = torch.Generator().manual_seed(random_seed)
    weight = spectra.weight
    summaries, profiles = [], []
    for _ in range(draws):
        if kind == "normal":
            random = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        else:
            order = torch.rand(weight.shape[0], 1, weight[0, 0].numel(), generator=generator).argsort(-1)
            random = weight.flatten(2).gather(2, order.expand(-1, weight.shape[1], -1)).view_as(weight)
        layer = replace(spectra, weight=take_part(random, spectra.part))
        summaries.append(layer.summary())
        profiles.append(layer.profile())
    drawn = {name: torch.tensor([s[name] for s in summaries], dtype=torch.float64) for name in MEASURES}
    more = drawn, torch.stack(profiles), _expected(spectra, kind)
    return RandomControl(spectra, kind, random_seed, level, *more)


def _expected(spectra: FilterSpectra, kind: ControlKind) -> dict[str, float]:
    """Closed forms of the random layers' mean, of the measures that are linear in the spectra."""
    power = mean_power(spectra, kind)
    means = plane(spectra.size, spectra.stride).means(power / power.sum((1, 2), keepdim=True))
    means["centroid"] = means["rho"]
    expected = {name: float(means[name].nanmean()) for name in LINEAR if name != "luminance"}
    luminance = spectra.summary()["luminance"]  # which shuffled filters keep
    if kind == "normal" and spectra.sees == "colour":
        luminance = {"all": 1 / 3, "luminance": 1.0, "opponent": 0.0}[spectra.part]
    return expected | {"luminance": luminance}


def mean_power(spectra: FilterSpectra, kind: ControlKind) -> Tensor:
    """(C, size, size), the mean of the random filters' power spectra; of normal ones up to a factor."""
    weight = spectra.weight
    C, _, kh, kw = weight.shape
    r = weight.new_zeros(C, 2 * kh - 1, 2 * kw - 1)
    if kind == "shuffled" and kh * kw > 1:
        # Any two taps are equally likely at any displacement, so w(t) w(t + d) has the same mean for all d but 0.
        taps = kh * kw
        pairs = (weight.sum((2, 3)).square() - weight.square().sum((2, 3))).sum(1) / (taps * (taps - 1))
        overlap = [k - torch.arange(1 - k, k).abs() for k in (kh, kw)]  # taps that have a tap d further on
        r = pairs[:, None, None] * torch.outer(*overlap)
    r[:, kh - 1, kw - 1] = weight.square().sum((1, 2, 3)) if kind == "shuffled" else 1.0
    return power_of_autocorrelation(r, spectra.dilation, spectra.size)


def compare_spectra(
    models: Sequence[VisionModel | str | FilterSpectra],
    layer: str | None = None,
    *,
    kind: ControlKind = "normal",
    draws: int = 100,
    random_seed: int = 0,
    size: int = SIZE,
    weights: str | None = "DEFAULT",
) -> pd.DataFrame:
    """`RandomControl.table` of several networks as one data frame by (model, measure).

    Args:
        models: networks, names for `load_model`, or spectra.
        layer, size, weights: as for `filter_spectra`; the first convolution of each by default.
        kind, draws, random_seed: as for `random_control`.

    >>> zfkit.frequency.compare_spectra(["alexnet64", "zfnet64"])["value"].unstack("model").round(2)
    """
    import pandas as pd

    if isinstance(models, str | VisionModel | FilterSpectra):
        models = [models]
    if not models:
        raise ZfkitError("no model to compare; pass networks, their names or their spectra")
    tables = {}
    for model in models:
        spectra = model
        if not isinstance(spectra, FilterSpectra):
            spectra = filter_spectra(spectra, layer, size=size, weights=weights)
        if spectra.title in tables:
            raise ZfkitError(f"two of the models are called {spectra.title!r}; give them different names")
        control = random_control(spectra, kind=kind, draws=draws, random_seed=random_seed)
        tables[spectra.title] = control.table()
    return pd.concat(tables, names=["model"])
