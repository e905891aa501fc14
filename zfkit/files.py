"""Files that appear whole or not at all, room for them, and locks on them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .checks import writable_folder
from .errors import WriteError


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary path beside `path`, then rename it: nobody sees half a file.

    Raises WriteError, an OSError, for a full disk or a read-only folder, leaving what was there before.
    """
    from safetensors import SafetensorError

    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        part = Path(name)
        write(part)
        umask = os.umask(0)  # which can be read only by setting it
        os.umask(umask)
        part.chmod(0o666 & ~umask)  # as any new file: mkstemp makes private ones
        part.replace(path)
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(path, error) from error
    except SafetensorError as error:  # which a full disk becomes when safetensors writes
        raise WriteError(path, OSError(None, str(error))) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def check_room(path: Path, needed: int = 0) -> None:
    """Raise WriteError where a file of so many bytes cannot be written: better before all the work than after."""
    folder = writable_folder(path.parent)
    if path.is_dir():
        raise WriteError(path, IsADirectoryError(errno.EISDIR, "it is a folder"))
    free = shutil.disk_usage(folder).free
    if needed > free:
        missing = f"{needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free"
        raise WriteError(path, OSError(errno.ENOSPC, missing))


@contextlib.contextmanager
def only_writer(file: Path, refusal: Exception) -> Iterator[None]:
    """Hold a lock on `file`, which is made where there is none, or on a folder.

    The system frees it when the process ends, however that happens. On a file system without locks, and on Windows,
    nothing is held. Raises `refusal` where another process holds the lock, WriteError where the file cannot be made.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    try:
        flags = os.O_RDONLY if file.is_dir() else os.O_RDWR | os.O_CREAT
        lock = os.open(file, flags, 0o666)
    except OSError as error:
        raise WriteError(file, error) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(lock)
