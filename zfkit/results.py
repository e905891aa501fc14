"""What all results have in common: numbers as a table, their figure, and a few lines where a notebook shows them."""

from __future__ import annotations

import abc
import html
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class Result(abc.ABC):
    """What an analysis returned. A class of results says which function of `zfkit.figures` draws it.

    >>> class Aliasing(Result, figure="aliasing_figure"): ...
    """

    _figure = ""

    def __init_subclass__(cls, figure: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._figure = figure or cls._figure
        if "__repr__" not in vars(cls):  # before `dataclass` writes one with every number of every tensor
            cls.__repr__ = Result.__repr__  # type: ignore[method-assign]

    @abc.abstractmethod
    def table(self) -> pd.DataFrame:
        """The numbers, as a data frame."""

    def plot(self, **options: Any) -> Any:
        """The figure of this result, by the function of `zfkit.figures` that takes it, which says more."""
        figures = importlib.import_module("zfkit.figures")  # further down, and heavy: when it is asked for
        return getattr(figures, self._figure)(self, **options)

    def __repr__(self) -> str:
        short = (str, int, float, tuple)
        said = [f"{name}={value!r}" for name, value in vars(self).items() if isinstance(value, short)]
        return f"{type(self).__name__}({', '.join(s for s in said if len(s) < 100)})"

    def _repr_html_(self) -> str:
        """Its name and the first and last rows of its table."""
        table = self.table()
        rows = table.to_html(max_rows=8, border=0, float_format="{:.4g}".format)
        more = (
            f"<p>{len(table)} rows: <code>.table()</code> has them all, <code>.plot()</code> draws them.</p>"
        )
        return f"<p><b>{html.escape(repr(self))}</b></p>{rows}{more}"
