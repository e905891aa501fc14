"""Seats of the page's server, with its settings, Voila's own pool, and kernels that are stubs."""

import asyncio
from datetime import timedelta
from unittest.mock import AsyncMock, Mock

import browser as b
import pytest
from jupyter_server.services.kernels.kernelmanager import ServerKernelManager
from tornado.web import HTTPError
from traitlets.config import PyFileConfigLoader
from voila.app import Voila
from voila.voila_kernel_manager import voila_kernel_manager_factory as make

NOTEBOOK = "page.ipynb"


class Kernel(ServerKernelManager):
    """It starts when the test says so, and runs nothing."""

    async def start_kernel(self, **_):
        self._ready = asyncio.get_running_loop().create_future()
        self.parent.starts += 1
        await self.parent.may_start.wait()
        if self.parent.broken:
            self._ready.set_exception(OSError("no memory"))
            raise OSError("no memory")
        self._ready.set_result(None)

    shutdown_kernel, connect_iopub = AsyncMock(), Mock()


async def settled():
    """All that can happen without waiting for a clock has happened."""
    for _ in range(50):
        await asyncio.sleep(0)


async def comes(kernels):
    """A page, as Voila's handler answers it: its kernel."""
    if kernels.get_pool_size(NOTEBOOK):
        return (await kernels.get_rendered_notebook(NOTEBOOK))[2]
    return await kernels.start_kernel(kernel_name="python3", path="")


@pytest.fixture
def run(tmp_path):
    """Run a test of a server with so many seats, its first kernel ready ahead; then shut it down."""

    async def running(test, seats):
        config = PyFileConfigLoader("voila.py", path=str(b.PAGE)).load_config()
        c = config.VoilaConfiguration
        made = make(c.multi_kernel_manager_class, c.preheat_kernel, c.default_pool_size)
        app = Voila(notebook_path=str(tmp_path / NOTEBOOK), root_dir=str(tmp_path), config=config)
        kernels = made(parent=app, seats=seats, fill_delay=0, connection_dir=str(tmp_path))
        kernels.kernel_manager_factory, kernels.broken, kernels.starts = Kernel, False, 0
        kernels.may_start = asyncio.Event()
        html = Mock(notebook_path=NOTEBOOK, initialize=AsyncMock(), generate_content_hybrid=AsyncMock())
        html.notebook.metadata.kernelspec.name = "python3"
        kernels._notebook_renderer_factory, kernels.add_restart_callback = Mock(return_value=html), Mock()
        kernels.may_start.set()
        await settled()
        await test(kernels)
        await kernels.shutdown_all()
        assert len(kernels) == 0 and asyncio.all_tasks() == {asyncio.current_task()}

    return lambda test, seats: asyncio.run(running(test, seats))


def test_the_last_seat_is_had_at_once_and_no_other(run):
    async def test(kernels):
        a, b, c = [await comes(kernels) for _ in range(3)]  # c's was made ready on the last seat
        await settled()
        with pytest.raises(HTTPError, match="All seats are taken"):
            await comes(kernels)
        assert len(kernels) == len({a, b, c}) == kernels.starts == 3
        await kernels.shutdown_kernel(a)
        d = await asyncio.wait_for(comes(kernels), 2)  # by way of what waits in the pool
        await kernels.shutdown_kernel(b)
        await asyncio.sleep(0.5)
        assert len(kernels) == kernels.starts - 2 == 3  # the next is ready
        assert await comes(kernels) not in {a, b, c, d}

    run(test, 3)


def test_a_kernel_that_starts_takes_one_seat(run):
    async def test(kernels):
        kernels.may_start.clear()
        coming = [asyncio.create_task(kernels.start_kernel(kernel_name="python3", path="")) for _ in "ab"]
        await settled()
        assert kernels.starts == 3 and len(kernels) == 1
        kernels.may_start.set()
        for _ in range(50):
            assert not kernels.full
            await asyncio.sleep(0)
        await asyncio.gather(*coming)
        assert len(kernels) == 3

    run(test, 4)


def test_a_page_has_time_to_reach_its_kernel_or_to_come_back(run):
    async def test(kernels):
        async def later():
            for kernel in kernels.list_kernel_ids():
                kernels.get_kernel(kernel).last_activity -= timedelta(seconds=1000)
            await kernels.cull_kernels()

        await later()
        page = await comes(kernels)
        await kernels.cull_kernels()
        kernels.notify_connect(page)
        await later()
        kernels.notify_disconnect(page)  # for a moment, say
        await kernels.cull_kernels()
        assert page in kernels
        await later()
        assert page not in kernels

    run(test, 3)


def test_a_pool_that_waits_for_a_seat_starts_nothing_at_shutdown(run):
    async def test(kernels):
        await comes(kernels)
        await settled()
        assert kernels.get_pool_size(NOTEBOOK) == 1
        await kernels.shutdown_all()
        assert kernels.starts == 1

    run(test, 1)


def test_a_kernel_that_could_not_be_made_ready_is_in_nobodys_way(run):
    async def test(kernels):
        kernels.broken = True
        page = await comes(kernels)
        await settled()
        assert kernels.starts == 2 and len(kernels) == 1
        await kernels.shutdown_kernel(page)  # which looks through the pool
        kernels.broken = False
        await comes(kernels)
        await settled()
        assert len(kernels) == 2 and kernels.get_pool_size(NOTEBOOK) == 1  # one is ready again

    run(test, 3)
