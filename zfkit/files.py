"""Files that appear whole or not at all, room for them, and locks on them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .checks import kind_of_file, writable_folder
from .errors import WriteError


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary path beside `path`, then rename it: nobody sees half a file, whatever happens.

    Raises WriteError, an OSError, for a full disk, a read-only folder, and where anything but a file would be replaced,
    leaving what was there before.
    """
    from safetensors import SafetensorError

    expect_replaceable(path)
    part = path.with_name(f"{private_prefix()}{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # With the rights of any new file: 0o666 less what the umask takes. Some writers give their own.
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        rights = stat.S_IMODE(part.stat().st_mode)
        write(part)
        part.chmod(rights)
        _to_disk(part)  # before its name is there, or after a power cut the name might be all that is
        part.replace(path)
        with contextlib.suppress(OSError):  # some systems open no folders
            _to_disk(path.parent)
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(path, error) from error
    except SafetensorError as error:  # which a full disk becomes when safetensors writes
        raise WriteError(path, OSError(None, str(error))) from error
    finally:
        with contextlib.suppress(OSError):  # a folder that is none, or that may not be written to
            part.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def expect_replaceable(*paths: Path) -> None:
    """Raise WriteError where a link, a folder, a pipe or a device has the name of a file that is to be written."""
    for path in paths:
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue
        except OSError as error:
            raise WriteError(path, error) from None
        if not stat.S_ISREG(mode):
            what = f"it is {kind_of_file(mode)}, and only files are replaced"
            raise WriteError(path, OSError(errno.EINVAL, what))


# Near the ends of the files that zfkit writes under names of its own into a folder that the user names: of a page, a
# PNG, a table, an executed notebook.
_OWN = b'<meta name="generator" content="zfkit', b"Software\0zfkit", b"zfkit checksum", b'"papermill": {'


def expect_own(*paths: Path) -> None:
    """Raise WriteError where what is to be replaced is no file, or one that zfkit did not write."""
    expect_replaceable(*paths)
    for path in paths:
        try:
            with path.open("rb") as file:
                ends = file.read(2**12)
                file.seek(-min(2**18, file.seek(0, os.SEEK_END)), os.SEEK_END)
                ends += file.read()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise WriteError(path, error) from None
        if not any(mark in ends for mark in _OWN):
            what = "zfkit did not write the one that is there, or an earlier version did: move it away, or choose "
            raise WriteError(path, OSError(errno.EEXIST, f"{what}another folder"))


# Names that nobody else gives to anything: of files and folders on the way to a result, by machine and process.
_PRIVATE = re.compile(r"\.zfkit-([0-9a-f]{8})-([0-9]{1,7})-[0-9a-z_]{8}(\.[^.]*)?")


def private_prefix() -> str:
    """What the names of this process's temporary files and folders begin with; `sweep_away` knows them by it."""
    return f".zfkit-{_machine()}-{os.getpid()}-"


def sweep_away(folder: Path) -> None:
    """Delete what processes of this machine that were killed left in a folder on the way to a result; nothing else."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            match = _PRIVATE.fullmatch(entry.name)
            if match is None or match[1] != _machine() or _runs(int(match[2])):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)  # noqa: PTH108


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder among the system's temporary files, where those that killed processes left are swept away first."""
    sweep_away(Path(tempfile.gettempdir()))
    return tempfile.TemporaryDirectory(prefix=private_prefix(), ignore_cleanup_errors=True)


def _machine() -> str:
    """Tells apart machines that share a folder, and containers, which count their processes anew."""
    try:
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:  # not on Linux
        space = ""
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _runs(process: int) -> bool:
    if sys.platform == "win32":  # there `os.kill` would do what it is called
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def check_room(path: Path, needed: int = 0) -> None:
    """Raise WriteError where a file of so many bytes cannot be written: better before all the work than after."""
    folder = writable_folder(path.parent)
    expect_replaceable(path)
    free = shutil.disk_usage(folder).free
    if needed > free:
        missing = f"{needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free"
        raise WriteError(path, OSError(errno.ENOSPC, missing))


@contextlib.contextmanager
def only_writer(file: Path, refusal: Exception) -> Iterator[None]:
    """Hold a lock on `file`, which is made where there is none, or on a folder, and sweep away what was left there.

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
        sweep_away(file if file.is_dir() else file.parent)
        yield
    finally:
        os.close(lock)


TAG = "Signature: 8a477f597d28d172789f06886806bc55"  # of a cache folder: https://bford.info/cachedir/


def cache_folder(part: str = "") -> Path:
    """Where zfkit keeps what can be made or fetched again: ZFKIT_CACHE, or "zfkit" in XDG_CACHE_HOME or ~/.cache.

    The folder of a part is made and marked, so that only what zfkit put there is ever deleted.
    """
    own, shared = os.environ.get("ZFKIT_CACHE"), Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    base = Path(own) if own else shared / "zfkit"
    if not own and not shared.expanduser().is_absolute():  # which its specification says to ignore
        base = Path("~/.cache/zfkit")
    folder = base.expanduser() / part
    if part:
        with contextlib.suppress(OSError):  # nowhere to keep anything
            folder.mkdir(parents=True, exist_ok=True)
            if not any(folder.iterdir()):
                (folder / "CACHEDIR.TAG").write_text(f"{TAG}\n# Made by zfkit, kept by `zfkit cache`.\n")
    return folder


def cached() -> list[tuple[Path, int, float]]:
    """What lies in the parts of the cache that zfkit made: path, bytes and when it was used, longest ago first."""
    entries = []
    for tag in cache_folder().glob("*/CACHEDIR.TAG"):
        if tag.read_text().startswith(TAG):
            for path in tag.parent.iterdir():
                files = [f for f in (path, *path.rglob("*")) if f.is_file()] if path != tag else []
                if files:
                    stats = [f.stat() for f in files]
                    used = max(max(s.st_atime, s.st_mtime) for s in stats)
                    entries.append((path, sum(s.st_size for s in stats), used))
    return sorted(entries, key=lambda entry: entry[2])


def unmarked() -> list[Path]:
    """Folders beside the cache's parts that zfkit did not make, or made before it marked them: it leaves them alone."""
    base = cache_folder()
    folders = sorted(path for path in base.iterdir() if path.is_dir()) if base.is_dir() else []
    return [path for path in folders if not (path / "CACHEDIR.TAG").is_file()]


def limit_cache(most: int) -> None:
    """Delete what was not used for the longest, until at most so many bytes are left."""
    entries = cached()
    held = sum(size for _, size, _ in entries)
    for path, size, _ in entries:
        if held > most:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            held -= size
