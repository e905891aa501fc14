"""The snapshots of one training: found in a folder or given as networks, read one at a time."""

from __future__ import annotations

import copy
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..checks import as_path
from ..errors import ModelError, ZfkitError
from ..nets.model import VisionModel
from ..nets.weights import load_state, read_provenance
from ..nets.zoo import load_model
from ..training.run import Run

Source = Run | str | Path | Mapping[int, VisionModel] | Sequence[tuple[int, VisionModel]]
Snapshots = dict[int, Path | VisionModel]  # by epoch


def bundled_runs() -> list[Run]:
    """Trainings that come with zfkit, with snapshots and history: one small ZFNet on `textures`, several seeds.

    Made by benchmarks/snapshots.py, which says how they were made small and what that costs.
    """
    folder = Path(str(importlib.resources.files("zfkit"))) / "weights" / "evolution"
    return [Run(path) for path in sorted(folder.glob("seed*"))]


def snapshots_of(source: Source) -> tuple[str, Snapshots]:
    """Name of a training, and its snapshots by epoch, ascending, without reading them.

    Args:
        source: a `Run` or its folder; any folder of .safetensors files, or of .pt or .pth; or networks by epoch. The
            epoch of a file is the last number in its name, or else what its provenance says.

    Raises ZfkitError for a folder without snapshots, with files whose epoch cannot be known, or with two of one epoch.
    """
    if isinstance(source, Run | str | Path):
        folder = source.folder if isinstance(source, Run) else as_path(source)
        return folder.resolve().name, dict(Run(folder).snapshots) or _files(folder)
    snapshots: Snapshots = {}
    for pair in source.items() if isinstance(source, Mapping) else source:
        whole = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[1], VisionModel)
        if not whole or type(pair[0]) is not int:
            raise ZfkitError(f"snapshots must be a folder, a Run or pairs (epoch, VisionModel), not {pair!r}")
        if pair[0] in snapshots:
            raise ZfkitError(f"there are two snapshots of epoch {pair[0]}: leave one out")
        snapshots[pair[0]] = pair[1]
    if not snapshots:
        raise ZfkitError("there are no snapshots to look at: the list is empty")
    return str(next(iter(snapshots.values())).name), dict(sorted(snapshots.items()))


def _files(folder: Path) -> Snapshots:
    """Snapshots of any folder, by epoch."""
    if not folder.is_dir():
        raise ZfkitError(f"there is no folder {str(folder)!r}; check the path")
    # Names that begin with a dot are files that are being written.
    kinds = (".safetensors", ".pt", ".pth")
    places = [(place, kind) for kind in kinds for place in (folder / "snapshots", folder)]
    files = [sorted(place.glob(f"[!.]*{kind}")) for place, kind in places]
    snapshots: Snapshots = {}
    for file in next(filter(None, files), []):
        numbers = re.findall(r"\d+", file.stem)
        try:
            epoch = int(numbers[-1] if numbers else read_provenance(file)["epoch"])
        except (ModelError, KeyError, TypeError, ValueError):
            raise ZfkitError(
                f"the epoch of {file.name} cannot be known: put it into the name, as in epoch_0010.safetensors"
            ) from None
        if epoch in snapshots:
            raise ZfkitError(
                f"{file.name} and {snapshots[epoch].name} in {str(folder)!r} are both of epoch {epoch}: keep one "
                "training in a folder"
            )
        snapshots[epoch] = file
    if not snapshots:
        raise ZfkitError(
            f"{str(folder)!r} holds no snapshots (*{', *'.join(kinds)}): give what zfkit.fit(..., out=FOLDER) wrote"
        )
    return dict(sorted(snapshots.items()))


def load_snapshot(
    epoch: int, snapshot: Path | VisionModel, base: VisionModel | None, device: str | torch.device | None
) -> VisionModel:
    """The network of a snapshot; `base` says which it is where the file does not.

    Raises ModelError for a file that cannot be read, ZfkitError for weights of another network than `base`.
    """
    if isinstance(snapshot, VisionModel):
        return snapshot
    if base is None and snapshot.suffix != ".safetensors":
        raise ZfkitError(
            f"{snapshot.name} does not say which network it belongs to: give it, as in evolution(..., "
            "model=zfkit.wrap_model(net, ...)), or pairs (epoch, model)"
        )
    if base is None:
        return load_model(snapshot, device=device)
    tensors = load_state(snapshot)
    net = copy.deepcopy(base.net)
    expect_same_network(epoch, tensors, net.state_dict(), "the model that was given")
    net.load_state_dict(tensors)
    # A traced network and a fingerprint belong to the weights they were made from: not to be shared.
    return replace(base, net=net.eval(), name=snapshot.stem, _traced=[])


def expect_same_network(
    epoch: int, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], whose: str
) -> None:
    """Raise ZfkitError, with the first tensor whose shape differs, where a snapshot is of another network."""
    shapes, wanted = ({name: tuple(t.shape) for name, t in of.items()} for of in (tensors, expected))
    for name in sorted(shapes | wanted):
        if shapes.get(name) != wanted.get(name):
            raise ZfkitError(
                f"the snapshot of epoch {epoch} is of another network than {whose}: {name} is "
                f"{shapes.get(name, 'not there')} in it and {wanted.get(name, 'not there')} in the other; give "
                "snapshots of one training"
            )
