"""Projections in the colours and the grain of photographs: for looking, never for measuring."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..frequency.plane import hann

if TYPE_CHECKING:
    from ..topk.patches import Patches

Colours = Literal["signed", "natural"]
AT_ONCE = 8  # pictures: their spectra stay in a CPU's caches
RIDGE = 1e-3  # of the mean power, so that colours which projections lack are not raised out of rounding
NOTE = (
    "For looking: colours and spectrum of the projections are brought to those of the patches, by which an untrained "
    "network's projections gain, too."
)


@dataclass(frozen=True)
class NaturalColours:
    """One linear map that gives a layer's projections the colours and the spectrum of photographs.

    Seen as they are, projections are neon and grainy: strides and max-pooling leave grids, and opponent colours that
    photographs hardly have. For all projections y of a layer alike

        z = F^-1[ G(|f|) F[y] ],   G = A^(-1/2) (A^(1/2) B A^(1/2))^(1/2) A^(-1/2)

    where A(|f|) and B(|f|) are the C x C cross-spectra of projections and of photo patches, over rings of one frequency
    and over all maps of the layer, under a Hann window; B falls as 1/f^2 (Field 1987). Of all symmetric maps, G is the
    one that gives z the cross-spectrum B (optimal transport between two Gaussians). 0 stays 0 and opposite signs stay
    opposite, but part of what is then seen is what photographs have in common: an untrained network's projections gain
    by it, too.

    Attributes:
        gain: (R, C, C), G at R frequencies from 0 to sqrt(1/2) cycles/px.
    """

    gain: Tensor

    @classmethod
    def of(cls, patches: Patches) -> NaturalColours:
        """From a layer's projections and photo patches."""
        there = patches.image >= 0
        y, photo = patches.projection[there].double(), patches.photo[there].double()
        photo = photo if y.shape[1] == 3 else photo.mean(1, keepdim=True)
        A, B = cross_spectra(y), cross_spectra(photo - photo.mean((0, 2, 3), keepdim=True))
        mean = A.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-30)  # (R,)
        A = A + RIDGE * mean[:, None, None] * torch.eye(A.shape[-1], dtype=A.dtype)
        root = _power(A, 0.5)
        gain = _power(A, -0.5) @ _power(root @ B @ root, 0.5) @ _power(A, -0.5)
        gain[0] = gain[1]  # how bright a photograph is says nothing of projections, which are about 0
        return cls(gain)

    def __call__(self, patches: Patches) -> Patches:
        """The same patches with projections (..., C, H, W) to look at, and a note that says so."""
        return replace(patches, projection=self.apply(patches.projection), notes=(*patches.notes, NOTE))

    def apply(self, y: Tensor) -> Tensor:
        """The map itself, of projections (..., C, H, W)."""
        H, W = y.shape[-2:]
        # Room, so that what leaves on one side does not come in on the other.
        size = (H + H // 2 * 2, W + W // 2 * 2)
        at = _radius(*size)[:, : size[1] // 2 + 1] * (len(self.gain) - 1)
        low = at.floor().long().clamp(max=len(self.gain) - 2)
        gain = torch.lerp(self.gain[low], self.gain[low + 1], (at - low)[..., None, None])
        gain = gain.to(y).permute(2, 3, 0, 1)[..., None].repeat(1, 1, 1, 1, 2)  # of real and imaginary parts
        pictures = y.reshape(-1, *y.shape[-3:])
        shown = torch.empty_like(pictures)
        for part, place in zip(pictures.split(AT_ONCE), shown.split(AT_ONCE), strict=True):
            spectrum = torch.view_as_real(torch.fft.rfft2(part, size))
            mixed = torch.zeros_like(spectrum)
            for i, j in itertools.product(range(len(gain)), repeat=2):
                mixed[:, i].addcmul_(gain[i, j], spectrum[:, j])
            place.copy_(torch.fft.irfft2(torch.view_as_complex(mixed), size)[..., :H, :W])
        return shown.view(y.shape)


def cross_spectra(pictures: Tensor) -> Tensor:
    """Real part of the cross-spectra (R, C, C) of pictures (N, C, H, W), averaged over them and over rings."""
    C, H, W = pictures.shape[1:]
    spectrum = torch.fft.fft2(pictures * hann(H, W, pictures)).flatten(2)
    products = torch.einsum("nif,njf->fij", spectrum, spectrum.conj()).real / len(pictures)
    ring = (_radius(H, W) * (min(H, W) // 2)).round().long().flatten()
    bins = torch.bincount(ring, minlength=min(H, W) // 2 + 1).clamp(min=1)
    total = products.new_zeros(len(bins), C, C).index_add(0, ring, products)
    return total / bins[:, None, None]


def _radius(height: int, width: int) -> Tensor:
    """(height, width) distance of each bin from frequency 0, as `torch.fft` orders them; 1 at the corner."""
    u, v = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (height, width))
    return torch.hypot(u[:, None], v) / 0.5**0.5


def _power(matrices: Tensor, exponent: float) -> Tensor:
    """A power of symmetric matrices (R, C, C) without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrices)
    return (vectors * values.clamp(min=1e-30)[:, None] ** exponent) @ vectors.mT
