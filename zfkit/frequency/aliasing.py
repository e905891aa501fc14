"""What subsampling does to a signal, measured: aliasing, gratings, and consistency under shifts.

A map that is read at every s-th place can hold frequencies up to 1 / (2s) cycles per place of the map it is read
from. What lies above does not vanish: it arrives at a lower frequency, where it looks like something that is
not in the picture (Nyquist 1928, Shannon 1949). Zeiler & Fergus (section 4.1) saw this in AlexNet's second
layer and blamed the stride of 4. Here it is measured in three ways:

- `measure_aliasing`: run a layer with stride 1, split its response at the new limit, subsample both parts;
- `grating_response`: show drifting gratings, and see at which frequency the answer arrives;
- `shift_consistency`: move the picture by single pixels, and see how features and classes change (Azulay &
  Weiss 2018, arXiv 1805.12177; Zhang 2019, arXiv 1904.11486).

The remedy, `BlurPool`, is an option of the networks (``Architecture(blur=3)``).

Frequencies are in cycles per pixel, and orientation is the direction in which a grating varies, in degrees
from the x axis (to the right) towards the y axis (down): 0 for upright stripes, 90 for level ones.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..batching import Portions, steps
from ..checks import pair
from ..deconv.receptive_field import POINTWISE, filters
from ..errors import LayerError, ZfkitError
from ..images.imageset import as_set
from ..nets.graph import Step
from ..nets.model import VisionModel, expect_model
from ..nets.paper import BlurPool
from ..results import Result
from .intervals import bootstrap_sums, interval
from .plane import hann, mean_frequency

if TYPE_CHECKING:
    import pandas as pd

_SUBSAMPLING = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | BlurPool


def subsampling_layers(model: VisionModel) -> dict[str, tuple[int, int]]:
    """Layers that read their input at every s-th place only, with s along rows and columns."""
    modules = {name: model.network.steps[name].module for name in expect_model(model).layers}
    return {
        name: pair(module.stride)
        for name, module in modules.items()
        if isinstance(module, _SUBSAMPLING) and pair(module.stride) != (1, 1)
    }


@dataclass(frozen=True)
class _Subsampler:
    """A layer that subsamples, and what follows it place by place up to the layer that was asked for."""

    step: Step
    then: tuple[Step, ...]
    stride: tuple[int, int]

    @classmethod
    def of(cls, model: VisionModel, layer: str) -> _Subsampler:
        step, then = model.network.find(layer), []
        known = subsampling_layers(model)
        while step.name not in known:
            if len(step.inputs) != 1 or filters(step) != (POINTWISE, POINTWISE):
                raise LayerError(
                    f"{layer!r} does not subsample, so no frequency is lost there; layers of {model.name} that do: "
                    + (", ".join(f"{n} (stride {max(s)})" for n, s in known.items()) or "none")
                )
            then.append(step)
            step = model.network.steps[step.inputs[0]]
        return cls(step, tuple(reversed(then)), known[step.name])

    def dense(self, model: VisionModel, x: Tensor) -> Tensor:
        """What the layer would give at every place: the same with stride 1; (N, C, h, w)."""
        before = self.step.inputs[0]
        if before != model.network.input:
            *_, (_, _, x) = model.network.walk(x, [before])
        module = copy.copy(self.step.module)  # shares its weights
        assert module is not None
        module.stride = (1, 1) if isinstance(module, nn.Conv2d) else 1  # type: ignore[assignment]
        y = module(x)
        for step in self.then:
            y = step.run(y)
        return y


@dataclass(frozen=True, eq=False)
class Aliasing(Result, figure="aliasing_figure"):
    """How much of what a layer hands on lies at frequencies that are not those of its input.

    Attributes:
        model, layer: whose.
        stride: along rows and columns, of the layer's own input.
        kept: (C,) float64, energy (mean square about the mean of the map, activation^2) that stays at its own
            frequency when filter c's stride-1 response is subsampled.
        folded: (C,) float64, energy that arrives at wrong frequencies.
        by_picture: (N, 2) float64, kept and folded energy of each picture, over all filters.
        frequency: (C,) float64, mean frequency of filter c, in cycles per place of what it reads; NaN for pools.
    """

    model: str
    layer: str
    stride: tuple[int, int]
    kept: Tensor
    folded: Tensor
    by_picture: Tensor
    frequency: Tensor

    @property
    def share(self) -> Tensor:
        """(C,) folded / (kept + folded), 0 to 1; NaN for filters that do not answer."""
        return self.folded / (self.kept + self.folded)

    @property
    def layer_share(self) -> float:
        """Share of the whole layer's energy, 0 to 1: strong filters count more."""
        return float(self.folded.sum() / (self.kept.sum() + self.folded.sum()))

    def interval(self, level: float = 0.95, random_seed: int = 0) -> tuple[float, float]:
        """Interval of `layer_share`: bootstrap over pictures, 2000 draws."""
        sums = bootstrap_sums(self.by_picture, random_seed)  # (draws, 2)
        low, high = interval(sums[:, 1] / sums.sum(1), level).tolist()
        return low, high

    def table(self) -> pd.DataFrame:
        """One row per filter: channel, kept and folded energy, share."""
        import pandas as pd

        columns = {"kept": self.kept, "folded": self.folded, "share": self.share}
        return pd.DataFrame({"channel": range(len(self.kept)), **columns})


@torch.no_grad()
def measure_aliasing(model: VisionModel, images: Any, layer: str, *, progress: bool = True) -> Aliasing:
    """Energy that lands on wrong frequencies where `layer` subsamples, on these pictures, per filter.

    The layer is run with stride 1. Its response, minus its mean and under a Hann window, so that the picture's
    edges count for nothing, is split by the Fourier transform at the limit of the subsampled grid:

        low: max(|fx| sx, |fy| sy) <= 1/2,   high: the rest,
        share = E|high[::s]|^2 / (E|low[::s]|^2 + E|high[::s]|^2).

    The subsampled response is low[::s] + high[::s]. The first is what ideal sampling would give; all of the
    second lies at frequencies that are not its own (`fold`). Convolutions (grouped and dilated, too), max- and
    average pools and `BlurPool`, of any kernel, are all measured so; 1x1 kernels filter nothing and fold most.

    Args:
        images: a set, or what `ImageSet.of` makes one of. The larger the maps, the sharper the split: 224 px
            rather than 64.
        layer: one that subsamples (`subsampling_layers`), or a ReLU or norm behind it ("relu1"), to measure
            what comes out of that.

    Raises LayerError for a layer that does not subsample; ZfkitError where maps have fewer than eight places
    in the subsampled grid.
    """
    expect_model(model)
    source = _Subsampler.of(model, layer)
    sh, sw = source.stride
    images = as_set(images, model.input_size, progress)
    if not len(images):
        raise ZfkitError("there are no pictures to measure with")
    pictures = images.take([0])
    dense = source.dense(model, model.preprocess(pictures))
    h, w = dense.shape[2:]
    if h < 8 * sh or w < 8 * sw:
        raise ZfkitError(
            f"pictures of {pictures.shape[3]} x {pictures.shape[2]} px leave {w} x {h} places at {layer!r} "
            f"before it subsamples; take larger ones, for at least {8 * sw} x {8 * sh}"
        )
    window = hann(h, w, like=dense)
    what = f"aliasing at {layer}"
    portions = Portions(what, max(1, min(64, 2**23 // dense.numel())))
    total, by_picture = torch.zeros(dense.shape[1], 2, dtype=torch.float64), []
    with steps(len(images), what, progress=progress) as done:
        for part in portions.of(len(images)):
            with portions.attempt():
                pictures = images.take(range(len(images))[part])
                r = source.dense(model, model.preprocess(pictures))
                r = (r - (r * window).sum((2, 3), keepdim=True) / window.sum()) * window
                halves = [half[:, :, ::sh, ::sw].double() for half in _split(r, source.stride)]
                energy = torch.stack([half.square().sum((2, 3)) for half in halves], 2).cpu()  # (n, C, 2)
                total += energy.sum(0)
                by_picture.append(energy.sum(1))
                done(len(r))
    # Means of squares, of all pictures: the window counts each place by its own square.
    kept, folded = total.T / (len(images) * float((window[::sh, ::sw].double() ** 2).sum()))
    frequency, module = torch.full_like(kept, torch.nan), source.step.module
    if isinstance(module, nn.Conv2d):
        frequency = mean_frequency(module.weight.detach().cpu()).double()
    return Aliasing(model.name, layer, source.stride, kept, folded, torch.cat(by_picture), frequency)


def _split(r: Tensor, stride: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Maps (N, C, h, w) as the sum of what a grid with this stride can hold and what it cannot."""
    h, w = r.shape[2:]
    rows = torch.fft.fftfreq(h, dtype=torch.float64).abs() * stride[0] <= 0.5 + 1e-9
    columns = torch.fft.rfftfreq(w, dtype=torch.float64) * stride[1] <= 0.5 + 1e-9
    keep = (rows[:, None] & columns).to(r.device)
    low = torch.fft.irfft2(torch.fft.rfft2(r) * keep, s=(h, w))
    return low, r - low
