"""zfkit: see what a convolutional network has learned, the way Zeiler & Fergus did (arXiv 1311.2901).

    model  = zfkit.load_model("zfnet64")
    photos = zfkit.load_images("photos")
    top    = zfkit.mine(model, photos)
    zfkit.write_atlas(model, photos, "atlas", top=top)

networks      list_models  load_model  wrap_model  save_weights  VisionModel
pictures      load_images  open_image  ImageSet     many runs  sweep  record
deconvnet     project  receptive_field  register_rule  way_back
strongest     mine  project_top  TopK  Patches  activations     training  fit  evaluate  Recipe  Run
frequencies   filter_spectra  measure_aliasing  shift_consistency     faults  diagnose
experiments   occlude  invariance  correspondence  evolution  selectivity  sanity_checks  transfer
to look at    explore  write_atlas  write_site  draw_layer     errors  ZfkitError
More stands in the rooms, each with its own help: zfkit.frequency, zfkit.experiments, zfkit.figures, zfkit.widgets ...
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .atlas import draw_layer, write_atlas, write_site
    from .deconv import project, receptive_field, register_rule, way_back
    from .errors import ZfkitError
    from .experiments import (
        correspondence,
        evolution,
        invariance,
        occlude,
        sanity_checks,
        selectivity,
        transfer,
    )
    from .frequency import filter_spectra, measure_aliasing, shift_consistency
    from .health import diagnose
    from .images import ImageSet, load_images, open_image
    from .nets import VisionModel, list_models, load_model, save_weights, wrap_model
    from .sweeps import record, sweep
    from .topk import Patches, TopK, activations, mine, project_top
    from .training import Recipe, Run, evaluate, fit
    from .widgets import explore

# Where each public name stands. Rooms are imported when something of theirs is asked for, so that `import zfkit` is
# quick, and works where there is no Jupyter and no matplotlib.
_NAMES = {
    "errors": "ZfkitError",
    "images": "load_images open_image ImageSet",
    "nets": "list_models load_model wrap_model save_weights VisionModel",
    "deconv": "project receptive_field register_rule way_back",
    "topk": "mine project_top TopK Patches activations",
    "frequency": "filter_spectra measure_aliasing shift_consistency",
    "training": "fit evaluate Recipe Run",
    "health": "diagnose",
    "experiments": "occlude invariance correspondence evolution selectivity sanity_checks transfer",
    "figures": "",
    "atlas": "write_atlas write_site draw_layer",
    "widgets": "explore",
    "sweeps": "sweep record",
}
_ROOM_OF = {name: room for room, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if "widgets" in (name, _ROOM_OF.get(name)):
        from .checks import expect_extra

        expect_extra("notebooks", f"zfkit.{name}", "ipywidgets", "anywidget", "cachetools")
    if name in _NAMES:
        return importlib.import_module(f".{name}", __name__)
    room = _ROOM_OF.get(name)
    if room is None:
        raise AttributeError(f"module 'zfkit' has no attribute {name!r}; help(zfkit) lists what there is")
    value = getattr(importlib.import_module(f".{room}", __name__), name)
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOM_OF, *_NAMES])
