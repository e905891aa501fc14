"""The networks: `ZFNet` and `AlexNet` as the paper draws them, the zoo, and your own through `wrap_model`.

A `VisionModel` is a network together with what it expects of a picture and what it calls its classes.
"""

from __future__ import annotations

import importlib.resources
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..batching import out_of_memory
from ..errors import ModelError, unknown
from .model import VisionModel, wrap_model
from .onnx import OnnxNetwork, load_onnx
from .paper import ARCHITECTURES, Architecture, build
from .weights import Provenance, load_weights, read_provenance

if TYPE_CHECKING:
    import pandas as pd


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
    `zfkit.nets.load_onnx`, then `wrap_model`.

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
            f"= zfkit.nets.load_onnx(path), then zfkit.wrap_model(net, mean=..., scale=..., input_size={size})"
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
