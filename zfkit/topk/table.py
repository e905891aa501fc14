"""`TopK`: for every feature map, the pictures that excite it most."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks import expect
from ..errors import ImageError, LayerError, ZfkitError
from ..files import write_whole
from ..images.imageset import ImageSet, Windows
from ..nets.model import VisionModel

if TYPE_CHECKING:
    import pandas as pd


FORMAT = 1  # of saved tables


@dataclass(frozen=True)
class LayerTop:
    """The strongest activations of one layer's C feature maps.

    Attributes:
        value: (C, k) float32, descending; -inf where there were fewer than k pictures.
        image: (C, k) int64, place in the image set, -1 where there is none.
        row, col: (C, k) int64, the unit's place in its map.
        max, mean: (C,) float32, over all pictures, of each picture's strongest activation.
        active: (C,) float32, fraction of pictures on which some unit of the map is above 0.
    """

    value: Tensor
    image: Tensor
    row: Tensor
    col: Tensor
    max: Tensor
    mean: Tensor
    active: Tensor


_FIELDS = tuple(LayerTop.__dataclass_fields__)


_RANKED = ("value", "image", "row", "col")  # those of k columns


def _no_table(path: str | Path, error: Exception) -> ZfkitError:
    reason = (str(error).strip().rstrip(".").splitlines() or [type(error).__name__])[0]
    return ZfkitError(
        f"{Path(path).name} is not a table that this version of TopK.save wrote ({reason}); mine again"
    )


@dataclass(frozen=True)
class TopK:
    """For every feature map of every layer that was mined, the k pictures that excite it most.

    Attributes:
        layers: `LayerTop` by layer name.
        k: how many per feature map.
        model: name of the network.
        images: source of the pictures.
        fingerprint: of the image set, so that a table is not used with another one.
        count: number of pictures looked at.
        inside: were units left out that look beyond the picture's border?
        weights: fingerprint of the network's weights, so that a table is not used with others.
    """

    layers: dict[str, LayerTop]
    k: int
    model: str
    images: str
    fingerprint: str
    count: int
    inside: bool = False
    weights: str = ""

    def __repr__(self) -> str:
        maps = sum(len(t.value) for t in self.layers.values())
        return f"TopK({self.model!r} on {self.images!r}: top {self.k} of {self.count:,} for {maps:,} feature maps)"

    def __getitem__(self, layer: str) -> LayerTop:
        if layer not in self.layers:
            raise LayerError(f"layer {layer!r} was not mined; this table has {', '.join(self.layers)}")
        return self.layers[layer]

    def table(self, layer: str | None = None) -> pd.DataFrame:
        """Data frame: layer, channel, rank (0 is the strongest), value, image, row, col.

        One line for each feature map and rank, of one layer or of all; ranks for which there was no picture
        are left out. Raises LayerError for a layer that was not mined.
        """
        import pandas as pd

        parts = []
        for name in [layer] if layer is not None else self.layers:
            top = self[name]
            channel, rank = torch.nonzero(top.image >= 0, as_tuple=True)
            columns = {k: getattr(top, k)[channel, rank].numpy() for k in ("value", "image", "row", "col")}
            parts.append(
                pd.DataFrame({"layer": name, "channel": channel.numpy(), "rank": rank.numpy(), **columns})
            )
        return pd.concat(parts, ignore_index=True)

    def statistics(self, layer: str) -> pd.DataFrame:
        """Data frame by channel: max and mean of the pictures' strongest activations, fraction active."""
        import pandas as pd

        top = self[layer]
        columns = {name: getattr(top, name).numpy() for name in ("max", "mean", "active")}
        return pd.DataFrame(columns).rename_axis("channel")

    def save(self, path: str | Path) -> Path:
        """Write everything to a Parquet file, whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        head = {
            k: getattr(self, k) for k in ("k", "model", "images", "fingerprint", "count", "inside", "weights")
        } | {"format": FORMAT}
        rows: dict[str, list[Any]] = {}
        for layer, top in self.layers.items():
            C = len(top.value)
            rows.setdefault("layer", []).extend([layer] * C)
            rows.setdefault("channel", []).extend(range(C))
            for name in _FIELDS:
                rows.setdefault(name, []).extend(getattr(top, name).tolist())
        single = {
            "value": pa.list_(pa.float32()),
            "max": pa.float32(),
            "mean": pa.float32(),
            "active": pa.float32(),
        }
        whole = {"layer": pa.string(), "channel": pa.int64()}
        kinds = {name: single.get(name) or whole.get(name) or pa.list_(pa.int64()) for name in rows}
        table = pa.table({name: pa.array(values, kinds[name]) for name, values in rows.items()})
        table = table.replace_schema_metadata({"zfkit": json.dumps(head)})
        write_whole(Path(path), lambda part: pq.write_table(table, part))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> TopK:
        """Read a table that `save` wrote. Raises ZfkitError for any other file."""
        import pyarrow.parquet as pq

        if not Path(path).is_file():
            raise ZfkitError(f"there is no file {str(path)!r}; check the path")
        try:
            table = pq.read_table(Path(path))
            head = json.loads((table.schema.metadata or {}).get(b"zfkit", "{}"))
            if head.pop("format", None) != FORMAT:
                raise ValueError("its header does not say so")
            expected = cls.__dataclass_fields__.keys() - {"layers"}
            lacking = expected ^ head.keys() or {"layer", "channel", *_FIELDS} ^ set(table.column_names)
            if lacking:
                raise ValueError(f"{', '.join(sorted(lacking))} missing or unknown")
            kinds = {"k": int, "count": int, "inside": bool}
            wrong = [n for n, v in head.items() if type(v) is not kinds.get(n, str)]
            if wrong or head["k"] < 1 or head["count"] < 1:
                raise ValueError(f"{', '.join(wrong) or 'k or count'} cannot be so")
            columns = table.to_pydict()
            layers: dict[str, LayerTop] = {}
            for layer in dict.fromkeys(columns["layer"]):
                here = [i for i, name in enumerate(columns["layer"]) if name == layer]
                part = {name: [columns[name][i] for i in here] for name in _FIELDS}
                floats = {"value", "max", "mean", "active"}
                tensors = {
                    n: torch.tensor(v, dtype=torch.float32 if n in floats else torch.long)
                    for n, v in part.items()
                }
                layers[layer] = LayerTop(**tensors)
                shapes = {n: tuple(t.shape) for n, t in tensors.items()}
                whole = {n: (len(here), head["k"]) if n in _RANKED else (len(here),) for n in _FIELDS}
                if shapes != whole or [columns["channel"][i] for i in here] != list(range(len(here))):
                    raise ValueError(f"layer {layer!r} is not whole")
            return cls(layers=layers, **head)
        except Exception as error:  # Arrow raises all sorts on damaged files
            raise _no_table(path, error) from None

    @classmethod
    def merge(cls, states: Sequence[str | Path], images: ImageSet) -> TopK:
        """The table of all pictures, out of the states that `mine_share` left; identical to that of one `mine`.

        Args:
            states: the files, one for each share, in any order.
            images: the pictures that were mined.

        Raises ZfkitError for states that are damaged, not finished, of different runs or other pictures, and where
        a share is missing.
        """
        heads, parts = [], []
        for file in states:
            head, tensors = _read_state(Path(file))
            heads.append(head)
            parts.append(tensors)
        if not heads:
            raise ZfkitError("there are no states to merge; name the files that mine_share wrote")
        first = heads[0]
        for file, head in zip(states, heads, strict=True):
            run, other = first["run"], head["run"]
            differ = [
                n for n, v in run.items() if n not in ("batch_size", "from", "to") and other.get(n) != v
            ]
            if differ:
                raise ZfkitError(
                    f"{file} and {states[0]} belong to different runs: {', '.join(differ)} differ; mine them alike"
                )
        if first["run"]["fingerprint"] != images.fingerprint():
            raise ZfkitError(
                f"{states[0]} was mined from {first['images']!r}, not from {images.source!r} as it is now: mine again"
            )
        order = sorted(range(len(heads)), key=lambda i: (heads[i]["run"]["from"], heads[i]["run"]["to"]))
        upto = 0
        for i in order:
            start, stop = heads[i]["run"]["from"], heads[i]["run"]["to"]
            if start != upto:
                what = "are in no share" if start > upto else "are in two shares"
                raise ZfkitError(
                    f"pictures {min(start, upto):,} to {max(start, upto) - 1:,} {what} of "
                    f"{', '.join(map(str, states))}; name one state for each share"
                )
            if heads[i]["next"] < stop:
                raise ZfkitError(
                    f"{states[i]} is not finished: {heads[i]['next'] - start:,} of {stop - start:,} pictures; run its "
                    "share again, which goes on from there"
                )
            upto = stop
        if upto != len(images):
            raise ZfkitError(
                f"pictures {upto:,} to {len(images) - 1:,} are in no share of {', '.join(map(str, states))}; name "
                "one state for each share"
            )
        run = first["run"]
        merged = {}
        for layer in run["layers"]:
            found: _Best | None = None
            for i in order:
                best = _Best(layer, run["k"], run["per_photograph"], images.windows)
                best.load(_of_layer(parts[i], layer))
                if found is None:
                    found = best
                else:
                    found.join(best)
            assert found is not None
            merged[layer] = found
        return _table(
            merged, run["k"], first["model"], images, run["fingerprint"], run["inside"], run["weights"]
        )

    def check(self, model: VisionModel, images: ImageSet) -> None:
        """Raise ZfkitError where this table was made with other pictures or another network."""
        expect_both(model, images)
        if images.fingerprint() != self.fingerprint:
            raise ZfkitError(
                f"this table was mined from {self.images!r} ({self.count} pictures), not from {images.source!r} "
                f"({len(images)}) as it is now: mine again"
            )
        if model.name != self.model:
            raise ZfkitError(f"this table was mined with {self.model!r}, not with {model.name!r}: mine again")
        if self.weights and model.fingerprint() != self.weights:
            raise ZfkitError(
                f"the weights of {model.name!r} have changed since this table was mined: mine again"
            )


def expect_both(model: object, images: object) -> None:
    """Raise ZfkitError for what is no network with its preprocessing, or no set of pictures."""
    expect(
        model,
        VisionModel,
        "the model",
        "as zfkit.load_model or, of your own network, zfkit.wrap_model makes it",
    )
    expect(images, ImageSet, "the pictures", "as zfkit.load_images makes it, of a folder say")


def _table(
    best: dict[str, _Best], k: int, model: str, images: ImageSet, fingerprint: str, inside: bool, weights: str
) -> TopK:
    count = next(iter(best.values())).count
    if not count:
        reason = f": {images.skipped[0].reason}" if images.skipped else ""
        raise ImageError(f"none of the {len(images)} pictures of {images.source!r} can be read{reason}")
    found = {name: b.finish() for name, b in best.items()}
    return TopK(found, k, model, images.source, fingerprint, count, inside, weights)


def _read_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Head and tensors of a checkpoint. Raises ZfkitError for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        if not path.is_file():
            raise ZfkitError(f"there is no checkpoint {str(path)!r}; check the path, or mine that share")
        with safe_open(path, "pt") as file:
            head = json.loads((file.metadata() or {})["zfkit mining"])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        run = head["run"]
        whole = [head["next"], *(run[n] for n in ("from", "to", "k", "per_photograph", "batch_size"))]
        texts = [head["model"], head["images"], *(run[n] for n in ("weights", "fingerprint", "precision"))]
        if not all(type(n) is int for n in whole) or not all(
            isinstance(t, str) for t in (*texts, *run["layers"])
        ):
            raise ValueError("its head is not whole")
        if (
            not 0 <= run["from"] <= head["next"] <= run["to"]
            or type(run["inside"]) is not bool
            or min(whole[3:]) < 1
        ):
            raise ValueError(f"it stands at {head['next']}")
        counts = {_check_state(_of_layer(tensors, layer), run["k"], run["to"]) for layer in run["layers"]}
        if len(counts) != 1 or len(set(run["layers"])) != len(run["layers"]):
            raise ValueError("its layers are not whole")
    except ZfkitError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise ZfkitError(f"{path} is no checkpoint of mine ({error}); delete it to start again") from None
    return head, tensors


def _check_state(state: dict[str, Tensor], k: int, stop: int) -> int:
    """How many pictures the state of a layer tells of. Raises ValueError or KeyError where it is not whole."""
    if not state:
        return 0
    C = state["max"].shape[0]
    shapes = dict.fromkeys(("value", "image", "place"), (C, k)) | dict.fromkeys(
        ("max", "sum", "active"), (C,)
    )
    kinds = {"value": torch.float32, "max": torch.float32, "sum": torch.float64}
    for name, shape in (shapes | {"numbers": (5,)}).items():
        if state[name].shape != shape or state[name].dtype != kinds.get(name, torch.int64):
            raise ValueError(f"{name} is {tuple(state[name].shape)} {state[name].dtype}")
    count, width, *places = state["numbers"].tolist()
    if not 1 <= count <= stop or width < 1 or min(places) < 0:
        raise ValueError(f"its numbers are {state['numbers'].tolist()}")
    for name in ("image", *(n for n in ("pending1", "head1") if n in state)):
        if not ((state[name] >= -1) & (state[name] < stop)).all():
            raise ValueError(f"{name} names pictures that it has not seen")
    return int(count)


def _of_layer(tensors: dict[str, Tensor], layer: str) -> dict[str, Tensor]:
    prefix = f"{layer}|"
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


_Candidates = tuple[Tensor, Tensor, Tensor]  # value (n, C), image (n,), place (n, C)


def _stack(a: _Candidates, b: _Candidates) -> _Candidates:
    return torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]]), torch.cat([a[2], b[2]])


class _Best:
    """The k best pictures of each map of one layer so far."""

    def __init__(
        self, layer: str, k: int, per_photograph: int, windows: Windows | None, start: int = 0
    ) -> None:
        self.layer, self.k, self.per_photograph, self.windows, self.start = (
            layer,
            k,
            per_photograph,
            windows,
            start,
        )
        self.device = torch.device("cpu")
        self.count = 0
        self.inside = slice(0, None), slice(0, None)  # the rows and columns that count
        self.width = 1  # of the part of the maps that counts, to tell row and column from a place
        self.value: Tensor  # (C, k) descending
        self.image: Tensor  # (C, k)
        self.place: Tensor  # (C, k) row * width + column
        self.max: Tensor  # (C,)
        self.sum: Tensor  # (C,) float64
        self.active: Tensor  # (C,) pictures
        # Candidates (n, C) of the photograph being looked at, and of one that began in the share before.
        self.pending: _Candidates | None = None
        self.head: _Candidates | None = None

    def look(self, output: Tensor, index: Tensor) -> None:
        """Take in a batch: output (N, C, H, W) or (N, F), and the pictures' places in the set."""
        if output.dim() == 2:
            output = output[:, :, None, None]
        if output.dim() != 4:
            raise LayerError(
                f"{self.layer!r} has outputs of shape {tuple(output.shape)}, so it has no feature maps"
            )
        output = output[:, :, self.inside[0], self.inside[1]]
        strongest = output.amax((2, 3)).float()  # (N, C)
        if not torch.isfinite(strongest).all():
            first = int(index[(~torch.isfinite(strongest)).any(1).cpu()][0])
            raise ZfkitError(
                f"activations of {self.layer!r} on picture {first} are not finite: check the weights"
            )
        if not self.count:
            self._clear(output.shape[1], output.shape[3], output.device)
        self.count += len(index)
        self.max = torch.maximum(self.max, strongest.amax(0))
        self.sum += strongest.sum(0, dtype=torch.float64)
        self.active += (strongest > 0).sum(0)
        # Where the maximum is matters only to pictures that can still get in.
        candidate = strongest > self.value[:, -1]
        if self.windows is None:
            among = torch.cat([self.value, strongest.T], 1)
            candidate &= strongest >= among.topk(self.k).values[:, -1]
        strongest = strongest.masked_fill(~candidate, -torch.inf)
        index = index.to(output.device)
        if self.windows is None:
            place = _locate(output, candidate)
            self._merge(strongest, index[:, None].expand_as(strongest), place)
            return
        *ended, last = _runs(self.windows.photograph[index.cpu()])
        for group in ended:  # photographs that end in this batch: locate what is chosen of them
            if self._began_before(index[group]):
                self._take((strongest[group], index[group], _locate(output[group], candidate[group])))
            else:
                self._take(
                    (
                        strongest[group],
                        index[group],
                        torch.full_like(candidate[group], UNKNOWN, dtype=torch.long),
                    )
                )
                self._finish_photograph(output[group])
        self._take((strongest[last], index[last], _locate(output[last], candidate[last])))

    def _began_before(self, index: Tensor) -> bool:
        """Is this the photograph whose first windows are in another process's share?"""
        assert self.windows is not None
        photograph = self.windows.photograph
        return self.start > 0 and bool(photograph[int(index[0])] == photograph[self.start - 1])

    def _take(self, more: _Candidates) -> None:
        """Candidates of one photograph: more of the one being looked at, or the first of the next."""
        if self.pending and self._photograph(self.pending) != self._photograph(more):
            self._finish_photograph()
        self.pending = _stack(self.pending, more) if self.pending else more

    def finish(self) -> LayerTop:
        """The result."""
        self._finish_photograph()
        missing = self.value == -torch.inf
        place = self.place.masked_fill(missing, 0)
        return LayerTop(
            value=self.value.cpu(),
            image=self.image.masked_fill(missing, -1).cpu(),
            row=(place // self.width).cpu() + self.inside[0].start,
            col=(place % self.width).cpu() + self.inside[1].start,
            max=self.max.cpu(),
            mean=(self.sum / self.count).float().cpu(),
            active=(self.active / self.count).float().cpu(),
        )

    def _clear(self, maps: int, width: int, device: torch.device) -> None:
        self.width = width
        self.value = torch.full((maps, self.k), -torch.inf, device=device)
        self.image = torch.full((maps, self.k), -1, device=device)
        self.place = torch.zeros((maps, self.k), dtype=torch.long, device=device)
        self.max = torch.full((maps,), -torch.inf, device=device)
        self.sum = torch.zeros(maps, dtype=torch.float64, device=device)
        self.active = torch.zeros(maps, dtype=torch.long, device=device)

    def _merge(self, value: Tensor, image: Tensor, place: Tensor) -> None:
        """Candidates (n, C), in the order of their pictures, into the k best; of equals the earlier stays."""
        changed = torch.nonzero((value > self.value[:, -1]).any(0))[:, 0]
        if not len(changed):
            return
        parts = [
            torch.cat([old[changed], new[:, changed].T], 1)
            for old, new in ((self.value, value), (self.image, image), (self.place, place))
        ]
        order = parts[0].sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        self.value[changed], self.image[changed], self.place[changed] = (p.gather(1, order) for p in parts)

    def _photograph(self, candidates: _Candidates) -> int:
        assert self.windows is not None
        return int(self.windows.photograph[int(candidates[1][0])])

    def _finish_photograph(self, output: Tensor | None = None) -> None:
        """Of the photograph's windows keep, for each map, the strongest that do not overlap.

        `output` holds the maps of its last windows, those that were not located yet.
        """
        if not self.pending or self.windows is None:
            return
        ended, self.pending = self.pending, None
        value, index, place = ended
        if self._began_before(index):
            self.head = ended
            return
        overlap = self.windows.overlap(index.cpu()).to(value.device)
        chosen = []
        for _ in range(min(self.per_photograph, len(value))):
            pick = value.argmax(0, keepdim=True)  # the first of equals
            chosen.append(
                [t.gather(0, pick) for t in (value, index[:, None].expand_as(value), place, _rows(value))]
            )
            value = value.masked_fill(overlap[pick[0]].T, -torch.inf)
        value, image, place, row = (torch.cat(parts) for parts in zip(*chosen, strict=True))
        if output is not None:
            i, c = torch.nonzero((place == UNKNOWN) & (value > -torch.inf), as_tuple=True)
            place[i, c] = _first_maximum(output, row[i, c] - (len(index) - len(output)), c)
        self._merge(value, image, place)

    def join(self, later: _Best) -> None:
        """Take in what was found in the share that follows this one."""
        if not later.count:
            return
        if not self.count:
            self._clear(len(later.value), later.width, later.value.device)
            self.inside = later.inside
        if later.head:
            self._take(later.head)
        if (
            later.pending
            and self.pending
            and self._photograph(later.pending) != self._photograph(self.pending)
        ):
            self._finish_photograph()
        if (later.value > -torch.inf).any():
            self._finish_photograph()
            self._merge(later.value.T, later.image.T, later.place.T)
        if later.pending:
            self._take(later.pending)
        self.count += later.count
        self.max = torch.maximum(self.max, later.max)
        self.sum += later.sum
        self.active += later.active

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors on the CPU."""
        if not self.count:
            return {}
        tensors = {
            name: getattr(self, name).cpu() for name in ("value", "image", "place", "max", "sum", "active")
        }
        for name in ("pending", "head"):
            for i, t in enumerate(getattr(self, name) or ()):
                tensors[f"{name}{i}"] = t.cpu()
        corner = [s.start for s in self.inside]
        return tensors | {"numbers": torch.tensor([self.count, self.width, self.start, *corner])}

    def load(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        if not state:
            return
        self.count, self.width, self.start, *corner = state["numbers"].tolist()
        if [s.start for s in self.inside] != corner:
            self.inside = slice(corner[0], None), slice(corner[1], None)
        for name in ("value", "image", "place", "max", "sum", "active"):
            setattr(self, name, state[name].to(self.device))
        for name in ("pending", "head"):
            if f"{name}0" in state:
                setattr(self, name, tuple(state[f"{name}{i}"].to(self.device) for i in range(3)))

    def copy(self) -> _Best:
        """Another with the same content, which may go its own way."""
        other = copy.copy(self)  # candidates are replaced, never changed in place
        if self.count:
            for name in ("value", "image", "place", "max", "sum", "active"):
                setattr(other, name, getattr(self, name).clone())
        return other

    def like(self, state: dict[str, Tensor]) -> _Best:
        """Another of the same kind, with this state."""
        other = _Best(self.layer, self.k, self.per_photograph, self.windows)
        other.inside = self.inside
        other.load(state)
        return other


UNKNOWN = -1  # place of a maximum that is looked for only if it is needed


def _locate(output: Tensor, candidate: Tensor) -> Tensor:
    """(N, C) places of the maxima of those maps that are candidates; UNKNOWN for the others."""
    place = torch.full_like(candidate, UNKNOWN, dtype=torch.long)
    n, c = torch.nonzero(candidate, as_tuple=True)
    place[n, c] = _first_maximum(output, n, c)
    return place


def _rows(value: Tensor) -> Tensor:
    return torch.arange(len(value), device=value.device)[:, None].expand_as(value)


def _first_maximum(output: Tensor, n: Tensor, c: Tensor) -> Tensor:
    """Place (row * width + column) of the maximum of maps output[n, c]; of equals, the first."""
    parts = torch.arange(len(n), device=n.device).split(4096)  # a bounded copy
    places = [
        output[n[part], c[part]].flatten(1).argmax(1) for part in parts
    ]  # of equals, torch takes the first
    return torch.cat(places) if places else n


def _runs(values: Tensor) -> list[slice]:
    """Slices over which a tensor is constant."""
    ends = (torch.nonzero(values[1:] != values[:-1])[:, 0] + 1).tolist()
    return [slice(a, b) for a, b in zip([0, *ends], [*ends, len(values)], strict=True) if b > a]
