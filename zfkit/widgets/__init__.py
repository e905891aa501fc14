"""Widgets for notebooks: the explorer, and the pieces that all of zfkit's widgets are made of (`base`)."""

from .correspondence import PartsExplorer, explore_parts
from .evolution import EvolutionExplorer, explore_evolution
from .explorer import Explorer, explore
from .gratings import GratingExplorer, explore_gratings
from .invariance import InvarianceExplorer, explore_invariance
from .monitor import Monitor
from .occlusion import OcclusionExplorer, explore_occlusion
from .panel import Panel, Picker, Picture, Place
from .state import State
from .view import ExplorerView, mined

__all__ = [
    "EvolutionExplorer", "Explorer", "ExplorerView", "GratingExplorer", "InvarianceExplorer", "Monitor",
    "OcclusionExplorer", "Panel", "PartsExplorer", "Picker", "Picture", "Place", "State", "explore",
    "explore_evolution", "explore_gratings",
    "explore_invariance", "explore_occlusion", "explore_parts", "mined",
]  # fmt: skip
