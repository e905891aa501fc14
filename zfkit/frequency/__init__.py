"""..."""

from __future__ import annotations

from .aliasing import Aliasing, Numbers, measure_aliasing, subsampling_layers
from .control import ControlKind, RandomControl, compare_spectra, random_control
from .gratings import GratingResponse, fold, grating_response, gratings, wave
from .lattice import Lattice, lattice
from .shifts import ShiftConsistency, shift_consistency
from .spectra import (
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
