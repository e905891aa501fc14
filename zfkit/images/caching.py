"""`CachedReads`: what threads read together is read once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Generic, TypeVar

Read = TypeVar("Read")


class CachedReads(Generic[Read]):
    """A function whose last `kept` results are kept; of threads that ask for the same, one reads and the others wait.

    Unlike `lru_cache` and a lock it can be pickled, with nothing in it, so that image sets travel to the processes of a
    cluster.
    """

    def __init__(self, read: Callable[..., Read], kept: int) -> None:
        self._read, self._kept = read, kept
        self._cached = lru_cache(maxsize=kept)(read)
        self._lock = threading.Lock()

    def __call__(self, *key: Any) -> Read:
        with self._lock:
            return self._cached(*key)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._read, self._kept)
