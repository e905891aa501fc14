"""What all tests share: one thread a worker, hypothesis profiles, and networks and pictures loaded once.

Fixtures of the whole session are read only: a test that changes a network takes a copy (`copy.deepcopy`).
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings
from tiny import tiny_model

import zfkit
from zfkit.deconv import RULES
from zfkit.nets.graph import ELEMENTWISE, LEAVES

# "quick" in `make test`, "thorough" in `make test-all`; deadlines are clocks, and machines are noisy.
settings.register_profile(
    "quick", max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
settings.register_profile("thorough", max_examples=100, deadline=None, suppress_health_check=[*HealthCheck])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# The slow files that take minutes: one that came last would keep a single worker busy while the others are done.
LONG = (
    "test_ends.py test_notebooks.py test_explorer_browser.py test_sizes.py test_memory.py test_gpu.py".split()
)


def pytest_collection_modifyitems(items):
    """Long files first, each whole."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(autouse=True)
def one_thread():
    """Workers share two cores, and tensors are small: threads that wait for each other only cost time."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def zfnet64():
    """The bundled ZFNet."""
    return zfkit.load_model("zfnet64", device="cpu")


@pytest.fixture(scope="session")
def alexnet64():
    """The bundled AlexNet."""
    return zfkit.load_model("alexnet64", device="cpu")


@pytest.fixture(scope="session")
def squeezenet():
    """The bundled SqueezeNet 1.1."""
    return zfkit.load_model("squeezenet1_1", device="cpu")


@pytest.fixture(scope="session")
def photos():
    """The bundled photographs at 224 px, each once."""
    return zfkit.load_images("photos-small", progress=False)


@pytest.fixture(scope="session")
def photos64():
    """The bundled photographs at 64 px, as zfnet64 and alexnet64 classify them, each once."""
    return zfkit.load_images("photos-small", size=64, progress=False)


@pytest.fixture(scope="session")
def mined(zfnet64, photos64):
    """The three strongest activations of every map of zfnet64 on the small photographs."""
    return zfkit.mine(zfnet64, photos64, k=3, progress=False)


@pytest.fixture(scope="session")
def tiny():
    """`TINY` with random weights in double precision."""
    return tiny_model()


@pytest.fixture
def own_rules():
    """The tables of rules, put back as they were after the test."""
    tables = (RULES, ELEMENTWISE, LEAVES)
    before = [table.copy() for table in tables]
    yield
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)
