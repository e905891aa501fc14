"""Values as JSON has them, which is what a notebook's parameters and records can be."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from ..errors import ZfkitError

LARGEST_VALUE = 10_000  # numbers and words in one value
KINDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a mapping",
    type(None): "None",
}  # fmt: skip


def plain(value: Any, what: str) -> Any:
    """A value as JSON has it: numbers and text of Python, True, False, None, lists and mappings of them.

    Numbers and arrays of numpy and torch become Python's, paths and the keys of mappings text.
    Raises ZfkitError for anything else, floats that are not finite, and whole numbers beyond 64 bits.
    """
    encoder = json.JSONEncoder(allow_nan=False, ensure_ascii=False, default=_as_python)
    try:
        # Piece by piece: the aliases of a YAML file may unfold to a billion words.
        pieces = list(itertools.islice(encoder.iterencode(value), LARGEST_VALUE + 1))
        text = "".join(pieces)
        text.encode()  # raises where half of a surrogate pair stands alone
        if len(pieces) <= LARGEST_VALUE:
            return json.loads(text, parse_int=_int64)
    except (TypeError, ValueError, RecursionError) as error:
        raise ZfkitError(f"{what} cannot be {value!r:.60} ({error})") from None
    raise ZfkitError(f"{what} has more than {LARGEST_VALUE:,} parts; put it into a file")


def _as_python(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # of numpy and torch
        return value.tolist()
    hint = "; put it in quotes" if hasattr(value, "isoformat") else ""  # YAML reads 2026-11-29 as a date
    raise TypeError(f"{type(value).__name__} is no number, text, list or mapping{hint}")


def _int64(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**63:
        raise ValueError("whole numbers have at most 64 bits")
    return number


def canonical(value: Any) -> str:
    """The same text for the same value, whatever the order of its keys; 1, 1.0 and True differ."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True)


def quoted(value: Any) -> str:
    """A value as errors quote it, with its kind; of lists and mappings the kind alone, since they may be huge."""
    kind = KINDS.get(type(value), type(value).__name__)
    return kind if isinstance(value, list | tuple | dict) else f"{value!r:.80} ({kind})"
