"""From names to networks: `load_model` and the table of what it knows."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from ..batching import out_of_memory
from ..errors import ModelError, unknown
from .model import VisionModel, wrap_model
from .onnx import OnnxNetwork, load_onnx
from .paper import ARCHITECTURES, AlexNet, Architecture, ZFNet, build
from .weights import Provenance, load_weights, read_provenance

if TYPE_CHECKING:
    import pandas as pd

# RGB, 0-255.
TINY_IMAGENET_MEAN = (122.5573, 114.3941, 101.4863)  # over its training set
CAFFE_MEAN = (123.68, 116.779, 103.939)  # ImageNet's training set, as Caffe's networks had it
IMAGENET_MEAN = tuple(255 * m for m in (0.485, 0.456, 0.406))  # ImageNet's, as torchvision has it
IMAGENET_STD = tuple(255 * s for s in (0.229, 0.224, 0.225))

Net = TypeVar("Net", bound=nn.Module)


def list_models() -> pd.DataFrame:
    """What `load_model` knows by name: data set, accuracy, size.

    Columns: input (pixels), classes, parameters, data, top1 and top5 (validation accuracy in %), file
    (MB); accuracy is missing for networks that come untrained.
    """
    import pandas as pd

    bundled = _bundled()
    rows = []
    for name in [*bundled, *(n for n in ARCHITECTURES if n not in bundled)]:
        known: Provenance = read_provenance(bundled[name]) if name in bundled else {"data": "untrained"}
        with torch.device("meta"):
            net = _build(known) if name in bundled else build(ARCHITECTURES[name])
        row = {
            "name": name, "input": net.architecture.input_size, "classes": net.architecture.classes,
            "parameters": sum(p.numel() for p in net.parameters()), "data": known["data"],
            "top1": known.get("top1"), "top5": known.get("top5"),
            "file": round(bundled[name].stat().st_size / 1e6, 1) if name in bundled else None,
        }  # fmt: skip
        rows.append(row)
    return pd.DataFrame(rows).set_index("name")


def load_model(
    name: str | Path = "zfnet64",
    *,
    weights: str | None = "DEFAULT",
    device: str | torch.device | None = None,
    random_seed: int = 0,
) -> VisionModel:
    """A network by name or from a file, in evaluation mode.

    Args:
        name: ``"zfnet64"``, ``"alexnet64"`` (bundled, trained on Tiny ImageNet); ``"zfnet224"``,
            ``"alexnet224"`` (the paper's geometry, untrained); ``"torchvision:alexnet"`` or any other of its
            classifiers; a path that ends in ``.safetensors``, as zfkit writes them; the ONNX model zoo's
            zfnet512, as a path that ends in ``.onnx`` (outputs are probabilities: its last layer is "softmax").
        weights: for torchvision, the name of the weights, or None for random ones without a download.
        device: default: the GPU if there is one.
        random_seed: of random weights.

    What zfnet512 expects of a picture its publishers do not say (its page in the zoo leaves it empty). *Assumed*
    is what Caffe's networks of the time take: 0-255, minus ImageNet's mean, blue first. The filters of its conv1
    are turned round on loading, so that here it takes RGB like every other network. For any other ONNX file nothing
    is assumed: `zfkit.nets.load_onnx`, then `wrap_model`.

    Raises ModelError for an unknown name, or a file that is missing, damaged, pickled or of another network.
    """
    model = _load(str(name), None if str(weights).lower() == "none" else weights, random_seed)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it holds no numbers")
        return model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises all three
        if out_of_memory(error):
            raise
        raise ModelError(
            f"{name} cannot be put on the device {str(device)!r} ({str(error).splitlines()[0]}); expected cpu, or "
            "cuda, cuda:1, mps ... where there is one"
        ) from None


def describe(architecture: Architecture) -> dict[str, Any]:
    """The architecture as provenance keeps it."""
    return asdict(architecture)


def _load(name: str, weights: str | None, random_seed: int) -> VisionModel:
    bundled, path = _bundled(), Path(name)
    if name in bundled:
        return _from_file(bundled[name], name)
    if name in ARCHITECTURES:
        net = _random(lambda: build(ARCHITECTURES[name]), random_seed)
        size, untrained = net.architecture.input_size, {"data": "untrained"}
        return wrap_model(
            net, mean=TINY_IMAGENET_MEAN, scale=1, input_size=size, name=name, provenance=untrained
        )
    if name.startswith("torchvision:"):
        return _from_torchvision(name, weights, random_seed)
    if path.suffix == ".onnx":
        return _from_onnx(path.expanduser())
    if path.suffix == ".safetensors" or path.is_file():
        return _from_file(path.expanduser(), path.stem)
    from torchvision import models

    meant = [f"torchvision:{name}"] if name in models.list_models(models) else []  # "resnet18"
    names = [*bundled, *(n for n in ARCHITECTURES if n not in bundled), *meant]
    names += ["torchvision:NAME", "PATH.safetensors", "PATH.onnx"]
    raise ModelError(unknown("model", name, names, limit=len(names)))


def _bundled() -> dict[str, Path]:
    folder = Path(str(importlib.resources.files("zfkit"))) / "weights"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"), reverse=True)}


def _random(make: Callable[[], Net], random_seed: int) -> Net:
    """A network whose random weights depend on the seed alone; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_seed)
        return make()


def _build(provenance: Provenance) -> ZFNet | AlexNet:
    """The network that a file's provenance describes. Raises ModelError where it describes none."""
    try:
        # JSON knows lists, not tuples. Older files have no `blur` and `without`.
        stored: dict[str, Any] = provenance["architecture"]
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return build(Architecture(**fields))
    except Exception as error:  # whatever the file holds in place of an architecture
        raise ModelError(f"its provenance names no architecture that zfkit can build ({error})") from None


def _from_file(path: Path, name: str) -> VisionModel:
    tensors, known = load_weights(path)
    try:
        with torch.device("meta"):
            net = _build(known)
    except ModelError as error:
        raise ModelError(f"{path.name}: {error}; was it edited?") from None
    expected = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    stored = {k: tuple(v.shape) for k, v in tensors.items()}
    wrong = sorted(k for k in expected.keys() | stored.keys() if expected.get(k) != stored.get(k))
    if wrong:
        k = wrong[0]
        raise ModelError(
            f"{path.name} does not fit the {net.architecture.family} its provenance names: {len(wrong)} tensors "
            f"differ, first {k}: expected {expected.get(k, 'none')}, found {stored.get(k, 'none')}"
        )
    net.load_state_dict(tensors, assign=True)
    net.requires_grad_(False)
    size = net.architecture.input_size
    if known.get("input_size", size) != size:  # before a network is tried with pictures of a billion pixels
        raise ModelError(
            f"{path.name}: its provenance says input_size {known['input_size']!r}, and its architecture {size!r}; was "
            "it edited?"
        )
    return wrap_model(
        net,
        mean=known.get("mean", TINY_IMAGENET_MEAN),
        scale=known.get("scale", 1.0),
        input_size=size,
        classes=known.get("classes"),
        name=name,
        provenance=known,
    )


def _from_onnx(path: Path) -> VisionModel:
    net = load_onnx(path)
    if not _is_zfnet512(net):
        raise ModelError(
            f"{path.name} is not the ONNX zoo's zfnet512, and an ONNX file does not say how pictures go in: net = "
            "zfkit.nets.load_onnx(path), then zfkit.wrap_model(net, mean=..., scale=..., "
            f"input_size={net.input_shape[-1]})"
        )
    net.swap_red_and_blue()
    assumed = "input assumed to be BGR 0-255 minus ImageNet's mean, as its publishers do not say"
    provenance = {"data": f"ILSVRC 2013 (ONNX model zoo, zfnet512; {assumed})"}
    return wrap_model(net, mean=CAFFE_MEAN, scale=1.0, input_size=224, name=path.stem, provenance=provenance)


def _is_zfnet512(net: OnnxNetwork) -> bool:
    """Recognised by what Caffe2 called its input and by its weights' shapes; the zoo's archives call it model.onnx."""
    shapes = [tuple(p.shape) for p in net.parameters() if p.dim() > 1]
    convolutions = [(96, 3, 7, 7), (256, 96, 5, 5), (512, 256, 3, 3), (512, 512, 3, 3), (512, 512, 3, 3)]
    connected = [(4096, 18432), (1024, 4096), (1000, 1024)]
    return net.input_name == "gpu_0/data_0" and shapes == [*convolutions, *connected]


def _from_torchvision(name: str, weights: str | None, random_seed: int) -> VisionModel:
    from torchvision import models

    short = name.removeprefix("torchvision:")
    known = models.list_models(module=models)
    if short not in known:
        raise ModelError(unknown("torchvision model", short, known))
    if weights is None:
        options = {"init_weights": True} if short in ("googlenet", "inception_v3") else {}
        return wrap_model(
            _random(lambda: models.get_model(short, weights=None, **options), random_seed),
            mean=IMAGENET_MEAN,
            scale=[1 / s for s in IMAGENET_STD],
            input_size=299 if short == "inception_v3" else 224,
            name=name,
            provenance={"data": "untrained"},
        )
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
    return wrap_model(
        net,
        mean=[255 * m for m in transform.mean],
        scale=[1 / (255 * s) for s in transform.std],
        input_size=transform.crop_size[0],
        classes=chosen.meta["categories"],
        name=name,
        provenance={"data": f"ImageNet ({chosen})"},
    )
