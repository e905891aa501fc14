"""One picture from bytes: upright RGB, or an error that says what is wrong with it."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import ImageError, printable

MAX_PIXELS = 100_000_000  # a 300 MB picture; beyond that a file is taken for a decompression bomb

# Suffixes of pictures that Pillow reads with a plugin at most: they are named, not passed over in silence.
OTHER_PICTURES = frozenset(
    {".svg", ".svgz", ".heic", ".heif", ".hif", ".avif", ".jxl", ".jxr", ".exr", ".hdr", ".xcf", ".ai", ".raw",
     ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"}
)  # fmt: skip


def decode(file: str | Path | IO[bytes] | bytes, name: str = "") -> Image.Image:
    """Any picture file as an upright RGB `PIL.Image`: EXIF turned, alpha over white, 16 bit scaled to 8.

    Of an animation or of several pages, the first. Raises ImageError, naming the file, for what cannot be decoded,
    for what is no ordinary file (a pipe would be waited for without end), and for PostScript (a program).
    """
    is_path = isinstance(file, str | Path)
    name = printable(name or (str(file) if is_path else "picture"))
    try:
        if is_path:
            _check_is_file(file)
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
            _check_header(opened)
            opened.load()
            return to_rgb(opened)
    except Exception as error:  # Pillow's decoders raise all sorts on damaged files
        raise ImageError(f"{name}: {_reason(error, file)}") from None


def to_rgb(picture: Image.Image) -> Image.Image:
    """Upright 8-bit RGB, as `decode` describes. Raises ImageError for pictures without a known range."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError("integers beyond 16 bits have no known range; convert it to 8 bits first")
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ImageError("floating-point pixels have no known range; convert it to 8 bits first")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture.convert("RGB")


def square(picture: Image.Image, size: int) -> Image.Image:
    """Centre square of the picture, resized to size x size px (bilinear, antialiased)."""
    if picture.size == (size, size):
        return picture
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    return picture.resize(
        (size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side), reducing_gap=3
    )


def to_tensor(picture: Image.Image) -> Tensor:
    """RGB picture -> uint8 (3, H, W)."""
    return torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def open_image(path: str | Path, size: int = 224) -> Tensor:
    """One picture of your own as uint8 (3, size, size): smallest side resized, centre crop.

    Raises ImageError where the file is missing or cannot be decoded.
    """
    if not os.path.lexists(path):
        raise ImageError(f"there is no file {str(path)!r}; check the path")
    return to_tensor(square(decode(path), size))


def one_line(error: Exception) -> str:
    """An error of another library in one line."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def begins_as_picture(path: str) -> bool:
    """Are the first bytes those of a JPEG, PNG, GIF, TIFF or WebP?"""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 (Path objects are slow, and files many)
            return False
        head = _first_bytes(path)
    except OSError:
        return False
    signatures = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
    return head.startswith(signatures) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def _check_is_file(path: Any) -> None:
    """Raise ImageError for a path that is no file to read: opening a pipe, say, would wait for somebody to write."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except OSError as error:
        what = "a link that leads nowhere" if os.path.islink(path) else "cannot be read"  # noqa: PTH114
        raise ImageError(f"{what} ({error.strerror}); mend or remove it") from None
    except ValueError as error:  # a NUL in the name
        raise ImageError(f"cannot be read ({error}); mend the name") from None
    if not stat.S_ISREG(mode):
        kinds = {
            stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket",
            stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
        }  # fmt: skip
        raise ImageError(f"{kinds.get(stat.S_IFMT(mode), 'something else')}, not a file; remove it")


def _check_header(opened: Any) -> None:
    """Raise ImageError for what must not be decoded, or cannot be decoded whole."""
    if opened.width * opened.height > MAX_PIXELS:
        raise ImageError(
            f"{opened.width} x {opened.height} pixels are more than {MAX_PIXELS:,}; make it smaller first"
        )
    if opened.format == "EPS":
        raise ImageError("PostScript is a program that would have to be run; convert it to PNG first")
    if opened.format in ("JPEG", "MPO") and not _has_end(opened.fp):
        raise ImageError(
            "damaged or truncated picture (no end marker: cut off or overwritten); replace or remove it"
        )


def _has_end(file: Any) -> bool:
    """Does a JPEG end as it should, by its marker FF D9?

    The decoder takes whatever bytes follow for pixels, so that a file whose end was lost to zeros (as after a
    power cut) would come out grey below some line. Other data may follow the marker.
    """
    position = file.tell()
    try:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 64))
        if b"\xff\xd9" in file.read():
            return True
        file.seek(2)  # behind FF D8: segments, each FF, kind, length, until the scan
        while len(head := file.read(4)) == 4 and head[0] == 0xFF and head[1] != 0xDA:
            file.seek(max(0, int.from_bytes(head[2:], "big") - 2), os.SEEK_CUR)
        before = b""
        while block := file.read(1 << 20):
            if b"\xff\xd9" in before + block:  # within a scan FF is followed by 00 or a restart marker
                return True
            before = block[-1:]
        return False
    finally:
        file.seek(position)


def _reason(error: Exception, file: str | Path | IO[bytes] | bytes) -> str:
    """Why a file could not be decoded, and what to do."""
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return _what_it_is(_first_bytes(file))
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"its pixels are more than {MAX_PIXELS:,}; make it smaller first"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied); change its permissions"
    if isinstance(error, MemoryError):
        return "decoding it takes more memory than there is; make it smaller"
    return f"damaged or truncated picture ({one_line(error)}); replace or remove it"


def _first_bytes(file: str | Path | IO[bytes] | bytes) -> bytes:
    if isinstance(file, bytes):
        return file[:1024]
    if isinstance(file, str | Path):
        with open(file, "rb") as opened:  # noqa: PTH123
            return opened.read(1024)
    file.seek(0)
    return file.read(1024)


def _what_it_is(head: bytes) -> str:
    """Why a file that begins with these bytes is no picture, and what to do."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "the file is empty; replace or remove it"
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "a web page, not a picture; download the picture itself"
    if text.startswith((b"<?xml", b"<svg")) and b"<svg" in text:
        return "an SVG drawing, not a picture of pixels; convert it to PNG"
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis"):
        return (
            "HEIC, not a picture that Pillow reads by itself; convert it, or install and register pillow-heif"
        )
    if not head.strip(b"\0"):
        return "nothing but zeros, not a picture; restore or remove it"
    return "not a picture in a format that Pillow reads; remove or convert it"
