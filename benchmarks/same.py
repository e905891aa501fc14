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
import importlib.util
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
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import scipy.stats
import torch
import torchvision
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
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
LOOKED_UP: set[str] = set()
FAILED: list[str] = []  # modules that cannot be imported

# ------------------------------------------------------------------------------------------- names and calls


@functools.cache
def modules() -> list[ModuleType]:
    """zfkit and every module in it that can be imported."""
    found = [zfkit]
    for info in pkgutil.walk_packages(zfkit.__path__, "zfkit.", onerror=lambda name: None):
        if not info.name.endswith("__main__"):
            try:
                found.append(importlib.import_module(info.name))
            except Exception as error:
                FAILED.append(f"{info.name} ({error})")
    return found


@functools.cache
def find(name: str) -> Any:
    """The public function, class or constant of this name; "textures:draw" looks into textures first."""
    near, _, name = RENAMED.get(name, name).rpartition(":")
    LOOKED_UP.add(name)
    for module in sorted(modules(), key=lambda m: near not in m.__name__):
        value = getattr(module, name, None)
        if value is None or isinstance(value, ModuleType):
            continue
        if getattr(value, "__module__", "zfkit").startswith("zfkit"):
            return value
    raise AttributeError(f"zfkit has no {name} any more; not imported: {', '.join(FAILED) or 'none'}")


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
        canvas = FigureCanvasAgg(value)
        canvas.draw()
        yield name, np.array(canvas.buffer_rgba())
        plt.close(value)
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
        if a.index.nlevels == 1:  # names of settings, say
            a = a.rename(index={v: _now(v) for v in a.index if v not in b.index})
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
    return call("wrap_model", net.eval(), mean=[123.7, 116.3, 103.5], scale=1 / 58, input_size=64, name=name)


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
def mined(name: str = "zfnet64") -> Any:
    """The top 4 of `layers` on `photos`."""
    return call("mine", network(name), photos(), layers(name), 4)


@functools.cache
def inside() -> Any:
    """The same of zfnet64's first two layers, of units that see nothing but the picture."""
    return call("mine", network("zfnet64"), photos(), ["conv1", "conv2"], 4, inside=True)


def tiny() -> Any:
    """An architecture that trains in seconds."""
    widths = (4, 5, 6, 6, 4)
    return call(
        "Architecture", "zfnet", 32, conv1=(7, 2, 1), conv2=(5, 1, 2), widths=widths, hidden=8, classes=16
    )


def recipe(**options: Any) -> Any:
    """Two short epochs."""
    quick = {"epochs": 2, "batch_size": 16, "init": "he", "snapshots": (0, 1, 2), "seed": 1, "progress": 0.0}
    return call("Recipe", **quick | options)


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    """At most some 4,096 numbers of each tensor."""
    return {k: v.flatten()[:: 1 + v.numel() // 4096] for k, v in net.state_dict().items()}


def scratch(name: str) -> Path:
    """A fresh folder."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=FOLDER.name))


# fmt: off
# ------------------------------------------------------------------------------------------ cases: the core


@case(*BUNDLED, *WRAPPED)
def model(name: str) -> Any:
    m = network(name)
    with torch.no_grad():
        logits = m.net(m.preprocess(photos().take([0, 9, 20])))
    told = {n: getattr(m, n) for n in ("layers", "conv_layers", "classes", "input_size", "mean", "scale")}
    fields = {n: call("receptive_field", m, n) for n in m.conv_layers}
    return {"logits": logits, "told": told, "weights": m.fingerprint(), "fields": fields}


@case()
def models() -> Any:
    untrained = call("load_model", "zfnet64-narrow", weights=None, seed=3, device="cpu")
    net = call("build", dataclasses.replace(tiny(), without=("conv3", "fc6"), blur=3))
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    zfnet = network("zfnet64")
    return {
        "list": call("list_models"), "untrained": weights(untrained.net), "blur": call("BlurPool", 5)(x),
        "built": {k: tuple(v.shape) for k, v in net.state_dict().items()},
        "described": call("describe", call("first_layer", 7, 2, blur=True)),
        "architectures": find("ARCHITECTURES"), "feature layers": call("feature_layers", zfnet),
        "subsampling": {n: call("subsampling_layers", network(n)) for n in (*BUNDLED, *WRAPPED)},
        "fits": [call("fits_inside", zfnet, [n], 64) for n in zfnet.conv_layers],
        "first layers": {f"{k} {s}": call("first_layer", k, s) for k in (7, 11) for s in (2, 4)},
    }


@case("zfnet64", "alexnet64", *WRAPPED)
def mine(name: str) -> Any:
    found = {"all": mined(name)} | ({"inside": inside()} if name == "zfnet64" else {})
    return found | {f"statistics of {n}": {k: call(v.statistics, k) for k in v.layers} for n, v in found.items()}


def merged(model: Any, names: list[str]) -> Any:
    """The table of two parts of the pictures, merged."""
    try:
        share, state = find("mine_share"), scratch("mining") / "state"
        parts = [call(share, model, photos(), state, i, 2, names, 3) for i in range(2)]
    except AttributeError:
        plan = find("MiningPlan").checked(model, photos(), names, 3, None, False, None, "float32")
        parts = [find("mine_part")(plan, part) for part in plan.parts(2)]
    return find("TopK").merge(parts, photos())


@case()
def mine_options() -> Any:
    m = network("zfnet64")
    each = call("mine", m, photos(60), ["conv2", "fc6"], 3, per_photograph=1)
    estimate = call("estimate_mining", m, photos(20), ["conv1"], 3)
    told = {n: getattr(estimate, n, "gone") for n in ("pictures", "maps", "processes", "table_bytes", "state_bytes")}
    bf16 = call("mine", m, photos(20), ["conv1"], 2, precision="bf16")
    return {"each": each, "merged": merged(m, ["conv1", "conv4"]), "estimate": told, "bf16": bf16,
            "by layer": each.table("conv2")}


@case()
def topk_file() -> Any:
    path = mined().save(scratch("top") / "top.parquet")
    loaded = find("TopK").load(path)
    call(loaded.check, network("zfnet64"), photos())
    return {"loaded": loaded, "file": pd.read_parquet(path)}


@case(*BUNDLED, *WRAPPED)
def project(name: str) -> Any:
    m, found = network(name), dict[str, Any]()
    batch = m.preprocess(photos().take([0, 9, 20]))
    ways: tuple[dict[str, Any], ...] = (
        {}, {"rule": "guided"}, {"rule": "gradient", "lrn": "gradient"}, {"seed": "activation"},
        {"lrn": "gradient", "seed": "activation"}, {"position": [[0, 1]] * 3},
    )
    for n in layers(name):
        found |= {f"{n} {o}": call("project", m, batch, n, [0, 1, 2], **o) for o in ways}
    return found | ({"fc7": call("project", m, batch, "fc7", 5)} if name in BUNDLED else {})


@case(*BUNDLED, *WRAPPED)
def project_top(name: str) -> Any:
    ways = [{}, {"seed": "activation", "lrn": "gradient"}][: 1 + (name in BUNDLED)]
    return {f"{n} {rule} {o}": call("project_top", network(name), photos(), mined(name), n, [0, 3], k=3, rule=rule, **o)
            for n in layers(name) for rule in ("deconvnet", "guided", "gradient") for o in ways}


@case()
def rules() -> Any:
    class Double(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    call("register_rule", Double)(lambda R, module, context: 3 * R)
    torch.manual_seed(0)
    own = call("wrap_model", nn.Sequential(nn.Conv2d(3, 4, 5), Double(), nn.ReLU(), nn.Conv2d(4, 2, 3)),
               mean=118.0, scale=1 / 64, input_size=32)
    m = network("zfnet64")
    deconvnet = call("Deconvnet", m.network, ["conv2", "conv5"], call("Options", rule="guided"))
    tape = deconvnet.forward(m.preprocess(photos().take([4])))
    back = deconvnet.reverse(tape, "conv5", torch.tensor([0]), torch.tensor([7]), torch.tensor([[1, 2]]))
    many = call("project_many", m, photos(), mined(), {"conv1": [1], "conv3": [2]}, k=2)
    return {"tape": tape.outputs, "reversed": back[0], "window": back[1].origin, "many": many,
            "own": call("project", own, own.preprocess(photos(20, 32).take([1, 2])), "3", 0)}


# --------------------------------------------------------------------------------- cases: pictures and files


@case("photos", "textures", "folder", "parquet")
def load_images(source: str) -> Any:
    folder, rng, rows = scratch("pictures"), np.random.default_rng(0), []
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
        found: dict[str, Any] = {"opened": call("open_image", folder / "set" / "class 0" / "2.jpg", 20)}
    else:
        images, index = call("load_images", source, size=48), [0, 5, 99, 300, 700]
        found = {"windows": images.windows, "fingerprint": images.fingerprint(), "truth": images.truth}
    if source == "photos":
        found["overlap"] = images.windows.overlap(index)
    if source == "textures":
        other = call("load_images", "textures:no-middle,seed=3", size=32, limit=40, split="train")
        found |= {"other": other.take(range(40)), "drawn": call("textures:draw", 5, seed=2)}
    return found | {"count": len(images), "pixels": images.take(index), "batch": next(call(images.batches, 5)),
                    "names": [images.name(i) for i in index], "labels": images.labels, "classes": images.classes}


@case()
def draw() -> Any:
    m, folder, guided = network("zfnet64"), scratch("atlas"), call("Options", rule="guided")
    patches = call("project_top", m, photos(), mined(), "conv1", [0, 1, 2])
    atlas = call("write_atlas", m, photos(), folder, layers=["conv1", "conv3"], maps=4, k=4, seed=2)
    other = call("write_atlas", m, photos(), folder / "guided", maps={"conv2": [5, 7]}, k=3, options=guided)
    pictures = {n: Image.open(p).convert("RGB") for n, p in {**atlas.pictures, **other.pictures}.items()}
    return {
        "rgb": call("signed_to_rgb", patches.projection), "scaled": call("signed_to_rgb", patches.projection, 0.1),
        "layer": call("draw_layer", patches, mined()), "pictures": pictures, "table": pd.read_parquet(atlas.table),
        "maps": call("sample_maps", mined(), maps=5, seed=4), "files": sorted(p.name for p in folder.iterdir()),
    }


@case()
def weights_file() -> Any:
    net, folder = call("build", tiny()), scratch("weights")
    tensors = {k: torch.linspace(-1, 1, v.numel()).view_as(v) for k, v in net.state_dict().items()}
    told = {"data": "made up", "top1": 12.5, "classes": [str(i) for i in range(16)]}
    half = call("save_weights", folder / "half.safetensors", tensors, told)
    exact = call("save_weights", folder / "exact.safetensors", tensors, told, dtype=torch.float32)
    bundled = next(Path(zfkit.__file__).parent.rglob("zfnet64.safetensors"))
    return {"half": call("load_weights", half), "exact": call("load_weights", exact),
            "told": call("read_provenance", half), "bundled": call("read_provenance", bundled)}


@case()
def load_onnx() -> Any:
    if importlib.util.find_spec("onnx") is None:
        return "onnx is not installed"
    import onnx

    rng, path, made = np.random.default_rng(0), scratch("onnx") / "net.onnx", onnx.helper
    pool: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    steps: list[tuple[str, list[tuple[int, ...]], dict[str, Any]]] = [
        ("Conv", [(6, 3, 5, 5), (6,)], {"strides": [2, 2], "pads": [2] * 4}), ("Relu", [], {}),
        ("LRN", [], {"size": 5, "alpha": 5e-4, "bias": 2.0}), ("MaxPool", [], pool),
        ("Conv", [(8, 6, 3, 3), (8,)], {"pads": [1] * 4}), ("BatchNormalization", [(8,)] * 4, {}),
        ("AveragePool", [], pool), ("Flatten", [], {}), ("Gemm", [(5, 128), (5,)], {"transB": 1}), ("Softmax", [], {}),
    ]
    nodes, tensors = [], []
    for i, (kind, sizes, options) in enumerate(steps):
        values = [rng.standard_normal(size).astype(np.float32) * 0.3 for size in sizes]
        values = [np.abs(v) for v in values] if kind == "BatchNormalization" else values  # a variance among them
        tensors += [onnx.numpy_helper.from_array(v, f"w{i}_{j}") for j, v in enumerate(values)]
        inputs = [f"t{i}", *(f"w{i}_{j}" for j in range(len(sizes)))]
        nodes.append(made.make_node(kind, inputs, [f"t{i + 1}"], **options))
    ends = [made.make_tensor_value_info(n, 1, s) for n, s in (("t0", (1, 3, 32, 32)), (f"t{len(nodes)}", None))]
    graph = made.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    onnx.save(made.make_model(graph, opset_imports=[made.make_opsetid("", 13)], ir_version=8), path)
    net = call("load_onnx", path, channels="bgr")
    m = call("wrap_model", net, mean=118.0, scale=1 / 64, input_size=32, name="onnx")
    x = m.preprocess(photos(20, 32).take([0, 5]))
    return {"weights": dict(net.state_dict()), "layers": m.layers, "output": net(x),
            "projected": call("project", m, x, m.conv_layers[-1], [1, 2], lrn="gradient")}


# ------------------------------------------------------------------------------- cases: spectra and aliasing


@case()
def spectra() -> Any:
    found = {n: call("filter_spectra", network(n)) for n in (*BUNDLED, *WRAPPED)}
    found["conv2"] = call("filter_spectra", network("zfnet64"), "conv2", size=32)
    return {
        "spectra": found, "part": found["zfnet64"].part_of("opponent"),
        "shuffled": call("random_control", found["alexnet64"], kind="shuffled", draws=5, seed=3, level=0.8),
        "normal": call("random_control", found["zfnet64"], draws=5, seed=1),
        "tables": {n: call("spectral_table", network(n)) for n in ("zfnet64", "resnet50")},
        "compared": call("compare_spectra", [network(n) for n in BUNDLED], draws=4, seed=2),
    }


@case()
def lattice() -> Any:
    patches = call("project_top", network("zfnet64"), photos(), mined(), "conv3", range(12))
    return {"energy": call("lattice", patches, (4, 2)), "pixels": call("lattice", patches, 4, of="pixels")}


@case()
def gratings() -> Any:
    x = call("gratings", [0.1, 0.3], [0.0, 1.0], [0.0, 2.0], size=32, contrast=0.5, colour=(1.0, -1.0, 0.5))
    folded = [call("fold", torch.linspace(-0.5, 0.5, 21), s) for s in (1, 2, 4)]
    return {"pictures": x, "fold": folded, "responses": {n: response(n) for n in BUNDLED}}


def response(name: str) -> Any:
    """Two first-layer maps of a network to a few gratings."""
    waves = {"frequencies": [0.1, 0.3, 0.45], "orientations": [0.0, 0.7], "phases": 4}
    return call("grating_response", network(name), "conv1", [0, 5], **waves)


@case()
def aliasing() -> Any:
    pairs = (("zfnet64", "conv1"), ("zfnet64", "pool1"), ("alexnet64", "conv1"), ("resnet50", "conv1"))
    found = {f"{n} {layer}": call("measure_aliasing", network(n), photos(20), layer) for n, layer in pairs}
    return found | {"interval": call(found["zfnet64 conv1"].interval, 0.9, seed=2)}


@case("zfnet64", "googlenet")
def shift_consistency(name: str) -> Any:
    some, run = layers(name)[:2], functools.partial(call, "shift_consistency", network(name))
    return {"shifted": run(photos(8, 96), 3, layers=some, window=64, seed=1),
            "circular": run(photos(8), 2, layers=some, circular=True)}


# --------------------------------------------------------------------------------------- cases: experiments


@case("zfnet64", "vgg16_bn")
def occlude(name: str) -> Any:
    m, x, (first, _, last) = network(name), photos().take([7])[0], layers(name)
    found = call("occlude", m, x, 3, size=16, stride=8, layer=last)
    other = call("occlude", m, x, layer=first, channel=2, size=20, stride=16, fill=200, classify=False, strongest="max")
    return {"found": found, "other": other, "drop": call(found.drop_per_pixel), "within": found.within((8, 8, 40, 40)),
            "covered": found.covered(x[0]), "elsewhere": call("project_elsewhere", m, photos(), found, k=2)}


@case("shift", "scale", "rotation")
def invariance(motion: str) -> Any:
    options = {"index": [3, 11, 30], "window": 64}
    found = call("invariance", network("zfnet64"), photos(40, 128), motion, **options)
    values = {"shift": [-4, 0, 6], "scale": [1.0, 1.3], "rotation": [0, 45, 90]}[motion]
    other = call("invariance", network("resnet50"), photos(40, 128), motion, values, layers=["layer1.0.conv1"],
                 fill="reflect", interpolation="bilinear", oversample=2, **options)
    more = {n: [found.normalised(n), found.linearity(n)] for n in found.layers}
    symmetry = found.symmetry(found.layers[0]) if motion == "rotation" else None
    return {"found": found, "other": other, "more": more, "symmetry": symmetry}


@case("faces", "coins")
def correspondence(kind: str) -> Any:
    p = call("part_pictures", kind, size=64, views=2, seed=1)
    parts, options = {n: b[:12] for n, b in p.parts.items()}, {"draws": 2, "seed": 3}
    found = call("correspondence", network("zfnet64"), p.pictures[:12], parts, objects=p.objects[:12],
                 groups=p.groups[:12], **options)
    scores = {f"{n} {part}": [getattr(found, f)(n, part) for f in ("score", "relative", "spread", "error", "chance")]
              for n in found.layers for part in found.parts}
    return {"pictures": p, "found": found, "scores": scores}


@case(*BUNDLED)
def sanity_checks(name: str) -> Any:
    some, m = [network(name).conv_layers[i] for i in (0, 1)], network(name)
    options = {"units": 4, "draws": 1, "keep": 1, "seed": 2}
    found = call("sanity_checks", m, photos(20, 96), some, **options)
    permuted = call("sanity_checks", m, photos(20, 96), some[0], draw="permutation", lrn="gradient",
                    rules=["gradient"], **options)
    return {"found": found, "permuted": permuted, "by layer": call(found.table, some[1])}


@case()
def randomise() -> Any:
    m, vgg = network("zfnet64"), network("vgg16_bn")
    patches = call("project_top", m, photos(), mined(), "conv1", [0, 1])
    a, b = patches.projection[:, 0]
    return {
        "layers": call("weight_layers", m, "conv3"),
        "likeness": call("photo_likeness", patches.projection[0, 0], patches.photo[0, 0]),
        "normal": weights(call("randomise", m, "conv3", seed=5).net.conv3),
        "permuted": weights(call("randomise", m, "conv2", draw="permutation", seed=5).net.conv2),
        "vgg": weights(call("randomise", vgg, list(vgg.conv_layers[:2])).net.features[:5]),
        "similarity": call("similarity", a, b),
        "ranks": torch.from_numpy(scipy.stats.rankdata(a.flatten())),
    }


@case("zfnet64", "resnet50")
def selectivity(name: str) -> Any:
    some = ["conv1", "conv3"] if name == "zfnet64" else ["conv1", "layer1.0.conv2"]
    return {"selectivity": call("selectivity", network(name), textures(), some, k=4, shuffles=2, seed=1),
            "pose": call("pose_variation", network(name), photos(), some, k=3, maps=4, seed=1)}


@case()
def transfer() -> Any:
    m, options = network("zfnet64"), {"splits": 2, "seed": 1, "max_features": 500}
    svm = call("transfer", m, textures(96, 64, "train"), textures(), ["norm1", "pool5", "relu7"], per_class=[1, 3],
               **options)
    soft = call("transfer", m, textures(96), None, ["relu7"], classifier="softmax", controls=(), per_class=2, **options)
    scratch = call("transfer", m, textures(48), None, ["relu7"], controls=(), per_class=2, scratch=recipe(),
                   scratch_architecture=dataclasses.replace(tiny(), input_size=64), scratch_splits=1, **options)
    return {"svm": svm, "softmax": soft, "scratch": scratch}


@case("1", "10")
def ensemble(crops: str) -> Any:
    both, images = [network(n) for n in BUNDLED], photos(20, 72, network("zfnet64").classes)
    found = {a: call("ensemble", both, images, int(crops), average=a) for a in ("probabilities", "logarithms")}
    return found | {"alone": {m.name: call("evaluate", m, images, crops=int(crops)) for m in both}}


@case()
def ablate() -> Any:
    data = textures(48, 32, "train"), textures(32, 32)
    return {
        "trained": call("ablate", tiny(), *data, ["full", "without-3-4"], recipe=recipe(), seeds=(0, 1), device="cpu"),
        "variants": call("ablations", "zfnet64"), "bundled": call("read_ablation"),
        "counts": [call("ablation_counts", b) for b in ("zfnet64", "alexnet224", tiny())],
    }


@functools.cache
def evolved() -> list[Any]:
    """Each bundled training, on a few textures."""
    options = {"layers": ["conv1", "conv3", "fc6"], "maps": 2, "compare": 32, "places": 4, "seed": 1}
    return [call("evolution", r, textures(32), epochs=[0, 3, 30], **options) for r in call("bundled_runs")]


@case()
def evolution() -> Any:
    run = call("bundled_runs")[1]
    x, y = (torch.randn(20, 6, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    return {
        "found": evolved(), "convergence": call("convergence", evolved()), "history": run.history,
        "one": call("convergence", evolved()[0], 0.8), "maps": evolved()[0].maps("conv1"),
        "snapshots": list(run.snapshots), "weights": weights(run.model(3).net), "cka": call("cka", x, y),
    }


def effects(*measures: str) -> pd.DataFrame:
    """What kernel and stride do to the bundled first layers without blur."""
    table = call("load_first_layer_runs").table
    rows = table[~table.blur & (table.images == table.images.iloc[0])]
    return call("factorial_effects", rows, {"kernel": (11, 7), "stride": (4, 2)}, measures)


@case()
def first_layer() -> Any:
    runs, images = call("load_first_layer_runs"), photos(20, 64, network("zfnet64").classes)
    return {
        "table": runs.table, "told": runs.told, "weights": runs.weights[:3], "summary": call(runs.summary),
        "effects": effects("mid", "aliasable", "top1"), "spectra": runs.spectra(kernel=7, stride=2, blur=False)[:2],
        "measured": call("measure_first_layer", network("zfnet64"), images, photos(20, 67), shifts=3),
    }


def planted(what: str) -> Any:
    """zfnet64 with a fault on purpose; what plants it stands in the package of old, and beside the tests."""
    try:
        plant = find("plant")
    except AttributeError:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        plant = importlib.import_module("planted").plant
    return plant(network("zfnet64"), what, seed=1).model


@case("zfnet64", "alexnet64", "resnet50", "one filter x20", "zeroed filters", "swapped RGB")
def diagnose(what: str) -> Any:
    m = network(what) if what in (*BUNDLED, *WRAPPED) else planted(what)
    return call("diagnose", m, photos(40, 64, m.classes), limit=32, seed=1)


@case()
def fit() -> Any:
    found = {}
    for name, options in {"paper": {}, "std": {"inputs": "std", "shift": 2}}.items():
        data = textures(48, 32, "train"), textures(32, 32)
        run = call("fit", tiny(), *data, recipe(**options), scratch("run"), device="cpu")
        m = run.model(device="cpu")
        found[name] = {
            "history": run.history, "snapshots": list(run.snapshots), "weights": dict(m.net.state_dict()),
            "early": dict(run.model(1).net.state_dict()), "evaluated": call("evaluate", m, data[1], crops=10),
        }
    tables = {"recipe": find("Recipe").table(), "thresholds": find("Thresholds").table()}
    return found | {"recipes": dict(find("RECIPES")), "tables": tables}


# ------------------------------------------------------------------------- cases: figures, sweeps and explorers


def drawn(**arguments: Any) -> dict[str, Any]:
    """Figures by the name of what draws them; leaves are taken at once, so that none stays open."""
    return {name: dict(leaves(call(name, *given))) for name, given in arguments.items()}


@case()
def figures_of_models() -> Any:
    m, both = network("zfnet64"), [network(n) for n in BUNDLED]
    found = [call("filter_spectra", n) for n in both]
    patches = call("project_top", m, photos(), mined(), "conv3", range(4))
    return drawn(
        filter_sheet=[found], radial_spectra=[[call("random_control", s, draws=5) for s in found]],
        spectrum_maps=[found], lattice_figure=[call("lattice", patches, 4)],
        aliasing_figure=[[call("measure_aliasing", n, photos(20), "conv1") for n in both]],
        gratings_figure=[[response(n) for n in BUNDLED]],
        shift_figure=[[call("shift_consistency", m, photos(8, 96), 2, layers=["conv1"], window=64)]],
        report_figure=[call("diagnose", m, photos(), limit=32)],
    )


@case()
def figures_of_experiments() -> Any:
    m = network("zfnet64")
    hidden = call("occlude", m, photos().take([7])[0], 3, size=16, stride=8)
    p = call("part_pictures", "faces", views=2)
    checks = call("sanity_checks", m, photos(20, 96), ["conv1", "conv2"], units=4, draws=1, keep=1)
    moved = call("invariance", m, photos(40, 128), "shift", [-4, 0, 6], index=[3, 11], window=64)
    return drawn(
        occlusion_figure=[hidden, call("project_elsewhere", m, photos(), hidden, k=2)],
        invariance_figure=[[moved], [0], ["a", "b"]], parts_figure=[p.pictures, p.parts, p.objects],
        correspondence_figure=[call("correspondence", m, p.pictures, p.parts, groups=p.groups, draws=2)],
        selectivity_figure=[call("selectivity", m, textures(), ["conv1", "conv3"], k=4, shuffles=2)],
        pose_variation_figure=[call("pose_variation", m, photos(), ["conv1", "conv2"], k=3, maps=4)],
        sanity_figure=[checks, "conv2"], sanity_sheet=[checks, "conv2"], sanity_layers_figure=[checks],
        photo_likeness_figure=[checks],
    )


@case()
def figures_of_trainings() -> Any:
    m, first, growth = network("zfnet64"), call("load_first_layer_runs"), evolved()
    answers = call("ensemble", [network(n) for n in BUNDLED], photos(20, 72, m.classes))
    scores = call("transfer", m, textures(96), textures(), ["norm1", "relu7"], per_class=[1, 2], splits=2)
    rows = pd.DataFrame({"input": [0.5, 1.0], "output": [2.0, 3.0]}, index=["relu", "conv"])
    strips = {"a": photos().take([1, 2, 3]) / 128.0 - 1}
    return drawn(
        training_figure=[{r.folder.name: r.history for r in call("bundled_runs")}], evolution_figure=[growth[0]],
        evolution_sheet=[growth[0].layers["conv1"]], convergence_figure=[growth], first_layer_figure=[first.table],
        effects_figure=[{"effects": effects("mid", "aliasable")}], steps_figure=[rows], strips_figure=[strips],
        profiles_figure=[{"7": first.spectra(kernel=7, stride=2, blur=False)[:2]}], ensemble_figure=[[answers]],
        ablation_figure=[call("read_ablation")], transfer_figure=[scores],
    )


@case()
def sweeps() -> Any:
    v4, folder, keep = nbformat.v4, scratch("sweep"), find("sweeps:record")
    given = 'rule = "guided"  # one of: "guided", "gradient"\nmaps = 2  # range: 0 to 8\nname: str | None = None'
    code = f"from {keep.__module__} import {keep.__name__} as keep\nkeep('twice', 2 * maps)\nkeep('rule', rule)"
    cells = [v4.new_markdown_cell("# Why?"), v4.new_code_cell(given, metadata={"tags": ["parameters"]})]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = v4.new_notebook(cells=[*cells, v4.new_code_cell(code)], metadata=kernel)
    nbformat.write(notebook, folder / "why.ipynb")
    (folder / "grid.yaml").write_text("rule: [guided, gradient]\nmaps: [1, 3]\n")
    grid, parameters = call("read_grid", folder / "grid.yaml"), call("read_parameters", notebook)
    told = {n: {k: str(getattr(p, k, "gone")) for k in ("default", "comment", "kinds", "choices", "bounds")}
            for n, p in parameters.items()}
    table = call("sweep", folder / "why.ipynb", {"maps": [3]}, folder / "out", jobs=1, threads=1)
    return {"grid": grid, "parameters": told, "runs": call("expand", grid, parameters), "table": table}


@case()
def command_line() -> Any:
    path, out = scratch("cli") / "top.parquet", io.StringIO()
    words = f"mine --model zfnet64 --images photos --size 64 --limit 20 --layers conv1 --device cpu --out {path}"
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = call("cli:main", words.split())
    return {"code": code, "table": pd.read_parquet(path)}


@case()
def explorers() -> Any:
    m, x, found = network("zfnet64"), photos(), {}
    top = call("mine", m, x, k=9)
    shown = {
        "maps": call("explore", m, x, top, layer="conv3", channel=3, ahead=False),
        "evolution": call("explore_evolution", evolved()[0], textures(32)),
        "gratings": call("explore_gratings", [network(n) for n in BUNDLED], frequency=0.3),
    }
    for name, explorer in shown.items():
        explorer.wait()
        found[name] = explorer.snapshot()
        explorer.close()
    return found


# fmt: on

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
    if options.what == "record" and options.only == ["*"]:
        print(f"not called by name: {', '.join(sorted({*getattr(zfkit, '__all__', ())} - LOOKED_UP))}")
    return 1 if bad or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
