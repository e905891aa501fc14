"""..."""

from __future__ import annotations

from .evolution import (  # noqa: F401
    CHANGED,
    SHEET_GAP,
    convergence_figure,
    evolution_figure,
    evolution_rgb,
    evolution_sheet,
)
from .experiments import (  # noqa: F401
    CLASS_NAMES,
    PART_COLOURS,
    correspondence_figure,
    invariance_figure,
    occlusion_figure,
    parts_figure,
    pose_variation_figure,
    selectivity_figure,
)
from .frequency import (  # noqa: F401
    FOLDED,
    aliasing_figure,
    filter_sheet,
    gratings_figure,
    lattice_figure,
    radial_spectra,
    shift_figure,
    spectrum_maps,
)
from .health import SEVERITY_COLOURS, report_figure, steps_figure, strips_figure  # noqa: F401
from .pictures import GAP, PERCENTILE, TILE, montage, number, pair_of_montages, signed_to_rgb, wrap_words  # noqa: F401
from .randomisation import (  # noqa: F401
    RULE_COLOURS,
    SANITY_ROWS,
    photo_likeness_figure,
    sanity_figure,
    sanity_layers_figure,
    sanity_sheet,
)
from .style import (  # noqa: F401
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
from .training import training_figure  # noqa: F401
from .variants import (  # noqa: F401
    FEATURE_STYLES,
    ablation_figure,
    effects_figure,
    ensemble_figure,
    first_layer_figure,
    profiles_figure,
    transfer_figure,
)
