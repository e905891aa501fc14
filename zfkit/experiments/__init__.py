"""The paper's experiments, a file each: functions on any model and pictures, each with a control.

`occlusion` (Fig. 7), `invariance` (Fig. 5), `correspondence` (Table 1), `evolution` (Fig. 4), `selectivity` (section
4.2), `transfer` (Tables 4 to 7), `variants` (Tables 2 and 3), `first_layer` (Fig. 6), and
`randomisation`, the sanity checks that later work asks of such pictures.
"""

from .correspondence import Correspondence, correspondence
from .evolution import Evolution, convergence, evolution
from .first_layer import (
    FirstLayerRuns,
    factorial_effects,
    first_layer,
    load_first_layer_runs,
    measure_first_layer,
)
from .invariance import Invariance, invariance
from .occlusion import Elsewhere, Occlusion, occlude, project_elsewhere
from .parts import PartPictures, part_pictures
from .randomisation import SanityChecks, photo_likeness, sanity_checks
from .replacements import randomise
from .selectivity import PoseVariation, Selectivity, pose_variation, selectivity
from .snapshots import bundled_runs
from .transfer import Transfer, feature_layers, transfer
from .variants import Ablation, Ensemble, ablate, ablation_counts, ablations, ensemble, read_ablation

__all__ = [
    "Ablation", "Correspondence", "Elsewhere", "Ensemble", "Evolution", "FirstLayerRuns", "Invariance", "Occlusion",
    "PartPictures", "PoseVariation", "SanityChecks", "Selectivity", "Transfer", "ablate", "ablation_counts",
    "ablations", "bundled_runs", "convergence", "correspondence", "ensemble", "evolution", "factorial_effects",
    "feature_layers", "first_layer", "invariance", "load_first_layer_runs", "measure_first_layer", "occlude",
    "part_pictures", "photo_likeness", "pose_variation", "project_elsewhere", "randomise", "read_ablation",
    "sanity_checks", "selectivity", "transfer",
]  # fmt: skip
