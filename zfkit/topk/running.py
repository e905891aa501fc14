"""`RunningTop`: the strongest pictures of each feature map of one layer, as pictures go by."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import LayerError
from ..images.imageset import Windows
from .table import LayerTop

UNKNOWN = -1  # place of a maximum that is looked for only if it is needed


class Candidates(NamedTuple):
    """Windows of one photograph that may be among the k best of some maps."""

    value: Tensor  # (n, C), -inf where a map has better ones already
    image: Tensor  # (n,) places in the set
    place: Tensor  # (n, C) row * width + column, or UNKNOWN


class RunningTop:
    """The k strongest pictures of each of a layer's C feature maps, among the pictures seen so far.

    `add` takes in one batch after the other, in the set's order; `result` gives the table. Memory does not grow with
    the number of pictures: it is k candidates for each map, and three statistics.

    A picture counts once for each map, with the map's strongest unit. Where pictures are windows cut from larger
    photographs, the nine best might show one spot nine times. So of a photograph's windows at most `per_photograph`
    count, the strongest that do not overlap. Which these are is known when the last of them was seen; until then
    they are `waiting`.
    """

    STATE = ("value", "image", "place", "max", "sum", "active")  # tensors that `add` changes

    def __init__(
        self, layer: str, k: int, per_photograph: int, windows: Windows | None, inside: tuple[slice, slice]
    ) -> None:
        self.layer, self.k, self.per_photograph, self.windows = layer, k, per_photograph, windows
        self.inside = inside  # the rows and columns of units that count
        self.count = 0  # pictures
        self.width = 1  # of the part of the maps that counts
        self.size = (1, 1)  # of the maps: height, width
        self.value: Tensor  # (C, k) descending
        self.image: Tensor  # (C, k)
        self.place: Tensor  # (C, k) row * width + column
        self.max: Tensor  # (C,) of the pictures' strongest activations
        self.sum: Tensor  # (C,) float64, of the same
        self.active: Tensor  # (C,) int64, pictures on which some unit of the map is above 0
        self.waiting: Candidates | None = None

    def add(self, output: Tensor, index: Tensor) -> None:
        """Take in a batch: the layer's output (N, C, H, W) or (N, F), and the pictures' places in the set (N,).

        Raises LayerError for outputs that are no feature maps.
        """
        if output.dim() == 2:
            output = output[:, :, None, None]
        if output.dim() != 4:
            raise LayerError(f"{self.layer!r} has outputs of shape {tuple(output.shape)}, no feature maps")
        size = (output.shape[2], output.shape[3])
        output = output[:, :, self.inside[0], self.inside[1]]
        strongest = output.amax((2, 3)).float()  # (N, C)
        if not self.count:
            self._begin(output.shape[1], output.shape[3], output.device)
            self.size = size
        self.count += len(index)
        self.max = torch.maximum(self.max, strongest.amax(0))
        self.sum += strongest.sum(0, dtype=torch.float64)
        self.active += (strongest > 0).sum(0)
        # Where a maximum is matters only to pictures that can still get in; to look for it takes as long again.
        candidate = strongest > self.value[:, -1]
        if self.windows is None:
            among = torch.cat([self.value, strongest.T], 1)
            candidate &= strongest >= among.topk(self.k).values[:, -1]
        strongest = strongest.masked_fill(~candidate, -torch.inf)
        index = index.to(output.device)
        if self.windows is None:
            self._insert(strongest, index[:, None].expand_as(strongest), _locate(output, candidate))
            return
        *ended, last = _runs(self.windows.photograph[index.cpu()])
        for group in ended:  # photographs that end in this batch: only what is chosen of them is located
            unknown = torch.full_like(candidate[group], UNKNOWN, dtype=torch.long)
            self._wait(Candidates(strongest[group], index[group], unknown))
            self._choose_windows(output[group])
        self._wait(Candidates(strongest[last], index[last], _locate(output[last], candidate[last])))

    def result(self) -> LayerTop:
        """The table of all pictures added, on the CPU, with `mean` and `active` in double precision."""
        self._choose_windows()
        missing = self.value == -torch.inf
        place = self.place.masked_fill(missing, 0)
        return LayerTop(
            value=self.value.cpu(),
            image=self.image.masked_fill(missing, -1).cpu(),
            row=(place // self.width).cpu() + self.inside[0].start,
            col=(place % self.width).cpu() + self.inside[1].start,
            max=self.max.cpu(),
            mean=(self.sum / self.count).cpu(),
            active=(self.active.double() / self.count).cpu(),
        )

    def copy(self) -> RunningTop:
        """An independent copy."""
        other = copy.copy(self)  # what is waiting is replaced, never changed in place
        for name in self.STATE if self.count else ():
            setattr(other, name, getattr(self, name).clone())
        return other

    def state(self) -> dict[str, Tensor]:
        """Everything that was added, as tensors on the CPU; nothing before the first batch."""
        if not self.count:
            return {}
        waiting = {f"waiting {name}": t for name, t in self.waiting._asdict().items()} if self.waiting else {}
        tensors = {name: getattr(self, name) for name in self.STATE} | waiting
        numbers = torch.tensor([self.count, self.width, *self.size])
        return {n: t.cpu().contiguous() for n, t in tensors.items()} | {"numbers": numbers}

    def restore(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Go on from what `state` gave."""
        if not state:
            return
        self.count, self.width, *size = state["numbers"].tolist()
        self.size = (size[0], size[1])
        for name in self.STATE:
            setattr(self, name, state[name].to(device))
        if "waiting value" in state:
            self.waiting = Candidates(*(state[f"waiting {n}"].to(device) for n in Candidates._fields))

    def _begin(self, maps: int, width: int, device: torch.device) -> None:
        self.width = width
        self.value = torch.full((maps, self.k), -torch.inf, device=device)
        self.image = torch.full((maps, self.k), -1, device=device)
        self.place = torch.zeros((maps, self.k), dtype=torch.long, device=device)
        self.max = torch.full((maps,), -torch.inf, device=device)
        self.sum = torch.zeros(maps, dtype=torch.float64, device=device)
        self.active = torch.zeros(maps, dtype=torch.long, device=device)

    def _insert(self, value: Tensor, image: Tensor, place: Tensor) -> None:
        """Merge pictures (n, C), in the set's order, into the k best; of equals the earlier stays."""
        changed = torch.nonzero((value > self.value[:, -1]).any(0))[:, 0]
        if not len(changed):
            return
        parts = [
            torch.cat([old[changed], new[:, changed].T], 1)
            for old, new in ((self.value, value), (self.image, image), (self.place, place))
        ]
        order = parts[0].sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        self.value[changed], self.image[changed], self.place[changed] = (p.gather(1, order) for p in parts)

    def _wait(self, more: Candidates) -> None:
        """Windows of one photograph: more of that whose windows are waiting, or the first of the next."""
        assert self.windows is not None
        if self.waiting:
            photograph, next_photograph = self.windows.photograph[
                [int(self.waiting.image[0]), int(more.image[0])]
            ]
            if photograph == next_photograph:
                more = Candidates(*(torch.cat(pair) for pair in zip(self.waiting, more, strict=True)))
            else:
                self._choose_windows()
        self.waiting = more

    def _choose_windows(self, output: Tensor | None = None) -> None:
        """The photograph is complete: of its windows keep, for each map, the strongest that do not overlap.

        `output` holds the maps of its last windows, in which maxima were not located yet.
        """
        if not self.waiting or self.windows is None:
            return
        (value, image, place), self.waiting = self.waiting, None
        overlap = self.windows.overlap(image.cpu()).to(value.device)  # (n, n)
        picks = []
        for _ in range(min(self.per_photograph, len(value))):
            pick = value.argmax(0, keepdim=True)  # (1, C), the first of equals
            picks.append((value.gather(0, pick), pick))
            value = value.masked_fill(overlap[pick[0]].T, -torch.inf)
        value, pick = (torch.cat(rows) for rows in zip(*picks, strict=True))  # (picks, C)
        place = place.gather(0, pick)
        if output is not None:
            i, c = torch.nonzero((place == UNKNOWN) & (value > -torch.inf), as_tuple=True)
            place[i, c] = _first_maximum(output, pick[i, c] - (len(image) - len(output)), c)
        self._insert(value, image[pick], place)


def _locate(output: Tensor, candidate: Tensor) -> Tensor:
    """(N, C) places of the maxima of those maps that are candidates; UNKNOWN for the others."""
    place = torch.full_like(candidate, UNKNOWN, dtype=torch.long)
    n, c = torch.nonzero(candidate, as_tuple=True)
    place[n, c] = _first_maximum(output, n, c)
    return place


def _first_maximum(output: Tensor, n: Tensor, c: Tensor) -> Tensor:
    """Place (row * width + column) of the maximum of maps output[n, c]; of equals, the first, as torch's argmax."""
    parts = torch.arange(len(n), device=n.device).split(4096)  # a bounded copy
    places = [output[n[part], c[part]].flatten(1).argmax(1) for part in parts]
    return torch.cat(places) if places else n


def _runs(values: Tensor) -> list[slice]:
    """Slices over which a tensor is constant."""
    ends = (torch.nonzero(values[1:] != values[:-1])[:, 0] + 1).tolist()
    return [slice(a, b) for a, b in zip([0, *ends], [*ends, len(values)], strict=True) if b > a]
