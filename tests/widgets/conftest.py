"""What the explorer's tests share."""

from __future__ import annotations

import browser
import pytest
from explored import pictures, wrapped

import zfkit


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path, monkeypatch):
    """What the explorer keeps on disk is another test's no longer."""
    monkeypatch.setenv("ZFKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as opened:
        yield opened


@pytest.fixture(scope="session")
def world():
    """The small network, its pictures and what was mined; read only."""
    model, photos = wrapped(), pictures()
    return model, photos, zfkit.mine(model, photos, progress=False)
