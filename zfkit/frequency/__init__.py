"""Frequencies: what a layer's filters pass, and what its stride folds onto lower frequencies.

Read `plane` (the plane of frequencies, power spectra) and `spectra` (of a layer's filters) first; `control` says what
filters that learned nothing would give. `aliasing`, `gratings` and `shifts` each measure what subsampling does;
`lattice` looks for its trace in reconstructions. `intervals` has the quantiles and the bootstrap that they share.
"""

from __future__ import annotations

from .aliasing import Aliasing, measure_aliasing, subsampling_layers
from .control import ControlKind, RandomControl, compare_spectra, random_control
from .gratings import GratingResponse, Numbers, fold, grating_response, gratings, wave
from .intervals import bootstrap_sums, interval
from .lattice import Lattice, Of, lattice
from .plane import HIGH, LOW, SIZE, hann, mean_frequency, power_spectrum
from .shifts import ShiftConsistency, shift_consistency
from .spectra import LINEAR, MEASURES, FilterSpectra, Part, Sees, filter_spectra, spectral_table

__all__ = [
    "HIGH", "LINEAR", "LOW", "MEASURES", "SIZE", "Aliasing", "ControlKind", "FilterSpectra", "GratingResponse",
    "Lattice", "Numbers", "Of", "Part", "RandomControl", "Sees", "ShiftConsistency", "bootstrap_sums",
    "compare_spectra", "filter_spectra", "fold", "grating_response", "gratings", "hann", "interval", "lattice",
    "mean_frequency", "measure_aliasing", "power_spectrum", "random_control", "shift_consistency", "spectral_table",
    "subsampling_layers", "wave",
]  # fmt: skip
