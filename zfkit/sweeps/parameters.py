"""What a notebook's parameters cell says: names, defaults, and the values that its comments allow.

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
import contextlib
import io
import math
import re
import tokenize
from dataclasses import dataclass
from typing import Any

from ..errors import ZfkitError
from .values import KINDS, plain, quoted

TAG = "parameters"
LITERAL = r""""[^"]*"|'[^']*'|-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|True|False|None"""
ONE_OF = re.compile(rf"\bone of:\s*((?:{LITERAL})(?:\s*(?:,\s*or\b|,|\bor\b)\s*(?:{LITERAL}))*)")
RANGE = re.compile(r"\brange:\s*(-?[\d.]+(?:[eE]-?\d+)?)\s+(?:to\s+(-?[\d.]+(?:[eE]-?\d+)?)|or more)")


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
        value = plain(value, f"parameter {self.name}")
        if self.choices is None and any(_same(example, value) for example in self.examples):
            return value
        if type(value) is int and float in self.kinds and int not in self.kinds:
            value = float(value)
        if self.choices is not None:
            if not any(_same(choice, value) for choice in self.choices):
                raise self._refusal(value, "one of " + ", ".join(map(repr, self.choices)))
            return value
        if self.kinds and type(value) not in self.kinds:
            raise self._refusal(value, " or ".join(KINDS[kind] for kind in self.kinds), self._hint(value))
        if self.bounds is not None and isinstance(value, int | float):
            low, high = self.bounds
            if not low <= value <= high:
                raise self._refusal(value, f"{low:g} " + ("or more" if math.isinf(high) else f"to {high:g}"))
        return value

    def _refusal(self, value: Any, expected: str, hint: str = "") -> ZfkitError:
        says = f'; the notebook says: "{self.comment}"' if self.comment else ""
        return ZfkitError(f"parameter {self.name} takes {expected}, not {quoted(value)}{says}{hint}")

    def _hint(self, value: Any) -> str:
        """What YAML did to it, most likely."""
        if str in self.kinds and isinstance(value, bool | int | float):
            return '. YAML reads bare words such as no, on and 1.0 as values: put the text in quotes, "..."'
        if float in self.kinds and isinstance(value, str):
            with contextlib.suppress(ValueError):
                return f". YAML reads {value} as text: write it with a point, as {float(value)!r}"
        if list in self.kinds:
            return ". In a grid each list holds the values to run over, so a list is written as [[...]]"
        return ""


def read_parameters(notebook: Any, name: str = "the notebook") -> dict[str, Parameter]:
    """Parameters of a notebook (as nbformat reads it), in the order of its parameters cell.

    Raises ZfkitError where there is no such cell, or more than one, or where it holds anything but literals.
    """
    # Not by `papermill.inspect_notebook`: it passes over `limit: int | None = None`, lines with a second "=" and text
    # with a "#" in it, so that a parameter which is there would be refused as unknown.
    tagged = [c for c in notebook.cells if c.cell_type == "code" and TAG in (c.metadata.get("tags") or ())]
    if len(tagged) != 1:
        raise ZfkitError(
            f"{name} has {len(tagged) or 'no'} cells tagged {TAG!r}: it takes one, with an assignment of a literal on "
            "each line (in JupyterLab: property inspector, Cell Tags)"
        )
    source = tagged[0].source
    try:
        statements = ast.parse(source).body
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, ValueError, tokenize.TokenError) as error:
        raise ZfkitError(f"the parameters cell of {name} is no valid Python ({error})") from None
    comments = {t.start[0]: t.string.lstrip("# ").rstrip() for t in tokens if t.type == tokenize.COMMENT}
    parameters: dict[str, Parameter] = {}
    for statement in statements:
        line = (ast.get_source_segment(source, statement) or "").partition("\n")[0]
        where = f"line {statement.lineno} of the parameters cell of {name}"
        comment = comments.get(statement.end_lineno or 0, "")
        parameter = _parameter(statement, comment, f"{where}, {line!r:.60}")
        if parameter.name in parameters:
            raise ZfkitError(f"{where} assigns {parameter.name} a second time")
        parameters[parameter.name] = parameter
    if not parameters:
        raise ZfkitError(f"the parameters cell of {name} is empty: there is nothing to vary")
    return parameters


def _parameter(statement: ast.stmt, comment: str, where: str) -> Parameter:
    """`NAME = LITERAL` or `NAME: ANNOTATION = LITERAL`, and what its comment allows."""
    annotation: ast.expr | None = None
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            pass
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
            pass
        case _:
            raise ZfkitError(f"{where}: only assignments NAME = LITERAL go there; compute in the next cell")
    try:
        default = plain(ast.literal_eval(value), f"parameter {name}")
    except ZfkitError:
        raise
    except (ValueError, TypeError, MemoryError, RecursionError):
        raise ZfkitError(
            f"{where} gives {name} no literal: write the value itself, and compute with it in the next cell"
        ) from None
    choices = bounds = None
    if stated := ONE_OF.search(comment):
        choices = tuple(ast.literal_eval(text) for text in re.findall(LITERAL, stated[1]))
    elif stated := RANGE.search(comment):
        bounds = (float(stated[1]), float(stated[2] or math.inf))
    examples: list[Any] = [text for text in re.findall(r'"([^"]*)"', comment) if text]
    examples += [None] * bool(re.search(r"\bNone\b", comment))
    kinds = _kinds(default, annotation)
    parameter = Parameter(name, default, comment, kinds, choices, bounds, tuple(examples))
    try:
        parameter.check(default)
    except ZfkitError as error:
        raise ZfkitError(f"{where}: its own default does not fit: {error}") from None
    return parameter


def _kinds(default: Any, annotation: ast.expr | None) -> tuple[type, ...]:
    """Types that a value may be of: those of the annotation, where zfkit knows them all, else the default's."""
    if annotation is not None:
        kinds = {kind.__name__: kind for kind in KINDS} | {"None": type(None)}
        names = re.findall(r"\w+", re.sub(r"\[[^]]*\]", "", ast.unparse(annotation)))
        if set(names) <= set(kinds):
            return tuple(kinds[name] for name in names)
    return () if default is None else (type(default),)


def _same(a: Any, b: Any) -> bool:
    """Equal, and not only as 1 and True are."""
    numbers = type(a) in (int, float) and type(b) in (int, float)
    return (type(a) is type(b) or numbers) and bool(a == b)
