"""A picture of your own for the explorer: read, or refused in a sentence."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..checks import Size
from ..errors import ImageError
from ..images.decode import MAX_PIXELS, decode, sized

SMALL = 8  # px; a picture must have that many along its smaller side


def on_a_page() -> bool:
    """Does this kernel serve a page of Voila's, for whoever opens it?"""
    return "VOILA_BASE_URL" in os.environ


def read_own(
    content: bytes | str, name: str, side: int, input_size: Size, at: float = 0.5
) -> tuple[Tensor, Tensor, Image.Image, str]:
    """A picture of your own, from its bytes or path: uint8 (3, H, W) of two sizes, the whole of it, and a note.

    Args:
        side: of the photographs that the explorer shows.
        input_size: that of the network.
        at: where along its longer side the square lies that is used: 0 at the beginning, 1 at the end.

    Raises ImageError, in words, for what is no picture, a damaged one, or one too small or too large.
    """
    if isinstance(content, str):
        if on_a_page():  # who looks at it is not who owns the disk
            raise ImageError("A page reads no paths; choose the file instead.")
        path = Path(content).expanduser()
        if not path.is_file():
            raise ImageError(f"There is no file {content!r}; check the path (looked up from {Path.cwd()}).")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ImageError(f"{path.name} cannot be read ({error.strerror}).") from None
    size, frames = _header(content, name)
    if size and size[0] * size[1] > MAX_PIXELS:
        raise ImageError(
            f"{name} has {size[0]:,} × {size[1]:,} pixels; more than {MAX_PIXELS:,} would fill the memory. "
            "Make it smaller first."
        )
    if size and min(size) < SMALL:
        raise ImageError(
            f"{name} has {size[0]} × {size[1]} pixels, too few to see anything: every patch would be a plain "
            f"colour. Take a picture of at least {SMALL} × {SMALL}."
        )
    whole = decode(content, name)
    note = f"{name}: {whole.width:,} × {whole.height:,} px"
    if frames > 1:
        note += f"; an animation of {frames} frames, of which the first is shown"
    square = whole
    if whole.width != whole.height:
        note += "; the square in the frame is used"
        short = min(whole.size)
        left, top = (round((length - short) * min(max(at, 0.0), 1.0)) for length in whole.size)
        square = whole.crop((left, top, left + short, top + short))
    return sized(square, side), sized(square, input_size), whole, note + "."


def _header(content: bytes, name: str) -> tuple[tuple[int, int] | None, int]:
    """Size and number of frames, from a picture's header; (None, 1) where Pillow cannot tell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a sentence says it better
            opened = Image.open(io.BytesIO(content))
        with opened:
            return opened.size, int(getattr(opened, "n_frames", 1))
    except Image.DecompressionBombError:
        raise ImageError(
            f"{name} has so many pixels that it would fill the memory; bring it below {MAX_PIXELS:,} first."
        ) from None
    except Exception:  # what is no picture is said by `decode`
        return None, 1
