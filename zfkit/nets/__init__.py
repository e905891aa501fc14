"""..."""

from __future__ import annotations

from .graph import (  # noqa: F401
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
from .model import VisionModel, wrap_model  # noqa: F401
from .onnx import Array, OnnxNetwork, Pads, load_onnx  # noqa: F401
from .paper import (  # noqa: F401
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
from .weights import KEY, Provenance, load_weights, read_provenance, save_weights  # noqa: F401
from .zoo import describe, list_models, load_model  # noqa: F401
