"""What zfkit raises: one sentence that says what was wrong, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


def unknown(what: str, name: object, names: Iterable[str], limit: int = 8) -> str:
    """Sentence for a name that does not exist: quotes it and lists those that do, nearest first."""
    names = list(names)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4)
    ordered = near + [n for n in names if n not in near]
    shown = ", ".join(ordered[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return f"there is no {what} {str(name)!r}.{guess} There are: {shown or 'none'}"
