"""Holds one version of zfkit to the results of another, call by call.

PYTHONPATH=OLD python benchmarks/same.py record --out GOLDEN      with the old code
python benchmarks/same.py compare --with GOLDEN [--only NAME ...] with the new code

Each case makes a few calls, and all that they return is taken apart into tensors, tables, numbers and text. The
second command prints one line a case, and exits with 1 unless all are the same: text, whole numbers and the shape of
everything exactly, floats to 1e-6 of the largest absolute value. What the new version has in addition is not looked
at. Functions are found by name wherever they live in zfkit; `RENAMED` and `KEYWORDS` say what they are called now.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import functools
import gzip
import importlib
import inspect
import io
import pickle
import pkgutil
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import torch
import torchvision
from matplotlib.figure import Figure
from PIL import Image
from threadpoolctl import threadpool_limits
from torch import nn

import zfkit

RENAMED: dict[str, str] = {}  # old name -> new name, of functions, classes, attributes and columns
KEYWORDS = {"seed": "random_seed"}  # old keyword -> new, used where a function has only the new one
TOLERANCE = 1e-6  # of the largest absolute value
VOLATILE = {"seconds", "timed_seconds", "timed", "images_per_second", "started", "net", "folder", "versions"}
METHODS = (
    "table", "summary", "interval", "exact_shares", "profile", "profile_interval", "consistency", "by_layer",
    "by_size", "by_count",
)  # fmt: skip
BUNDLED = ("zfnet64", "alexnet64")
WRAPPED = ("vgg16_bn", "googlenet", "resnet50")
FOLDER = tempfile.TemporaryDirectory(prefix="zfkit-same-")
CASES: dict[str, Callable[[], Any]] = {}

# ------------------------------------------------------------------------------------------- names and calls


@functools.cache
def modules() -> list[ModuleType]:
    """zfkit and every module in it that can be imported."""
    found = [zfkit]
    for info in pkgutil.walk_packages(zfkit.__path__, "zfkit.", onerror=lambda name: None):
        if not info.name.endswith("__main__"):
            with contextlib.suppress(Exception):
                found.append(importlib.import_module(info.name))
    return found


@functools.cache
def find(name: str) -> Any:
    """The public function, class or constant of this name; "textures:draw" looks where "textures" is in the path."""
    near, _, name = name.rpartition(":")
    name = RENAMED.get(name, name)
    for module in [m for m in modules() if near in m.__name__]:
        value = getattr(module, name, None)
        if value is None or isinstance(value, ModuleType):
            continue
        if getattr(value, "__module__", "zfkit").startswith("zfkit"):
            return value
    raise AttributeError(f"zfkit has no {name} any more")


def call(what: str | Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function by its old name and with its old keywords, without a progress bar."""
    function = find(what) if isinstance(what, str) else what
    takes = inspect.signature(function).parameters
    if "progress" in takes:
        options.setdefault("progress", False)
    return function(*args, **{k if k in takes or KEYWORDS.get(k) not in takes else KEYWORDS[k]: v
                              for k, v in options.items()})  # fmt: skip


def case(*variants: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a case under its function's name, or once for each variant as NAME.VARIANT."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for v in variants:
            CASES[f"{function.__name__}.{v}"] = functools.partial(function, v)
        if not variants:
            CASES[function.__name__] = function
        return function

    return register


# ------------------------------------------------------------------------------------- results, taken apart


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a result that can be compared, by its path in it."""
    if isinstance(value, torch.Tensor):
        yield name, value.detach().cpu().numpy()
    elif isinstance(value, Image.Image):
        yield name, np.asarray(value)
    elif isinstance(value, Figure):
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(value)
        canvas.draw()
        yield name, np.array(canvas.buffer_rgba())
        matplotlib.pyplot.close(value)
    elif isinstance(value, pd.DataFrame):
        yield name, value.drop(columns=[c for c in value.columns if c in VOLATILE])
    elif isinstance(value, pd.Series):
        yield name, value.to_frame("value")
    elif isinstance(value, np.generic):
        yield name, value.item()
    elif isinstance(value, str):
        yield name, value.replace(FOLDER.name, "FOLDER")
    elif isinstance(value, Path):
        yield name, value.name
    elif value is None or isinstance(value, int | float | np.ndarray):
        yield name, value
    elif isinstance(value, find("VisionModel")):
        yield name, value.name
    elif hasattr(value, "_asdict"):
        yield from leaves({n: getattr(value, n) for n in [*value._fields, *_properties(value)]}, name)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in VOLATILE:
                yield from leaves(inner, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        yield f"{name}.count", len(value)
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{name}.{i}".lstrip("."))
    elif type(value).__module__.startswith("zfkit"):
        names = (
            [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else vars(value)
        )
        for n in [*names, *_properties(value), *METHODS]:
            if not n.startswith("_") and n not in VOLATILE and hasattr(type(value), n) | (n in names):
                yield from leaves(_attribute(value, n), f"{name}.{n}".lstrip("."))


def _properties(value: Any) -> list[str]:
    kinds = (property, functools.cached_property)
    return [n for n in dir(type(value)) if isinstance(getattr(type(value), n), kinds) and n[0] != "_"]


def _attribute(value: Any, name: str) -> Any:
    """An attribute, or what a method without arguments returns; where it refuses, its sentence."""
    try:
        found = getattr(value, name)
        return call(found) if name in METHODS and callable(found) else found
    except TypeError:  # needs arguments
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def apart(a: Any, b: Any) -> float | str:
    """How far two leaves lie apart: 0 if identical, a share of the largest value, or a sentence."""
    if isinstance(a, pd.DataFrame) and isinstance(b, pd.DataFrame):
        names = {c: _now(c) for c in a.columns if c not in b.columns}
        a = a.rename(columns=names).rename_axis(
            [_now(n) if n not in b.index.names else n for n in a.index.names]
        )
        if (
            list(a.columns) != list(b.columns)
            or not a.index.equals(b.index)
            or a.index.names != b.index.names
        ):
            return f"other columns or rows: {_only(a, b)}"
        found = [apart(a.iloc[:, i].to_numpy(), b.iloc[:, i].to_numpy()) for i in range(a.shape[1])]
        told = [f"column {c!r}: {f}" for c, f in zip(a.columns, found, strict=True) if isinstance(f, str)]
        return told[0] if told else max((f for f in found if not isinstance(f, str)), default=0.0)
    if isinstance(a, float) and isinstance(b, float):
        a, b = np.float64(a).reshape(1), np.float64(b).reshape(1)
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        return 0.0 if type(a) is type(b) and a == b else f"{a!r:.60} became {b!r:.60}"
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype} {a.shape} became {b.dtype} {b.shape}"
    if a.dtype == object:
        unequal = [
            f"{x!r:.60} became {y!r:.60}" for x, y in zip(a.flat, b.flat, strict=True) if str(x) != str(y)
        ]
        return unequal[0] if unequal else 0.0
    if a.tobytes() == b.tobytes() or not a.size:
        return 0.0
    x, y = (v.astype(np.complex128 if v.dtype.kind == "c" else np.float64) for v in (a, b))
    finite = np.isfinite(x)
    if not np.array_equal(x[~finite], y[~finite], equal_nan=True) or not np.isfinite(y[finite]).all():
        return "other places are not finite"
    largest = np.abs(x[finite]).max(initial=0) or 1.0
    return float(np.abs(x[finite] - y[finite]).max(initial=0) / largest)


def _now(name: Any) -> Any:
    """What a path, a column or a name is called in the new version."""
    return (
        re.sub(r"\w+", lambda m: (KEYWORDS | RENAMED).get(m[0], m[0]), name)
        if isinstance(name, str)
        else name
    )


def _only(a: pd.DataFrame, b: pd.DataFrame) -> str:
    columns = sorted(map(str, {*a.columns} ^ {*b.columns}))
    return f"{columns or 'same columns'}; {len(a)} and {len(b)} rows by {[*a.index.names]} and {[*b.index.names]}"


def verdict(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[bool, str]:
    """Are two results the same, and the line that says so."""
    told, worst = [], (0.0, "")
    for name, value in old.items():
        if name not in new and _now(name) not in new:
            told.append(f"attribute gone: {name}")
            continue
        found = apart(value, new[name if name in new else _now(name)])
        if isinstance(found, str):
            told.append(f"{name}: {found}")
        else:
            worst = max(worst, (found, name))
    if worst[0] > TOLERANCE:
        told.insert(0, f"{worst[0]:.2g} at {worst[1]}")
    if told:
        return False, f"differs: {'; '.join(told[:4])}" + (f"; and {len(told) - 4} more" * (len(told) > 4))
    return True, f"same, to {worst[0]:.1g} at {worst[1]}" if worst[0] else f"same ({len(old)} values)"


# --------------------------------------------------------------------------------------- networks and pictures


@functools.cache
def network(name: str) -> Any:
    """A bundled network, or one of torchvision's with random weights."""
    if name in BUNDLED:
        return call("load_model", name, device="cpu")
    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    net = getattr(torchvision.models, name)(weights=None, **options)
    return call("wrap_model", net, mean=[123.7, 116.3, 103.5], scale=1 / 58, input_size=64, name=name)


def layers(name: str) -> list[str]:
    """The first, the middle and the last convolution."""
    convolutions = network(name).conv_layers
    return [convolutions[0], convolutions[len(convolutions) // 2], convolutions[-1]]


@functools.cache
def photos(count: int = 40, size: int = 64, classes: tuple[str, ...] = ()) -> Any:
    """So many windows, spread over the album; with classes, labelled at will."""
    album = call("load_images", "photos", size=size)
    index = torch.linspace(0, len(album) - 1, count).long()
    pixels = album.take(index).permute(0, 2, 3, 1).numpy()
    windows = type(album.windows)(*(w[index] for w in album.windows))

    def read(i: int) -> tuple[Image.Image, int]:
        return Image.fromarray(pixels[i]), i * 7 % len(classes) if classes else -1

    names = [album.name(i) for i in index.tolist()]
    images = call("ImageSet", read, names, size=size, source="photos", classes=classes, windows=windows)
    return call(images.in_memory)


@functools.cache
def textures(count: int = 48, size: int = 64, split: str = "val") -> Any:
    """Drawn pictures with labels."""
    return call("load_images", "textures", size=size, limit=count, split=split)


@functools.cache
def mined(name: str = "zfnet64", inside: bool = True) -> Any:
    """The top 4 of `layers` on `photos`."""
    return call("mine", network(name), photos(), layers(name), 4, inside=inside)


def tiny() -> Any:
    """An architecture that trains in seconds."""
    widths = (4, 5, 6, 6, 4)
    return call(
        "Architecture", "zfnet", 32, conv1=(7, 2, 1), conv2=(5, 1, 2), widths=widths, hidden=8, classes=16
    )


def recipe(**options: Any) -> Any:
    """Two short epochs."""
    quick = {"epochs": 2, "batch_size": 16, "init": "he", "snapshots": (0, 1, 2), "seed": 1}
    return call("Recipe", **quick | options)


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    """At most some 4,096 numbers of each tensor."""
    return {k: v.flatten()[:: 1 + v.numel() // 4096] for k, v in net.state_dict().items()}


def scratch(name: str) -> Path:
    """A fresh folder."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=FOLDER.name))


# ------------------------------------------------------------------------------------------ cases: the core


@case(*BUNDLED, *WRAPPED)
def model(name: str) -> Any:
    m = network(name)
    with torch.no_grad():
        logits = m.net(m.preprocess(photos().take([0, 9, 20])))
    described = {
        n: getattr(m, n) for n in ("layers", "conv_layers", "classes", "input_size", "mean", "scale")
    }
    fields = {n: call("receptive_field", m, n) for n in m.conv_layers}
    return {"logits": logits, **described, "weights": m.fingerprint(), "fields": fields}


@case()
def models() -> Any:
    untrained = call("load_model", "zfnet64-narrow", weights=None, seed=3, device="cpu")
    blurred = call("first_layer", 7, 2, blur=True)
    net = call("build", dataclasses.replace(tiny(), without=("conv3", "fc6"), blur=3))
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    return {
        "list": call("list_models"), "untrained": weights(untrained.net), "first": call("describe", blurred),
        "built": {k: tuple(v.shape) for k, v in net.state_dict().items()}, "blur": call("BlurPool", 5)(x),
        "architectures": find("ARCHITECTURES"), "feature layers": call("feature_layers", network("zfnet64")),
        "subsampling": {n: call("subsampling_layers", network(n)) for n in (*BUNDLED, *WRAPPED)},
        "fits": [call("fits_inside", network("zfnet64"), [n], 64) for n in network("zfnet64").conv_layers],
        "first layers": {(k, s): dataclasses.asdict(call("first_layer", k, s)) for k in (7, 11) for s in (2, 4)},
    }  # fmt: skip


@case("zfnet64", "alexnet64", *WRAPPED)
def mine(name: str) -> Any:
    found = {f"inside {inside}": mined(name, inside) for inside in (False, name == "zfnet64")}
    return found | {n: {k: call(v.statistics, k) for k in layers(name)} for n, v in found.items()}


@case()
def mine_options() -> Any:
    m, folder = network("zfnet64"), scratch("mining")
    each = call("mine", m, photos(60), ["conv2", "fc6"], 3, per_photograph=1)
    states = [
        call("mine_share", m, photos(), folder / "state", i, 2, ["conv1", "conv4"], 3) for i in range(2)
    ]
    merged = find("TopK").merge(states, photos())
    estimate = call("estimate_mining", m, photos(20), ["conv1"], 3)
    told = {
        n: getattr(estimate, n, "gone")
        for n in ("pictures", "maps", "processes", "table_bytes", "state_bytes")
    }
    bf16 = call("mine", m, photos(20), ["conv1"], 2, precision="bf16")
    return {"each": each, "merged": merged, "estimate": told, "bf16": bf16, "by layer": each.table("conv2")}


@case()
def topk_file() -> Any:
    path = mined().save(scratch("top") / "top.parquet")
    loaded = find("TopK").load(path)
    call(loaded.check, network("zfnet64"), photos())
    return {"loaded": loaded, "file": pd.read_parquet(path)}


@case(*BUNDLED, *WRAPPED)
def project(name: str) -> Any:
    m, found = network(name), {}
    batch = photos().take([0, 9, 20])
    for n in layers(name):
        for options in (
            {}, {"rule": "guided"}, {"rule": "gradient", "lrn": "gradient"}, {"seed": "activation"},
            {"lrn": "gradient", "seed": "activation"}, {"position": [[0, 1]] * 3},
        ):  # fmt: skip
            found[f"{n} {options}"] = call("project", m, batch, n, [0, 1, 2], **options)
    return found | ({"fc7": call("project", m, batch, "fc7", 5)} if name in BUNDLED else {})


@case(*BUNDLED, *WRAPPED)
def project_top(name: str) -> Any:
    inside, found = name in BUNDLED, {}
    for n in layers(name):
        for rule in ("deconvnet", "guided", "gradient"):
            for options in ({}, {"seed": "activation", "lrn": "gradient"}) if inside else ({},):
                where = (network(name), photos(), mined(name, inside), n, [0, 3])
                found[f"{n} {rule} {options}"] = call("project_top", *where, k=3, rule=rule, **options)
    return found


@case()
def rules() -> Any:
    m, x = network("zfnet64"), photos().take([4])
    deconvnet = call("Deconvnet", m.network, ["conv2", "conv5"], call("Options", rule="guided"))
    tape = deconvnet.forward(m.preprocess(x))
    reversed_ = deconvnet.reverse(tape, "conv5", torch.tensor([0]), torch.tensor([7]), None)
    many = call("project_many", m, photos(), mined(), {"conv1": [1], layers("zfnet64")[1]: [2]}, k=2)
    return {"tape": tape.outputs, "reversed": reversed_[0], "window": reversed_[1].origin, "many": many}


# --------------------------------------------------------------------------------- cases: pictures and files


@case("photos", "textures", "folder", "parquet")
def load_images(source: str) -> Any:
    folder, rng = scratch("pictures"), np.random.default_rng(0)
    rows = []
    for i, channels in enumerate((3, 4, 3, 1, 3, 3)):
        pixels = rng.integers(0, 256, (30 + 9 * i, 50 - 5 * i, channels), dtype=np.uint8)
        place = folder / "set" / f"class {i % 2}" / f"{i}.{'jpg' if i == 2 else 'png'}"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.squeeze()).save(place)
        rows.append({"image": {"bytes": place.read_bytes(), "path": place.name}, "label": i % 2})
    pd.DataFrame(rows).to_parquet(folder / "set.parquet")
    places = {"folder": f"folder:{folder / 'set'}", "parquet": f"parquet:{folder / 'set.parquet'}"}
    if source in places:
        images, index = call("load_images", places[source], size=24), list(range(6))
        found = {"opened": call("open_image", folder / "set" / "class 0" / "2.jpg", 20)}
    else:
        images, index = call("load_images", source, size=48), [0, 5, 99, 300, 700]
        found = {"windows": images.windows, "fingerprint": images.fingerprint()}
        if source == "photos":
            found["overlap"] = images.windows.overlap(index)
        else:
            other = call("load_images", "textures:no-middle,seed=3", size=32, limit=40, split="train")
            found |= {
                "truth": images.truth,
                "other": other.take(range(40)),
                "drawn": call("textures:draw", 5),
            }
    names = [images.name(i) for i in index]
    batch = next(iter(call(images.batches, 5)))
    return found | {"count": len(images), "pixels": images.take(index), "batch": batch, "names": names,
                    "labels": images.labels, "classes": images.classes, "skipped": images.skipped}  # fmt: skip


@case()
def draw() -> Any:
    m, folder = network("zfnet64"), scratch("atlas")
    patches = call("project_top", m, photos(), mined(), "conv1", [0, 1, 2])
    atlas = call("write_atlas", m, photos(), folder, layers=["conv1", "conv3"], maps=4, k=4, seed=2)
    guided = call("write_atlas", m, photos(), folder / "guided", layers=["conv2"], maps={"conv2": [5, 7]}, k=3,
                  options=call("Options", rule="guided"))  # fmt: skip
    pictures = {n: Image.open(p).convert("RGB") for n, p in {**atlas.pictures, **guided.pictures}.items()}
    return {
        "rgb": call("signed_to_rgb", patches.projection), "scaled": call("signed_to_rgb", patches.projection, 0.1),
        "layer": call("draw_layer", patches, mined()), "pictures": pictures, "table": pd.read_parquet(atlas.table),
        "maps": call("sample_maps", mined(), maps=5, seed=4), "files": sorted(p.name for p in folder.iterdir()),
    }  # fmt: skip


@case()
def weights_file() -> Any:
    net = call("build", tiny())
    tensors = {k: torch.linspace(-1, 1, v.numel()).view_as(v) for k, v in net.state_dict().items()}
    told = {"data": "made up", "top1": 12.5, "classes": [str(i) for i in range(16)]}
    path = call("save_weights", scratch("weights") / "net.safetensors", tensors, told)
    exact = call("save_weights", path.with_name("exact.safetensors"), tensors, told, dtype=torch.float32)
    bundled = Path(zfkit.__file__).parent.rglob("zfnet64.safetensors")
    return {"half": call("load_weights", path), "exact": call("load_weights", exact),
            "told": call("read_provenance", path), "bundled": call("read_provenance", next(bundled))}  # fmt: skip


@case()
def load_onnx() -> Any:
    try:
        import onnx
    except ImportError:
        return "onnx is not installed"
    helper, rng, path = onnx.helper, np.random.default_rng(0), scratch("onnx") / "net.onnx"
    shapes = {
        "Conv": [(6, 3, 5, 5), (6,)], "Relu": [], "LRN": [], "MaxPool": [], "Conv2": [(8, 6, 3, 3), (8,)],
        "BatchNormalization": [(8,)] * 4, "AveragePool": [], "Flatten": [], "Gemm": [(5, 8 * 4 * 4), (5,)],
        "Softmax": [],
    }  # fmt: skip
    attributes: dict[str, dict[str, Any]] = {
        "Conv": {"strides": [2, 2], "pads": [2] * 4}, "LRN": {"size": 5, "alpha": 5e-4, "bias": 2.0},
        "MaxPool": {"kernel_shape": [2, 2], "strides": [2, 2]}, "Conv2": {"pads": [1] * 4},
        "AveragePool": {"kernel_shape": [2, 2], "strides": [2, 2]}, "Gemm": {"transB": 1},
    }  # fmt: skip
    nodes, tensors = [], []
    for i, (kind, sizes) in enumerate(shapes.items()):
        for j, size in enumerate(sizes):
            values = np.abs(rng.standard_normal(size)).astype(np.float32) * (-0.3 if j == 1 else 0.2)
            tensors.append(onnx.numpy_helper.from_array(np.abs(values) if j == 3 else values, f"w{i}_{j}"))
        inputs = [f"t{i}", *(f"w{i}_{j}" for j in range(len(sizes)))]
        nodes.append(helper.make_node(kind.rstrip("2"), inputs, [f"t{i + 1}"], **attributes.get(kind, {})))
    ends = [
        helper.make_tensor_value_info(n, 1, s) for n, s in (("t0", (1, 3, 32, 32)), (f"t{len(nodes)}", None))
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    net = call("load_onnx", path, channels="bgr")
    m = call("wrap_model", net, mean=118.0, scale=1 / 64, input_size=32, name="onnx")
    x = photos(20, 32).take([0, 5])
    return {"weights": dict(net.state_dict()), "layers": m.layers, "output": net(m.preprocess(x)),
            "projected": call("project", m, x, m.conv_layers[-1], [1, 2], lrn="gradient")}  # fmt: skip


# ------------------------------------------------------------------------------- cases: spectra and aliasing


@case()
def spectra() -> Any:
    found = {n: call("filter_spectra", network(n)) for n in (*BUNDLED, *WRAPPED)}
    found["conv2"] = call("filter_spectra", network("zfnet64"), "conv2", size=32)
    found["part"] = found["zfnet64"].part_of("opponent")
    shuffled = call("random_control", found["alexnet64"], kind="shuffled", draws=5, seed=3, level=0.8)
    normal = call("random_control", found["zfnet64"], draws=5, seed=1)
    tables = {n: call("spectral_table", network(n)) for n in ("zfnet64", "resnet50")}
    compared = call("compare_spectra", [network(n) for n in BUNDLED], draws=4, seed=2)
    return {"spectra": found, "shuffled": shuffled, "normal": normal, "tables": tables, "compared": compared}


@case()
def lattice() -> Any:
    patches = call("project_top", network("zfnet64"), photos(), mined(), layers("zfnet64")[1], range(12))
    of_pixels = call("lattice", patches, 4, of="pixels")
    return {"energy": call("lattice", patches, (4, 2)), "pixels": of_pixels}


@case()
def gratings() -> Any:
    x = call("gratings", [0.1, 0.3], [0.0, 1.0], [0.0, 2.0], size=32, contrast=0.5, colour=(1.0, -1.0, 0.5))
    f = torch.linspace(-0.5, 0.5, 21)
    options = {"frequencies": [0.1, 0.3, 0.45], "orientations": [0.0, 0.7], "phases": 4}
    responses = {n: call("grating_response", network(n), "conv1", [0, 5], **options) for n in BUNDLED}
    return {"pictures": x, "fold": [call("fold", f, s) for s in (1, 2, 4)], "responses": responses}


@case()
def aliasing() -> Any:
    pairs = (("zfnet64", "conv1"), ("zfnet64", "conv2"), ("alexnet64", "conv1"), ("resnet50", "conv1"))
    found = {f"{n} {layer}": call("measure_aliasing", network(n), photos(20), layer) for n, layer in pairs}
    return found | {"interval": call(found["zfnet64 conv1"].interval, 0.9, seed=2)}


@case("zfnet64", "googlenet")
def shift_consistency(name: str) -> Any:
    some = layers(name)[:2]
    found = call("shift_consistency", network(name), photos(20, 96), 3, layers=some, window=64, seed=1)
    circular = call("shift_consistency", network(name), photos(20), 2, layers=some, circular=True)
    return {"shifted": found, "circular": circular}


# --------------------------------------------------------------------------------------- cases: experiments


@case("zfnet64", "vgg16_bn")
def occlude(name: str) -> Any:
    x = photos().take([7])[0]
    found = call("occlude", network(name), x, 3, size=16, stride=8, layer=layers(name)[-1])
    other = call("occlude", network(name), x, layer=layers(name)[0], channel=2, size=20, stride=16, fill=200,
                 classify=False, strongest="max")  # fmt: skip
    box = call(found.within, (8, 8, 40, 40))
    return {"found": found, "other": other, "drop": call(found.drop_per_pixel), "within": box,
            "covered": call(found.covered, x),
            "elsewhere": call("project_elsewhere", network(name), photos(), found, k=2)}  # fmt: skip


@case("shift", "scale", "rotation")
def invariance(motion: str) -> Any:
    m, options = network("zfnet64"), {"index": [3, 11, 30], "window": 64}
    found = call("invariance", m, photos(40, 128), motion, oversample=1, **options)
    values = {"shift": [-4, 0, 6], "scale": [1.0, 1.3], "rotation": [0, 45, 90]}[motion]
    other = call("invariance", network("resnet50"), photos(40, 128), motion, values, layers=["layer1.0.conv1"],
                 fill="reflect", interpolation="bilinear", **options)  # fmt: skip
    return {"found": found, "other": other, "linearity": {n: call(found.linearity, n) for n in found.layers}}


@case("faces", "coins")
def correspondence(kind: str) -> Any:
    p = call("part_pictures", kind, size=64, views=2, seed=1)
    few = slice(0, 12)
    parts = {n: b[few] for n, b in p.parts.items()}
    options = {"objects": p.objects[few], "groups": p.groups[few], "draws": 2, "seed": 3}
    found = call("correspondence", network("zfnet64"), p.pictures[few], parts, **options)
    scores = {(n, part): [getattr(found, f)(n, part) for f in ("score", "relative", "spread", "error", "chance")]
              for n in found.layers for part in found.parts}  # fmt: skip
    return {"pictures": p, "found": found, "scores": scores}


@case(*BUNDLED)
def sanity(name: str) -> Any:
    some = [network(name).conv_layers[i] for i in (0, 2)]
    options = {"units": 4, "draws": 1, "keep": 1, "seed": 2}
    found = call("sanity_checks", network(name), photos(20, 96), some, **options)
    permuted = call("sanity_checks", network(name), photos(20, 96), some[0], draw="permutation", lrn="gradient",
                    rules=["gradient"], **options)  # fmt: skip
    return {"found": found, "permuted": permuted, "by layer": call(found.table, some[1])}


@case()
def randomise() -> Any:
    m, vgg = network("zfnet64"), network("vgg16_bn")
    chosen = call("weight_layers", m, "conv3")
    patches = call("project_top", m, photos(), mined(), "conv1", [0, 1])
    likeness = call("photo_likeness", patches.projection[0, 0], patches.photo[0, 0])
    a, b = patches.projection[:, 0]
    return {
        "layers": chosen, "normal": weights(call("randomise", m, chosen, seed=5).net.conv3), "likeness": likeness,
        "permuted": weights(call("randomise", m, "conv2", draw="permutation", seed=5).net.conv2),
        "vgg": weights(call("randomise", vgg, list(vgg.conv_layers[:2])).net.features[:5]),
        "similarity": call("randomisation:similarity", a, b), "ranks": call("ranks", a.flatten()),
    }  # fmt: skip


@case("zfnet64", "resnet50")
def selectivity(name: str) -> Any:
    some = layers(name)[:2]
    found = call("selectivity", network(name), textures(), some, k=4, shuffles=2, seed=1)
    pose = call(
        "pose_variation", network(name), photos(), some[:2] if name == "zfnet64" else some[:1], k=3, maps=4
    )
    return {"selectivity": found, "pose": pose}


@case()
def transfer() -> Any:
    m = network("zfnet64")
    options = {"per_class": [1, 3], "splits": 2, "seed": 1, "max_features": 500}
    svm = call("transfer", m, textures(96, split="train"), textures(), ["norm1", "pool5", "relu7"], **options)
    soft = call("transfer", m, textures(96), None, ["relu7"], classifier="softmax", controls=(), **options)
    return {"svm": svm, "softmax": soft}


@case("1", "10")
def ensemble(crops: str) -> Any:
    images = photos(40, 72, network("zfnet64").classes)
    both = [network(n) for n in BUNDLED]
    found = call("ensemble", both, images, int(crops))
    geometric = call("ensemble", both, images, int(crops), average="logarithms")
    alone = {n: call("evaluate", network(n), images, crops=int(crops)) for n in BUNDLED}
    return {"found": found, "geometric": geometric, "alone": alone}


@case()
def ablate() -> Any:
    bases = ("zfnet64", "alexnet224", tiny())
    trained = call("ablate", tiny(), textures(48, 32, "train"), textures(32, 32), ["full", "without-3-4"],
                   recipe=recipe(), seeds=(0, 1), device="cpu")  # fmt: skip
    return {
        "variants": {n: dataclasses.asdict(a) for n, a in call("ablations", "zfnet64").items()},
        "counts": [call("ablation_counts", b) for b in bases], "trained": trained, "bundled": call("read_ablation"),
    }  # fmt: skip


@functools.cache
def evolved() -> list[Any]:
    """Each bundled training, on a few textures."""
    options = {"layers": ["conv1", "conv3", "fc6"], "maps": 2, "compare": 32, "places": 4, "seed": 1}
    runs = call("bundled_runs")
    return [call("evolution", r, textures(32), epochs=[0, 3, 24], **options) for r in runs]


@case()
def evolution() -> Any:
    run = call("bundled_runs")[1]
    x, y = (torch.randn(20, 6, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    return {
        "found": evolved(), "convergence": call("convergence", evolved()), "history": run.history,
        "one": call("convergence", evolved()[0], 0.8), "maps": evolved()[0].maps("conv1"),
        "snapshots": list(run.snapshots), "weights": weights(run.model(3).net), "cka": call("cka", x, y),
    }  # fmt: skip


@case()
def first_layer() -> Any:
    runs = call("load_first_layer_runs")
    factors = {"kernel": (11, 7), "stride": (4, 2)}
    rows = runs.table[~runs.table.blur & (runs.table.images == runs.table.images.iloc[0])]
    images = photos(20, 64, network("zfnet64").classes)
    return {
        "table": runs.table, "told": runs.told, "weights": runs.weights[:3], "summary": call(runs.summary),
        "effects": call("factorial_effects", rows, factors, ["mid", "aliasable", "top1"]),
        "spectra": runs.spectra(kernel=7, stride=2, blur=False)[:2],
        "measured": call("measure_first_layer", network("zfnet64"), images, photos(20, 67), shifts=3),
    }  # fmt: skip


@case("zfnet64", "alexnet64", "resnet50", "one filter x20", "zeroed filters", "swapped RGB")
def diagnose(what: str) -> Any:
    name = what if what in (*BUNDLED, *WRAPPED) else "zfnet64"
    m = network(name) if what == name else call("plant", network(name), what, seed=1).model
    images = photos(40, 64, m.classes) if m.classes else photos()
    return call("diagnose", m, images, limit=32, seed=1)


@case()
def fit() -> Any:
    found = {}
    for name, options in {"paper": {}, "std": {"inputs": "std", "shift": 2, "init": "paper"}}.items():
        data = (textures(48, 32, "train"), textures(32, 32))
        run = call("fit", tiny(), *data, recipe(**options), scratch("run"), device="cpu")
        m = run.model(device="cpu")
        found[name] = {
            "history": run.history, "snapshots": list(run.snapshots), "weights": dict(m.net.state_dict()),
            "early": dict(run.model(1).net.state_dict()), "evaluated": call("evaluate", m, data[1], crops=10),
        }  # fmt: skip
    recipes = {n: dataclasses.asdict(r) for n, r in find("RECIPES").items()}
    return found | {"recipes": recipes, "table": find("Recipe").table(), "limits": find("Thresholds").table()}


# ------------------------------------------------------------------------- cases: figures, sweeps and explorers


@case("model", "experiments", "training")
def figures(which: str) -> Any:
    def fig(name: str, *args: Any, **options: Any) -> Any:
        drawn[name] = dict(leaves(call(name, *args, **options)))

    drawn: dict[str, Any] = {}
    m, x = network("zfnet64"), photos().take([7])[0]
    if which == "model":
        found = [call("filter_spectra", network(n)) for n in BUNDLED]
        fig("filter_sheet", found)
        fig("radial_spectra", [call("random_control", s, draws=5) for s in found])
        fig("spectrum_maps", found)
        patches = call("project_top", m, photos(), mined(), "conv3", range(4))
        fig("lattice_figure", call("lattice", patches, 4))
        fig("aliasing_figure", [call("measure_aliasing", network(n), photos(20), "conv1") for n in BUNDLED])
        fig("gratings_figure", [call("grating_response", network(n), "conv1", [0, 5], phases=4,
                                     frequencies=[0.1, 0.3], orientations=[0.0, 0.7]) for n in BUNDLED])  # fmt: skip
        fig("shift_figure", [call("shift_consistency", m, photos(20, 96), 2, layers=["conv1"], window=64)])
        fig("report_figure", call("diagnose", m, photos(), limit=32))
    if which == "experiments":
        hidden = call("occlude", m, x, 3, size=16, stride=8)
        fig("occlusion_figure", hidden, call("project_elsewhere", m, photos(), hidden, k=2))
        moved = call("invariance", m, photos(40, 128), "shift", [-4, 0, 6], index=[3, 11], window=64)
        fig("invariance_figure", [moved], [0], ["a", "b"])
        p = call("part_pictures", "faces", views=2)
        fig("parts_figure", p.pictures, p.parts, p.objects, columns=3)
        fig("correspondence_figure", call("correspondence", m, p.pictures, p.parts, groups=p.groups, draws=2))
        fig("selectivity_figure", call("selectivity", m, textures(), ["conv1", "conv3"], k=4, shuffles=2))
        fig("pose_variation_figure", call("pose_variation", m, photos(), ["conv1", "conv2"], k=3, maps=4))
        checks = call("sanity_checks", m, photos(20, 96), ["conv1", "conv2"], units=4, draws=1, keep=1)
        fig("sanity_figure", checks, "conv2")
        fig("sanity_sheet", checks, "conv2")
        fig("sanity_layers_figure", checks)
        fig("photo_likeness_figure", checks)
    if which == "training":
        runs, table = call("bundled_runs"), call("load_first_layer_runs").table
        fig("training_figure", {r.folder.name: r.history.drop(columns="seconds") for r in runs})
        fig("evolution_figure", evolved()[0])
        fig("evolution_sheet", evolved()[0].layers["conv1"])
        fig("convergence_figure", evolved())
        fig("first_layer_figure", table)
        rows = table[~table.blur & (table.images == table.images.iloc[0])]
        factors = {"kernel": (11, 7), "stride": (4, 2)}
        fig("effects_figure", {"effects": call("factorial_effects", rows, factors, ["mid", "aliasable"])})
        fig(
            "profiles_figure",
            {"7": call("load_first_layer_runs").spectra(kernel=7, stride=2, blur=False)[:2]},
        )
        fig("ablation_figure", call("read_ablation"))
        fig("ensemble_figure", [call("ensemble", [network(n) for n in BUNDLED], photos(40, 72, m.classes))])
        scores = call("transfer", m, textures(96), textures(), ["norm1", "relu7"], per_class=[1, 2], splits=2)
        fig("transfer_figure", scores)
    return drawn


@case()
def sweeps() -> Any:
    v4, folder, keep = nbformat.v4, scratch("sweep"), find("sweeps:record")
    given = 'rule = "guided"  # one of: "guided", "gradient"\nmaps = 2  # range: 0 to 8\nrate = 0.1\nname: str | None = None'
    code = (
        f"from {keep.__module__} import {keep.__name__} as keep\nkeep('twice', 2 * maps)\nkeep('rule', rule)"
    )
    cells = [v4.new_markdown_cell("# Why?"), v4.new_code_cell(given, metadata={"tags": ["parameters"]})]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = v4.new_notebook(cells=[*cells, v4.new_code_cell(code)], metadata=kernel)
    nbformat.write(notebook, folder / "why.ipynb")
    (folder / "grid.yaml").write_text("rule: [guided, gradient]\nmaps: [1, 3]\n")
    grid, parameters = call("read_grid", folder / "grid.yaml"), call("read_parameters", notebook)
    told = {n: {k: str(getattr(p, k, "gone")) for k in ("default", "comment", "kinds", "choices", "bounds")}
            for n, p in parameters.items()}  # fmt: skip
    table = call("sweep", folder / "why.ipynb", {"maps": [3]}, folder / "out", jobs=1, threads=1)
    return {"grid": grid, "parameters": told, "runs": call("expand", grid, parameters), "table": table}


@case()
def command_line() -> Any:
    path, out = scratch("cli") / "top.parquet", io.StringIO()
    words = (
        f"mine --model zfnet64 --images photos --size 64 --limit 20 --layers conv1 --device cpu --out {path}"
    )
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = call("cli:main", words.split())
    return {"code": code, "table": pd.read_parquet(path)}


@case()
def explorers() -> Any:
    m = network("zfnet64")
    explorer = call("explore", m, photos(), mined(), layer=layers("zfnet64")[1], channel=3, ahead=False)
    growth = call("explore_evolution", evolved()[0], textures(32))
    waves = call("explore_gratings", [network(n) for n in BUNDLED], frequency=0.3)
    found = {}
    for name, shown in {"explore": explorer, "evolution": growth, "gratings": waves}.items():
        shown.wait()
        found[name] = shown.snapshot()
        shown.close()
    return found


# ------------------------------------------------------------------------------------------------ the two runs


def result(name: str) -> dict[str, Any]:
    """What a case gives, always from the same random state."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (whoever draws from the global state shall draw the same)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(leaves(CASES[name]()))


def main() -> int:
    """Record or compare; returns 1 where a case failed or differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument(
        "--out", "--with", dest="folder", type=Path, required=True, help="folder of the results"
    )
    parser.add_argument("--only", nargs="+", default=["*"], help="cases by name, or as 'project*'")
    options = parser.parse_args()
    matplotlib.use("Agg")
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    print(f"zfkit of {Path(zfkit.__file__).parent}, torch {torch.__version__}")
    started, bad = time.perf_counter(), 0
    chosen = [n for n in CASES if any(fnmatch.fnmatch(n, o) or n.split(".")[0] == o for o in options.only)]
    for name in chosen:
        begun, path = time.perf_counter(), options.folder / f"{name}.pickle.gz"
        try:
            with threadpool_limits(1):
                found = result(name)
            if options.what == "record":
                with gzip.open(path, "wb", compresslevel=1) as file:
                    pickle.dump(found, file)
                good, told = True, f"{len(found)} values"
            else:
                with gzip.open(path) as file:
                    good, told = verdict(pickle.load(file), found)
        except Exception as error:
            good, told = False, f"error: {type(error).__name__}: {' '.join(str(error).split())}"
        bad += not good
        print(f"{name:24} {time.perf_counter() - begun:6.1f} s  {told}", flush=True)
    print(f"{len(chosen)} cases, {bad} of them bad, {time.perf_counter() - started:.0f} s")
    return 1 if bad or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
