"""The networks: `ZFNet` and `AlexNet` as the paper draws them, the zoo, and your own through `wrap_model`.

A `VisionModel` is a network together with what it expects of a picture and what it calls its classes.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoints import Provenance, load_weights, read_provenance
from .errors import ImageError, ModelError, out_of_memory, unknown
from .graph import LEAVES, Network, pair, trace
from .onnx_import import OnnxNetwork, load_onnx

if TYPE_CHECKING:
    import pandas as pd


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

    Whether such a network can be built is checked by `build`.
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
NARROW_WIDTHS, NARROW_HIDDEN = (24, 48, 64, 64, 48), 128
ARCHITECTURES |= {
    f"{name}-narrow": replace(ARCHITECTURES[name], widths=NARROW_WIDTHS, hidden=NARROW_HIDDEN)
    for name in ("zfnet64", "alexnet64")
}


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


REMOVABLE = ("conv3", "conv4", "fc6", "fc7")  # Table 3 of the paper


def _check(a: Architecture) -> None:
    """Raise ModelError, in a sentence, for numbers that make no network."""
    if a.family not in ("zfnet", "alexnet"):
        raise ModelError(unknown("family", a.family, ["zfnet", "alexnet"]))
    if a.blur not in (0, 3, 5) or isinstance(a.blur, bool):
        raise ModelError(f"blur must be 0 (none), 3 (1-2-1) or 5 (1-4-6-4-1) taps, not {a.blur!r}")
    if isinstance(a.without, str):
        raise ModelError(f"without must be a tuple of layers, such as ({a.without!r},), not {a.without!r}")
    for layer in a.without:
        if layer not in REMOVABLE:
            raise ModelError(unknown("layer that can be left out", layer, REMOVABLE))
    if not isinstance(a.widths, tuple | list) or len(a.widths) != 5:
        raise ModelError(f"widths must be five numbers, of conv1 to conv5, not {a.widths!r}")
    for what, value in [("input_size", a.input_size), ("hidden", a.hidden), ("classes", a.classes), *(
        (f"width of conv{n}", w) for n, w in enumerate(a.widths, 1)
    )]:  # fmt: skip
        if not isinstance(value, int) or value < 1:
            raise ModelError(f"{what} must be a positive whole number, not {value!r}")
    for layer in ("conv1", "conv2", "pool2"):
        numbers = getattr(a, layer)
        three = isinstance(numbers, tuple | list) and [type(v) for v in numbers] == [int] * 3
        if not three or numbers[0] < 1 or numbers[1] < 1 or numbers[2] < 0:
            raise ModelError(f"{layer} must be (kernel, stride, padding) in whole numbers, not {numbers!r}")
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


@dataclass(frozen=True, eq=False)
class VisionModel:
    """A network, how pictures go into it, and what its outputs are called.

    Attributes:
        net: the `nn.Module`, in evaluation mode.
        mean, scale: input = (rgb_0_255 - mean) * scale, one number per channel.
        input_size: side in pixels of the pictures it was trained on. Convolutional layers take larger ones.
        classes: names of its outputs, or empty.
        name: what to call it in tables and captions.
        provenance: data, recipe and accuracy, where known.
    """

    net: nn.Module
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    input_size: int
    classes: tuple[str, ...] = ()
    name: str = "mine"
    provenance: Provenance = field(default_factory=dict, repr=False)
    _traced: dict[frozenset[type], Network] = field(default_factory=dict, repr=False)
    _hashed: dict[Any, str] = field(default_factory=dict, repr=False)

    def preprocess(self, images: Tensor) -> Tensor:
        """uint8 RGB (N, 3, H, W) or (3, H, W) -> what the network takes, on its device, (N, C, H, W).

        One-channel networks get the luma (ITU-R 601). Raises ImageError for another dtype or shape.
        """
        if images.dim() == 3:
            images = images[None]
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ImageError(
                "expected uint8 RGB pictures (N, 3, H, W) with values 0-255, got "
                f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
            )
        x = images.to(self.device).to(self.dtype)
        if len(self.mean) == 1:
            x = (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
        return (x - x.new_tensor(self.mean).view(-1, 1, 1)) * x.new_tensor(self.scale).view(-1, 1, 1)

    @property
    def network(self) -> Network:
        """The traced network; traced again if rules for more kinds of module were registered since."""
        key = frozenset(LEAVES)
        if key not in self._traced:
            self._traced[key] = trace(self.net)
        return self._traced[key]

    @property
    def layers(self) -> tuple[str, ...]:
        """Dotted names of the layers in order of execution."""
        return self.network.layers

    @property
    def conv_layers(self) -> tuple[str, ...]:
        """Names of the convolutional layers in order of execution."""
        steps = self.network.steps
        return tuple(name for name in self.layers if isinstance(steps[name].module, nn.Conv2d))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return next(self.net.parameters()).dtype

    def fingerprint(self) -> str:
        """16 hex digits that change with any parameter or buffer of the network."""
        state = self.net.state_dict()
        # Also buffers that are not stored with the weights, such as the filter of a blur.
        state |= {name: buffer for name, buffer in self.net.named_buffers() if name not in state}
        # torch counts the changes of a tensor; weights that nobody touched are not read again.
        counted = not any(t.is_inference() for t in state.values())
        version = tuple((name, t.data_ptr(), t._version) for name, t in state.items()) if counted else None
        if version is None or version not in self._hashed:
            digest = hashlib.sha256()
            for name, tensor in state.items():
                numbers = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
                digest.update(name.encode() + b"\0" + numbers.tobytes())
            self._hashed.clear()
            self._hashed[version] = digest.hexdigest()[:16]
        return self._hashed[version]

    def to(self, device: str | torch.device) -> VisionModel:
        """Move the network to a device; returns the same model."""
        self.net.to(device)
        return self

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.net.parameters())
        classes = f"{len(self.classes)} classes" if self.classes else "classes without names"
        return f"VisionModel({self.name!r}: {count:,} parameters, {self.input_size} px, {classes})"


def wrap_model(
    net: nn.Module,
    *,
    mean: float | Sequence[float],
    scale: float | Sequence[float],
    input_size: int,
    classes: Sequence[str] | None = None,
    name: str = "mine",
    provenance: Provenance | None = None,
) -> VisionModel:
    """Your own network, as zfkit uses them: any CNN that torch.fx can trace, for 1 or 3 channels.

    Args:
        net: takes (N, C, S, S) floats; it is put into evaluation mode.
        mean, scale: input = (rgb_0_255 - mean) * scale; one number, or one per channel. For torchvision's
            habit of dividing by 255 and normalising: ``mean=255 * mean, scale=1 / (255 * std)``.
        input_size: S, in pixels.
        classes: names of the outputs.

    Raises ModelError where the numbers do not fit the network, or the network cannot be run or traced.

    >>> model = wrap_model(net, mean=[123.7, 116.3, 103.5], scale=1 / 58, input_size=224)
    """
    if not isinstance(net, nn.Module):
        raise ModelError(f"expected a torch.nn.Module, got {type(net).__name__}")
    if not isinstance(input_size, int) or input_size < 1:
        raise ModelError(f"input_size must be a positive whole number of pixels, not {input_size!r}")
    first = next((m for m in net.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise ModelError(f"{type(net).__name__} has no Conv2d layer, so it has no feature maps to look at")
    channels = first.in_channels
    if channels not in (1, 3):
        raise ModelError(
            f"{type(net).__name__} takes {channels} channels; zfkit shows networks that take 1 or 3"
        )
    iterable = hasattr(classes, "__iter__") and not isinstance(classes, dict)
    if classes is not None and not (iterable and all(isinstance(c, str) for c in classes)):
        raise ModelError(
            f"classes must be a list of names, one for each output, or None, not {classes!r:.80}"
        )
    numbers = []
    for what, value in (("mean", mean), ("scale", scale)):
        try:
            told = torch.as_tensor(value, dtype=torch.float64)  # also numpy's arrays
        except (TypeError, ValueError, RuntimeError):
            told = torch.tensor(math.nan)
        values = tuple(told.flatten().tolist()) * (channels if told.dim() == 0 else 1)
        if len(values) != channels or not all(math.isfinite(v) for v in values):
            raise ModelError(
                f"{what} must be one finite number or {channels}, one per channel, not {value!r}"
            )
        numbers.append(values)
    if 0 in numbers[1]:
        raise ModelError("scale must not be 0: every picture would look the same to the network")
    model = VisionModel(
        net.eval(),
        numbers[0],
        numbers[1],
        input_size,
        tuple(() if classes is None else classes),
        name,
        provenance or {},
    )
    try:
        with torch.inference_mode():
            shape = net(
                torch.zeros(1, channels, input_size, input_size, device=model.device, dtype=model.dtype)
            ).shape
    except Exception as error:
        raise ModelError(
            f"{type(net).__name__} does not run on an input (1, {channels}, {input_size}, {input_size}): {error}"
        ) from error
    if classes and len(classes) != shape[-1]:
        raise ModelError(f"{len(classes)} class names for a network with {shape[-1]} outputs")
    _ = model.network  # trace now, so that a network zfkit cannot follow is refused here
    return model


# ------------------------------------------------------------------------------------------------ the zoo


def _bundled() -> dict[str, Path]:
    folder = Path(str(importlib.resources.files("zfkit"))) / "weights"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"), reverse=True)}


def list_models() -> pd.DataFrame:
    """What `load_model` knows by name: data set, accuracy, size.

    Columns: input (pixels), classes, parameters, data, top1 and top5 (validation accuracy in %), file
    (MB); accuracy is missing for networks that come untrained.
    """
    import pandas as pd

    rows = []
    for name, path in _bundled().items():
        known = read_provenance(path)
        with torch.device("meta"):
            count = sum(p.numel() for p in build(_architecture(known)).parameters())
        rows.append(
            {
                "name": name, "input": known["input_size"], "classes": len(known["classes"]), "parameters": count,
                "data": known["data"], "top1": known["top1"], "top5": known["top5"],
                "file": round(path.stat().st_size / 1e6, 1),
            }
        )  # fmt: skip
    for name in (n for n in ARCHITECTURES if n not in _bundled()):
        a = ARCHITECTURES[name]
        with torch.device("meta"):
            count = sum(p.numel() for p in build(a).parameters())
        rows.append(
            {
                "name": name,
                "input": a.input_size,
                "classes": a.classes,
                "parameters": count,
                "data": "untrained",
            }
        )
    return pd.DataFrame(rows).set_index("name")


def load_model(
    name: str | Path = "zfnet64",
    *,
    weights: str | None = "DEFAULT",
    device: str | torch.device | None = None,
    seed: int = 0,
) -> VisionModel:
    """A network by name or from a file, in evaluation mode.

    Args:
        name: ``"zfnet64"``, ``"alexnet64"`` (bundled, trained on Tiny ImageNet); ``"zfnet224"``,
            ``"alexnet224"`` (the paper's geometry, untrained); ``"torchvision:alexnet"`` or any other of its
            classifiers; a path that ends in ``.safetensors``, as zfkit writes them; the ONNX model zoo's
            zfnet512, as a path that ends in ``.onnx`` (outputs are probabilities: its last layer is "softmax").
        weights: for torchvision, the name of the weights, or None for random ones without a download.
        device: default: the GPU if there is one.
        seed: of random weights.

    What zfnet512 expects of a picture its publishers do not say (its page in the zoo leaves it empty). *Assumed*
    is what Caffe's networks of the time take: 0-255, minus ImageNet's mean, blue first. The filters of its conv1
    are turned round on loading, so
    that here it takes RGB like every other network. For any other ONNX file nothing is assumed:
    `zfkit.load_onnx`, then `wrap_model`.

    Raises ModelError for an unknown name, or a file that is missing, damaged, pickled or of another network.
    """
    name = str(name)
    weights = None if str(weights).lower() == "none" else weights
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    bundled = _bundled()
    if name in bundled:
        model = _from_file(bundled[name], name)
    elif name in ARCHITECTURES:
        a = ARCHITECTURES[name]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = build(a)
        model = wrap_model(
            net, mean=_MEAN, scale=1.0, input_size=a.input_size, name=name, provenance={"data": "untrained"}
        )
    elif name.startswith("torchvision:"):
        model = _from_torchvision(name, weights, seed)
    elif Path(name).suffix == ".onnx":
        model = _from_onnx(Path(name).expanduser())
    elif Path(name).suffix == ".safetensors" or Path(name).is_file():
        model = _from_file(Path(name).expanduser(), Path(name).stem)
    else:
        names = [*bundled, *(n for n in ARCHITECTURES if n not in bundled), *_torchvision_like(name)]
        names += ["torchvision:NAME", "PATH.safetensors", "PATH.onnx"]
        raise ModelError(unknown("model", name, names, limit=len(names)))
    try:
        if device is not None and torch.device(device).type == "meta":
            raise RuntimeError("it holds no numbers")
        return model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises all three
        if out_of_memory(error):
            raise
        raise ModelError(
            f"{name} cannot be put on the device {str(device)!r} ({str(error).splitlines()[0]}); expected cpu, or "
            "cuda, cuda:1, mps ... where there is one"
        ) from None


def _torchvision_like(name: str) -> list[str]:
    """ "torchvision:resnet18" for "resnet18"; nothing for what torchvision has no classifier of."""
    import torchvision

    return [f"torchvision:{name}"] if name in torchvision.models.list_models(torchvision.models) else []


_MEAN = (122.5573, 114.3941, 101.4863)  # RGB 0-255, over Tiny ImageNet's training set
_CAFFE_MEAN = (123.68, 116.779, 103.939)  # RGB 0-255, over ImageNet's training set
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's, of RGB 0-1


def describe(architecture: Architecture) -> dict[str, Any]:
    """The architecture as provenance keeps it."""
    return asdict(architecture)


def _architecture(provenance: Provenance) -> Architecture:
    """The architecture that a file's provenance names. Raises ModelError where it names none."""
    try:
        told: dict[str, Any] = provenance["architecture"]
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
        a = Architecture(**fields)  # files from before `blur` and `without` have neither
        if a.family not in ("zfnet", "alexnet"):
            raise KeyError(a.family)
        return a
    except (KeyError, TypeError, AttributeError):
        raise ModelError(
            "the file's provenance names no architecture that zfkit builds; was it edited?"
        ) from None


def _from_file(path: Path, name: str) -> VisionModel:
    tensors, known = load_weights(path)
    architecture = _architecture(known)
    try:
        with torch.device("meta"):
            net = build(architecture)
    except Exception as error:
        raise ModelError(
            f"{path.name}: the architecture in its provenance cannot be built ({error}); was it edited?"
        ) from None
    expected = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in tensors.items()}
    if found != expected:
        wrong = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
        k = wrong[0]
        raise ModelError(
            f"{path.name} does not fit the {known['architecture']['family']} its provenance names: {len(wrong)} "
            f"tensors differ, first {k}: expected {expected.get(k, 'none')}, found {found.get(k, 'none')}"
        )
    net.load_state_dict(tensors, assign=True)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    size = known.get("input_size", architecture.input_size)
    if size != architecture.input_size:  # before a network is tried with pictures of a billion pixels
        raise ModelError(
            f"{path.name}: its provenance says input_size {size!r}, and its architecture {architecture.input_size!r}; "
            "was it edited?"
        )
    return wrap_model(
        net,
        mean=known.get("mean", _MEAN),
        scale=known.get("scale", 1.0),
        input_size=size,
        classes=known.get("classes"),
        name=name,
        provenance=known,
    )


def _from_onnx(path: Path) -> VisionModel:
    net = load_onnx(path)
    if not _is_zfnet512(net):
        size = net.input_shape[-1]
        raise ModelError(
            f"{path.name} is not the ONNX zoo's zfnet512, and an ONNX file does not say how pictures go in: use net "
            f"= zfkit.load_onnx(path), then zfkit.wrap_model(net, mean=..., scale=..., input_size={size})"
        )
    net.swap_red_and_blue()
    assumed = "input assumed to be BGR 0-255 minus ImageNet's mean, as its publishers do not say"
    return wrap_model(
        net,
        mean=_CAFFE_MEAN,
        scale=1.0,
        input_size=224,
        name=path.stem,
        provenance={"data": f"ILSVRC 2013 (ONNX model zoo, zfnet512; {assumed})"},
    )


def _is_zfnet512(net: OnnxNetwork) -> bool:
    """Recognised by what Caffe2 called its input and by its weights' shapes; the zoo's archives call it model.onnx."""
    shapes = [tuple(p.shape) for p in net.parameters() if p.dim() > 1]
    convolutions = [(96, 3, 7, 7), (256, 96, 5, 5), (512, 256, 3, 3), (512, 512, 3, 3), (512, 512, 3, 3)]
    connected = [(4096, 18432), (1024, 4096), (1000, 1024)]
    return net.input_name == "gpu_0/data_0" and shapes == [*convolutions, *connected]


def _from_torchvision(name: str, weights: str | None, seed: int) -> VisionModel:
    from torchvision import models

    short = name.removeprefix("torchvision:")
    known = models.list_models(module=models)
    if short not in known:
        raise ModelError(unknown("torchvision model", short, known))
    mean, std, size, classes, data = _IMAGENET_MEAN, _IMAGENET_STD, 224, None, "untrained"
    if weights is None:
        options = {"init_weights": True} if short in ("googlenet", "inception_v3") else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = models.get_model(short, weights=None, **options)
        size = 299 if short == "inception_v3" else 224
    else:
        choices = models.get_model_weights(short)
        if weights not in choices.__members__:
            raise ModelError(unknown(f"set of weights of {short}", weights, ["None", *choices.__members__]))
        chosen = choices[weights]
        try:
            net = models.get_model(short, weights=chosen)
        except Exception as error:  # no connection, a cut download, a wrong hash, a damaged file in the cache
            raise ModelError(
                f"the weights of {short} could not be downloaded ({error}); check the connection, or pass "
                "weights=None for random ones"
            ) from None
        transform = chosen.transforms()
        mean, std, size = tuple(transform.mean), tuple(transform.std), transform.crop_size[0]
        classes, data = chosen.meta["categories"], f"ImageNet ({chosen})"
    return wrap_model(
        net,
        mean=[255 * m for m in mean],
        scale=[1 / (255 * s) for s in std],
        input_size=size,
        classes=classes,
        name=name,
        provenance={"data": data},
    )
