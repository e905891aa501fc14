"""What a sweep leaves to look at: one page with the figures of all runs side by side, and one table.

The page needs no connection and no server. Everything that a notebook or a grid brought in is escaped; pictures are
files beside it, so that a thousand runs still open.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from ..files import write_whole
from .parameters import Run, names_of

if TYPE_CHECKING:
    import pandas as pd

RESERVED = ("run", "status", "error", "seconds", "notebook")


@dataclass(frozen=True)
class Figure:
    """A picture of a run: where in the notebook it stands (code cell, number in it), heading, file, content's hash."""

    place: tuple[int, int]
    title: str
    file: str  # relative to the page
    digest: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    run: Run
    status: Literal["finished", "failed", "missing"]
    file: str = ""  # of the executed notebook, beside the page
    error: str = ""  # one line
    traceback: str = ""
    seconds: float = math.nan
    started: str = ""  # ISO 8601, UTC
    threads: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict)
    figures: tuple[Figure, ...] = ()


def results(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """One row a run: run, all parameters, all records, status, error, seconds, notebook.

    A parameter or record that is called like one of these columns gets `_parameter` or `_recorded` behind its name.
    Columns with values of several kinds are text.
    """
    import pandas as pd

    parameters = list(outcomes[0].run.parameters) if outcomes else []
    records = _record_names(outcomes)
    columns: dict[str, list[Any]] = {"run": [o.run.name for o in outcomes]}
    for name in parameters:
        label = f"{name}_parameter" if name in RESERVED else name
        columns[label] = [o.run.parameters[name] for o in outcomes]
    for name, label in records.items():
        columns[label] = [o.records.get(name) for o in outcomes]
    columns |= {
        "status": [o.status for o in outcomes],
        "error": [o.error for o in outcomes],
        "seconds": [o.seconds for o in outcomes],
        "notebook": [o.file for o in outcomes],
    }
    return pd.DataFrame({name: _column(values) for name, values in columns.items()})


def _record_names(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Recorded names in the order in which they first come, each with its column."""
    taken = {*RESERVED, *(outcomes[0].run.parameters if outcomes else ())}
    names = dict.fromkeys(name for o in outcomes for name in o.records)
    return {name: f"{name}_recorded" if name in taken else name for name in names}


def _column(values: list[Any]) -> pd.Series:
    """Values as one type that Parquet can hold."""
    import pandas as pd

    kinds = {type(v) for v in values if v is not None}
    if not kinds or kinds == {str}:
        return pd.Series(values, dtype="str" if kinds else "object")
    if kinds == {bool}:
        return pd.Series(values, dtype="boolean" if None in values else "bool")
    if kinds == {int}:
        return pd.Series(values, dtype="Int64" if None in values else "int64")
    if kinds <= {int, float}:
        return pd.Series([math.nan if v is None else float(v) for v in values], dtype="float64")
    inner = {type(item) for v in values if isinstance(v, list) for item in v}
    if kinds == {list} and (len(inner - {dict, list}) == len(inner) <= 1 or inner <= {int, float}):
        wide = float in inner
        return pd.Series(
            [[float(x) for x in v] if wide and v is not None else v for v in values], dtype="object"
        )
    return pd.Series(
        [None if v is None else v if isinstance(v, str) else repr(v) for v in values], dtype="str"
    )


# ----------------------------------------------------------------------------------------- the page

_STYLE = """
:root { color-scheme: light dark; --ink: #16181d; --soft: #5b6270; --line: #d9dce3; --paper: #fff; --card: #f6f7f9;
  --accent: #0072B2; --bar: #cfe3f1; --bad: #b3261e; --width: 420px; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaf0; --soft: #9aa2b1; --line: #333842; --paper: #14161a;
  --card: #1c1f25; --accent: #6cb6e6; --bar: #24425a; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  overflow-wrap: anywhere; }
header, section, footer { max-width: 1760px; margin: 0 auto; padding: 1rem 1.5rem; }
section { scroll-margin-top: 4rem; }
h1 { font-size: 1.7rem; margin: .6rem 0 .2rem; } h2 { font-size: 1.3rem; margin: 1rem 0 .4rem; }
p { max-width: 80ch; margin: .4rem 0; } .soft { color: var(--soft); } a { color: var(--accent); }
nav { position: sticky; top: 0; z-index: 2; background: var(--paper); border-bottom: 1px solid var(--line); }
nav > div { max-width: 1760px; margin: 0 auto; padding: .55rem 1.5rem; display: flex; flex-wrap: wrap;
  gap: .4rem 1.2rem; align-items: center; font-size: .9rem; }
nav label { display: inline-flex; gap: .4rem; align-items: center; color: var(--soft); }
select, input, button { font: inherit; color: inherit; }
select { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .1rem .3rem;
  max-width: 16rem; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.needs-script { display: none !important; } .scripted .needs-script { display: inline-flex !important; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: normal; }
tbody tr:last-child td { border-bottom: 0; } tbody tr:hover { background: var(--card); }
thead th { background: var(--card); white-space: nowrap; font-weight: 600; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
th.number { text-align: right; }
td.number { text-align: right; white-space: nowrap;
  background: linear-gradient(to right, var(--bar) var(--share, 0%), transparent var(--share, 0%)) no-repeat
  left .35rem bottom 3px / calc(100% - .7rem) 4px; }
td.text { max-width: 26rem; }
.failed { color: var(--bad); font-weight: 600; } .missing { color: var(--soft); font-style: italic; }
.cards { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--width)), 1fr)); }
figure { margin: 0; padding: .7rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
figcaption { font-size: .9rem; margin-bottom: .4rem; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; border-radius: 3px; background: #fff; }
.tag { display: inline-block; padding: 0 .45rem; margin: 0 .3rem .2rem 0; border: 1px solid var(--line);
  border-radius: 999px; background: var(--paper); font-size: .85rem; }
details { margin: .5rem 0; } summary { cursor: pointer; }
pre { overflow-x: auto; padding: .8rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  font-size: .8rem; line-height: 1.35; overflow-wrap: normal; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .4rem 0; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; }
[hidden] { display: none !important; }
"""

# Without script the page shows everything; with it, columns sort and runs can be picked out.
_SCRIPT = """
document.documentElement.classList.add("scripted");
const rows = [...document.querySelectorAll("tbody tr")], picks = [...document.querySelectorAll("select[data-name]")];
const shown = document.querySelector("#shown");
function pick() {
  const left = new Set(rows.filter(row => picks.every(s => !s.value || row.dataset[s.dataset.name] === s.value))
    .map(row => row.dataset.run));
  for (const thing of document.querySelectorAll("[data-run]")) thing.hidden = !left.has(thing.dataset.run);
  for (const part of document.querySelectorAll("section.figures"))
    part.hidden = !part.querySelector("figure:not([hidden])");
  shown.textContent = left.size === rows.length ? `${rows.length} runs` : `${left.size} of ${rows.length} runs`;
}
for (const select of picks) select.addEventListener("change", pick);
document.querySelector("#size").addEventListener("input", e =>
  document.documentElement.style.setProperty("--width", e.target.value + "px"));
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, at = [...head.parentElement.children].indexOf(head);
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.children[at].dataset.value, number = v => v === "" ? NaN : Number(v);
  const order = (a, b) => {
    const x = number(key(a)), y = number(key(b));
    if (!isNaN(x) && !isNaN(y)) return up ? x - y : y - x;
    if (!isNaN(x) || !isNaN(y)) return isNaN(x) ? 1 : -1;
    return up ? key(a).localeCompare(key(b)) : key(b).localeCompare(key(a));
  };
  document.querySelector("tbody").append(...[...rows].sort(order));
});
pick();
"""


def write_gallery(path: Path, title: str, notebook: str, outcomes: Sequence[Outcome]) -> None:
    """Write the page; it appears whole or not at all."""
    write_whole(path, lambda part: part.write_text(_page(title, notebook, outcomes), encoding="utf-8"))


def _page(title: str, notebook: str, outcomes: Sequence[Outcome]) -> str:
    e = html.escape
    given = names_of(o.run for o in outcomes)
    varying = [n for n in given if len({repr(o.run.parameters[n]) for o in outcomes}) > 1]
    count = {s: sum(o.status == s for o in outcomes) for s in ("finished", "failed", "missing")}
    told = ", ".join(f"{n} {status}" for status, n in count.items() if n)
    # Only what this page brings along may run or load, whatever should slip in.
    allowed = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    figures = _by_figure(outcomes)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>Sweep of {e(notebook)}</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>
<header><h1>{e(_plain(title))}</h1>
<p>{len(outcomes)} {"run" if len(outcomes) == 1 else "runs"} of <b>{e(notebook)}</b>: {told}.
{"They differ in " + e(_listing(varying)) + "." if varying else ""}</p>
<p class="soft">The table is also in <a href="results.parquet">results.parquet</a>
(<code>pandas.read_parquet</code>); each run's name leads to its executed notebook.</p></header>
<nav aria-label="Which runs"><div><span id="shown" class="soft" role="status">{len(outcomes)} runs</span>
{"".join(_select(name, outcomes) for name in varying)}
<label class="needs-script">size <input id="size" type="range" min="160" max="1200" step="20" value="420"></label>
{_contents(figures)}</div></nav>
<section id="runs"><h2>Runs</h2>{_table(outcomes, given, varying)}</section>
{_failures(outcomes)}
{"".join(_figure(i, label, shown, varying, outcomes) for i, (label, shown) in enumerate(figures))}
{_provenance(outcomes, varying)}
<script>{_SCRIPT}</script></body></html>
"""


def _contents(figures: Sequence[tuple[str, Any]]) -> str:
    if not figures:
        return ""
    links = "".join(
        f'<li><a href="#figure-{i}">{html.escape(label)}</a></li>' for i, (label, _) in enumerate(figures)
    )
    return f"<details><summary>{len(figures)} figures</summary><ul>{links}</ul></details>"


def _by_figure(outcomes: Sequence[Outcome]) -> list[tuple[str, dict[str, Figure]]]:
    """Figures in the notebook's order: title, and the picture of each run that has it."""
    places: dict[tuple[int, int], tuple[str, dict[str, Figure]]] = {}
    for outcome in outcomes:
        for figure in outcome.figures:
            places.setdefault(figure.place, (_plain(figure.title), {}))[1][outcome.run.name] = figure
    return [places[place] for place in sorted(places)]


def _select(name: str, outcomes: Sequence[Outcome]) -> str:
    e = html.escape
    values = list(dict.fromkeys(_text(o.run.parameters[name]) for o in outcomes))
    if len(values) > 60:
        return ""
    options = "".join(f'<option value="={e(v)}">{e(v) or "(empty)"}</option>' for v in values)
    return (
        f'<label class="needs-script">{e(name)} <select data-name="{_attribute(name)}">'
        f'<option value="">all</option>{options}</select></label>'
    )


def _attribute(name: str) -> str:
    """A parameter's name for dataset, which folds case and hyphens but leaves hexadecimal digits alone."""
    return "p" + name.encode().hex()


def _data(outcome: Outcome, names: Sequence[str]) -> str:
    e = html.escape
    told = "".join(f' data-{_attribute(n)}="={e(_text(outcome.run.parameters[n]))}"' for n in names)
    return f'data-run="{e(outcome.run.name)}"{told}'


def _table(outcomes: Sequence[Outcome], given: Sequence[str], varying: Sequence[str]) -> str:
    e = html.escape
    records = list(dict.fromkeys(name for o in outcomes for name in o.records))
    columns = [[o.run.parameters[n] for o in outcomes] for n in given]
    columns += [[o.records.get(n) for o in outcomes] for n in records]
    numbers = [all(type(v) in (int, float) for v in c if v is not None) for c in columns]
    head = "".join(
        f'<th scope="col"{" class=number" if right else ""}><button type="button">{e(name)}</button></th>'
        for name, right in zip(
            ["run", *given, *records, "seconds", "status"], [False, *numbers, True, False], strict=True
        )
    )
    scales = {name: _scale([o.records.get(name) for o in outcomes]) for name in records}
    body = ""
    for o in outcomes:
        link = f'<a href="{e(quote(o.file))}">{e(o.run.name)}</a>' if o.file else e(o.run.name)
        cells = f'<td class="text" data-value="{e(o.run.name)}">{link}</td>'
        cells += "".join(_cell(o.run.parameters[n]) for n in given)
        cells += "".join(_cell(o.records.get(n), scales[n]) for n in records)
        seconds = "" if math.isnan(o.seconds) else f"{o.seconds:.1f}"
        cells += f'<td class="number" data-value="{seconds}">{seconds}</td>'
        cells += f'<td data-value="{o.status}"><span class="{o.status}">{o.status}</span></td>'
        body += f"<tr {_data(o, varying)}>{cells}</tr>\n"
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _scale(values: Sequence[Any]) -> tuple[float, float] | None:
    """Smallest and largest of a column of numbers, for the bars; bars begin at 0 where nothing lies below it."""
    numbers = [float(v) for v in values if type(v) in (int, float) and math.isfinite(v)]
    if len(set(numbers)) < 2 or any(isinstance(v, str | bool | list) for v in values):
        return None
    return min(0.0, *numbers), max(0.0, *numbers)


def _cell(value: Any, scale: tuple[float, float] | None = None) -> str:
    e = html.escape
    if type(value) in (int, float):
        share = ""
        if scale and math.isfinite(value):
            share = f' style="--share: {100 * (value - scale[0]) / (scale[1] - scale[0]):.1f}%"'
        return f'<td class="number" data-value="{value!r}"{share}>{e(_text(value))}</td>'
    text = "" if value is None else _text(value)
    return f'<td class="text" data-value="{e(text)}">{e(text)}</td>'


def _failures(outcomes: Sequence[Outcome]) -> str:
    e = html.escape
    failed = [o for o in outcomes if o.status == "failed"]
    if not failed:
        return ""
    items = "".join(
        f'<details data-run="{e(o.run.name)}"><summary><b>{e(o.run.name)}</b>: <span class="failed">{e(o.error)}</span>'
        f"</summary><pre>{e(o.traceback)}</pre></details>"
        for o in failed
    )
    return (
        f'<section id="failures"><h2>{len(failed)} failed</h2><p class="soft">The same command tries them again; what '
        f"each did before it stopped is in its notebook.</p>{items}</section>"
    )


def _figure(
    i: int, label: str, shown: dict[str, Figure], varying: Sequence[str], outcomes: Sequence[Outcome]
) -> str:
    e = html.escape
    having = [o for o in outcomes if o.run.name in shown]
    alike = len(having) > 1 and len({shown[o.run.name].digest for o in having}) == 1
    cards = ""
    for o in having[:1] if alike else having:
        tags = "".join(
            f'<span class="tag">{e(n)} <b>{e(_text(o.run.parameters[n]))}</b></span>' for n in varying
        )
        caption = f"the same in all {len(having)} runs" if alike else tags or e(o.run.name)
        source = e(quote(shown[o.run.name].file))
        run = "" if alike else f' data-run="{e(o.run.name)}"'
        cards += (
            f"<figure{run}><figcaption>{caption}</figcaption>"
            f'<a href="{source}"><img loading="lazy" decoding="async" src="{source}" '
            f'alt="{e(label)}, {caption if alike else e(o.run.name)}"></a></figure>'
        )
    return f'<section class="figures" id="figure-{i}"><h2>{e(label)}</h2><div class="cards">{cards}</div></section>\n'


def _provenance(outcomes: Sequence[Outcome], varying: Sequence[str]) -> str:
    e = html.escape
    ran = [o for o in outcomes if o.versions]
    if not ran:
        return ""
    fixed = [(n, _text(v)) for n, v in ran[0].run.parameters.items() if n not in varying]
    versions = {k: sorted({o.versions.get(k, "?") for o in ran}) for k in ran[0].versions}
    mixed = [k for k, v in versions.items() if len(v) > 1]
    lines = [(n, v or "(empty)") for n, v in fixed]
    lines += [(k, ", ".join(v)) for k, v in versions.items()]
    lines += [
        ("executed", f"{min(o.started for o in ran)} to {max(o.started for o in ran)}"),
        ("threads", ", ".join(map(str, sorted({o.threads for o in ran}))) + " a run"),
        ("time", f"{sum(o.seconds for o in ran):.0f} s in all"),
    ]
    listed = "".join(f"<dt>{e(k)}</dt><dd>{e(v)}</dd>" for k, v in lines)
    warning = f'<p class="failed">Runs differ in {e(_listing(mixed))}.</p>' if mixed else ""
    return (
        f"<footer><h2>The same for all runs</h2>{warning}<dl>{listed}</dl>"
        '<p class="soft">Each notebook keeps its own parameters, versions, seed and time in its metadata.</p></footer>'
    )


def _text(value: Any) -> str:
    """A value as it is shown: five significant digits, lists by their numbers."""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        shown = ", ".join(map(_text, value[:8]))
        return shown + (f", ... ({len(value)})" if len(value) > 8 else "")
    return value if isinstance(value, str) else str(value)


def _listing(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _plain(markdown: str) -> str:
    """A heading without the marks of Markdown."""
    return markdown.replace("**", "").replace("`", "").replace("*", "")
