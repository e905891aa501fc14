"""What is wrong with a network, and what to do about it: `diagnose`.

Zeiler & Fergus looked at AlexNet's features, saw one filter dominate, frequencies missing and layers alias, and
mended each (sections 3 and 4.1). `diagnose` looks for these faults, and for the others that anybody meets who
trains a network. `FAULTS` lists all that is looked for.

In the order of reading: `report` (what can be wrong, `Thresholds`, `Finding`, `Report`), `layers` (one layer's
numbers), `measure` (all numbers of a network), `checks` (numbers against thresholds), `verdict` (the cause that
explains most), `diagnosis` (the whole).
"""

from .diagnosis import diagnose
from .layers import Unit, units_of
from .report import DEFAULTS, FAULTS, Fault, Finding, Report, Severity, Thresholds

__all__ = [
    "DEFAULTS", "FAULTS", "Fault", "Finding", "Report", "Severity", "Thresholds", "Unit", "diagnose", "units_of",
]  # fmt: skip
