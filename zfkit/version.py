"""The version, which files carry as their provenance."""

__version__ = "0.2.0"
