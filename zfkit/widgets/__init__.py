"""Widgets for notebooks: the explorer, and one for each experiment that is worth a slider.

Read `controls` (what is seen and moved), `worker` and `panel` (what every widget is made of); then one of the widgets,
`occlusion` say. Of the explorer, `view` and `facts` compute what a `state` shows, `drawing` draws it, `messages` and
`explorer.js` are its page, and `explorer` is what happens when a control is moved.
"""

from .controls import Picker, Picture, Place
from .correspondence import PartsExplorer, explore_parts
from .evolution import EvolutionExplorer, explore_evolution
from .explorer import Explorer, explore
from .gratings import GratingExplorer, explore_gratings
from .invariance import InvarianceExplorer, explore_invariance
from .monitor import Monitor
from .occlusion import OcclusionExplorer, explore_occlusion
from .panel import Panel
from .state import State
from .view import ExplorerView

__all__ = [
    "EvolutionExplorer",
    "Explorer",
    "ExplorerView",
    "GratingExplorer",
    "InvarianceExplorer",
    "Monitor",
    "OcclusionExplorer",
    "Panel",
    "PartsExplorer",
    "Picker",
    "Picture",
    "Place",
    "State",
    "explore",
    "explore_evolution",
    "explore_gratings",
    "explore_invariance",
    "explore_occlusion",
    "explore_parts",
]
