"""..."""

from __future__ import annotations

from .evolution import (
    CHANGED,
    SHEET_GAP,
    convergence_figure,
    evolution_figure,
    evolution_rgb,
    evolution_sheet,
)
from .experiments import (
    CLASS_NAMES,
    PART_COLOURS,
    correspondence_figure,
    invariance_figure,
    occlusion_figure,
    parts_figure,
    pose_variation_figure,
    selectivity_figure,
)
from .frequency import (
    FOLDED,
    aliasing_figure,
    filter_sheet,
    gratings_figure,
    lattice_figure,
    radial_spectra,
    shift_figure,
    spectrum_maps,
)
from .health import SEVERITY_COLOURS, report_figure, steps_figure, strips_figure
from .pictures import GAP, PERCENTILE, TILE, montage, number, pair_of_montages, signed_to_rgb, wrap_words
from .randomisation import (
    RULE_COLOURS,
    SANITY_ROWS,
    photo_likeness_figure,
    sanity_figure,
    sanity_layers_figure,
    sanity_sheet,
)
from .style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    MODEL_COLOURS,
    ORANGE,
    PALETTE,
    PURPLE,
    RED,
    SKY,
    STYLE,
    YELLOW,
    new_figure,
    show_picture,
)
from .training import training_figure
from .variants import (
    FEATURE_STYLES,
    ablation_figure,
    effects_figure,
    ensemble_figure,
    first_layer_figure,
    profiles_figure,
    transfer_figure,
)
