"""zfkit's pages: jinja2 templates, filled with escaped text, each one file that needs no connection."""

from __future__ import annotations

from functools import cache

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


@cache
def templates(package: str = "zfkit.atlas") -> Environment:
    """The templates of a package and zfkit's own, `base.html` and `base.css`, which they extend.

    Everything that is filled in is escaped, whatever the file is called.
    """
    loaders = [PackageLoader(name) for name in dict.fromkeys((package, "zfkit.atlas"))]
    return Environment(loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined)
