"""Checks of arguments: one function for each kind, one wording each."""

from __future__ import annotations

from .errors import ZfkitError


def expect(value: object, kind: type, what: str, how: str) -> None:
    """Raise ZfkitError where a value is of another kind; `how` says what makes one of the right kind."""
    if not isinstance(value, kind):
        shown = f"{value!r:.60}"
        raise ZfkitError(f"{what} must be {kind.__name__}, {how}; not {type(value).__name__} {shown}")
