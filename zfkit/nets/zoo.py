"""From names to networks: `load_model` and the table of what it knows."""

from __future__ import annotations

import hashlib
import importlib.resources
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ..batching import out_of_memory
from ..checks import Size, as_path, readable_file, whole_number
from ..errors import ModelError, unknown
from .model import Channels, VisionModel, wrap_model
from .onnx import OnnxNetwork, load_onnx
from .paper import ARCHITECTURES, Architecture, build
from .weights import Provenance, load_state, load_weights, read_provenance

if TYPE_CHECKING:
    import pandas as pd

# RGB, 0-255.
TINY_IMAGENET_MEAN = (122.5573, 114.3941, 101.4863)  # over its training set
CAFFE_MEAN = (123.68, 116.779, 103.939)  # ImageNet's training set, as Caffe's networks had it
IMAGENET_MEAN = tuple(255 * m for m in (0.485, 0.456, 0.406))  # ImageNet's, as torchvision has it
IMAGENET_STD = tuple(255 * s for s in (0.229, 0.224, 0.225))

STATES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")  # files that hold weights
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")  # DataParallel's, torch.compile's, Lightning's

LARGEST_INPUT = 2048  # px, of what a file says of itself; zfkit writes 64 and 224

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
        if name in bundled:
            known = read_provenance(bundled[name])
        else:
            known = {"data": "untrained", "architecture": describe(ARCHITECTURES[name])}
        net, _, size = _build(known)
        row = {
            "name": name, "input": size, "classes": [*net.parameters()][-1].shape[0],  # of the last layer's bias
            "parameters": sum(p.numel() for p in net.parameters()), "data": known["data"],
            "top1": known.get("top1"), "top5": known.get("top5"),
            "file": round(bundled[name].stat().st_size / 1e6, 1) if name in bundled else None,
        }  # fmt: skip
        rows.append(row)
    return pd.DataFrame(rows).set_index("name")


def load_model(
    name: str | Path = "zfnet64",
    *,
    weights: str | Path | None = "DEFAULT",
    mean: float | Sequence[float] | None = None,
    scale: float | Sequence[float] | None = None,
    input_size: Size | None = None,
    classes: Sequence[str] | str | Path | None = None,
    channels: Channels | None = None,
    output: str | int | None = None,
    show: Sequence[int] | None = None,
    device: str | torch.device | None = None,
    random_seed: int = 0,
) -> VisionModel:
    """A network by name or from a file, in evaluation mode.

    Args:
        name: ``"zfnet64"``, ``"alexnet64"`` (bundled, trained on Tiny ImageNet), ``"squeezenet1_1"`` (bundled,
            trained on ImageNet: 1,000 classes, 227 px); ``"zfnet224"``,
            ``"alexnet224"`` (the paper's geometry, untrained); ``"torchvision:alexnet"`` or any other of its
            classifiers; ``"timm:resnet50"`` or any other of timm's; ``"my_module.py:make_net"``, a file of yours,
            *which is run*, and in it a function without arguments that returns an `nn.Module`, or what `wrap_model`
            makes of one; a path that ends in ``.safetensors``, as zfkit writes them; the ONNX model zoo's zfnet512, as
            a path that ends in ``.onnx`` (outputs are probabilities: its last layer is "softmax").
        weights: for torchvision and timm, the name of the weights, or None for random ones without a download; or a
            file of weights of this network, .safetensors, .pt, .pth or .ckpt, possibly for other classes.
        mean, scale, input_size, channels, output, show: as in `wrap_model`: needed for a module of yours, and
            otherwise in place of the network's own.
        classes: names of the outputs, or a text file with one on each line.
        device: default: the GPU if there is one.
        random_seed: of random weights.

    What zfnet512 expects of a picture its publishers do not say (its page in the zoo leaves it empty). *Assumed*
    is what Caffe's networks of the time take: 0-255, minus ImageNet's mean, blue first. The filters of its conv1
    are turned round on loading, so that here it takes RGB like every other network. For any other ONNX file nothing
    is assumed: `mean` and `scale` have to be given.

    Raises ModelError for an unknown name, or a file that is missing, damaged, pickled or of another network.

    >>> load_model("torchvision:resnet18", weights="mine.pt", classes="names.txt")
    """
    if isinstance(classes, str | Path):
        classes = _lines(as_path(classes))
    net, own = _load(str(name), None if str(weights).lower() == "none" else str(weights), random_seed)
    said = {
        "mean": mean, "scale": scale, "input_size": input_size, "classes": classes, "channels": channels,
        "output": output, "show": show,
    }  # fmt: skip
    own |= {key: value for key, value in said.items() if value is not None}
    if missing := [f"{key}=" for key in ("mean", "scale", "input_size") if key not in own]:
        raise ModelError(
            f"{name} does not say how pictures go in: give {', '.join(missing)} as zfkit.wrap_model takes them, and in "
            "a shell --mean and so on"
        )
    model = wrap_model(net, **own)
    net.eval()
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


Own = dict[str, Any]  # arguments of `wrap_model` that come with a network


def _load(name: str, weights: str | None, random_seed: int) -> tuple[nn.Module, Own]:
    bundled, path = _bundled(), as_path(name)
    file = as_path(weights) if weights and Path(weights).suffix in STATES else None
    if name in bundled and file is None:
        return _from_file(bundled[name], name)
    if name in ARCHITECTURES:
        a = ARCHITECTURES[name]
        net = _made(lambda n=None: build(replace(a, classes=n or a.classes)), file, name, random_seed)
        own = {"mean": TINY_IMAGENET_MEAN, "scale": 1, "input_size": a.input_size}
        return net, own | {"name": name, "provenance": _origin(file)}
    if name.startswith("torchvision:"):
        return _from_torchvision(name, file or weights, random_seed)
    if name.startswith("timm:"):
        return _from_timm(name, file or weights, random_seed)
    if of_module := re.fullmatch(r"(.+\.py):(\w+)", name):
        return _from_module(as_path(of_module[1]), of_module[2], file, random_seed)
    if path.suffix == ".onnx":
        return _from_onnx(path)
    if path.suffix == ".safetensors" or path.is_file():
        return _from_file(path, _name(path))
    from torchvision import models

    meant = [f"torchvision:{name}"] if name in models.list_models(models) else []  # "resnet18"
    names = [*bundled, *(n for n in ARCHITECTURES if n not in bundled), *meant]
    names += ["torchvision:NAME", "timm:NAME", "my_module.py:make_net", "PATH.safetensors", "PATH.onnx"]
    raise ModelError(unknown("model", name, names, limit=len(names)))


def _lines(path: Path) -> list[str]:
    """Names in a text file, one on each line."""
    readable_file(path, "the names of classes", 10**7, ModelError)
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{str(path)!r} cannot be read as a text file of class names ({error})") from None


def _bundled() -> dict[str, Path]:
    folder = Path(str(importlib.resources.files("zfkit"))) / "weights"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"), reverse=True)}


def _random(make: Callable[[], Net], random_seed: int) -> Net:
    """A network whose random weights depend on the seed alone; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(whole_number(random_seed, "random_seed", 0, 2**63 - 1))
        return make()


def _origin(file: Path | None) -> Provenance:
    return {"data": "untrained"} if file is None else {"data": f"weights of {file.name}"}


def _made(make: Callable[..., Net], file: Path | None, name: str, random_seed: int) -> Net:
    """The network that `make` makes, with the weights of a file, if there is one.

    `make` takes a number of classes: where that alone does not fit the file, a network with the file's is made.

    Raises ModelError, with the first of the tensors that differ, where the file is of another network.
    """
    net = _random(make, random_seed)
    if file is None:
        return net
    stored, expected = load_state(file), _shapes(net.state_dict())
    while not any(k in expected for k in stored):  # whoever wrote the file had the network inside another
        prefix = next((p for p in PREFIXES if any(k.startswith(p) for k in stored)), None)
        if prefix is None:
            break
        stored = {k.removeprefix(prefix): t for k, t in stored.items()}
    wrong = {k for k, shape in _shapes(stored).items() if k in expected and expected[k] != shape}
    counts = {(expected[k][0], stored[k].shape[0]) for k in wrong if expected[k] and stored[k].dim()}
    if len(counts) == 1 and all(expected[k][1:] == stored[k].shape[1:] for k in wrong):
        net = _random(lambda: make(counts.pop()[1]), random_seed)
    _expect_fit(file, name, net, stored)
    net.load_state_dict(stored, strict=False)
    return net


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {k: tuple(t.shape) for k, t in state.items() if isinstance(t, Tensor)}


def _expect_fit(file: Path, what: str, net: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Raise ModelError, with the first that differs, where these are not the network's tensors, or of another kind."""
    # Old files lack the counters of batch normalisation; heads that help in training alone ("aux") may be missing.
    optional = re.compile(r"num_batches_tracked$|^aux|^AuxLogits")
    expected, held = _shapes(net.state_dict()), _shapes(stored)
    names = sorted(expected.keys() | held.keys())
    wrong = [k for k in names if expected.get(k) != held.get(k) and not optional.search(k)]
    if wrong:
        k = wrong[0]
        raise ModelError(
            f"{file.name} does not fit {what}: {len(wrong)} tensors differ, first "
            f"{k}: expected {expected.get(k, 'none')}, found {held.get(k, 'none')}; the file begins with "
            f"{', '.join(list(held)[:3])}"
        )
    for k, tensor in net.state_dict().items():
        if k in stored and tensor.is_floating_point() != stored[k].is_floating_point():
            kinds = (str(t.dtype).removeprefix("torch.") for t in (stored[k], tensor))
            raise ModelError(
                "{}: {} holds {}, and {} was expected; save it as that".format(file.name, k, *kinds)
            )


def _build(provenance: Provenance) -> tuple[nn.Module, str, int]:
    """The network that a file's provenance describes, without weights; what it is called, and its pictures' side.

    Raises ModelError where it describes none.
    """
    try:
        stored: Any = provenance["architecture"]
        with torch.device("meta"):
            if isinstance(stored, str):  # "torchvision:NAME"
                from torchvision import models

                short = stored.removeprefix("torchvision:")
                size = whole_number(provenance["input_size"], "input_size", 32, 1024)
                return models.get_model(short, weights=None), short, size
            # JSON knows lists, not tuples. Older files have no `blur` and `without`.
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
            net = build(Architecture(**fields))
            return net, net.architecture.family, net.architecture.input_size
    except Exception as error:  # whatever the file holds in place of an architecture
        raise ModelError(f"its provenance names no architecture that zfkit can build ({error})") from None


def _name(path: Path) -> str:
    """Of a run's `model.safetensors` its folder's, which says which run it was."""
    return path.resolve().parent.name if path.stem == "model" else path.stem


def _from_file(path: Path, name: str) -> tuple[nn.Module, Own]:
    tensors, known = load_weights(path)
    try:
        net, family, size = _build(known)
    except ModelError as error:
        raise ModelError(f"{path.name}: {error}; was it edited?") from None
    _expect_fit(path, f"the {family} its provenance names", net, tensors)
    net.load_state_dict(tensors, assign=True)
    net.requires_grad_(False)
    _expect_input(path, size)
    if known.get("input_size", size) != size:  # before a network is tried with pictures of a billion pixels
        raise ModelError(
            f"{path.name}: its provenance says input_size {known['input_size']!r}, and its architecture {size!r}; was "
            "it edited?"
        )
    classes = known.get("classes")
    if isinstance(known["architecture"], str) and not classes:  # its outputs are in torchvision's order
        from torchvision import models

        classes = models.get_model_weights(family).DEFAULT.meta["categories"]
    return net, {
        "mean": known.get("mean", TINY_IMAGENET_MEAN), "scale": known.get("scale", 1.0), "input_size": size,
        "classes": classes, "name": name, "provenance": known,
    }  # fmt: skip


def _expect_input(path: Path, size: int) -> None:
    """Before the network is tried with such a picture, which may not fit into memory."""
    if size > LARGEST_INPUT:
        raise ModelError(
            f"{path.name} says of itself that pictures of {size:,} px go in, and at most {LARGEST_INPUT:,} are tried; "
            "was it edited?"
        )


def _from_module(path: Path, function: str, file: Path | None, random_seed: int) -> tuple[nn.Module, Own]:
    """A network that a function in the user's file makes."""
    if not path.is_file():
        raise ModelError(f"there is no file {str(path)!r}; check the path")
    spec = importlib.util.spec_from_file_location(f"_zfkit_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # its name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    beside = str(path.resolve().parent)
    sys.path.insert(0, beside)  # it may import what lies beside it
    try:
        spec.loader.exec_module(module)
        if (make := getattr(module, function, None)) is None:
            offered = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
            raise ModelError(f"{path.name}: {unknown('function', function, offered)}")
        made = _random(lambda: make() if callable(make) else make, random_seed)
        wrapped = isinstance(made, VisionModel)
        net = _made(lambda _=None: made.net if wrapped else made, file, path.name, random_seed)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{path.name} stops with {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(beside)
    own = _said_of(made) if wrapped else {"name": path.stem}
    return net, own | ({"provenance": _origin(file)} if file else {})


def _said_of(model: VisionModel) -> Own:
    """What `wrap_model` was told of a network."""
    turned = slice(None, None, -1 if model.channels == "bgr" else 1)
    names = ("input_size", "name", "provenance", "channels", "output", "show")
    own = {name: getattr(model, name) for name in names}
    return own | {"mean": model.mean[turned], "scale": model.scale[turned], "classes": model.classes or None}


def _from_onnx(path: Path) -> tuple[nn.Module, Own]:
    net = load_onnx(path)
    _expect_input(path, max(net.input_shape[1:]))
    if not _is_zfnet512(net):  # an ONNX file does not say how pictures go in
        return net, {"name": path.stem, "input_size": tuple(net.input_shape[-2:])}
    net.swap_red_and_blue()
    assumed = "input assumed to be BGR 0-255 minus ImageNet's mean, as its publishers do not say"
    provenance = {"data": f"ILSVRC 2013 (ONNX model zoo, zfnet512; {assumed})"}
    own = {"mean": CAFFE_MEAN, "scale": 1.0, "input_size": 224}
    return net, own | {"name": path.stem, "provenance": provenance}


def _is_zfnet512(net: OnnxNetwork) -> bool:
    """Recognised by what Caffe2 called its input and by its weights' shapes; the zoo's archives call it model.onnx."""
    shapes = [tuple(p.shape) for p in net.parameters() if p.dim() > 1]
    convolutions = [(96, 3, 7, 7), (256, 96, 5, 5), (512, 256, 3, 3), (512, 512, 3, 3), (512, 512, 3, 3)]
    connected = [(4096, 18432), (1024, 4096), (1000, 1024)]
    return net.input_name == "gpu_0/data_0" and shapes == [*convolutions, *connected]


def _from_torchvision(name: str, weights: str | Path | None, random_seed: int) -> tuple[nn.Module, Own]:
    from torchvision import models

    short = name.removeprefix("torchvision:")
    known = models.list_models(module=models)
    if short not in known:
        raise ModelError(unknown("torchvision model", short, known))
    if weights is None or isinstance(weights, Path):
        options = {"init_weights": True} if short in ("googlenet", "inception_v3") else {}

        def make(count: int | None = None) -> nn.Module:
            return models.get_model(
                short, weights=None, **options, **({"num_classes": count} if count else {})
            )

        return _made(make, weights, name, random_seed), {
            "mean": IMAGENET_MEAN, "scale": [1 / s for s in IMAGENET_STD],
            "input_size": 299 if short == "inception_v3" else 224, "name": name, "provenance": _origin(weights),
        }  # fmt: skip
    choices = models.get_model_weights(short)
    if weights not in choices.__members__:
        raise ModelError(unknown(f"set of weights of {short}", weights, ["None", *choices.__members__]))
    chosen = choices[weights]
    transform = chosen.transforms()
    # A member of the enumeration as torchvision's functions expect it, but for where its weights are read.
    read = object.__new__(type(chosen))
    read._name_, read._value_ = chosen.name, chosen.value
    state = _published(chosen.url)
    read.get_state_dict = lambda **_: state
    return models.get_model(short, weights=read), {
        "mean": [255 * m for m in transform.mean], "scale": [1 / (255 * s) for s in transform.std],
        "input_size": transform.crop_size[0], "classes": chosen.meta["categories"], "name": name,
        "provenance": {"data": f"ImageNet ({chosen})"},
    }  # fmt: skip


def _from_timm(name: str, weights: str | Path | None, random_seed: int) -> tuple[nn.Module, Own]:
    try:
        import timm
    except ImportError:
        raise ModelError(f"{name} needs timm: pip install 'zfkit[timm]'") from None
    short = name.removeprefix("timm:")
    architecture = short.partition(".")[0]
    if not timm.is_model(short):
        raise ModelError(unknown("timm model", short, timm.list_models()))
    if weights is None or isinstance(weights, Path):
        net = _made(lambda n=None: timm.create_model(short, num_classes=n), weights, name, random_seed)
        provenance = _origin(weights)
    else:
        tagged = short if weights == "DEFAULT" else f"{architecture}.{weights}"
        known = timm.list_pretrained(f"{architecture}.*")
        if "." in tagged and tagged not in known:
            tags = ["None", *(n.partition(".")[2] for n in known)]
            raise ModelError(unknown(f"set of weights of {short}", weights, tags))
        try:
            net = timm.create_model(tagged, pretrained=True)
        except OSError as error:
            raise _not_downloaded(tagged, error) from None
        except Exception as error:  # what lies in the cache is damaged, or holds more than weights
            raise ModelError(
                f"timm cannot use its weights of {tagged} ({error}); delete them from its cache"
            ) from None
        provenance = {"data": f"timm's {tagged}"}
    expects: Any = net.pretrained_cfg
    return net, {
        "mean": [255 * m for m in expects["mean"]], "scale": [1 / (255 * s) for s in expects["std"]],
        "input_size": tuple(expects["input_size"][-2:]), "name": name, "provenance": provenance,
    }  # fmt: skip


def _published(url: str) -> dict[str, Tensor]:
    """The weights that torchvision offers at an address, from torch's folder or downloaded into it first.

    torchvision would run what a file in that folder says, and would not look at its hash. Here of the file no code is
    run, and it has to have the SHA-256 whose first digits stand in its name.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    expected = file.stem.rpartition("-")[2]
    if not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), expected)
        except Exception as error:  # no connection, a cut download, a full disk
            raise _not_downloaded(file.stem.rpartition("-")[0], error) from None
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(2**20):
            digest.update(part)
    if not digest.hexdigest().startswith(expected):
        raise ModelError(
            f"{file} is not what was published under its name (its SHA-256 begins with "
            f"{digest.hexdigest()[: len(expected)]}): delete it, and it is downloaded anew"
        )
    return load_state(file)


def _not_downloaded(short: str, error: Exception) -> ModelError:
    return ModelError(
        f"the weights of {short} could not be downloaded ({error}); check the connection, or pass weights=None for "
        "random ones"
    )
