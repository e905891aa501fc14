"""..."""

from __future__ import annotations

from .aliasing import Aliasing, Numbers, measure_aliasing, subsampling_layers  # noqa: F401
from .control import ControlKind, RandomControl, compare_spectra, random_control  # noqa: F401
from .gratings import GratingResponse, fold, grating_response, gratings, wave  # noqa: F401
from .lattice import Lattice, lattice  # noqa: F401
from .shifts import ShiftConsistency, shift_consistency  # noqa: F401
from .spectra import (  # noqa: F401
    HIGH,
    LINEAR,
    LOW,
    MEASURES,
    SIZE,
    FilterSpectra,
    Of,
    Part,
    Sees,
    filter_spectra,
    spectral_table,
)
