"""A training run in a folder: snapshots, history, and the state from which it goes on.

RUN/snapshots/epoch_0010.safetensors    weights after epoch 10, with provenance: `load_model` takes them
RUN/history.parquet                     one row for each epoch
RUN/model.safetensors                   the weights at the end
RUN/state.safetensors                   weights, momentum, place in the run; state.previous is the one before
"""

from __future__ import annotations

import contextlib
import json
import re
import warnings
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..checks import as_path, number, whole_number, writable_folder
from ..checksums import read_sealed, read_table, sealed, write_table
from ..errors import TrainingError, ZfkitError
from ..files import check_room, expect_replaceable, only_writer, sweep_away, temporary_folder, write_whole
from ..nets.model import VisionModel
from ..nets.paper import Architecture, build
from ..nets.weights import Provenance, save_weights
from ..nets.zoo import load_model

if TYPE_CHECKING:
    import pandas as pd


SNAPSHOT = re.compile(r"epoch_(\d+)\.safetensors")
STATE, PREVIOUS = "state.safetensors", "state.previous.safetensors"
KEY = "zfkit-run"  # of the state's metadata
# Of the history.
COLUMNS = "epoch lr loss val_loss top1 top5 dominance seconds images_per_second".split()


@dataclass
class State:
    """Where a run stands. `step` counts the batches of the epoch after `epoch` that are done."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0  # of these batches
    seconds: float = 0.0  # that they took
    history: list[dict[str, float]] = field(default_factory=list)
    plateau: dict[str, Any] = field(default_factory=dict)  # the schedule's own state

    @classmethod
    def read(cls, kept: Any) -> State:
        """The state out of a file. Raises TrainingError, naming the first part that cannot be so."""
        names = [f.name for f in fields(cls)]
        if not isinstance(kept, dict) or sorted(kept) != sorted(names):
            raise TrainingError(f"its state must have {', '.join(names)}, not {kept!r:.80}")
        for name in ("epoch", "step"):
            whole_number(kept[name], name, 0, error=TrainingError)
        for name in ("loss_sum", "seconds"):
            number(kept[name], name, error=TrainingError)
        rows = kept["history"]
        whole = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
        if not whole or len(rows) != kept["epoch"]:
            raise TrainingError(
                f"history must have a row for each of {kept['epoch']} epochs, not {rows!r:.50}"
            )
        for row in rows:
            for name in COLUMNS:
                number(row.get(name), f"{name} in the history", error=TrainingError)
        if not isinstance(kept["plateau"], dict):
            raise TrainingError(f"plateau must be a dictionary, not {kept['plateau']!r:.80}")
        return cls(**kept)


class Run:
    """A folder that `fit` wrote, or is writing.

    >>> run = zfkit.Run("runs/zfnet64")
    >>> run.history[["epoch", "loss", "top1"]]
    >>> early = run.model(epoch=2)              # a VisionModel
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        if folder is None:  # in a notebook: as long as the object lives
            scratch = temporary_folder()
            folder = scratch.name
            weakref.finalize(self, scratch.cleanup)
        self.folder = as_path(folder)

    def __repr__(self) -> str:
        epochs = list(self.snapshots)
        kept = f"snapshots of epochs {', '.join(map(str, epochs))}" if epochs else "no snapshot yet"
        return f"Run({str(self.folder)!r}: {kept})"

    @property
    def snapshots(self) -> dict[int, Path]:
        """Epoch -> file, in order. Epoch 0 is before training."""
        paths = (self.folder / "snapshots").glob("epoch_*.safetensors")
        files = {int(match[1]): path for path in paths if (match := SNAPSHOT.fullmatch(path.name))}
        return dict(sorted(files.items()))

    @property
    def history(self) -> pd.DataFrame:
        """One row for each epoch; the columns are described at `fit`. Raises TrainingError where there is none."""
        path = self.folder / "history.parquet"
        if not path.exists():
            raise TrainingError(f"{self.folder} holds no history: no epoch of a training was finished there")
        try:
            return read_table(path, unsealed=True).to_pandas()
        except ZfkitError as error:
            again = "A training that goes on there writes it anew"
            raise TrainingError(f"{self.folder}: {error}. {again}") from None

    def model(self, epoch: int | None = None, device: str | torch.device | None = None) -> VisionModel:
        """The network after this epoch, or at its last snapshot. Raises TrainingError for an epoch not kept."""
        kept = self.snapshots
        if not kept:
            raise TrainingError(f"{self.folder} holds no snapshots; give the folder that a training wrote to")
        epoch = max(kept) if epoch is None else epoch
        if epoch not in kept:
            raise TrainingError(f"epoch {epoch} was not kept; there are: {', '.join(map(str, kept))}")
        return load_model(kept[epoch], device=device)

    def prepare(self, architecture: Architecture, snapshots: int) -> None:
        """Make the folder and see that a run fits into it: snapshots of 2 bytes a weight, two states of 8.

        Raises WriteError for a folder that cannot be written, or a disk too full, and TrainingError where results of a
        training lie that this one would overwrite, because its state is not there to go on from.
        """
        writable_folder(self.folder / "snapshots")
        names = (STATE, PREVIOUS, "model.safetensors", "history.parquet")
        files = [self.folder / name for name in names]
        expect_replaceable(*files)
        results = [file.name for file in (*files[2:], *self.snapshots.values()) if file.exists()]
        if results and not any(file.exists() for file in files[:2]):
            raise TrainingError(
                f"{self.folder} holds {', '.join(results[:3])} of a training, and no state to go on from: move them "
                "away, or give another folder"
            )
        with torch.device("meta"):
            weights = sum(p.numel() for p in build(architecture).parameters())
        replaced = sum(file.stat().st_size for file in self.folder.rglob("*.safetensors"))
        check_room(self.folder / STATE, weights * (2 * (snapshots + 1) + 3 * 8) - replaced)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second training, and take away what a process that was killed left half written."""
        refusal = TrainingError(f"another process is training into {self.folder}: wait, or take another")
        with only_writer(self.folder / ".lock", refusal):
            sweep_away(self.folder / "snapshots")
            yield

    def finish(self, net: nn.Module, provenance: Provenance) -> Path:
        """Write the trained network as `model.safetensors`."""
        return save_weights(self.folder / "model.safetensors", net.state_dict(), provenance)

    def snapshot(self, epoch: int, net: nn.Module, provenance: Provenance) -> Path:
        """Keep the weights (in half precision) after this epoch."""
        path = self.folder / "snapshots" / f"epoch_{epoch:04d}.safetensors"
        return save_weights(path, net.state_dict(), provenance | {"epoch": epoch})

    def write_history(self, history: list[dict[str, float]]) -> None:
        """Write `history.parquet`."""
        import pandas as pd
        import pyarrow as pa

        write_table(self.folder / "history.parquet", pa.Table.from_pandas(pd.DataFrame(history)))

    def save(self, state: State, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
        """Keep a full state; the one before stays as `state.previous` until the next."""
        from safetensors.torch import save_file

        kept = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        metadata = sealed(kept, {KEY: json.dumps({"state": vars(state), "plan": settings})})
        now, before = self.folder / STATE, self.folder / PREVIOUS

        def write(part: Path) -> None:
            save_file(kept, part, metadata)
            if now.exists():
                now.replace(before)  # only now is there something newer

        write_whole(now, write)

    def resume(self) -> tuple[State, dict[str, Tensor], dict[str, Any]] | None:
        """State, tensors and settings of the last whole state, or None in a new folder."""
        failures = []
        for path in (self.folder / STATE, self.folder / PREVIOUS):
            if not path.exists():
                continue
            try:
                tensors, metadata = read_sealed(path)
                kept = json.loads(metadata[KEY])
                state, plan = State.read(kept["state"]), kept["plan"]
                if not isinstance(plan, dict) or not all(isinstance(part, dict) for part in plan.values()):
                    raise TrainingError("its settings are not laid out as a training keeps them")
            except (KeyError, ValueError, TypeError) as error:  # a ZfkitError is a ValueError
                failures.append(f"{path.name} ({' '.join(str(error).split())})")
                continue
            if failures:
                warnings.warn(f"{self.folder}: {failures[0]}; going on from {path.name}", stacklevel=4)
            return state, tensors, plan
        if failures:
            raise TrainingError(
                f"no state in {self.folder} can be read: {', '.join(failures)}; train into another folder"
            )
        return None
