"""The small network that several test files look into."""

from __future__ import annotations

from zfkit.nets.paper import Architecture

TINY = Architecture(
    "zfnet", 32, conv1=(7, 2, 1), conv2=(5, 1, 2), widths=(4, 5, 6, 6, 4), hidden=8, classes=5
)
