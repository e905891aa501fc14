"""Results as figures in one style: every function takes what an analysis returned, and only draws.

What is read off (curves, scatters, effects) is a chart of plotly, whose numbers show when hovered; what is looked at
is a picture (`PIL.Image`) or a plate of matplotlib. The first line of a function says which, `show` displays all three.

Read `style` (what each colour means), `charts` and `pictures` (tensors to pictures) first; `natural` brings projections
to the colours of photographs. The others are named after
the room or the experiments whose results they draw: `frequency`, `training`, `health`, `evolution`, `randomisation`,
`network` (networks to scale, there and back, all feature maps as points),
`experiments` (occlusion, invariance, correspondence, selectivity), `variants` (first layers, ablation, transfer,
averages).
"""

from __future__ import annotations

from ..images.colour import full_scale, signed_to_rgb
from .charts import add_pictures, curves, new_chart, show, to_png, top_figure
from .evolution import convergence_figure, evolution_figure, evolution_film, evolution_rgb, evolution_sheet
from .experiments import (
    correspondence_figure,
    invariance_figure,
    occlusion_figure,
    parts_figure,
    pose_variation_figure,
    selectivity_figure,
)
from .frequency import (
    aliasing_figure,
    filter_sheet,
    gratings_figure,
    lattice_figure,
    profiles_figure,
    radial_spectra,
    shift_figure,
    spectrum_maps,
)
from .health import report_figure, steps_figure, strips_figure
from .natural import NaturalColours
from .network import filters, heat_map, map_of_maps, network, there_and_back
from .pictures import (
    animated,
    montage,
    number,
    pair_of_montages,
    patches_figure,
    tile_sheet,
    to_picture,
    wrap_words,
)
from .randomisation import photo_likeness_figure, sanity_figure, sanity_layers_figure, sanity_sheet
from .style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    KERNEL_COLOURS,
    MODEL_COLOURS,
    ORANGE,
    PALETTE,
    PURPLE,
    RED,
    RULE_COLOURS,
    SKY,
    STYLE,
    YELLOW,
    new_figure,
    picture_row,
    show_picture,
)
from .training import training_figure
from .variants import ablation_figure, effects_figure, ensemble_figure, first_layer_figure, transfer_figure
