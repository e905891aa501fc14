"""Voila's settings for the explorer's page, as `make app` starts it: one kernel for each page, and only so many."""

from __future__ import annotations

import sys
from typing import Any

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError
from traitlets import Int


class Seats(AsyncMappingKernelManager):
    """A kernel for each page that is open, as long as there are seats; no page sees another's."""

    seats = Int(12, config=True, help="pages that may be open at a time")
    memory = Int(
        6 * 10**9, config=True, help="bytes that each kernel may ask for, where the system can see to it"
    )
    starting = 0

    async def start_kernel(self, *args: Any, **kwargs: Any) -> str:  # type: ignore[override]
        if len(self) + self.starting >= self.seats:
            raise HTTPError(
                503, f"all {self.seats} seats are taken", reason="All seats are taken: try again later"
            )
        if sys.platform == "linux":
            import resource

            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            most = self.memory if hard == resource.RLIM_INFINITY else min(self.memory, hard)
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))  # kernels inherit it
        self.starting += 1
        try:
            return str(await super().start_kernel(*args, **kwargs))
        finally:
            self.starting -= 1


c = get_config()  # type: ignore[name-defined]  # noqa: F821
c.Voila.ip = "127.0.0.1"  # this machine alone
c.VoilaConfiguration.multi_kernel_manager_class = Seats
c.VoilaConfiguration.file_allowlist = []  # the page needs no file; Voila would hand out any picture below this folder
