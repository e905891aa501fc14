"""Tables that `zfkit sweep` leaves, read for the experiments whose runs are spread by it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..checksums import read_table
from ..errors import ZfkitError

if TYPE_CHECKING:
    import pandas as pd


def sweep_results(source: Path, columns: Sequence[str], notebook: str) -> pd.DataFrame:
    """The finished runs of a sweep: of its folder, its results.parquet, or a .csv made of it.

    Raises ZfkitError where there is no such table, it lacks columns, or no run is finished.
    """
    import pandas as pd

    path = source / "results.parquet" if source.is_dir() else source
    if not path.is_file():
        raise ZfkitError(f"there is no {str(path)!r}: give the folder that `zfkit sweep --out` wrote to")
    try:
        runs = pd.read_csv(path) if path.suffix == ".csv" else read_table(path, unsealed=True).to_pandas()
    except (OSError, ValueError) as error:
        raise ZfkitError(f"{path.name} is no table of a sweep ({' '.join(str(error).split())})") from None
    lacking = [name for name in columns if name not in runs]
    if lacking:
        raise ZfkitError(
            f"{path.name} lacks the columns {', '.join(lacking)}: it is no sweep of {notebook}, or nothing finished"
        )
    finished = runs[runs.status == "finished"] if "status" in runs else runs
    if not len(finished.dropna(subset=["top1"])):
        raise ZfkitError(f"{path.name} holds no finished run: the same sweep again does what is missing")
    return finished.reset_index(drop=True)
