"""What zfkit raises: one sentence that says what was wrong, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class ZfkitError(ValueError):
    """Something about the caller's input cannot be used; the message says what to do about it."""


class ImageError(ZfkitError):
    """A picture, or a source of pictures, cannot be used."""


class ModelError(ZfkitError):
    """A network or a file of weights cannot be used."""


class LayerError(ZfkitError):
    """A layer, feature map or position does not exist, or has no projection."""


class TrainingError(ZfkitError):
    """A training that cannot start, cannot go on, or would lead nowhere."""


class WriteError(ZfkitError, OSError):
    """A file cannot be written: the disk is full, or the folder may not be written to.

    `errno` and `strerror` are those of the system's error.
    """

    def __init__(self, path: Any, error: OSError) -> None:
        reason = error.strerror or str(error)
        super().__init__(
            f"cannot write {printable(str(path))!r} ({reason}); what was there before is as it was. Make room, or "
            "choose another place"
        )
        self.errno, self.strerror, self.filename = error.errno, reason, str(path)

    def __str__(self) -> str:  # not OSError's, which would put the numbers in front
        return str(self.args[0])


def printable(text: str) -> str:
    """The text on one line for terminals, pages and logs: line ends, control and undecodable characters escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def unknown(what: str, name: object, names: Iterable[str], limit: int = 8) -> str:
    """Sentence for a name that does not exist: quotes it and lists those that do, nearest first."""
    names = list(names)
    # What begins with the name is inside it; the last of a block's layers is what the block gives.
    inside = [n for n in names if n.startswith(f"{name}.")][::-1]
    near = [*inside[:3], *difflib.get_close_matches(str(name), names, n=3, cutoff=0.4)]
    near = list(dict.fromkeys(near))
    ordered = near + [n for n in names if n not in near]
    shown = ", ".join(ordered[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return f"there is no {what} {str(name)!r}.{guess} There are: {shown or 'none'}"
