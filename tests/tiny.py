"""The small network that several test files look into, and one thread, which is quickest for it."""

from __future__ import annotations

import pytest
import torch

from zfkit.nets.paper import Architecture

TINY = Architecture(
    "zfnet", 32, conv1=(7, 2, 1), conv2=(5, 1, 2), widths=(4, 5, 6, 6, 4), hidden=8, classes=5
)


@pytest.fixture(autouse=True)
def one_thread():
    """For every test of a file that imports it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
