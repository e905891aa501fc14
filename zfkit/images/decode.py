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

from ..checks import Size, kind_of_file, pair
from ..errors import ImageError, printable
from .values import Range, Remarks, check_range, eight_bits, stated_range

MAX_PIXELS = 100_000_000  # a 300 MB picture; beyond that a file is taken for a decompression bomb

# Suffixes of pictures that Pillow reads with a plugin at most: they are named, not passed over in silence.
OTHER_PICTURES = frozenset(
    {".svg", ".svgz", ".heic", ".heif", ".hif", ".avif", ".jxl", ".jxr", ".exr", ".hdr", ".xcf", ".ai", ".raw",
     ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"}
)  # fmt: skip


def decode(
    file: str | Path | IO[bytes] | bytes,
    name: str = "",
    value_range: Range | None = None,
    remarks: Remarks | None = None,
) -> Image.Image:
    """Any picture file as an upright RGB `PIL.Image`: EXIF turned, alpha over white, 16 bit scaled to 8.

    Of an animation or of several pages, the first; of many bands, those that Pillow takes for colours. That is warned
    about, or noted in `remarks`, which are those of a set. `value_range` is explained at `to_rgb`.

    Raises ImageError, naming the file, for what cannot be decoded, for what is no ordinary file (a pipe would be waited
    for without end), and for PostScript (a program).
    """
    is_path = isinstance(file, str | Path)
    name = printable(name or (str(file) if is_path else "picture"))
    gathered = remarks or Remarks()
    try:
        if is_path:
            _check_is_file(file)
        stream = io.BytesIO(file) if isinstance(file, bytes) else file
        try:
            picture = _read(stream, name, value_range, gathered)
        except ValueError as error:  # Pillow refuses PNGs whose texts or colour profile are larger than 1 MiB
            if isinstance(error, ImageError) or not (smaller := _without_texts(file)):
                raise
            picture = _read(io.BytesIO(smaller), name, value_range, gathered)
    except Exception as error:  # Pillow's decoders raise all sorts on damaged files
        raise ImageError(f"{name}: {_reason(error, file)}") from None
    if remarks is None:
        gathered.say(stacklevel=3)
    return picture


def _read(file: Any, name: str, value_range: Range | None, remarks: Remarks) -> Image.Image:
    """Decode what Pillow can open, and note what of it is not shown."""
    with Image.open(file) as opened:
        _check_header(opened)
        if opened.format != "MPO" and getattr(opened, "is_animated", False):  # MPO: a phone's extra pictures
            remarks.note("it has several pages or frames, of which the first is taken", name)
        bands = getattr(opened, "tag_v2", {}).get(277, 1)  # SamplesPerPixel
        if bands > len(opened.getbands() if opened.mode != "RGBX" else "RGB"):
            remarks.note(f"of its {bands} bands {opened.mode[:3]} are taken, and no others", name)
        tiles = opened.tile
        opened.load()
        if opened.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in tiles):
            if value_range:
                raise ImageError(
                    "colours of 16 bits, of which Pillow reads the upper 8: stretch value_range to 0..65535 first"
                )
            upper = np.asarray(opened)[..., : len(opened.mode.rstrip("A"))]
            remarks.sixteen_bits(257 * int(upper.min()), 257 * int(upper.max()), name)
        return to_rgb(opened, value_range, remarks, name)


def to_rgb(
    picture: Image.Image,
    value_range: Range | None = None,
    remarks: Remarks | None = None,
    name: str = "picture",
) -> Image.Image:
    """Upright 8-bit RGB, as `decode` describes.

    Of one channel of more than 8 bits, `value_range` gives the values that become black and white; without it 0..65535,
    unless the file states another range. Raises ImageError for pictures without a known range.
    """
    value_range = value_range or stated_range(picture)
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N", "F"):
        return eight_bits(np.asarray(picture), value_range, remarks or Remarks(), name).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture.convert("RGB")


def centre(picture: Image.Image, size: Size) -> Image.Image:
    """The largest part in the middle that has this shape, resized to it (bilinear, antialiased)."""
    height, width = pair(size)
    if picture.size == (width, height):
        return picture
    high, wide = float(picture.height), float(picture.width)
    if picture.width * height <= picture.height * width:
        high = picture.width * height / width
    else:
        wide = picture.height * width / height
    left, top = (picture.width - wide) / 2, (picture.height - high) / 2
    box = (left, top, left + wide, top + high)
    return picture.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=3)


def to_tensor(picture: Image.Image) -> Tensor:
    """RGB picture -> uint8 (3, H, W)."""
    return torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def sized(picture: Image.Image | Tensor, size: Size) -> Tensor:
    """The `centre` of an RGB picture, or of each of the bands (C, H, W) of another: uint8 (C, height, width)."""
    if isinstance(picture, Image.Image):
        return to_tensor(centre(picture, size))
    bands = (centre(Image.fromarray(band.numpy()), size) for band in picture)
    return torch.stack([torch.from_numpy(np.array(band)) for band in bands])


def open_image(path: str | Path, size: Size = 224, value_range: Range | None = None) -> Tensor:
    """One picture of your own as uint8 (3, size, size): smallest side resized, centre crop.

    `size` may be height and width, too.

    `value_range`, as (0, 4095), says which values of a grey picture of more than 8 bits become black and white.

    Raises ImageError where the file is missing or cannot be decoded.
    """
    if not os.path.lexists(path):
        raise ImageError(f"there is no file {str(path)!r}; check the path")
    value_range = None if value_range is None else check_range(value_range)
    return sized(decode(path, value_range=value_range), size)


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
        raise ImageError(f"{kind_of_file(mode)}, not a file; remove it")


def _check_header(opened: Any) -> None:
    """Raise ImageError for what must not be decoded, or cannot be decoded whole."""
    if opened.width * opened.height > MAX_PIXELS:
        raise ImageError(f"{opened.width} x {opened.height} px are more than {MAX_PIXELS:,}; make it smaller")
    if opened.format == "EPS":
        raise ImageError("PostScript is a program that would have to be run; convert it to PNG first")
    if opened.format in ("JPEG", "MPO") and not _has_end(opened.fp):
        raise ImageError("damaged or truncated picture (it has no end marker); replace or remove it")


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


def _without_texts(file: str | Path | IO[bytes] | bytes) -> bytes:
    """A PNG without its texts and colour profile, none of which is shown; empty for other files.

    A PNG is 8 bytes, then chunks: length (4 bytes), kind (4), content, check sum (4).
    """
    if not _first_bytes(file).startswith(b"\x89PNG\r\n\x1a\n"):
        return b""
    if not isinstance(file, bytes):
        if isinstance(file, str | Path):
            return _without_texts(Path(file).read_bytes())
        file.seek(0)
        return _without_texts(file.read())
    kept, start = [file[:8]], 8
    while start < len(file):
        end = start + 12 + int.from_bytes(file[start : start + 4], "big")
        if file[start + 4 : start + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(file[start:end])
        start = end
    return b"".join(kept)


def _reason(error: Exception, file: str | Path | IO[bytes] | bytes) -> str:
    """Why a file could not be decoded, and what to do."""
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return _what_it_is(_first_bytes(file))
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"its pixels are more than {MAX_PIXELS:,}; make it smaller"
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
        return "HEIC, not a picture that Pillow reads by itself; convert it, or register pillow-heif"
    if head.startswith((b"II*\0", b"MM\0*")):
        return "not a picture that Pillow reads: a TIFF of many bands or of other numbers; convert it to 8-bit RGB"
    if not head.strip(b"\0"):
        return "nothing but zeros, not a picture; restore or remove it"
    return "not a picture in a format that Pillow reads; remove or convert it"
