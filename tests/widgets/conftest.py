"""What the explorer's tests share."""

from __future__ import annotations

import pytest
from explored import pictures, wrapped

import zfkit


@pytest.fixture(scope="session")
def world():
    """The small network, its pictures and what was mined; read only."""
    model, photos = wrapped(), pictures()
    return model, photos, zfkit.mine(model, photos, progress=False)
