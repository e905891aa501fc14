"""zfkit: see what a convolutional network has learned, the way Zeiler & Fergus did (arXiv 1311.2901).

model  = zfkit.load_model("zfnet64")
photos = zfkit.load_images("photos")
top    = zfkit.mine(model, photos)
zfkit.write_atlas(model, photos, "atlas", top=top)
"""

from .atlas import Atlas, draw_layer, fits_inside, sample_maps, signed_to_rgb, write_atlas
from .checkpoints import load_weights, read_provenance, save_weights
from .deconv import Deconvnet, Options, project, register_rule
from .errors import ImageError, LayerError, ModelError, ZfkitError
from .images import ImageSet, load_images, open_image
from .models import AlexNet, Architecture, VisionModel, ZFNet, list_models, load_model, wrap_model
from .onnx_import import load_onnx
from .patches import Patches, project_top
from .receptive_field import Box, Field, receptive_field
from .topk import TopK, mine

__version__ = "0.1.0"

__all__ = [
    "AlexNet",
    "Architecture",
    "Atlas",
    "Box",
    "Deconvnet",
    "Field",
    "ImageError",
    "ImageSet",
    "LayerError",
    "ModelError",
    "Options",
    "Patches",
    "TopK",
    "VisionModel",
    "ZFNet",
    "ZfkitError",
    "draw_layer",
    "fits_inside",
    "list_models",
    "load_images",
    "load_model",
    "load_onnx",
    "load_weights",
    "mine",
    "open_image",
    "project",
    "project_top",
    "read_provenance",
    "receptive_field",
    "register_rule",
    "sample_maps",
    "save_weights",
    "signed_to_rgb",
    "wrap_model",
    "write_atlas",
]
