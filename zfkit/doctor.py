"""Is everything here that zfkit needs, and does it compute what it should? `examine`.

The deconvnet is held to autograd: with its ReLUs and normalisations exchanged for ones whose backward pass is the
paper's, torch derives the projection by itself. What the report says is meant for a bug report, so names of people,
machines and folders stay out.
"""

from __future__ import annotations

import base64
import copy
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
import timeit
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .deconv.project import project
from .deconv.rules import Rule
from .files import cache_folder
from .images.album import photographs
from .images.decode import decode
from .images.sources import load_images
from .nets.model import VisionModel
from .nets.zoo import load_model

Status = Literal["fine", "note", "broken"]
# What was looked at, what was found, and whether that is fine.
Line = tuple[str, str] | tuple[str, str, Status]
# Where they differ from the package.
MODULES = {"pillow": "PIL", "scikit-image": "skimage", "scikit-learn": "sklearn"}
WEIGHTS = Path(str(importlib.resources.files("zfkit"))) / "weights"
ENOUGH = 500e6  # bytes of free space; an atlas with its table takes a tenth, a data set more
EXACT, CLOSE = 1e-10, 1e-2  # largest difference, of the largest value: in float64, and on a GPU (TF32)
SLOW = 5.0  # times a bare forward pass; usual is 1.1 to 2
UNIT = ("conv4", 7, (3, 2))  # of zfnet64: layer, channel, position; behind all kinds of its operations


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: in which section, what, what was found, and whether that is as it should be."""

    section: str
    what: str
    found: str
    status: Status = "fine"


@dataclass(frozen=True)
class DoctorReport:
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
        verdict = f"{count} thing{'s are' if count > 1 else ' is'} broken" if count else "everything works"
        lines = [f"### zfkit doctor: {verdict}"]
        lines += [""] * bool(count) + [f"- **broken** {line}" for line in self.broken]
        for section in dict.fromkeys(c.section for c in self.checks):
            lines += ["", f"**{section}**", ""]
            for c in self.checks:
                if c.section == section:
                    mark = "" if c.status == "fine" else f"**{c.status}** "
                    lines.append(f"- {mark}{c.what}: {c.found}")
        return "\n".join([*lines, "", f"_Examined in {self.seconds:.0f} s._"])


def examine() -> DoctorReport:
    """Look at versions, devices, folders, bundled files, and run the self-test; about 10 seconds.

    Nothing is downloaded, and nothing kept. What goes wrong is part of the report.
    """
    start = time.perf_counter()
    sections: dict[str, Callable[[], Iterator[Line]]] = {
        "Versions": _versions, "Optional parts": _optional, "Devices": _devices, "Folders": _folders,
        "Bundled files": _bundled, "Self-test": _self_test, "Speed": _speed,
    }  # fmt: skip
    checks = []
    for section, look in sections.items():
        try:
            checks += [Check(section, *line) for line in look()]
        except Exception as error:  # whatever it is, the rest of the report is of use
            checks.append(Check(section, section.lower(), f"stopped with {_quoted(error)}", "broken"))
    anonymous = tuple(Check(c.section, c.what, _without_names(c.found), c.status) for c in checks)
    return DoctorReport(anonymous, time.perf_counter() - start)


# ----------------------------------------------------------------------------------------- what is installed


def _versions() -> Iterator[Line]:
    from .version import __version__

    yield "zfkit", __version__
    python = f"{platform.python_implementation()} {platform.python_version()}"
    yield "Python", python + (", in a virtual environment" if sys.prefix != sys.base_prefix else "")
    yield "system", platform.platform()
    for requirement, extra in _requirements():
        if not extra:
            yield _package(requirement)


def _optional() -> Iterator[Line]:
    groups: dict[str, list[Any]] = {}
    for requirement, extra in _requirements():
        if extra and extra != "dev":
            groups.setdefault(extra, []).append(requirement)
    for extra, requirements in groups.items():
        missing = ", ".join(r.name for r in requirements if _version(r.name) is None)
        present = ", ".join(f"{r.name} {_version(r.name)}" for r in requirements if _version(r.name))
        if missing:
            remedy = f"pip install 'zfkit[{extra}]'"
            yield extra, f"missing {missing}: {remedy} (there: {present or 'nothing'})", "note"
        else:
            yield extra, present
    if _version("jupyter-client"):
        yield _kernel()


def _requirements() -> list[tuple[Any, str]]:
    """What zfkit's own metadata ask for (`packaging` requirements), each with the extra that does, or ""."""
    from packaging.requirements import Requirement

    if _version("zfkit") is None:  # run from its sources, not installed
        return []
    listed = [Requirement(text) for text in metadata.requires("zfkit") or []]
    extras = [re.search(r"""extra\s*==\s*['"]([^'"]+)""", str(r.marker or "")) for r in listed]
    return [(r, e[1] if e else "") for r, e in zip(listed, extras, strict=True) if r.name != "zfkit"]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package(requirement: Any) -> Line:
    """Is a package there, recent enough, and can it be imported?"""
    name, version = requirement.name, _version(requirement.name)
    if version is None:
        return name, f"is missing: pip install {name}", "broken"
    if not requirement.specifier.contains(version, prereleases=True):
        return name, f"{version} is too old: pip install --upgrade '{requirement}'", "broken"
    try:
        importlib.import_module(MODULES.get(name, name))
    except Exception as error:  # a library that is missing beneath it, another version of torch, ...
        return name, f"{version} cannot be imported ({_quoted(error)}): install it again", "broken"
    return name, version


def _kernel() -> Line:
    """Would a notebook run with this Python?"""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return "notebook kernel", "there is none called python3: pip install ipykernel", "note"
    if re.fullmatch(r"python[\d.]*", command) or Path(command).resolve() == Path(sys.executable).resolve():
        return "notebook kernel", "python3 runs this Python"
    other = "python3 is another Python, perhaps without zfkit: python -m ipykernel install --sys-prefix"
    return "notebook kernel", other, "note"


# ----------------------------------------------------------------------------------------- where it runs


def _devices() -> Iterator[Line]:
    from torch.utils.collect_env import get_env_info

    machine = get_env_info()
    cpu = re.search(r"(?:Model name:|brand_string:)\s*(.+)", str(machine.cpu_info))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "processor", f"{cpu[1] if cpu else platform.machine()}, {usable} of {os.cpu_count()} cores usable"
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    yield "threads of torch", f"{torch.get_num_threads()} (OMP_NUM_THREADS {threads})"
    devices = {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    for device, name in devices.items():
        yield _works(device, name)
    if not devices and machine.nvidia_driver_version:
        remedy = "install a build with CUDA (pytorch.org)"
        yield "GPU", f"a driver is here, but this torch cannot use it: {remedy}", "note"
    elif not devices:
        yield "GPU", "none; the CPU does everything"


def _works(device: str, name: str) -> Line:
    """Does a device compute what the CPU does?"""
    try:
        model, x = _network_and_photo()
        layer, channel, position = UNIT
        expected = project(model, x, layer, channel, [position])
        model.net.to(device, torch.float32)
        computed = project(model, x.to(device, torch.float32), layer, channel, [position])
        difference = _difference(computed.cpu().double(), expected)
    except Exception as error:
        return device, f"{name}; does not work: {_quoted(error)}", "broken"
    status: Status = "fine" if difference <= CLOSE else "broken"
    return device, f"{name}; differs from the CPU by {difference:.0e} of the largest value", status


def _folders() -> Iterator[Line]:
    yield _folder("current folder", Path.cwd(), "give an --out elsewhere", "note")
    temporary = Path(tempfile.gettempdir())
    yield _folder("temporary files", temporary, "set TMPDIR to a folder that works", "broken")
    yield _folder("cache (ZFKIT_CACHE)", cache_folder(), "set ZFKIT_CACHE to a folder that works", "note")
    yield _folder("torchvision's weights", Path(torch.hub.get_dir()), "set TORCH_HOME elsewhere", "note")


def _folder(what: str, folder: Path, remedy: str, otherwise: Status) -> Line:
    """Can files be written to a folder, or to where it would be made?"""
    there = next((p for p in [folder, *folder.parents] if p.exists()), folder)
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"zfkit")
            file.flush()
        free = shutil.disk_usage(there).free
    except OSError as error:
        return what, f"cannot be written to ({error.strerror or error}): {remedy}", otherwise
    room = f"can be written to, {free / 1e9:.1f} GB free"
    return (what, room) if free >= ENOUGH else (what, f"{room}: little; make room, or {remedy}", "note")


# ----------------------------------------------------------------------------------------- what comes with it


def _bundled() -> Iterator[Line]:
    files = sorted(WEIGHTS.glob("*.safetensors"))
    if not files:
        yield "weights", "none in the package: install zfkit again", "broken"
    for file in files:
        yield _weights(file)
    problems, album = [], photographs()
    for photo in album:
        try:
            path = photo.checked()
            if path is None:
                problems.append(f"{photo.name} is not in the installed packages")
            elif not photo.sha256:  # those that have one are as they were
                decode(path, photo.name)
        except Exception as error:
            problems.append(f"{photo.name} is damaged ({_quoted(error)})")
    good = f"{len(album) - len(problems)} of {len(album)}"
    if problems:
        remedy = "pip install --force-reinstall scikit-image scikit-learn zfkit"
        broken = len(problems) == len(album) or any("bundled" in problem for problem in problems)
        status: Status = "broken" if broken else "note"
        yield "photographs", f"{good}: {', '.join(problems)}; {remedy}", status
    else:
        yield "photographs", good


def _weights(file: Path) -> Line:
    what = f"weights of {file.stem}"
    try:
        model = load_model(file, device="cpu")
        digest = hashlib.sha256(file.read_bytes())
    except Exception as error:
        return what, f"cannot be used ({_quoted(error)}): install zfkit again", "broken"
    if _installed_digest(file.name) not in (None, digest.digest()):
        return what, "are not those that were installed (SHA-256 differs): install zfkit again", "broken"
    top1 = model.provenance.get("top1")
    size = f"{file.stat().st_size / 1e6:.1f} MB, SHA-256 {digest.hexdigest()[:12]}..."
    return what, size + (f", {top1} % top-1" if top1 else "")


def _installed_digest(name: str) -> bytes | None:
    """SHA-256 that pip noted when it installed the file; None in a checkout."""
    for file in (metadata.files("zfkit") or []) if _version("zfkit") else []:
        if file.name == name and file.hash is not None and file.hash.mode == "sha256":
            return base64.urlsafe_b64decode(file.hash.value + "=" * (-len(file.hash.value) % 4))
    return None


# ----------------------------------------------------------------------------------------- does it compute


def _network_and_photo() -> tuple[VisionModel, Tensor]:
    """zfnet64 in float64, and a photograph (1, 3, 128, 128)."""
    model = load_model("zfnet64", device="cpu")
    x = model.preprocess(load_images("photos", size=128, limit=1, progress=False)[0][0]).double()
    return replace(model, net=copy.deepcopy(model.net).double(), _traced=[]), x


def _self_test() -> Iterator[Line]:
    model, x = _network_and_photo()
    layer, channel, position = UNIT
    for rule in get_args(Rule):
        projection = project(model, x, layer, channel, [position], rule=rule)
        difference = _difference(projection, _by_autograd(model, x, rule))
        result = f"differs from what autograd derives by {difference:.0e} of the largest value, in float64"
        yield f"{rule} of zfnet64", result, "fine" if difference <= EXACT else "broken"


class _PaperReLU(torch.autograd.Function):
    """ReLU whose backward pass is that of a rule."""

    @staticmethod
    def forward(context: Any, x: Tensor, rule: str) -> Tensor:
        context.save_for_backward(x)
        context.rule = rule
        return x.clamp(min=0)

    @staticmethod
    def backward(context: Any, R: Tensor) -> tuple[Tensor, None]:
        (x,) = context.saved_tensors
        R = R if context.rule == "gradient" else R.clamp(min=0)
        return (R if context.rule == "deconvnet" else R * (x > 0)), None


def _by_autograd(model: VisionModel, x: Tensor, rule: str) -> Tensor:
    """What excites UNIT, as torch derives it: (1, 3, H, W).

    Convolution and max-pooling go back by their gradient under every rule, which is the transpose and the switches.
    """
    layer, channel, (row, column) = UNIT
    leaf = x.clone().requires_grad_()
    y = leaf
    for name in model.layers[: model.layers.index(layer) + 1]:
        module = model.net.get_submodule(name)
        if isinstance(module, nn.ReLU):
            y = _PaperReLU.apply(y, rule)
        elif isinstance(module, nn.LocalResponseNorm):
            y = y + (module(y) - y).detach()  # forward normalised, backward left out, as in the paper
        else:
            y = module(y)
    (gradient,) = torch.autograd.grad(y[0, channel, row, column], leaf)
    return gradient


def _difference(computed: Tensor, expected: Tensor) -> float:
    """Largest difference, of the largest value; infinite where the shapes differ or a value is no number."""
    if computed.shape != expected.shape or not computed.isfinite().all():
        return float("inf")
    return float((computed - expected).abs().max() / expected.abs().max())


def _speed() -> Iterator[Line]:
    model = load_model("zfnet64", device="cpu")
    x = model.preprocess(load_images("photos", limit=4, progress=False).take(range(4)))
    below = model.layers[: model.layers.index("conv5") + 1]
    bare = nn.Sequential(*map(model.net.get_submodule, below))

    def forward() -> None:
        with torch.inference_mode():
            bare(x)

    def both() -> None:
        project(model, x, "conv5", 17)

    seconds: dict[Callable[[], None], list[float]] = {forward: [], both: []}
    for _ in range(4):  # in turns, so that whatever else the machine does slows both
        for call, taken in seconds.items():
            taken.append(timeit.timeit(call, number=1))
    one, two = (1000 * statistics.median(taken[1:]) for taken in seconds.values())  # the first warms up
    times = f"forward {one:.0f} ms, forward and back {two:.0f} ms: {two / one:.1f} times (usual: 1.1 to 2)"
    yield "four photographs to conv5 of zfnet64", times, "note" if two / one > SLOW else "fine"


# ----------------------------------------------------------------------------------------- words


def _quoted(error: BaseException) -> str:
    """An error in one line of code, so that nothing in it is taken for Markdown."""
    line = f"{type(error).__name__}: {error}".partition("\n")[0].replace("`", "'")
    return f"`{line[:300]}`"


def _without_names(text: str) -> str:
    """Without the home folder, and the names of user and machine, which tell nothing about a fault."""
    home = str(Path.home())
    text = text.replace(home, "~") if len(home) > 1 else text
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = ""
    for name, instead in ((user, "USER"), (platform.node(), "HOST")):
        if len(name) > 2 and name not in ("root", "localhost"):
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", instead, text)
    return text
