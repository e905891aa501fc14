"""What a notebook's parameters cell says, and a grid of values checked against it before anything runs.

The cell that is tagged ``parameters`` holds assignments of literals, each with a comment behind it:

    model = "zfnet64"  # a name from zfkit.list_models(), "torchvision:NAME", or a .safetensors file
    maps = 24  # feature maps of each layer: 1, 2, ... or "all"
    rule = "deconvnet"  # one of: "deconvnet", "guided", "gradient"
    rank = 2  # range: 0 to 8; 0 is the strongest

A value has to be of the default's type; an int does where the default is a float, and a default of None takes
anything. An annotation (``limit: int | None = None``) says it outright. In the comment,

- ``one of: A, B, C`` lists all the values there are;
- ``range: A to B``, or ``range: A or more``, bounds a number, ends included;
- a quoted word, or None, is otherwise an example. It may be of another type than the default, as "all" above.
"""

from __future__ import annotations

import ast
import hashlib
import io
import itertools
import json
import math
import re
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ZfkitError, unknown

TAG = "parameters"
KINDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a mapping",
    type(None): "None",
}  # fmt: skip
LITERAL = r""""[^"]*"|'[^']*'|-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|True|False|None"""
ONE_OF = re.compile(rf"\bone of:\s*((?:{LITERAL})(?:\s*(?:,\s*or\b|,|\bor\b)\s*(?:{LITERAL}))*)")
RANGE = re.compile(r"\brange:\s*(-?[\d.]+(?:[eE]-?\d+)?)\s+(?:to\s+(-?[\d.]+(?:[eE]-?\d+)?)|or more)")
LARGEST_FILE = 1_000_000  # bytes of a grid; a longer one is some other file
LARGEST_VALUE = 10_000  # numbers and words in one value


@dataclass(frozen=True)
class Parameter:
    """One assignment of a parameters cell."""

    name: str
    default: Any
    comment: str
    kinds: tuple[type, ...]  # what a value may be; empty for anything
    choices: tuple[Any, ...] | None  # all the values there are, where the comment lists them
    bounds: tuple[float, float] | None  # smallest and largest, where the comment gives them
    examples: tuple[Any, ...]  # quoted words and None of the comment

    def check(self, value: Any) -> Any:
        """The value as the notebook will get it. Raises ZfkitError where it cannot be one."""
        if self.choices is not None:
            if any(_same(choice, value) for choice in self.choices):
                return float(value) if self._widened(value) else value
            raise ZfkitError(self._refusal(value, "one of " + ", ".join(map(repr, self.choices))))
        if any(_same(example, value) for example in self.examples):
            return value
        if self._widened(value):
            value = float(value)
        if self.kinds and type(value) not in self.kinds:
            expected = " or ".join(KINDS[kind] for kind in self.kinds)
            raise ZfkitError(self._refusal(value, expected) + self._hint(value))
        if self.bounds is not None and isinstance(value, int | float):
            low, high = self.bounds
            if not low <= value <= high:
                told = f"{low:g} or more" if math.isinf(high) else f"{low:g} to {high:g}"
                raise ZfkitError(self._refusal(value, told))
        return value

    def _widened(self, value: Any) -> bool:
        """Is it an int where the notebook has a float?"""
        return type(value) is int and float in self.kinds and int not in self.kinds

    def _refusal(self, value: Any, expected: str) -> str:
        says = f'; the notebook says: "{self.comment}"' if self.comment else ""
        return f"parameter {self.name} takes {expected}, not {_short(value)} ({_kind(value)}){says}"

    def _hint(self, value: Any) -> str:
        """What YAML did to it, most likely."""
        if str in self.kinds and isinstance(value, bool | int | float):
            return '. YAML reads bare words such as no, on and 1.0 as values: put the text in quotes, "..."'
        if float in self.kinds and isinstance(value, str) and _is_number(value):
            return f". YAML reads {value} as text: write it with a point, as {float(value)!r}"
        if list in self.kinds:
            return ". In a grid each list holds the values to run over, so a list is written as [[...]]"
        return ""


def read_parameters(notebook: Any, name: str = "the notebook") -> dict[str, Parameter]:
    """Parameters of a notebook (as nbformat reads it), in the order of its parameters cell.

    Raises ZfkitError where there is no such cell, or more than one, or where it holds anything but literals.
    """
    tagged = [c for c in notebook.cells if c.cell_type == "code" and TAG in (c.metadata.get("tags") or ())]
    if len(tagged) != 1:
        raise ZfkitError(
            f"{name} has {len(tagged) or 'no'} cells tagged {TAG!r}: it takes exactly one, with an assignment of a "
            "literal on each line (in JupyterLab: property inspector, Cell Tags)"
        )
    return _parse(tagged[0].source, name)


def _parse(source: str, name: str) -> dict[str, Parameter]:
    try:
        body = ast.parse(source).body
        comments = _comments(source)
    except (SyntaxError, ValueError, tokenize.TokenError) as error:
        raise ZfkitError(f"the parameters cell of {name} is no valid Python ({error})") from None
    found: dict[str, Parameter] = {}
    for statement in body:
        target, annotation = _target(statement)
        line = f"line {statement.lineno} of the parameters cell of {name}"
        if target is None:
            raise ZfkitError(
                f"{line} is {_first_line(source, statement)!r}: only assignments NAME = LITERAL go there; "
                "whatever is computed goes into the next cell, where it sees the values of a run"
            )
        try:
            default = ast.literal_eval(statement.value)  # type: ignore[attr-defined]
        except (ValueError, TypeError, MemoryError, RecursionError):
            raise ZfkitError(
                f"{line} gives {target} no literal ({_first_line(source, statement)!r}): write the value itself, and "
                "compute with it in the next cell"
            ) from None
        default = _plain(default, target)
        if target in found:
            raise ZfkitError(f"{line} assigns {target} a second time")
        comment = comments.get(statement.end_lineno or statement.lineno, "")
        found[target] = _parameter(target, default, annotation, comment, line)
    if not found:
        raise ZfkitError(f"the parameters cell of {name} is empty: there is nothing to vary")
    return found


def _target(statement: ast.stmt) -> tuple[str | None, ast.expr | None]:
    """Name and annotation of `NAME = ...` or `NAME: ... = ...`; no name for any other statement."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        only = statement.targets[0]
        return (only.id, None) if isinstance(only, ast.Name) else (None, None)
    if isinstance(statement, ast.AnnAssign) and statement.value and isinstance(statement.target, ast.Name):
        return statement.target.id, statement.annotation
    return None, None


def _comments(source: str) -> dict[int, str]:
    """Comment by line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").rstrip() for t in tokens if t.type == tokenize.COMMENT}


def _first_line(source: str, statement: ast.stmt) -> str:
    return _clip((ast.get_source_segment(source, statement) or "").partition("\n")[0], 60)


def _parameter(name: str, default: Any, annotation: ast.expr | None, comment: str, line: str) -> Parameter:
    kinds: tuple[type, ...] = () if default is None else (type(default),)
    if annotation is not None:
        names = {kind.__name__: kind for kind in KINDS} | {"None": type(None)}
        told = re.findall(r"\w+", re.sub(r"\[[^]]*\]", "", ast.unparse(annotation)))
        kinds = tuple(names[n] for n in told if n in names) if all(n in names for n in told) else kinds
    choices = bounds = None
    if stated := ONE_OF.search(comment):
        choices = tuple(ast.literal_eval(text) for text in re.findall(LITERAL, stated[1]))
    elif stated := RANGE.search(comment):
        bounds = (float(stated[1]), float(stated[2] or math.inf))
    quoted: list[Any] = [text for text in re.findall(r'"([^"]*)"', comment) if text]
    examples = (*quoted, *([None] if re.search(r"\bNone\b", comment) else []))
    parameter = Parameter(name, default, comment, kinds, choices, bounds, examples)
    try:
        parameter.check(default)
    except ZfkitError as error:
        raise ZfkitError(f"{line}: its own default does not fit: {error}") from None
    return parameter


# ------------------------------------------------------------------------------------------------- grids


@dataclass(frozen=True)
class Run:
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
    path = Path(file).expanduser()

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value if isinstance(key.value, str) and key.value != "<<"]
            twice = [key for key, count in Counter(keys).items() if count > 1]
            if twice:  # SafeLoader would take the last and say nothing
                raise ZfkitError(f"{path.name}, line {node.start_mark.line + 1}: {twice[0]} is there twice")
            return super().construct_mapping(node, deep)

    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ZfkitError(f"{path.name} is larger than 1 MB: that is no grid of parameters")
        return yaml.load(path.read_text(encoding="utf-8-sig"), Loader)
    except ZfkitError:
        raise
    except OSError as error:
        raise ZfkitError(f"cannot read the grid {str(file)!r}: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or _clip(str(error).partition("\n")[0], 100) or "too deep"
        raise ZfkitError(
            f"{path.name}{where}: {problem}. A grid is YAML such as 'model: [zfnet64, alexnet64]', a line for each "
            "parameter"
        ) from None


def expand(grid: Any, parameters: Mapping[str, Parameter], limit: int = 1000) -> list[Run]:
    """The runs of a grid, each value checked.

    Args:
        grid: a mapping of names to lists of values, for every combination of them (a value alone is the
            same in all runs); or a list of mappings of names to values, one for each run.
        limit: more runs than these are refused, as a slip.

    Raises ZfkitError for a grid without runs or with too many, an unknown parameter (with the nearest name),
    a value that does not fit, and two runs that are the same.
    """
    if isinstance(grid, Mapping):
        given = _product(grid, parameters, limit)
    elif isinstance(grid, Sequence) and not isinstance(grid, str | bytes):
        given = _listed(grid, parameters, limit)
    else:
        raise ZfkitError(
            f"a grid is a mapping of parameters to lists of values, or a list of mappings, not {_short(grid)} "
            f"({_kind(grid)})"
        )
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    runs = [Run(_name(values, parameters), values, defaults | values) for values in given]
    first: dict[str, int] = {}
    for i, run in enumerate(runs):
        if (other := first.setdefault(canonical(run.parameters), i)) != i:
            told = ", ".join(f"{k} = {_short(v)}" for k, v in run.given.items()) or "the defaults"
            raise ZfkitError(f"runs {other + 1} and {i + 1} of the grid are the same: {told}")
    # Where two names differ in nothing that every file system keeps apart, both get a mark of their own.
    folded = Counter(run.name.casefold() for run in runs)
    return [
        replace(run, name=f"{run.name}-{_mark(run.parameters)}") if folded[run.name.casefold()] > 1 else run
        for run in runs
    ]


def _product(
    grid: Mapping[Any, Any], parameters: Mapping[str, Parameter], limit: int
) -> Iterator[dict[str, Any]]:
    if not grid:
        raise ZfkitError("the grid is empty: name at least one parameter, as in 'seed: [0, 1, 2]'")
    axes: dict[str, list[Any]] = {}
    for name, values in grid.items():
        parameter = _find(name, parameters)
        listed = values if isinstance(values, list | tuple | range) else [values]
        if not len(listed):
            raise ZfkitError(f"the grid has no value for {name}: [] leaves nothing to run")
        if len(listed) > limit:
            raise ZfkitError(f"the grid has {len(listed):,} values for {name}; {_too_many(limit)}")
        axes[name] = [parameter.check(_plain(value, name)) for value in listed]
        seen: set[str] = set()
        for value in axes[name]:
            if (key := canonical(value)) in seen:
                raise ZfkitError(f"the grid has {name} = {_short(value)} twice")
            seen.add(key)
    count = math.prod(map(len, axes.values()))
    if count > limit:
        product = " x ".join(f"{len(values)} {name}" for name, values in axes.items())
        raise ZfkitError(f"the grid asks for {count:,} runs ({product}); {_too_many(limit)}")
    for combination in itertools.product(*axes.values()):
        yield dict(zip(axes, combination, strict=True))


def _listed(grid: Sequence[Any], parameters: Mapping[str, Parameter], limit: int) -> Iterator[dict[str, Any]]:
    if not grid:
        raise ZfkitError("the grid is an empty list: give at least one mapping, as in '- {seed: 1}'")
    if len(grid) > limit:
        raise ZfkitError(f"the grid lists {len(grid):,} runs; {_too_many(limit)}")
    for i, values in enumerate(grid, start=1):
        if not isinstance(values, Mapping):
            raise ZfkitError(
                f"run {i} of the grid is {_short(values)} ({_kind(values)}): it takes a mapping of parameters to "
                "values, as '- {model: zfnet64, seed: 1}'"
            )
        yield {name: _find(name, parameters).check(_plain(value, name)) for name, value in values.items()}


def _too_many(limit: int) -> str:
    return f"at most {limit:,} are run unless you allow more (--max-runs, max_runs=)"


def _find(name: Any, parameters: Mapping[str, Parameter]) -> Parameter:
    if name not in parameters:
        raise ZfkitError(unknown("parameter", name, parameters))
    return parameters[name]


def _plain(value: Any, name: str) -> Any:
    """A value as JSON has it: numbers and text of Python, lists and mappings of them."""
    budget = iter(range(LARGEST_VALUE))

    def convert(value: Any) -> Any:
        if next(budget, None) is None:
            raise ZfkitError(f"a value of {name} has more than {LARGEST_VALUE:,} parts; put it into a file")
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, list | tuple):
            return [convert(v) for v in value]
        if isinstance(value, Mapping):
            if wrong := [key for key in value if not isinstance(key, str)]:
                raise ZfkitError(f"a value of {name} has the key {_short(wrong[0])}: keys have to be text")
            return {convert(key): convert(v) for key, v in value.items()}
        if type(value).__module__.partition(".")[0] in ("numpy", "torch") and getattr(value, "ndim", 1) == 0:
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            raise ZfkitError(f"parameter {name} cannot be {value}: a notebook keeps finite numbers only")
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ZfkitError(f"parameter {name} cannot be {value!r}: it is no valid Unicode") from None
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ZfkitError(f"parameter {name} cannot be a whole number of more than 64 bits")
        if type(value) not in KINDS:
            hint = "; put it in quotes" if type(value).__module__ == "datetime" else ""
            raise ZfkitError(f"parameter {name} cannot be {_short(value)} ({_kind(value)}){hint}")
        return value

    try:
        return convert(value)
    except RecursionError:
        raise ZfkitError(f"a value of {name} is nested too deep") from None


# ------------------------------------------------------------------------------------------------- names


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


def canonical(value: Any) -> str:
    """The same text for the same value, whatever the order of its keys; 1, 1.0 and True differ."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True)


def _same(a: Any, b: Any) -> bool:
    """Equal, and not only as 1 and True are."""
    numbers = type(a) in (int, float) and type(b) in (int, float)
    return (type(a) is type(b) or numbers) and bool(a == b)


def _kind(value: Any) -> str:
    return KINDS.get(type(value), type(value).__name__)


def _short(value: Any) -> str:
    """A value as it is quoted; what holds others by its kind alone, since it may be huge."""
    if isinstance(value, list | tuple):
        return f"[...] with {len(value)} in it"
    if isinstance(value, Mapping):
        return f"{{...}} with {len(value)} in it"
    return _clip(repr(value), 80)


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def names_of(runs: Iterable[Run]) -> list[str]:
    """Parameters that any of these runs was given, in the notebook's order."""
    runs = list(runs)
    return [n for n in (runs[0].parameters if runs else ()) if any(n in run.given for run in runs)]
