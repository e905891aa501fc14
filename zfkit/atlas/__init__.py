"""..."""

from __future__ import annotations

from .page import Atlas, draw_layer, write_atlas
