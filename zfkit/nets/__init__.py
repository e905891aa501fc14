"""Networks, and how they are read: as the list of their operations.

Read `paper` (ZFNet and AlexNet as the paper draws them), `graph` (any network, as the list of its operations), `model`
(a network together with what its input has to look like), `activations` (what layers answer to pictures), then `zoo`
(names to networks) and the files that they come in: `weights` and `onnx`.
"""

from __future__ import annotations

from .activations import default_batch_size, features
from .graph import Network, Step
from .model import VisionModel, wrap_model
from .onnx import OnnxNetwork, load_onnx
from .paper import ARCHITECTURES, AlexNet, Architecture, BlurPool, ZFNet, build
from .trace import trace
from .weights import load_state, load_weights, read_provenance, save_weights
from .zoo import describe, list_models, load_model

__all__ = [
    "ARCHITECTURES",
    "AlexNet",
    "Architecture",
    "BlurPool",
    "Network",
    "OnnxNetwork",
    "Step",
    "VisionModel",
    "ZFNet",
    "build",
    "default_batch_size",
    "describe",
    "features",
    "list_models",
    "load_model",
    "load_onnx",
    "load_state",
    "load_weights",
    "read_provenance",
    "save_weights",
    "trace",
    "wrap_model",
]
