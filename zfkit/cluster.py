"""A Dask cluster of other machines: connect to its scheduler, or say why that cannot be used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from .checks import expect
from .errors import ZfkitError
from .version import __version__


@contextlib.contextmanager
def connected(scheduler: Any, timeout: float = 15) -> Iterator[Any]:
    """A `distributed.Client` of a scheduler, given by its address or by a client, which then stays open.

    Raises ZfkitError where Dask is not installed, no scheduler answers within `timeout` seconds, there are no workers,
    or they have another zfkit.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ZfkitError("a scheduler needs Dask: pip install 'zfkit[cluster]'") from None
    if not isinstance(scheduler, str):
        expect(scheduler, Client, "scheduler", "an address such as tcp://10.0.0.1:8786, or a client")
        _check_workers(scheduler)
        yield scheduler
        return
    try:
        client = Client(scheduler, timeout=timeout, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ZfkitError(
            f"no Dask scheduler answers at {scheduler!r} ({reason}); start one with 'dask scheduler', and workers with "
            "'dask worker ADDRESS'"
        ) from None
    with client:
        _check_workers(client)
        yield client


def _check_workers(client: Any) -> None:
    address = client.scheduler.address
    try:
        versions = set(client.run(_version).values())
    except Exception as error:  # whatever a worker raised comes through
        raise ZfkitError(
            f"the workers of {address} cannot import zfkit ({error}): install the same version there"
        ) from None
    if not versions:
        raise ZfkitError(
            f"the scheduler at {address} has no workers: start some with 'dask worker {address}'"
        )
    if versions != {_version()}:
        raise ZfkitError(
            f"the workers of {address} have zfkit {', '.join(sorted(versions))}, this is {_version()}: install the "
            "same"
        )


def _version() -> str:
    return __version__
