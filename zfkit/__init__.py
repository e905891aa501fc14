"""zfkit: see what a convolutional network has learned, the way Zeiler & Fergus did (arXiv 1311.2901).

model  = zfkit.load_model("zfnet64")
photos = zfkit.load_images("photos")
top    = zfkit.mine(model, photos)
zfkit.write_atlas(model, photos, "atlas", top=top)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .atlas.page import Atlas, draw_layer, write_atlas
from .deconv.project import Deconvnet, project
from .deconv.receptive_field import Box, Field, fits_inside, receptive_field
from .deconv.rules import Options, register_rule
from .errors import ImageError, LayerError, ModelError, TrainingError, WriteError, ZfkitError
from .experiments.ablation import Ablation, ablate, ablation_counts, ablations, read_ablation
from .experiments.correspondence import Correspondence, PartPictures, correspondence, part_pictures
from .experiments.ensemble import Ensemble, ensemble
from .experiments.evolution import Evolution, bundled_runs, convergence, evolution
from .experiments.first_layer import (
    FirstLayerRuns,
    factorial_effects,
    first_layer,
    load_first_layer_runs,
    measure_first_layer,
)
from .experiments.invariance import Invariance, invariance
from .experiments.occlusion import Elsewhere, Occlusion, occlude, project_elsewhere
from .experiments.randomisation import SanityChecks, randomise, sanity_checks
from .experiments.selectivity import PoseVariation, Selectivity, pose_variation, selectivity
from .experiments.transfer import Transfer, feature_layers, transfer
from .figures.pictures import signed_to_rgb
from .frequency.aliasing import Aliasing, measure_aliasing, subsampling_layers
from .frequency.control import RandomControl, compare_spectra, random_control
from .frequency.gratings import GratingResponse, fold, grating_response, gratings
from .frequency.lattice import Lattice, lattice
from .frequency.shifts import ShiftConsistency, shift_consistency
from .frequency.spectra import FilterSpectra, filter_spectra, spectral_table
from .health import Finding, Report, Thresholds, diagnose
from .images.decode import open_image
from .images.imageset import ImageSet
from .images.sources import load_images
from .nets.model import VisionModel, wrap_model
from .nets.onnx import load_onnx
from .nets.paper import AlexNet, Architecture, BlurPool, ZFNet, build
from .nets.weights import load_weights, read_provenance, save_weights
from .nets.zoo import list_models, load_model
from .sweeps import record, sweep
from .topk.mine import Estimate, estimate_mining, mine, mine_share
from .topk.patches import Patches, project_top, sample_maps
from .topk.table import TopK
from .training.evaluate import Accuracy, evaluate
from .training.fit import Watched, fit
from .training.recipe import RECIPES, Recipe
from .training.run import Run

__version__ = "0.1.0"

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .experiments.evolution import Source
    from .widgets import (
        EvolutionExplorer,
        Explorer,
        GratingExplorer,
        InvarianceExplorer,
        OcclusionExplorer,
        PartsExplorer,
    )


def explore(model: VisionModel, photos: ImageSet, top: TopK | None = None, **options: Any) -> Explorer:
    """Every layer and feature map at the end of a slider, in a notebook: `zfkit.widgets.explore`.

    Options are the fields of its state, as ``layer="conv4", channel=117``; ``others``, models to compare with;
    and ``save_to``, the folder for saved pictures.

    >>> zfkit.explore(model, photos, top)
    """
    from .widgets import explore as open_explorer  # ipywidgets is for notebooks alone

    return open_explorer(model, photos, top, **options)


def explore_gratings(models: VisionModel | Sequence[VisionModel], **options: Any) -> GratingExplorer:
    """A grating under your fingers, and what a layer's stride makes of it: `zfkit.widgets.explore_gratings`.

    >>> zfkit.explore_gratings([zfkit.load_model("alexnet64"), zfkit.load_model("zfnet64")], frequency=0.3)
    """
    from .widgets import explore_gratings as open_gratings  # ipywidgets is for notebooks alone

    return open_gratings(models, **options)


def explore_occlusion(
    model: VisionModel, image: Tensor, target: int | str | None = None, **options: Any
) -> OcclusionExplorer:
    """Drag a grey square over a picture: `zfkit.widgets.explore_occlusion`.

    >>> zfkit.explore_occlusion(model, photos[105][0], "espresso")
    """
    from .widgets import explore_occlusion as open_occlusion  # ipywidgets is for notebooks alone

    return open_occlusion(model, image, target, **options)


def explore_invariance(model: VisionModel, images: ImageSet | Tensor, **options: Any) -> InvarianceExplorer:
    """Shift, scale and turn a picture by sliders: `zfkit.widgets.explore_invariance`.

    >>> zfkit.explore_invariance(model, zfkit.load_images("photos", size=200), index=[53, 125], oversample=2)
    """
    from .widgets import explore_invariance as open_invariance  # ipywidgets is for notebooks alone

    return open_invariance(model, images, **options)


def explore_evolution(
    source: Evolution | Source, images: ImageSet | None = None, **options: Any
) -> EvolutionExplorer:
    """An epoch slider and a Play button over the snapshots of a training: `zfkit.widgets.explore_evolution`.

    >>> zfkit.explore_evolution("runs/mine", zfkit.load_images("textures", size=64))
    """
    from .widgets import explore_evolution as open_evolution  # ipywidgets is for notebooks alone

    return open_evolution(source, images, **options)


def explore_parts(model: VisionModel, pictures: Tensor, parts: Any, **options: Any) -> PartsExplorer:
    """Draw boxes around the same parts in several pictures, and compare: `zfkit.widgets.explore_parts`.

    >>> zfkit.explore_parts(model, pictures, ["left eye", "right eye", "nose"])
    """
    from .widgets import explore_parts as open_parts  # ipywidgets is for notebooks alone

    return open_parts(model, pictures, parts, **options)


__all__ = [
    "RECIPES",
    "Ablation",
    "Accuracy",
    "AlexNet",
    "Aliasing",
    "Architecture",
    "Atlas",
    "BlurPool",
    "Box",
    "Correspondence",
    "Deconvnet",
    "Elsewhere",
    "Ensemble",
    "Estimate",
    "Evolution",
    "Field",
    "FilterSpectra",
    "Finding",
    "FirstLayerRuns",
    "GratingResponse",
    "ImageError",
    "ImageSet",
    "Invariance",
    "Lattice",
    "LayerError",
    "ModelError",
    "Occlusion",
    "Options",
    "PartPictures",
    "Patches",
    "PoseVariation",
    "RandomControl",
    "Recipe",
    "Report",
    "Run",
    "SanityChecks",
    "Selectivity",
    "ShiftConsistency",
    "Thresholds",
    "TopK",
    "TrainingError",
    "Transfer",
    "VisionModel",
    "Watched",
    "WriteError",
    "ZFNet",
    "ZfkitError",
    "ablate",
    "ablation_counts",
    "ablations",
    "build",
    "bundled_runs",
    "compare_spectra",
    "convergence",
    "correspondence",
    "diagnose",
    "draw_layer",
    "ensemble",
    "estimate_mining",
    "evaluate",
    "evolution",
    "explore",
    "explore_evolution",
    "explore_gratings",
    "explore_invariance",
    "explore_occlusion",
    "explore_parts",
    "factorial_effects",
    "feature_layers",
    "filter_spectra",
    "first_layer",
    "fit",
    "fits_inside",
    "fold",
    "grating_response",
    "gratings",
    "invariance",
    "lattice",
    "list_models",
    "load_first_layer_runs",
    "load_images",
    "load_model",
    "load_onnx",
    "load_weights",
    "measure_aliasing",
    "measure_first_layer",
    "mine",
    "mine_share",
    "occlude",
    "open_image",
    "part_pictures",
    "pose_variation",
    "project",
    "project_elsewhere",
    "project_top",
    "random_control",
    "randomise",
    "read_ablation",
    "read_provenance",
    "receptive_field",
    "record",
    "register_rule",
    "sample_maps",
    "sanity_checks",
    "save_weights",
    "selectivity",
    "shift_consistency",
    "signed_to_rgb",
    "spectral_table",
    "subsampling_layers",
    "sweep",
    "transfer",
    "wrap_model",
    "write_atlas",
]
