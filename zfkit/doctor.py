"""Is everything here that zfkit needs, and does it compute what it should? `examine`.

The deconvnet is held to the literal one at the end of this file: numpy, float64, a loop for every window, sharing no
line with `deconv`. What it says is meant for a bug report, so names of people, machines and folders stay out.
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import importlib
import importlib.resources
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from .deconv.project import project
from .deconv.rules import Rule
from .images.album import PHOTOGRAPHS
from .images.decode import decode
from .images.sources import load_images
from .nets.model import VisionModel, wrap_model
from .nets.zoo import load_model

Status = Literal["fine", "note", "broken"]
IMPORTS = {  # of what zfkit cannot do without: name of the package, name of its module
    "torch": "torch", "torchvision": "torchvision", "numpy": "numpy", "pandas": "pandas", "pyarrow": "pyarrow",
    "safetensors": "safetensors", "pillow": "PIL", "tqdm": "tqdm", "scikit-image": "skimage", "scikit-learn": "sklearn",
}  # fmt: skip
WEIGHTS = Path(str(importlib.resources.files("zfkit"))) / "weights"
ENOUGH = 500e6  # bytes of free space; an atlas with its table takes a tenth, a data set more
EXACT, CLOSE = 1e-12, 1e-2  # largest difference, of the largest value: in float64, and on a GPU (TF32)
SLOW = 5.0  # times a bare forward pass; usual is 1.1 to 2


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: in which section, what, what was found, and whether that is as it should be."""

    section: str
    what: str
    found: str
    status: Status = "fine"


@dataclass(frozen=True)
class Report:
    """What `examine` found."""

    checks: tuple[Check, ...]
    seconds: float

    @property
    def broken(self) -> list[str]:
        """What does not work, one line each; empty if everything does."""
        return [f"{c.what}: {c.found}" for c in self.checks if c.status == "broken"]

    def markdown(self) -> str:
        """The report as Markdown, to be read as it is or pasted into a bug report."""
        count = len(self.broken)
        told = f"{count} {'thing is' if count == 1 else 'things are'} broken" if count else "everything works"
        lines = [f"### zfkit doctor: {told}"]
        lines += [""] * bool(count) + [f"- **broken** {line}" for line in self.broken]
        for section in dict.fromkeys(c.section for c in self.checks):
            lines += ["", f"**{section}**", ""]
            for c in self.checks:
                if c.section == section:
                    mark = "" if c.status == "fine" else f"**{c.status}** "
                    lines.append(f"- {mark}{c.what}: {c.found}")
        return "\n".join([*lines, "", f"_Examined in {self.seconds:.0f} s._"])


def examine() -> Report:
    """Look at versions, devices, folders, bundled files, and run the self-test; about 10 seconds.

    Nothing is downloaded, and nothing kept. What goes wrong is part of the report.
    """
    start = time.perf_counter()
    sections: dict[str, Callable[[], Iterator[tuple[Any, ...]]]] = {
        "Versions": _versions,
        "Optional parts": _optional,
        "Devices": _devices,
        "Folders": _folders,
        "Bundled files": _bundled,
        "Self-test": _self_test,
        "Speed": _speed,
    }
    checks = []
    for section, look in sections.items():
        try:
            checks += [Check(section, *found) for found in look()]
        except Exception as error:  # whatever it is, the rest of the report is of use
            checks.append(Check(section, section.lower(), f"stopped with {_told(error)}", "broken"))
    shown = tuple(Check(c.section, c.what, _without_names(c.found), c.status) for c in checks)
    return Report(shown, time.perf_counter() - start)


# ----------------------------------------------------------------------------------------- what is installed


def _versions() -> Iterator[tuple[Any, ...]]:
    from . import __version__

    yield "zfkit", __version__
    python = f"{platform.python_implementation()} {platform.python_version()}"
    yield "Python", python + (", in a virtual environment" if sys.prefix != sys.base_prefix else "")
    yield "system", platform.platform()
    lowest = {name: version for name, version, extra in _requirements() if not extra}
    for name, module in IMPORTS.items():
        version = _version(name)
        if version is None:
            yield name, f"is missing: pip install {name}", "broken"
            continue
        try:
            importlib.import_module(module)
        except Exception as error:  # a library that is missing beneath it, another version of torch, ...
            yield name, f"{version} cannot be imported ({_told(error)}): install it again", "broken"
            continue
        if name in lowest and _numbers(version) < _numbers(lowest[name]):
            yield (
                name,
                f"{version} is too old: pip install --upgrade '{name}>={lowest[name]}'",
                "broken",
            )
        else:
            yield name, version


def _optional() -> Iterator[tuple[Any, ...]]:
    groups: dict[str, list[str]] = {}
    for name, _, extra in _requirements():
        if extra and extra != "dev":
            groups.setdefault(extra, []).append(name)
    if not groups:
        yield "extras", "unknown: zfkit is not installed as a package, but run from its sources", "note"
    for extra, names in groups.items():
        missing = [name for name in names if _version(name) is None]
        there = ", ".join(f"{name} {_version(name)}" for name in names if name not in missing)
        if missing:
            told = f"missing {', '.join(missing)}: pip install 'zfkit[{extra}]'"
            yield extra, told + (f" (there: {there})" if there else ""), "note"
        else:
            yield extra, there
    if _version("jupyter-client"):
        yield _kernel()


def _kernel() -> tuple[Any, ...]:
    """Would a notebook run with this Python?"""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return "notebook kernel", "there is none called python3: pip install ipykernel", "note"
    if re.fullmatch(r"python[\d.]*", command) or Path(command).resolve() == Path(sys.executable).resolve():
        return "notebook kernel", "python3 runs this Python"
    return (
        "notebook kernel",
        "python3 runs another Python, where zfkit may be missing: python -m ipykernel install --sys-prefix",
        "note",
    )


def _requirements() -> Iterator[tuple[str, str, str]]:
    """(name, lowest version, extra or nothing) of each package that zfkit's own metadata name."""
    try:
        listed = metadata.requires("zfkit") or []
    except metadata.PackageNotFoundError:
        listed = []
    for requirement in listed:
        found = re.match(r"([A-Za-z0-9._-]+)(?:>=([0-9.]+))?", requirement)
        extra = re.search(r"""extra\s*==\s*['"]([^'"]+)""", requirement)
        if found and found[1] != "zfkit":
            yield found[1], found[2] or "0", extra[1] if extra else ""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """Release numbers of a version, without what marks a build or candidate: 2.14.1+cu130 -> (2, 14, 1)."""
    return tuple(int(n) for n in re.match(r"[0-9.]*", version)[0].strip(".").split(".") if n)  # type: ignore[index]


# ----------------------------------------------------------------------------------------- where it runs


def _devices() -> Iterator[tuple[Any, ...]]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "processor", f"{_processor()}, {usable} of {os.cpu_count()} cores usable, {_memory()}"
    asked = os.environ.get("OMP_NUM_THREADS")
    yield "threads of torch", f"{torch.get_num_threads()}" + (f" (OMP_NUM_THREADS={asked})" if asked else "")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            known = torch.cuda.get_device_properties(i)
            told = f"{known.name}, {known.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
            yield _works(f"cuda:{i}", told)
    elif Path("/proc/driver/nvidia/version").exists():
        yield (
            "GPU",
            "a driver is here, but this torch cannot use it: install a build with CUDA (pytorch.org)",
            "note",
        )
    elif torch.backends.mps.is_available():
        yield _works("mps", "Apple GPU")
    else:
        yield "GPU", "none; the CPU does everything"


def _works(device: str, told: str) -> tuple[Any, ...]:
    """Does a device hold what is computed on the CPU?"""
    try:
        net, image = _tiny_network()
        literal = literal_projection(net, image, (1, 0, 1), "deconvnet")
        moved = net.float().to(device)
        model = wrap_model(moved, mean=0, scale=1, input_size=image.shape[-1], name="tiny")
        x = torch.from_numpy(image)[None].float().to(device)
        found = project(model, x, "conv3", 1, [(0, 1)]).cpu().double().numpy()[0]
    except Exception as error:
        return device, f"{told}; does not work: {_told(error)}", "broken"
    difference = _difference(found, literal)
    return (
        device,
        f"{told}; differs from the literal deconvnet by {difference:.0e}",
        _status(difference, CLOSE),
    )


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB of memory"
    except (AttributeError, OSError, ValueError):  # not on every system
        return "memory unknown"


def _folders() -> Iterator[tuple[Any, ...]]:
    home = Path.home()
    yield _folder("current folder", Path.cwd(), "give an --out elsewhere", "note")
    yield _folder(
        "temporary files", Path(tempfile.gettempdir()), "set TMPDIR to a folder that works", "broken"
    )
    yield _folder("data sets (~/.cache/zfkit)", home / ".cache" / "zfkit", "give load_images a root=", "note")
    yield _folder("torchvision's weights", Path(torch.hub.get_dir()), "set TORCH_HOME elsewhere", "note")


def _folder(what: str, folder: Path, remedy: str, otherwise: Status) -> tuple[Any, ...]:
    """Can files be written to a folder, or to where it would be made?"""
    there = next((p for p in [folder, *folder.parents] if p.exists()), folder)
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"zfkit")
            file.flush()
        free = shutil.disk_usage(there).free
    except OSError as error:
        return what, f"cannot be written to ({error.strerror or error}): {remedy}", otherwise
    told = f"can be written to, {free / 1e9:.1f} GB free"
    if free < ENOUGH:
        return what, f"{told}: little; make room, or {remedy}", "note"
    return what, told


# ----------------------------------------------------------------------------------------- what comes with it


def _bundled() -> Iterator[tuple[Any, ...]]:
    files = sorted(WEIGHTS.glob("*.safetensors"))
    if not files:
        yield "weights", "none in the package: install zfkit again", "broken"
    for file in files:
        yield _weights(file)
    missing = [photo.name for photo in PHOTOGRAPHS if photo.path is None]
    damaged = []
    for photo in PHOTOGRAPHS:
        try:
            if photo.path is not None:
                decode(photo.path, photo.name)
        except Exception as error:
            damaged.append(f"{photo.name} ({_told(error)})")
    found = len(PHOTOGRAPHS) - len(missing) - len(damaged)
    told = f"{found} of {len(PHOTOGRAPHS)}"
    if damaged:
        told += f"; damaged: {', '.join(damaged)}"
    if missing:
        told += f"; not in the installed packages: {', '.join(missing)}"
    remedy = "; pip install --force-reinstall scikit-image scikit-learn"
    status: Status = "fine" if found == len(PHOTOGRAPHS) else "note" if found else "broken"
    yield "photographs", told + (remedy if status != "fine" else ""), status


def _weights(file: Path) -> tuple[Any, ...]:
    what = f"weights of {file.stem}"
    try:
        model = load_model(file, device="cpu")
        digest = hashlib.sha256(file.read_bytes())
    except Exception as error:
        return what, f"cannot be used ({_told(error)}): install zfkit again", "broken"
    if _installed_digest(file.name) not in (None, digest.digest()):
        return what, "are not those that were installed (SHA-256 differs): install zfkit again", "broken"
    told = f"{file.stat().st_size / 1e6:.1f} MB, SHA-256 {digest.hexdigest()[:12]}..."
    top1 = model.provenance.get("top1")
    return what, told + (f", {top1} % top-1" if top1 else "")


def _installed_digest(name: str) -> bytes | None:
    """SHA-256 that pip noted when it installed the file; None in a checkout."""
    try:
        listed = metadata.files("zfkit") or []
    except metadata.PackageNotFoundError:
        return None
    for file in listed:
        if file.name == name and file.hash is not None and file.hash.mode == "sha256":
            return base64.urlsafe_b64decode(file.hash.value + "=" * (-len(file.hash.value) % 4))
    return None


# ----------------------------------------------------------------------------------------- does it compute


def _self_test() -> Iterator[tuple[Any, ...]]:
    net, image = _tiny_network()
    model = wrap_model(net, mean=0, scale=1, input_size=image.shape[-1], name="tiny")
    x = torch.from_numpy(image)[None]
    for rule in get_args(Rule):
        differences = []
        for unit in ((0, 0, 0), (1, 0, 1), (2, 1, 1)):
            found = project(model, x, "conv3", unit[0], [unit[1:]], rule=rule)[0].numpy()
            differences.append(_difference(found, literal_projection(net, image, unit, rule)))
        told = f"differs from the literal one by {max(differences):.0e} of the largest value, in float64"
        status = _status(max(differences), EXACT)
        yield f"{rule} of a tiny network", told + ("" if status == "fine" else ", and must not"), status
    yield _against_autograd()


def _against_autograd() -> tuple[Any, ...]:
    """The gradient rule on a bundled network, against what torch itself derives."""
    model = load_model("zfnet64", device="cpu")
    photo = load_images("photos", size=128, limit=1, progress=False)[0][0]
    x = model.preprocess(photo).double()
    double = VisionModel(_copy(model.net).double(), model.mean, model.scale, model.input_size)
    found = project(double, x, "conv4", 7, [(3, 2)], rule="gradient", lrn="gradient")
    leaf = x.clone().requires_grad_()
    layers = list(double.layers)
    y = leaf
    for name in layers[: layers.index("conv4") + 1]:
        y = double.net.get_submodule(name)(y)
    (expected,) = torch.autograd.grad(y[0, 7, 3, 2], leaf)
    difference = _difference(found.numpy(), expected.numpy())
    told = f"differs from autograd by {difference:.0e} of the largest value, in float64"
    return "gradient of zfnet64", told, _status(difference, 1e-10)


def _copy(net: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(net)


def _speed() -> Iterator[tuple[Any, ...]]:
    model = load_model("zfnet64", device="cpu")
    photos = load_images("photos", limit=4, progress=False)
    x = model.preprocess(photos.take(range(4)))
    cut = list(model.layers)[: list(model.layers).index("conv5") + 1]
    bare = nn.Sequential(*(model.net.get_submodule(name) for name in cut))

    def forward() -> Tensor:
        with torch.inference_mode():
            y: Tensor = bare(x)
            return y

    def whole() -> Tensor:
        return project(model, x, "conv5", 17)

    times: dict[Callable[[], Tensor], list[float]] = {forward: [], whole: []}
    for i in range(4):  # in turns, so that whatever else the machine does slows both
        for call, taken in times.items():
            start = time.perf_counter()
            call()
            if i:  # the first warms up
                taken.append(time.perf_counter() - start)
    alone, both = (1000 * statistics.median(taken) for taken in times.values())
    ratio = both / alone
    told = (
        f"forward {alone:.0f} ms, forward and back {both:.0f} ms: {ratio:.1f} times (usual: 1.1 to 2), "
        f"{torch.get_num_threads()} threads"
    )
    yield "four photographs to conv5 of zfnet64", told, "note" if ratio > SLOW else "fine"


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, of the largest value; infinite where the shapes differ or a value is no number."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _status(difference: float, limit: float) -> Status:
    return "fine" if difference <= limit else "broken"


# ----------------------------------------------------------------------------------------- the literal deconvnet


def _tiny_network() -> tuple[nn.Sequential, np.ndarray]:
    """A random chain with overlapping pools, ceil mode, stride, padding and normalisation, and an image; float64."""
    generator = torch.Generator().manual_seed(1311_2901)
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(3, 4, 5, stride=2, padding=1))
    net.add_module("relu1", nn.ReLU())
    net.add_module("pool1", nn.MaxPool2d(3, 2, ceil_mode=True))
    net.add_module("norm1", nn.LocalResponseNorm(3, alpha=0.1, beta=0.75, k=2.0))
    net.add_module("conv2", nn.Conv2d(4, 5, 3, padding=1))
    net.add_module("relu2", nn.ReLU())
    net.add_module("pool2", nn.MaxPool2d(2))
    net.add_module("conv3", nn.Conv2d(5, 3, 3))
    for parameter in net.double().parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return net.eval(), torch.randn(3, 35, 35, generator=generator, dtype=torch.float64).numpy()


def literal_projection(
    net: nn.Sequential, image: np.ndarray, unit: tuple[int, int, int], rule: str
) -> np.ndarray:
    """What excites one unit (channel, row, column) of the last layer, as slowly and as literally as can be.

    net: a chain of conv, ReLU, max-pool and contrast normalisation; image and result: (channels, rows, columns).
    """
    x, backs = image, []
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            x, back = _literal_conv(layer, x)
        elif isinstance(layer, nn.MaxPool2d):
            x, back = _literal_pool(layer, x)
        elif isinstance(layer, nn.ReLU):
            x, back = np.maximum(x, 0), _literal_relu(x, rule)
        else:
            x, back = _literal_norm(layer, x), lambda R: R  # the paper leaves it out on the way back
        backs.append(back)
    R = np.zeros_like(x)
    R[unit] = 1  # every other activation of the layer is set to zero
    for back in reversed(backs):
        R = back(R)
    return R


Back = Callable[[np.ndarray], np.ndarray]


def _literal_conv(layer: nn.Conv2d, x: np.ndarray) -> tuple[np.ndarray, Back]:
    """Each output is a filter times a window; what comes back to it goes through the filter to that window."""
    weight, stride, p, k = (
        layer.weight.detach().numpy(),
        layer.stride[0],
        int(layer.padding[0]),
        layer.kernel_size[0],
    )
    padded = np.pad(x, ((0, 0), (p, p), (p, p)))
    side = (padded.shape[1] - k) // stride + 1
    y = np.zeros((len(weight), side, side))
    bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().numpy()
    for o, i, j in np.ndindex(*y.shape):
        window = padded[:, i * stride : i * stride + k, j * stride : j * stride + k]
        y[o, i, j] = (weight[o] * window).sum() + bias[o]

    def back(R: np.ndarray) -> np.ndarray:
        reached = np.zeros_like(padded)
        for o, i, j in np.ndindex(*R.shape):
            reached[:, i * stride : i * stride + k, j * stride : j * stride + k] += weight[o] * R[o, i, j]
        return reached[:, p : p + x.shape[1], p : p + x.shape[2]]

    return y, back


def _literal_pool(layer: nn.MaxPool2d, x: np.ndarray) -> tuple[np.ndarray, Back]:
    """Each output remembers where its maximum was; values that come back to one place add up."""
    k, stride = layer.kernel_size, layer.stride
    assert isinstance(k, int) and isinstance(stride, int)
    steps = (x.shape[1] - k) / stride
    side = int(np.ceil(steps) if layer.ceil_mode else np.floor(steps)) + 1
    y, switches = np.zeros((len(x), side, side)), {}
    for c, i, j in np.ndindex(*y.shape):
        window = x[c, i * stride : i * stride + k, j * stride : j * stride + k]  # cut off at the border
        row, column = np.unravel_index(int(window.argmax()), window.shape)
        switches[c, i, j] = (c, i * stride + int(row), j * stride + int(column))
        y[c, i, j] = window.max()

    def back(R: np.ndarray) -> np.ndarray:
        reached = np.zeros_like(x)
        for unit, switch in switches.items():
            reached[switch] += R[unit]
        return reached

    return y, back


def _literal_relu(x: np.ndarray, rule: str) -> Back:
    """deconvnet: what comes back, rectified; gradient: where the input was positive; guided: both."""
    if rule == "deconvnet":
        return lambda R: np.maximum(R, 0)
    if rule == "gradient":
        return lambda R: R * (x > 0)
    return lambda R: np.maximum(R, 0) * (x > 0)


def _literal_norm(layer: Any, x: np.ndarray) -> np.ndarray:
    """x / (k + alpha / n times the sum of squares over n neighbouring maps) ** beta."""
    y = np.zeros_like(x)
    for c in range(len(x)):
        near = x[max(0, c - layer.size // 2) : c + (layer.size - 1) // 2 + 1]
        y[c] = x[c] / (layer.k + layer.alpha / layer.size * (near**2).sum(0)) ** layer.beta
    return y


# ----------------------------------------------------------------------------------------- words


def _told(error: BaseException) -> str:
    """An error in one line of code, so that nothing in it is taken for Markdown."""
    line = f"{type(error).__name__}: {error}".partition("\n")[0].replace("`", "'")
    return f"`{line[:300]}`"


def _without_names(text: str) -> str:
    """Without the home folder, and the names of user and machine, which tell nothing about a fault."""
    home = str(Path.home())
    if len(home) > 1:
        text = text.replace(home, "~")
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = ""
    for name, instead in ((user, "USER"), (platform.node(), "HOST")):
        if len(name) > 2 and name not in ("root", "localhost"):
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", instead, text)
    return text
