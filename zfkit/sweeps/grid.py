"""A grid of parameters: read from a file, and expanded into runs whose values are checked before anything runs."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checks import as_path, one_of, readable_file
from ..errors import ZfkitError
from .parameters import Parameter
from .values import canonical, quoted

LARGEST_FILE = 1_000_000  # bytes of a grid; a longer one is some other file


@dataclass(frozen=True)
class SweepRun:
    """One set of parameters.

    Attributes:
        name: readable, safe as a file name everywhere, unique within its sweep.
        given: what the grid says of it.
        parameters: all parameters of the notebook, defaults included.
    """

    name: str
    given: dict[str, Any]
    parameters: dict[str, Any]


def read_grid(file: str | Path) -> Any:
    """A grid as it stands in a YAML (or JSON) file; `expand` makes runs of it.

    Raises ZfkitError for a file that is missing or no YAML, names a thing twice, or asks for Python objects.
    """
    try:
        import yaml
    except ImportError:
        raise ZfkitError("grid files need PyYAML: pip install 'zfkit[notebooks]'") from None
    path = as_path(file)

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value if isinstance(key.value, str) and key.value != "<<"]
            twice = [key for key, count in Counter(keys).items() if count > 1]
            if twice:  # SafeLoader would take the last and say nothing
                raise ZfkitError(f"{path.name}, line {node.start_mark.line + 1}: {twice[0]} is there twice")
            return super().construct_mapping(node, deep)

    try:
        text = readable_file(path, "the grid", LARGEST_FILE).read_text(encoding="utf-8-sig")
        return yaml.load(text, Loader)
    except ZfkitError:
        raise
    except OSError as error:
        raise ZfkitError(f"cannot read the grid {str(file)!r}: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0][:100] or "too deep"
        raise ZfkitError(
            f"{path.name}{where}: {problem}. A grid is YAML, as 'model: [zfnet64, alexnet64]'"
        ) from None


def expand(grid: Any, parameters: Mapping[str, Parameter], limit: int = 1000) -> list[SweepRun]:
    """The runs of a grid, each value checked.

    Args:
        grid: a mapping of names to lists of values, for every combination of them (a value alone is the
            same in all runs); or a list of mappings of names to values, one for each run.
        limit: more runs than these are refused, as a slip.

    Raises ZfkitError for a grid without runs or with too many, an unknown parameter (with the nearest name),
    a value that does not fit, and two runs that are the same.
    """
    if isinstance(grid, Mapping):
        given = _combinations(grid, parameters, limit)
    elif isinstance(grid, Sequence) and not isinstance(grid, str | bytes):
        given = _listed(grid, parameters, limit)
    else:
        raise ZfkitError(
            f"a grid is a mapping of parameters to lists of values, or a list of mappings, not {quoted(grid)}"
        )
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    runs = [SweepRun(_name(values, parameters), values, defaults | values) for values in given]
    first: dict[str, int] = {}
    for i, run in enumerate(runs):
        if (other := first.setdefault(canonical(run.parameters), i)) != i:
            values = ", ".join(f"{k} = {v!r:.80}" for k, v in run.given.items()) or "the defaults"
            raise ZfkitError(f"runs {other + 1} and {i + 1} of the grid are the same: {values}")
    # Where two names differ in nothing that every file system keeps apart, both get a mark of their own.
    folded = Counter(run.name.casefold() for run in runs)
    return [
        replace(run, name=f"{run.name}-{_mark(run.parameters)}") if folded[run.name.casefold()] > 1 else run
        for run in runs
    ]


def _combinations(
    grid: Mapping[Any, Any], parameters: Mapping[str, Parameter], limit: int
) -> Iterator[dict[str, Any]]:
    if not grid:
        raise ZfkitError("the grid is empty: name at least one parameter, as in 'seed: [0, 1, 2]'")
    axes: dict[str, list[Any]] = {}
    for name, values in grid.items():
        parameter = parameters[one_of(name, "parameter", parameters)]
        listed = values if isinstance(values, list | tuple | range) else [values]
        if not len(listed):
            raise ZfkitError(f"the grid has no value for {name}: [] leaves nothing to run")
        _check_count(len(listed), f"values for {name}", limit)
        axes[name] = [parameter.check(value) for value in listed]
        twice = [text for text, count in Counter(map(canonical, axes[name])).items() if count > 1]
        if twice:
            raise ZfkitError(f"the grid has {name} = {twice[0]:.80} twice")
    product = " x ".join(f"{len(values)} {name}" for name, values in axes.items())
    _check_count(math.prod(map(len, axes.values())), f"runs ({product})", limit)
    for combination in itertools.product(*axes.values()):
        yield dict(zip(axes, combination, strict=True))


def _listed(grid: Sequence[Any], parameters: Mapping[str, Parameter], limit: int) -> Iterator[dict[str, Any]]:
    if not grid:
        raise ZfkitError("the grid is an empty list: give at least one mapping, as in '- {seed: 1}'")
    _check_count(len(grid), "runs", limit)
    for i, values in enumerate(grid, start=1):
        if not isinstance(values, Mapping):
            raise ZfkitError(
                f"run {i} of the grid is {quoted(values)}, and a mapping was expected, as '- {{seed: 1}}'"
            )
        yield {n: parameters[one_of(n, "parameter", parameters)].check(v) for n, v in values.items()}


def _check_count(count: int, what: str, limit: int) -> None:
    if count > limit:
        raise ZfkitError(
            f"the grid has {count:,} {what}; at most {limit:,} are run unless you allow more (--max-runs, max_runs=)"
        )


def _name(given: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> str:
    """`model=alexnet64,seed=1`: ASCII letters, digits and - . _ + = , only, at most 120 of them.

    Where that loses something of a value, eight hexadecimal digits behind it make the name unique.
    """
    parts, whole = [], True
    for name in (n for n in parameters if n in given):
        value = given[name]
        text = value if isinstance(value, str) else repr(value)
        safe = re.sub(r"[^A-Za-z0-9._+-]+", "-", text)[:40].strip("-.") or "empty"
        whole &= safe == text
        parts.append(f"{re.sub(r'[^A-Za-z0-9_]', '-', name)[:40]}={safe}")
    joined = ",".join(parts) or "defaults"
    if len(joined) > 110:
        joined, whole = joined[:110], False
    return joined if whole else f"{joined}-{_mark(given)}"


def _mark(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:8]
