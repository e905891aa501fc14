"""What a sweep leaves to look at: one page with the figures of all runs side by side, and one table.

The page needs no connection and no server. Everything that a notebook or a grid brought in is escaped; pictures are
files beside it, so that a thousand runs still open.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from ..files import write_whole
from .execute import error_of
from .grid import SweepRun
from .records import recorded

if TYPE_CHECKING:
    import pandas as pd

KEY = "zfkit"  # where in an executed notebook's metadata the provenance lies
KEY_FIGURE = "key-figure"  # tag of cells whose pictures the page shows; without any, it shows all
PICTURES = {"image/png": (".png", b"\x89PNG\r\n\x1a\n"), "image/jpeg": (".jpg", b"\xff\xd8\xff")}
FIGURE = re.compile(r"[0-9]+-[0-9]+\.(png|jpg)")  # what `_figures` calls its files: code cell, number in it
RESERVED = ("run", "status", "error", "seconds", "notebook")
MOST_CHOICES = 60  # of a menu on the page


@dataclass(frozen=True)
class SweepFigure:
    """A picture of a run: where in the notebook it stands (code cell, number in it), heading, file, content's hash."""

    position: tuple[int, int]
    title: str
    file: str  # relative to the page
    digest: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        file: of the executed notebook, beside the page.
        facts: what `execute` notes: error (one line), seconds, started (ISO 8601, UTC), threads, versions.
        traceback: of a run that failed.
        records: what the notebook recorded.
    """

    run: SweepRun
    status: Literal["finished", "failed", "missing"]
    file: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    traceback: str = ""
    records: Mapping[str, Any] = field(default_factory=dict)
    figures: tuple[SweepFigure, ...] = ()


def outcome_of(run: SweepRun, notebook: Any, out: Path) -> Outcome:
    """What page and table need of an executed notebook; its pictures are written as files."""
    facts = notebook.metadata[KEY]
    figures, records = tuple(_figures(notebook, run.name, out)), recorded(notebook)
    if facts["status"] == "finished":
        return Outcome(run, "finished", f"{run.name}.ipynb", facts, "", records, figures)
    traceback = error_of(notebook)[1]
    return Outcome(run, "failed", f"{run.name}.failed.ipynb", facts, traceback, records, figures)


def forget_figures(name: str, out: Path) -> None:
    """Delete the pictures that an earlier run of this name left, and nothing else that lies beside them."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(out / "figures" / name)):
            if FIGURE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)  # noqa: PTH108


def _figures(notebook: Any, name: str, out: Path) -> Iterator[SweepFigure]:
    """The pictures among a notebook's outputs, under the heading they stand below, each in a file."""
    tagged = any(KEY_FIGURE in (cell.metadata.get("tags") or ()) for cell in notebook.cells)
    heading, code, seen = "", 0, Counter[str]()
    for cell in notebook.cells:
        tags = cell.metadata.get("tags") or ()
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#{1,6}\s+(.+?)\s*#*$", cell.source, re.M)
            heading = headings[-1] if headings else heading
        if cell.cell_type != "code" or "injected-parameters" in tags:
            continue
        code += 1
        if tagged and KEY_FIGURE not in tags:
            continue
        for i, output in enumerate((o for o in cell.outputs if "data" in o), start=1):
            picture, suffix = _picture(output.data)
            if picture:
                seen[heading] += 1
                file = Path("figures", name, f"{code}-{i}{suffix}")
                if not (out / file).is_file():
                    write_whole(out / file, lambda part, picture=picture: part.write_bytes(picture))  # type: ignore[misc]
                title = (heading or "Figures") + (f" ({seen[heading]})" if seen[heading] > 1 else "")
                yield SweepFigure((code, i), title, file.as_posix(), hashlib.sha256(picture).hexdigest())


def _picture(data: dict[str, Any]) -> tuple[bytes, str]:
    """A picture out of its base64 form, and its suffix; nothing where it is no picture of the kind it is said to be."""
    for mime, (suffix, magic) in PICTURES.items():
        if mime in data:
            try:
                picture = base64.b64decode("".join(data[mime]))
            except ValueError:
                return b"", ""
            return (picture, suffix) if picture.startswith(magic) else (b"", "")
    return b"", ""


# ------------------------------------------------------------------------------------------------- the table


def results(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """One row a run: run, all parameters, all records, status, error, seconds, notebook.

    A parameter or record that is called like one of these columns gets `_parameter` or `_recorded` behind its name.
    Columns with values of several kinds are text.
    """
    import pandas as pd

    parameters = list(outcomes[0].run.parameters) if outcomes else []
    columns: dict[str, list[Any]] = {"run": [o.run.name for o in outcomes]}
    for name in parameters:
        label = f"{name}_parameter" if name in RESERVED else name
        columns[label] = [o.run.parameters[name] for o in outcomes]
    for name in _record_names(outcomes):
        label = f"{name}_recorded" if name in (*RESERVED, *parameters) else name
        columns[label] = [o.records.get(name) for o in outcomes]
    columns["status"] = [o.status for o in outcomes]
    columns["error"] = [str(o.facts.get("error", "")) for o in outcomes]
    columns["seconds"] = [float(o.facts.get("seconds", math.nan)) for o in outcomes]
    columns["notebook"] = [o.file for o in outcomes]
    return pd.DataFrame({name: _column(values) for name, values in columns.items()})


def _record_names(outcomes: Sequence[Outcome]) -> list[str]:
    """Recorded names, in the order in which they first come."""
    return list(dict.fromkeys(name for o in outcomes for name in o.records))


def _column(values: list[Any]) -> pd.Series:
    """Values as one type that Parquet can hold."""
    import pandas as pd

    kinds, gaps = {type(v) for v in values if v is not None}, None in values
    if not kinds:
        return pd.Series(values, dtype="object")
    if kinds == {bool}:
        return pd.Series(values, dtype="boolean" if gaps else "bool")
    if kinds == {int}:
        return pd.Series(values, dtype="Int64" if gaps else "int64")
    if kinds <= {int, float}:
        return pd.Series([math.nan if v is None else float(v) for v in values], dtype="float64")
    inner = {type(item) for v in values if isinstance(v, list) for item in v}
    if kinds == {list} and (inner <= {int, float} or inner in ({bool}, {str}, {type(None)})):
        floats = float in inner
        lists = [[float(x) for x in v] if floats and v is not None else v for v in values]
        return pd.Series(lists, dtype="object")
    return pd.Series([v if v is None or isinstance(v, str) else repr(v) for v in values], dtype="str")


# -------------------------------------------------------------------------------------------------- the page


def write_gallery(path: Path, title: str, notebook: str, outcomes: Sequence[Outcome]) -> None:
    """Write the page; it appears whole or not at all."""
    text = _page(title, notebook, outcomes)
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def _page(title: str, notebook: str, outcomes: Sequence[Outcome]) -> str:
    from markupsafe import Markup

    from ..atlas.html import templates  # here, since every kernel that records imports this file

    environment = templates("zfkit.sweeps")
    script = environment.get_template("sweep.js").render()
    given = [
        n for o in outcomes[:1] for n in o.run.parameters if any(n in other.run.given for other in outcomes)
    ]
    varying = [n for n in given if len({repr(o.run.parameters[n]) for o in outcomes}) > 1]
    counts = Counter(o.status for o in outcomes)
    return environment.get_template("sweep.html").render(
        title=_without_markdown(title),
        notebook=notebook,
        outcomes=outcomes,
        counts=", ".join(f"{counts[s]} {s}" for s in ("finished", "failed", "missing") if counts[s]),
        given=given,
        varying=varying,
        choices={name: _choices(name, outcomes) for name in varying},
        columns=_columns(outcomes, given),
        figures=_by_position(outcomes),
        same=_same_for_all(outcomes, varying),
        script=Markup(script),
        # Only what this page brings along may run, whatever should slip in.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        text=_text,
        attribute=_attribute,
        listing=_listing,
        quote=quote,
    )


def _choices(name: str, outcomes: Sequence[Outcome]) -> list[str]:
    """Values of a parameter for its menu; none where there are too many to choose from."""
    values = list(dict.fromkeys(_text(o.run.parameters[name]) for o in outcomes))
    return values if len(values) <= MOST_CHOICES else []


def _columns(outcomes: Sequence[Outcome], given: Sequence[str]) -> list[dict[str, Any]]:
    """Of the page's table: name, values, whether all are numbers, and the length of each one's bar in percent."""
    columns = [(name, [o.run.parameters[name] for o in outcomes], False) for name in given]
    columns += [(name, [o.records.get(name) for o in outcomes], True) for name in _record_names(outcomes)]
    columns.append(("seconds", [o.facts.get("seconds") for o in outcomes], False))
    shown = []
    for name, values, with_bars in columns:
        numeric = all(type(v) in (int, float) for v in values if v is not None)
        bars = _bars(values) if with_bars else [None] * len(values)
        shown.append({"name": name, "values": values, "numeric": numeric, "bars": bars})
    return shown


def _bars(values: Sequence[Any]) -> list[float | None]:
    """From smallest to largest; they begin at 0 where nothing lies below it."""
    numbers = [v for v in values if type(v) in (int, float) and math.isfinite(v)]
    if len(set(numbers)) < 2 or any(isinstance(v, str | bool | list) for v in values):
        return [None] * len(values)
    low, high = min(0, *numbers), max(0, *numbers)
    return [100 * (v - low) / (high - low) if v in numbers else None for v in values]


def _by_position(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Figures in the notebook's order: title, and the runs that have one, each with its picture."""
    figures: dict[tuple[int, int], list[tuple[Outcome, SweepFigure]]] = {}
    for outcome in outcomes:
        for figure in outcome.figures:
            figures.setdefault(figure.position, []).append((outcome, figure))
    shown = []
    for _, pairs in sorted(figures.items()):
        alike = len(pairs) > 1 and len({figure.digest for _, figure in pairs}) == 1
        shown.append({"title": _without_markdown(pairs[0][1].title), "pairs": pairs, "alike": alike})
    return shown


def _same_for_all(outcomes: Sequence[Outcome], varying: Sequence[str]) -> dict[str, Any]:
    """Parameters, versions and times for the page's end; and the versions in which runs differ."""
    ran = [o.facts for o in outcomes if o.facts.get("versions")]
    if not ran:
        return {}
    held = [facts["versions"] for facts in ran]
    versions = {name: sorted({v.get(name, "?") for v in held}) for name in held[0]}
    started, threads = sorted(facts["started"] for facts in ran), sorted({facts["threads"] for facts in ran})
    parameters = next(iter(outcomes)).run.parameters
    lines = [(name, _text(value) or "(empty)") for name, value in parameters.items() if name not in varying]
    lines += [(name, ", ".join(values)) for name, values in versions.items()]
    lines += [("executed", f"{started[0]} to {started[-1]}"), ("threads", f"{_text(threads)} a run")]
    lines += [("time", f"{sum(facts['seconds'] for facts in ran):.0f} s in all")]
    mixed = [name for name, values in versions.items() if len(values) > 1]
    return {"lines": lines, "mixed": mixed, "charts": next((f["charts"] for f in ran if "charts" in f), "")}


def _attribute(name: str) -> str:
    """A parameter's name for dataset, which folds case and hyphens but leaves hexadecimal digits alone."""
    return "p" + name.encode().hex()


def _text(value: Any) -> str:
    """A value as it is shown: five significant digits, lists by their numbers."""
    if isinstance(value, list):
        more = f", ... ({len(value)})" if len(value) > 8 else ""
        return ", ".join(map(_text, value[:8])) + more
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _listing(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _without_markdown(heading: str) -> str:
    return heading.replace("**", "").replace("`", "").replace("*", "")
