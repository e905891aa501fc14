"""Long work in portions: halved when memory runs out, with a progress bar, and a callback that may cancel it."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
from tqdm.auto import tqdm

from .errors import ZfkitError

OnStep = Callable[[int, int], None]  # (done, total), after each portion of the work
KNOWN_AFTER, LONG = 2, 120  # seconds, after which an estimate can be made, and from which on it is said
GIVE_BACK = 5  # seconds, after which memory that was freed is handed back: else it adds up to gigabytes


class Cancelled(Exception):
    """Raised by an `on_step` callback: the work ends there, and its caller passes the exception on."""


@contextlib.contextmanager
def steps(
    total: int,
    what: str,
    unit: str = "img",
    progress: bool = True,
    on_step: OnStep | None = None,
    shorter: str = "fewer pictures, as images[:100], take less",
    begun: int = 0,
) -> Iterator[Callable[..., None]]:
    """Count the steps of long work: a bar that appears after half a second, and the caller's `on_step`.

    What will take over two minutes more says so after its first steps, with what would make it `shorter`. The very
    first is left out: it may compile, or wait for workers. So many steps may have been done before; `done` takes a
    note to stand beside the bar, and 0 steps while it prepares.

    >>> with steps(len(pictures), "shifting", progress=progress, on_step=on_step) as done:
    ...     for part in parts:
    ...         ...
    ...         done(len(part))
    """
    bar = tqdm(total=total, initial=begun, desc=what, unit=unit, disable=not progress, leave=False, delay=0.5)
    with bar:
        count, first, estimated = begun, begun, not progress
        started = given = time.monotonic()

        def done(n: int = 1, note: str = "") -> None:
            nonlocal count, first, started, estimated, given
            count, now = count + n, time.monotonic()
            if first == begun:
                first, started = count, now
            if note:
                bar.set_postfix_str(note, refresh=False)
            bar.update(n)
            elapsed = now - started
            if not estimated and elapsed >= KNOWN_AFTER and count > first:
                estimated = True
                left = elapsed / (count - first) * (total - count)
                if left > LONG:
                    about = timedelta(seconds=round(left))
                    bar.write(f"{what}: about {about} more; {shorter}", file=sys.stderr)
            if now >= given + GIVE_BACK:
                given = now
                give_back()
            if on_step is not None:
                on_step(count, total)

        yield done


def give_back() -> None:
    """Hand freed memory back to the system, where the C library can (glibc), which keeps it for itself otherwise."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # Windows has no library without a name
        ctypes.CDLL(None).malloc_trim(0)


def out_of_memory(error: BaseException) -> bool:
    """Did memory run out, on the CPU or on a GPU? torch says so in several ways."""
    message = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in message  # torch on Linux
        or "not enough memory" in message  # torch on Windows
        or "out of memory" in message  # MPS, and older drivers
    )


class Portions:
    """So many pictures at a time through a network: halved, and said so, when memory runs out.

    >>> portions = Portions("mining zfnet64", 256)
    >>> for part in portions.of(len(pixels)):      # slices
    ...     with portions.attempt():               # a part that memory does not hold is tried again in halves
    ...         outputs = model.logits(pixels[part])

    What is done inside `attempt` may be broken off and done again, so it keeps nothing until its end.

    Args:
        what: is being done, for the warning.
        size: how many at a time to begin with.
        of_what: what is counted.
        inner: leave a part of one that does not fit to the portions around these.
    """

    def __init__(self, what: str, size: int, of_what: str = "pictures", inner: bool = False) -> None:
        self.what, self.size, self.of_what, self.inner = what, size, of_what, inner
        self._part = slice(0, 0)
        self._again = False

    def of(self, count: int) -> Iterator[slice]:
        """Consecutive slices of 0..count."""
        start = 0
        while start < count:
            if self._again and torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._again = False
            self._part = slice(start, min(start + self.size, count))
            yield self._part
            if not self._again:
                start = self._part.stop

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Try the part at hand. Raises ZfkitError where memory does not hold one picture alone."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            held = self._part.stop - self._part.start
            if held <= 1 and self.inner:
                raise
            if held <= 1:
                raise ZfkitError(
                    f"{self.what}: memory ran out with one of the {self.of_what} at a time; take smaller pictures or "
                    "another device"
                ) from error
            self.size, self._again = held // 2, True
            warnings.warn(
                f"{self.what}: out of memory with {held} {self.of_what} at a time; going on with {self.size}",
                stacklevel=4,
            )
