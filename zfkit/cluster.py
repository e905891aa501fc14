"""Other processes: those of ``torchrun``, which have to agree, and a Dask cluster, or why it cannot be used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from .checks import expect
from .checksums import digest
from .errors import ZfkitError
from .version import __version__


def gather_bytes(content: bytes) -> list[bytes]:
    """What every process of `torch.distributed` hands over here, by rank; the same in each.

    Bytes travel as tensors. `all_gather_object` would unpickle, that is run, whatever another process sends.
    """
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    own = torch.frombuffer(bytearray(content), dtype=torch.uint8).to(device)
    length = torch.tensor([len(content)], device=device)
    lengths = [torch.empty_like(length) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, length)
    sizes = [int(n) for n in lengths]
    padded = F.pad(own, (0, max(sizes) - len(own)))  # they have to be of one size
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return [part[:n].cpu().numpy().tobytes() for part, n in zip(gathered, sizes, strict=True)]


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
        raise ZfkitError(f"the scheduler at {address} has no workers: start one with 'dask worker {address}'")
    if versions != {_version()}:
        raise ZfkitError(
            f"the workers of {address} have zfkit {', '.join(sorted(versions))}, this is {_version()}: install the "
            "same"
        )


def _version() -> str:
    return __version__


def expect_same(known: Mapping[str, str]) -> None:
    """Under torchrun, see that every process has the same network, pictures and so on, before any of them works.

    Args:
        known: a text of each, such as a fingerprint.

    Raises ZfkitError, in every process, where one differs.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    own = torch.tensor([[*bytes.fromhex(digest([text]))] for text in known.values()], dtype=torch.uint8)
    own = own.to("cuda" if dist.get_backend() == "nccl" else "cpu")
    all_of_them = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(all_of_them, own)
    for process, other in enumerate(all_of_them):
        for name, a, b in zip(known, other, all_of_them[0], strict=True):
            if not torch.equal(a, b):
                raise ZfkitError(
                    f"process {process} has other {name} than process 0: start all with the same command, on machines "
                    "that find the same files, with the same times of change, under the same paths (an ImageSet of "
                    "your own that streams says with stamp= what it has)"
                )
