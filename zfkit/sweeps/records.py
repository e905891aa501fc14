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
        raise ZfkitError(f"a record needs a name, one line of at most 200 letters, not {name!r:.80}")
    value = _as_python(value)
    items = value if isinstance(value, list | tuple) else [value]
    encoded = [_encode(_as_python(item), name) for item in items]
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):  # there is no Jupyter kernel to send an output through
        return
    from IPython.display import display

    display(
        # The empty HTML is for front ends that complain of an output they cannot show.
        {MIME: {"name": name}, "text/html": ""},
        metadata={KEY: {"record": name, "value": encoded if items is value else encoded[0]}},
        raw=True,
    )


def recorded(notebook: Any) -> dict[str, Any]:
    """Records of an executed notebook (as nbformat reads it) by name, in order."""
    values: dict[str, Any] = {}
    for output in (o for cell in notebook.cells for o in cell.get("outputs", ())):
        held = (output.get("metadata") or {}).get(KEY)
        if MIME not in (output.get("data") or {}) or not isinstance(held, dict):
            continue
        name, value = held.get("record"), held.get("value")
        if isinstance(name, str):
            values[name] = [_decode(v) for v in value] if isinstance(value, list) else _decode(value)
    return values


def _as_python(value: Any) -> Any:
    """Numbers and arrays of numpy and torch as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


def _encode(value: Any, name: str) -> Any:
    """As JSON has it; a float that is not finite, which JSON lacks, as {"float": "nan"}."""
    wide = type(value) is int and not -(2**63) <= value < 2**63
    if wide or type(value) not in (bool, int, float, str, type(None)):
        raise ZfkitError(
            f"cannot record {name!r}: {type(value).__name__} is no number, text, bool or None, nor a list of them: "
            "record several under a name each"
        )
    return {"float": str(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return float(value["float"]) if value.get("float") in ("nan", "inf", "-inf") else None
    return value
