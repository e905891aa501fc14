"""Values that a notebook records for whoever runs it: `record` inside, `recorded` outside.

A record lies in the metadata of an output that shows nothing. So it travels with the executed notebook, in
Jupyter, on GitHub and anywhere else; and nbval, which leaves metadata out, holds a notebook to recording the same names
but not to the last digit of what it measured.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import ZfkitError

MIME = "application/vnd.zfkit.record+json"
KEY = "zfkit"  # where in the output's metadata the record lies
Value = bool | int | float | str | None
KINDS = ("bool", "int", "float", "str", "NoneType")


def record(name: str, value: Value | Sequence[Value]) -> None:
    """Keep a value in the notebook that is running, under a name, for `zfkit sweep` to gather.

    Args:
        name: its column in results.parquet; a name that is recorded twice keeps the later value.
        value: a number, text, True, False or None, a list of them, or what becomes one of these (numbers of
            numpy and torch, arrays of one dimension).

    Outside a notebook it checks its arguments and does nothing. Raises ZfkitError for anything else.

    >>> record("top-1 accuracy in %", 46.3)
    """
    if not isinstance(name, str) or not name.strip() or len(name) > 200 or not name.isprintable():
        raise ZfkitError(f"a record needs a name, one line of at most 200 letters, not {name!r}")
    told = [_encode(v, name) for v in _items(value)] if _is_list(value) else _encode(value, name)
    if not _in_notebook():
        return
    from IPython.display import display

    display(
        # The empty HTML is for front ends that complain of an output they cannot show.
        {MIME: {"name": name}, "text/html": ""},
        metadata={KEY: {"record": name, "value": told}},
        raw=True,
    )


def recorded(notebook: Any) -> dict[str, Any]:
    """Records of an executed notebook (as nbformat reads it) by name, in order."""
    found: dict[str, Any] = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            held = (output.get("metadata") or {}).get(KEY)
            if (
                MIME in (output.get("data") or {})
                and isinstance(held, dict)
                and isinstance(held.get("record"), str)
            ):
                told = held.get("value")
                value = [_decode(v) for v in told] if isinstance(told, list) else _decode(told)
                found[held["record"]] = value
    return found


def _in_notebook() -> bool:
    """Is there a Jupyter kernel to send an output through?"""
    if "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 1


def _items(value: Any) -> list[Any]:
    return list(value)


def _scalar(value: Any) -> Any:
    """Numbers of numpy and torch as Python's."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _encode(value: Any, name: str) -> Any:
    """As JSON has it; a float that is not finite, which JSON lacks, as {"float": "nan"}."""
    value = _scalar(value)
    if type(value).__name__ not in KINDS or (isinstance(value, int) and abs(value) >= 2**63):
        raise ZfkitError(
            f"cannot record {name!r}: {type(value).__name__} is no number, text, True, False or None, nor a list "
            "of them; record several values under a name each"
        )
    return {"float": str(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _decode(told: Any) -> Any:
    if isinstance(told, dict):
        return float(told["float"]) if told.get("float") in ("nan", "inf", "-inf") else None
    return told
