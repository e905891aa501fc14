"""Checks of arguments: one function, and one wording, for each kind.

Each returns the argument in the form that the caller goes on with, or raises with the value that was given, what was
expected, and what exists.
"""

from __future__ import annotations

import importlib.util
import math
import stat
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ImageError, LayerError, WriteError, ZfkitError, printable, unknown

if TYPE_CHECKING:
    from torch import Tensor

Size = int | tuple[int, int]  # of pictures, in pixels: the side of squares, or height and width


def expect(value: object, kind: type, what: str, how: str) -> None:
    """Raise ZfkitError where a value is of another kind; `how` says what makes one of the right kind."""
    if not isinstance(value, kind):
        shown = f"{value!r:.60}"
        raise ZfkitError(f"{what} must be {kind.__name__}, {how}; not {type(value).__name__} {shown}")


def expect_extra(extra: str, what: str, *packages: str) -> None:
    """Raise ZfkitError, with what to install, where one of these packages is not there."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ZfkitError(f"{what} needs {', '.join(missing)}: pip install 'zfkit[{extra}]'")


def whole_number(
    value: object, what: str, low: int = 1, high: int | None = None, error: type[ZfkitError] = ZfkitError
) -> int:
    """The value, if it is a whole number from `low` to `high`; True and 3.0 are not.

    `what` names it with its unit: "shifts, in pixels,".
    """
    if type(value) is not int or value < low or (high is not None and value > high):
        limits = f"from {low} on" if high is None else f"from {low} to {high}"
        raise error(f"{what} must be a whole number {limits}, not {value!r:.80}")
    return value


def picture_size(
    value: Any, what: str, high: int | None = None, error: type[ZfkitError] = ZfkitError
) -> Size:
    """The value, if it is the side of square pictures in pixels, or two: their height and width."""
    if isinstance(value, tuple | list) and len(value) == 2:
        height, width = (
            whole_number(v, f"{what}, height and width in pixels,", 1, high, error) for v in value
        )
        return height if height == width else (height, width)
    return whole_number(value, f"{what}, in pixels,", 1, high, error)


def square_side(size: Size, what: str) -> int:
    """The side of square pictures. Raises ImageError for others, of which `what` says why they will not do."""
    if isinstance(size, int):
        return size
    raise ImageError(f"{what}, and {in_px(size)} is no square: take another size, in pixels")


def in_px(size: Size) -> str:
    """A size as messages name it: "64 px", "66 x 200 px"."""
    return " x ".join(map(str, [size] if isinstance(size, int) else size)) + " px"


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """One number, or rows and columns, as two."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def number(
    value: Any,
    what: str,
    low: float = -math.inf,
    high: float = math.inf,
    error: type[ZfkitError] = ZfkitError,
) -> float:
    """The value as a float, if it is a finite number from `low` to `high`."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not low <= value <= high:
        limits = " and ".join(
            [f"at least {low:g}"] * (low > -math.inf) + [f"at most {high:g}"] * (high < math.inf)
        )
        raise error(f"{what} must be a finite number{', ' + limits if limits else ''}, not {value!r:.80}")
    return float(value)


def between(value: Any, what: str, low: float = 0, high: float = 1) -> float:
    """The value as a float, if it lies strictly between the two, as a share or a confidence level does."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not low < value < high:
        raise ZfkitError(f"{what} must lie between {low:g} and {high:g}, not {value!r:.80}")
    return float(value)


def one_of(value: Any, what: str, names: Iterable[str], error: type[ZfkitError] = ZfkitError) -> str:
    """The value, if it is one of these names; else the error lists them, nearest first."""
    names = list(names)
    if value not in names:
        raise error(unknown(what, value, names))
    return str(value)


def layer_names(
    layers: str | Iterable[str] | None, known: Sequence[str], default: Sequence[str]
) -> list[str]:
    """Names of layers as a list without repeats: one name, several, or None for the default.

    Raises LayerError for a name that is not among those `known`, nearest first, and where none was given.
    """
    if layers is None:
        names = list(default)
    elif isinstance(layers, str):
        names = [layers]
    else:
        try:
            names = list(dict.fromkeys(layers))
        except TypeError:
            raise LayerError(f"layers must be a name or a list of names, not {layers!r:.80}") from None
    if not names:
        raise LayerError(f"no layer was named; there are {', '.join(known) or 'none'}")
    for name in names:
        if name not in known:
            raise LayerError(unknown("layer", name, known, limit=24))
    return names


def channel_list(channels: Any, count: int, layer: str) -> Tensor:
    """Feature maps of a layer as int64 (n,); None for all `count` of them.

    Raises LayerError for anything but whole numbers from 0 to count - 1.
    """
    import torch

    if channels is None:
        return torch.arange(count)
    numbers = whole_numbers(channels)
    if numbers is None or numbers.dim() != 1 or not ((numbers >= 0) & (numbers < count)).all():
        raise LayerError(
            f"channels must be a list of feature maps, 0 to {count - 1} of {layer!r}, not {channels!r:.80}"
        )
    return numbers


def whole_numbers(value: Any) -> Tensor | None:
    """A number, list or tensor of whole numbers as int64 on the CPU; None for anything else."""
    import torch

    try:
        numbers = torch.as_tensor(value).cpu()
    except (TypeError, ValueError, RuntimeError):
        return None
    if not numbers.numel():  # torch takes an empty list for floating point
        return numbers.long()
    whole = not (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool)
    return numbers.long() if whole else None


def rgb(value: Any, what: str, error: type[ZfkitError] = ZfkitError) -> list[float]:
    """A colour as three floats from 0 to 255; one number stands for a grey."""
    import torch

    try:
        colour = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        colour = torch.tensor(math.nan)
    if colour.shape not in ((), (1,), (3,)) or not ((colour >= 0) & (colour <= 255)).all():
        raise error(f"{what} must be one number or three (RGB) from 0 to 255, not {value!r:.80}")
    return [float(v) for v in colour.expand(3)]


def uint8_rgb(value: Any, axes: int = 4) -> Tensor:
    """The value, if it is pictures, uint8 (N, 3, H, W) with values 0-255; with 3 axes, one picture (3, H, W)."""
    import torch

    if not isinstance(value, torch.Tensor):
        kind = type(value).__name__
    elif value.dtype == torch.uint8 and value.dim() == axes and value.shape[-3] == 3:
        return value
    else:
        kind = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    expected = "uint8 RGB pictures (N, 3, H, W)" if axes == 4 else "one uint8 RGB picture (3, H, W)"
    raise ImageError(f"expected {expected} with values 0-255, got {kind}")


def as_path(value: Any, what: str = "a path") -> Path:
    """The value as a path, ~ being the home folder. Raises ZfkitError for what no file can be called."""
    try:
        path = Path(value).expanduser()
        if "\0" in str(path):
            raise ValueError("it has a NUL in it")
        return path
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError for ~nobody
        shown = printable(str(value))
        raise ZfkitError(f"{what} cannot be {shown!r:.80} ({error}); choose another name") from None


def kind_of_file(mode: int) -> str:
    """What `os.stat` says that something is, with its article."""
    kinds = {
        stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "something else")


def readable_file(path: Path, what: str, most: int, error: type[ZfkitError] = ZfkitError) -> Path:
    """The path, if a file of at most so many bytes is there: pipes and devices may have no end.

    `what` names it: "the grid".
    """
    try:
        status = path.stat()
    except OSError as failure:
        raise error(f"cannot read {what} {str(path)!r}: {failure.strerror or failure}") from None
    if not stat.S_ISREG(status.st_mode):
        raise error(f"cannot read {what} {str(path)!r}: it is {kind_of_file(status.st_mode)}, not a file")
    if status.st_size > most:
        raise error(f"{path.name} is larger than {most / 1e6:g} MB, which is too much for {what}")
    return path


def writable_folder(path: str | Path) -> Path:
    """The folder, made where there is none. Raises WriteError where nothing can be written into it."""
    folder = as_path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # better now than after all the work
            pass
    except OSError as error:
        raise WriteError(folder, error) from None
    return folder
