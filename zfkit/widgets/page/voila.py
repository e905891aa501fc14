"""Voila's settings for the explorer's page, as `make app` starts it: one kernel for each page, and only so many."""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime, timezone
from typing import Any

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError
from traitlets import Int


class Seats(AsyncMappingKernelManager):
    """A kernel for each page that is open, as long as there are seats; no page sees another's.

    Voila makes the next one ready ahead (`preheat_kernel`), and keeps it however long nobody comes; where all seats are
    taken that waits for one to be free.
    """

    seats = Int(12, config=True, help="pages that may be open at a time")
    memory = Int(6 * 10**9, config=True, help="bytes that each kernel may ask for, on Linux")

    def __init__(self, **kwargs: Any) -> None:
        self.starting: set[str] = set()  # a kernel is listed before its start has ended: each counts once
        super().__init__(**kwargs)

    @property
    def pool(self) -> list[asyncio.Task[dict[str, Any]]]:
        """What makes kernels ready ahead, in Voila's hands; a page that comes takes the first out."""
        return list(getattr(self, "_pools", {}).get(getattr(self, "notebook_path", None), []))

    @property
    def full(self) -> bool:
        return len(self.starting.union(self.list_kernel_ids())) >= self.seats

    async def start_kernel(self, *args: Any, **kwargs: Any) -> str:  # type: ignore[override]
        task = asyncio.current_task()
        while self.full and task in self.pool:
            await asyncio.sleep(0.2)
        if hasattr(self, "_pools") and self.seats:
            self.fill_if_needed(notebook_name=self.notebook_path)
        if self.full:  # and this is for a page that has come
            raise HTTPError(503, reason="All seats are taken: try again later")
        if sys.platform == "linux":
            import resource

            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            most = self.memory if hard == resource.RLIM_INFINITY else min(self.memory, hard)
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))  # kernels inherit it
        kernel = kwargs.setdefault("kernel_id", self.new_kernel_id())
        self.starting.add(kernel)
        try:
            return str(await super().start_kernel(*args, **kwargs))
        except Exception:  # was logged, and would be met again in both places wherever a kernel is to end
            self._pending_kernels.pop(kernel, None)
            if task in self.pool:
                self._pools[self.notebook_path].remove(task)
                raise asyncio.CancelledError from None
            raise
        finally:
            self.starting.discard(kernel)

    async def cull_kernels(self) -> None:
        # Whoever comes gets the one that was made ready, however long ago, and needs time to reach it; whoever was cut
        # off, to come back.
        made = [task for task in self.pool if task.done() and not (task.cancelled() or task.exception())]
        ready = [task.result()["kernel_id"] for task in made]
        for kernel in self.list_kernel_ids():
            if kernel in ready or self._kernel_connections.get(kernel):
                self.get_kernel(kernel).last_activity = datetime.now(timezone.utc)
        await super().cull_kernels()

    async def shutdown_all(self, now: bool = False) -> None:  # type: ignore[override]  # declared as no coroutine
        self.seats = 0  # what waits for one starts no kernel any more
        await super().shutdown_all(now)


c = get_config()  # type: ignore[name-defined]  # noqa: F821
c.Voila.ip = "127.0.0.1"  # this machine alone
c.VoilaConfiguration.multi_kernel_manager_class = Seats
# A page that closes ends its kernel; that of one that vanished (a laptop that was shut) ends after this time.
c.Seats.cull_idle_timeout, c.Seats.cull_interval = 120, 30  # s
c.Voila.tornado_settings = {"ws_ping_interval": 10_000}  # ms: who is silent for three of them has vanished
c.VoilaConfiguration.preheat_kernel = True  # the explorer is there before the page that shows it
c.VoilaConfiguration.default_pool_size = 1
c.VoilaConfiguration.file_allowlist = []  # the page needs no file; Voila would hand out any picture below this folder
