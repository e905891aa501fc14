"""ZFNet and AlexNet, layer by layer as the papers name them."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import one_of, pair, whole_number
from ..errors import ModelError
from .graph import LEAVES


@dataclass(frozen=True)
class Architecture:
    """What distinguishes the presets; everything else they share (Zeiler & Fergus, Fig. 3).

    Kernel, stride and padding are in units of the layer's own input.

    Attributes:
        blur: taps of a binomial low-pass before every subsampling (Zhang 2019, arXiv 1904.11486): 3 for
            1-2-1, 5 for 1-4-6-4-1, 0 for none, as in the paper. A strided convolution becomes convolution
            with stride 1, ReLU, blur with the stride; a strided max-pool becomes maximum with stride 1, blur
            with the stride. All maps after it keep side and position, so that the weights of one fit the other.
        without: layers of the paper left out, as in its Table 3: any of "conv3", "conv4", "fc6", "fc7", with
            their ReLU and dropout. The next layer takes what is there.

    `build` checks whether there is such a network.
    """

    family: str  # "zfnet" or "alexnet"
    input_size: int  # pixels
    conv1: tuple[int, int, int]  # kernel, stride, padding
    conv2: tuple[int, int, int]
    pool2: tuple[int, int, int] = (3, 2, 0)
    widths: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    hidden: int = 4096
    classes: int = 1000
    blur: int = 0
    without: tuple[str, ...] = ()


# The paper gives 224 -> 110 -> 55 -> 26 -> 13 -> 13 -> 13 -> 13 -> 6 without saying how it pads; these
# paddings and ceil-mode pooling are the ones that produce it.
ARCHITECTURES = {
    "zfnet224": Architecture("zfnet", 224, conv1=(7, 2, 1), conv2=(5, 2, 0)),
    "alexnet224": Architecture("alexnet", 224, conv1=(11, 4, 2), conv2=(5, 1, 2)),
    "zfnet64": Architecture("zfnet", 64, conv1=(7, 2, 1), conv2=(5, 1, 2), hidden=1024, classes=200),
    "alexnet64": Architecture(
        "alexnet", 64, conv1=(11, 4, 2), conv2=(5, 1, 2), pool2=(3, 1, 1), hidden=1024, classes=200
    ),
}
# The same at a quarter of the width, for what is trained while one watches.
ARCHITECTURES |= {
    f"{name}-narrow": replace(ARCHITECTURES[name], widths=(24, 48, 64, 64, 48), hidden=128)
    for name in ("zfnet64", "alexnet64")
}
REMOVABLE = ("conv3", "conv4", "fc6", "fc7")  # Table 3 of the paper


class BlurPool(nn.Module):
    """Subsampling with a low-pass before it (Zhang 2019): a binomial filter at every `stride`-th place.

    y[i, j] = sum over a, b of t[a] t[b] x[stride i - padding + a, stride j - padding + b], each feature map
    by itself, with t = 1-2-1 / 4 (3 taps) or 1-4-6-4-1 / 16 (5 taps). Beyond the border x is 0, as in the
    paper's convolutions. At frequency f, in cycles per place of x, it passes cos(pi f)^(taps - 1).

    Args:
        taps: 3 or 5.
        padding: zeros before the first place; None for (taps - 1) / 2, which centres the filter on place 0.
        ceil_mode: as in `nn.MaxPool2d`: the last filter may begin before the border and end behind it.

    The filter is fixed: it is no parameter, is not trained and not stored with the weights.
    """

    def __init__(
        self, taps: int, stride: int = 2, padding: int | None = None, ceil_mode: bool = False
    ) -> None:
        super().__init__()
        if taps not in (3, 5):
            raise ModelError(f"a blur has 3 or 5 taps, not {taps!r}")
        self.kernel_size, self.stride, self.ceil_mode = taps, stride, ceil_mode
        self.padding = taps // 2 if padding is None else padding
        row = [math.comb(taps - 1, i) / 2 ** (taps - 1) for i in range(taps)]
        # On the CPU also where a network is laid out on the meta device, since no file brings these numbers.
        kernel = torch.tensor([[a * b for b in row] for a in row], device="cpu")
        self.register_buffer("kernel", kernel[None, None], persistent=False)
        self.kernel: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, h, w)."""
        behind = [
            max(0, (_side(self, n) - 1) * self.stride + self.kernel_size - n - self.padding)
            for n in x.shape[2:]
        ]
        padding = self.padding
        if any(n > padding for n in behind):
            x, padding = F.pad(x, (padding, behind[1], padding, behind[0])), 0
        kernel = self.kernel.to(x).expand(x.shape[1], -1, -1, -1)
        return F.conv2d(x, kernel, stride=self.stride, padding=padding, groups=x.shape[1])

    def extra_repr(self) -> str:
        return f"taps={self.kernel_size}, stride={self.stride}, padding={self.padding}, ceil_mode={self.ceil_mode}"


LEAVES.add(BlurPool)  # one operation of a traced network


class _PaperNetwork(nn.Sequential):
    """Both networks of the paper in one chain: what differs is in `Architecture`."""

    def __init__(self, architecture: Architecture) -> None:
        a = self.architecture = architecture
        _check(a)
        c1, c2, *upper = a.widths
        # Krizhevsky's k=2, n=5, alpha=1e-4, beta=.75. torch divides alpha by n, so it is given 5e-4.
        norm = partial(nn.LocalResponseNorm, 5, alpha=5e-4, beta=0.75, k=2.0)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            **_conv(1, 3, c1, *a.conv1, blur=a.blur), **_pool(1, 3, 2, blur=a.blur), norm1=norm(),
            **_conv(2, c1, c2, *a.conv2, blur=a.blur), **_pool(2, *a.pool2, blur=a.blur), norm2=norm(),
        )  # fmt: skip
        width = c2
        for n, outputs in enumerate(upper, 3):
            if f"conv{n}" not in a.without:
                layers |= _conv(n, width, outputs, 3, padding=1)
                width = outputs
        layers |= {**_pool(5, 3, 2, blur=a.blur), "flatten": nn.Flatten()}
        width *= _last_side(layers, a.input_size) ** 2
        for n in (6, 7):
            if f"fc{n}" not in a.without:
                layers |= {f"fc{n}": nn.Linear(width, a.hidden), f"relu{n}": nn.ReLU()}
                layers[f"drop{n}"] = nn.Dropout(0.5)
                width = a.hidden
        layers["fc8"] = nn.Linear(width, a.classes)
        super().__init__(layers)
        for parameter in self.parameters():  # section 3: weights 10^-2, biases 0
            if not parameter.is_meta:  # torch would import its compiler, for numbers that a file then gives
                nn.init.normal_(parameter, 0, 0.01) if parameter.dim() > 1 else nn.init.zeros_(parameter)

    def __getitem__(self, index: int | slice) -> Any:
        """A layer, or, for a slice, these layers as a plain `nn.Sequential`."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self.named_children())[index]))
        return super().__getitem__(index)


class ZFNet(_PaperNetwork):
    """The paper's network (section 3, Fig. 3), layers under the paper's names.

    conv, ReLU, 3x3 max-pool, contrast normalisation across maps, twice; three more convolutions, a pool, two
    hidden fully connected layers with dropout, the classes. Input (N, 3, S, S): RGB 0-255 minus the mean,
    *not* divided by a standard deviation. Output (N, classes) logits. Weights start as N(0, 0.01^2).
    """

    def __init__(self, architecture: Architecture = ARCHITECTURES["zfnet224"]) -> None:
        super().__init__(architecture)


class AlexNet(_PaperNetwork):
    """What the paper compares with: first layer 11x11 with stride 4 and second with stride 1, the rest equal.

    Krizhevsky's network but for two simplifications that leave only the first layers to compare: no split
    into groups, and normalisation after pooling as in `ZFNet`.
    """

    def __init__(self, architecture: Architecture = ARCHITECTURES["alexnet224"]) -> None:
        super().__init__(architecture)


def build(architecture: Architecture) -> ZFNet | AlexNet:
    """An untrained network of this architecture; its random weights follow torch's seed.

    Raises ModelError where the architecture's numbers make no network.

    >>> build(replace(ARCHITECTURES["zfnet64"], blur=3, without=("conv3", "conv4")))
    """
    return AlexNet(architecture) if architecture.family == "alexnet" else ZFNet(architecture)


Layers = dict[str, nn.Module]


def _conv(
    n: int, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0, *, blur: int = 0
) -> Layers:
    """Convolution and ReLU; a stride, if there is to be a blur, comes with that."""
    if stride == 1 or not blur:
        return {f"conv{n}": nn.Conv2d(inputs, outputs, kernel, stride, padding), f"relu{n}": nn.ReLU()}
    return {
        f"conv{n}": nn.Conv2d(inputs, outputs, kernel, 1, padding),
        f"relu{n}": nn.ReLU(),
        f"blur{n}": BlurPool(blur, stride),
    }


def _pool(n: int, kernel: int, stride: int, padding: int = 0, *, blur: int = 0) -> Layers:
    """Ceil-mode max-pool; a stride, if there is to be a blur, comes with that.

    The maxima begin `more` places earlier than the pool's own, so that the blur finds neighbours there; its
    windows are centred where the pool's are.
    """
    if stride == 1 or not blur:
        return {f"pool{n}": nn.MaxPool2d(kernel, stride, padding, ceil_mode=True)}
    more = min(kernel // 2 - padding, blur // 2)
    return {
        f"pool{n}": nn.MaxPool2d(kernel, 1, padding + more),
        f"blurpool{n}": BlurPool(blur, stride, blur // 2 - more, ceil_mode=True),
    }


def _check(a: Architecture) -> None:
    """Raise ModelError, in a sentence, for numbers that make no network."""
    one_of(a.family, "family", ("zfnet", "alexnet"), ModelError)
    if a.blur not in (0, 3, 5) or isinstance(a.blur, bool):
        raise ModelError(f"blur must be 0 (none), 3 (1-2-1) or 5 (1-4-6-4-1) taps, not {a.blur!r}")
    if isinstance(a.without, str):
        raise ModelError(f"without must be a tuple of layers, such as ({a.without!r},), not {a.without!r}")
    for layer in a.without:
        one_of(layer, "layer that can be left out", REMOVABLE, ModelError)
    if not isinstance(a.widths, tuple | list) or len(a.widths) != 5:
        raise ModelError(f"widths must be five numbers, of conv1 to conv5, not {a.widths!r}")
    for n, width in enumerate(a.widths, 1):
        whole_number(width, f"width of conv{n}", error=ModelError)
    for name in ("input_size", "hidden", "classes"):
        whole_number(getattr(a, name), name, error=ModelError)
    for name in ("conv1", "conv2", "pool2"):
        numbers = getattr(a, name)
        three = isinstance(numbers, tuple | list) and [type(v) for v in numbers] == [int] * 3
        if not three or numbers[0] < 1 or numbers[1] < 1 or numbers[2] < 0:
            raise ModelError(f"{name} must be (kernel, stride, padding) in whole numbers, not {numbers!r}")
    kernel, stride, padding = a.pool2
    if padding > kernel // 2:
        raise ModelError(f"pool2 can be padded by half its kernel, {kernel // 2}, at most, not {padding}")
    if a.blur and stride > 1 and padding > kernel - stride:
        raise ModelError(
            f"pool2={a.pool2} leaves gaps between its windows or pads them away, which no blur does: with blur, "
            "its padding can be kernel - stride at most"
        )


def _last_side(layers: Layers, side: int) -> int:
    """Side of the last map. Raises ModelError where nothing is left of a map on the way."""
    for name, layer in layers.items():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | BlurPool):
            before, side = side, _side(layer, side)
            if side < 1:
                raise ModelError(
                    f"nothing is left of the maps at {name}: its filter is larger than the {before} px it is given; "
                    "take a larger input_size, or smaller kernels and strides before it"
                )
    return side


def _side(layer: nn.Conv2d | nn.MaxPool2d | BlurPool, side: int) -> int:
    """Side of a layer's output, from the arithmetic of convolution and ceil-mode pooling."""
    kernel, stride, padding = (pair(v)[0] for v in (layer.kernel_size, layer.stride, layer.padding))  # type: ignore[arg-type]
    room = side + 2 * padding - kernel
    if isinstance(layer, nn.Conv2d) or not layer.ceil_mode:
        return room // stride + 1
    count = math.ceil(room / stride) + 1
    if isinstance(layer, nn.MaxPool2d) and (count - 1) * stride >= side + padding:
        count -= 1  # torch's last window begins inside the map or the padding before it
    return count
