"""The lattice that a stride leaves in the reconstructions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from ..checks import one_of
from ..errors import ZfkitError
from ..results import Result
from ..topk.patches import Patches
from .intervals import interval
from .plane import frequency_bins, hann
from .spectra import stride_pair

if TYPE_CHECKING:
    import pandas as pd

Of = Literal["energy", "pixels"]


@dataclass(frozen=True, eq=False)
class Lattice(Result, figure="lattice_figure"):
    """How much of a set of pictures repeats with the period of a stride; made by `lattice`.

    Attributes:
        of: "energy" or "pixels", what the spectrum is of.
        stride: period looked for, in pixels along rows and columns.
        name: for captions.
        count: pictures that were averaged.
        energy: (H, W) float64, mean over pictures of their squared pixels, each divided by its sum.
        power: (size, size) float64 spectrum; for "energy" 1 at frequency 0, for "pixels" it sums to 1.
        frequencies: (size,) float64 cycles per pixel, ascending from -1/2, of power's rows and columns alike.
        reach: cycles per pixel from a point to its neighbours, 2 / side: what a Hann window resolves.
        points: (n, 2) float64, the lattice's frequencies (u, v) in cycles per pixel, one of each pair +-(u, v).
        peak: (n,) power there. neighbours: (n,) mean power next to it.
        control: (m,) `ratio` for the same lattice, shifted to frequencies that are no multiples of 1/stride.
    """

    of: Of
    stride: tuple[int, int]
    name: str
    count: int
    energy: Tensor
    power: Tensor
    frequencies: Tensor
    reach: float
    points: Tensor
    peak: Tensor
    neighbours: Tensor
    control: Tensor

    def __repr__(self) -> str:
        low, high = self.interval()
        called = f"{self.name}: " if self.name else ""
        return (
            f"Lattice({called}peaks of the {self.of} every 1/{self.stride[0]} c/px are {self.ratio:.2g} times their "
            f"neighbours; at other frequencies {low:.2g} to {high:.2g})"
        )

    @property
    def ratio(self) -> float:
        """Power at the lattice's frequencies over the power next to them; about 1 where there is no lattice."""
        return float(self.peak.sum() / self.neighbours.sum())

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Between these two lies `level` of the ratios at shifted frequencies."""
        low, high = interval(self.control, level).tolist()
        return low, high

    def table(self) -> pd.DataFrame:
        """Data frame, a row for each of the lattice's frequencies: u, v, power, neighbours, ratio; strongest first."""
        import pandas as pd

        u, v = self.points.T
        columns = {"u": u, "v": v, "power": self.peak, "neighbours": self.neighbours}
        table = pd.DataFrame({k: v.numpy() for k, v in columns.items()})
        table["ratio"] = table.power / table.neighbours
        return table.sort_values("power", ascending=False, ignore_index=True)


def lattice(
    pictures: Patches | Tensor, stride: int | tuple[int, int], *, of: Of = "energy", name: str = ""
) -> Lattice:
    """Look for artefacts that repeat every `stride` pixels, as peaks at multiples of 1/stride cycles per pixel.

    Where a layer with stride s is inverted, its maps are filled up with zeros to every s-th pixel before they are
    filtered: spectra repeat every 1/s (Oppenheim & Schafer, section 4.6), and filters that overlap unevenly leave
    a grid (Odena, Dumoulin & Olah 2016). Two spectra can be asked for:

    - "energy": of the mean over all pictures of their squared pixels. The grid lies at the same pixels in all of
      them (windows around units begin at multiples of the stride) and so adds up, while what the pictures show
      averages out. Its square root is the depth of the grid, relative to the mean.
    - "pixels": the mean of the pictures' own power spectra. It shows what the eye sees, but a *filter* tuned to
      such a frequency looks the same as a grid. It finds a chequerboard of plus and minus, which the energy,
      being a square, does not.

    Each picture counts the same, whatever its contrast; its mean is taken off, and a Hann window applied.
    Neighbours lie 2 / side cycles per pixel away, along the axis for points on an axis, along the diagonals for
    others. The control asks for the same ratio at the lattice's points shifted to all frequencies in between, at
    least as far from them; where a later layer has made a wider lattice, its peaks count into the control.

    Args:
        pictures: projections from `project_top`, or pixels (..., C, H, W) or (H, W), signed or not.
        stride: period in pixels: of the layer, times those before it.
        name: for captions; default: the layer of the projections.

    Raises ZfkitError for a stride of 1, and for pictures that are empty, not finite or less than 4 strides wide.

    >>> patches = zfkit.project_top(model, photos, top, "conv2")
    >>> zfkit.frequency.lattice(patches, stride=4).ratio
    """
    one_of(of, "kind of spectrum", get_args(Of))
    if isinstance(pictures, Patches):
        name, pictures = name or pictures.layer, pictures.projection
    periods = stride_pair(stride)
    if 1 in periods:
        raise ZfkitError("a stride of 1 leaves no lattice, every pixel being alike: take one of 2 or more")
    x = _of_equal_contrast(pictures, 4 * max(periods))
    height, width = x.shape[2:]
    energy = x.square().sum(1).mean(0)
    # All of the lattice's frequencies are bins. Small pictures are padded, so that peaks are drawn smoothly.
    step = math.lcm(2, *periods)
    side = max(height, width)
    size = step * math.ceil(max(side, min(4 * side, 256)) / step)
    window = hann(height, width, like=x)
    if of == "energy":
        power = torch.fft.fft2(energy * window, s=(size, size)).abs().square()
        power = power / power[0, 0]
    else:
        power = torch.zeros(size, size, dtype=torch.float64)
        for part in x.split(max(1, 2**24 // (x.shape[1] * size**2))):
            power += torch.fft.fft2(part * window, s=(size, size)).abs().square().sum((0, 1))
        power = power / power.sum()
    reach = math.ceil(2 * size / side)  # bins
    points = torch.cartesian_prod(*(torch.arange(0, size, size // s) for s in periods))[1:]
    opposite = -points % size
    first = points[:, 0] * size + points[:, 1] <= opposite[:, 0] * size + opposite[:, 1]
    points = points[first]  # (n, 2) bins, one of each pair
    shifts = range(reach, size // max(periods) - reach + 1)
    control = [_contrast(power, points, shift, reach) for shift in shifts]
    peak, neighbours = _contrast(power, points, 0, reach)
    return Lattice(
        of, periods, name, len(x), energy, torch.fft.fftshift(power), frequency_bins(size), reach / size,
        torch.where(points > size // 2, points - size, points).double() / size, peak, neighbours,
        torch.stack([p.sum() / n.sum() for p, n in control]),
    )  # fmt: skip


def _of_equal_contrast(pictures: Tensor, least: int) -> Tensor:
    """Pictures as (N, C, H, W) float64 without their means, each of energy 1; those of one colour are left out."""
    if not isinstance(pictures, Tensor) or pictures.dim() < 2 or not pictures.numel():
        got = tuple(pictures.shape) if isinstance(pictures, Tensor) else type(pictures).__name__
        raise ZfkitError(f"expected Patches, or pixels (..., C, H, W) or (H, W) as a tensor, got {got}")
    x = pictures.detach().to("cpu", torch.float64)
    x = x.reshape(-1, x.shape[-3] if x.dim() > 2 else 1, *x.shape[-2:])  # (N, C, H, W)
    height, width = x.shape[2:]
    if min(height, width) < least:
        raise ZfkitError(
            f"pictures of {height}x{width} px are too small for such a lattice; take at least {least} px, four periods"
        )
    if not torch.isfinite(x).all():
        raise ZfkitError("some pixels are not finite; check the network's weights and the pictures")
    x = x - x.mean((2, 3), keepdim=True)
    total = x.square().sum((1, 2, 3))
    x = x[total > 0] / total[total > 0].sqrt()[:, None, None, None]
    if not len(x):
        raise ZfkitError("every picture is of one colour throughout: take others, or other weights")
    return x


def _contrast(power: Tensor, points: Tensor, shift: int, reach: int) -> tuple[Tensor, Tensor]:
    """Power (n,) at these bins (n, 2), shifted, and the mean power beside them; on an axis, both along it."""
    direction = (points != 0).long()  # (1, 0) or (0, 1) on an axis, (1, 1) elsewhere
    mirrored = direction * torch.tensor([1, -1])
    shifted = points + shift * direction

    def at(bins: Tensor) -> Tensor:
        return power[bins[:, 0] % len(power), bins[:, 1] % len(power)]

    beside = [at(shifted + sign * reach * way) for way in (direction, mirrored) for sign in (1, -1)]
    return at(shifted), torch.stack(beside).mean(0)
