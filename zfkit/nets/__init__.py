"""..."""

from __future__ import annotations

from .graph import (
    ELEMENTWISE,
    LEAVES,
    Add,
    ChannelSlice,
    Concat,
    Evaluate,
    Network,
    Rearrange,
    Reshape,
    Scale,
    Step,
    pair,
    trace,
)
from .model import VisionModel, wrap_model
from .onnx import Array, OnnxNetwork, Pads, load_onnx
from .paper import (
    ARCHITECTURES,
    NARROW_HIDDEN,
    NARROW_WIDTHS,
    REMOVABLE,
    AlexNet,
    Architecture,
    BlurPool,
    Layers,
    ZFNet,
    build,
)
from .weights import KEY, Provenance, load_weights, read_provenance, save_weights
from .zoo import describe, list_models, load_model
