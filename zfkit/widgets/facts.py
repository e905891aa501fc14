"""What is known of feature maps beside their pictures: names, numbers, warnings, and the order they stand in.

`Facts` computes it; nothing here knows of widgets. Two things take a while and are measured a layer at a time, when
they are asked for, and kept on disk: every map's maximum in each picture (`measure`), and its mean frequency
(`measure_frequency`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..batching import OnStep
from ..deconv.receptive_field import Field, field_in, units_inside, window_in
from ..deconv.rules import Options, Rule
from ..errors import ImageError, LayerError
from ..figures.pictures import number
from ..frequency import mean_frequency
from ..health.maps import MapWarning, map_warnings
from ..images.imageset import ImageSet
from ..nets.activations import activations
from ..nets.model import VisionModel
from ..topk.bundled import reach, reach_or_share, reached, records
from ..topk.frame import Frame
from ..topk.patches import notes_on, project_many, project_top
from ..topk.profile import Profile, label_of, labels_of
from ..topk.table import TopK
from .kept import Kept
from .state import State

SHOWN = 9  # pictures of each map
PROFILED = 400  # pictures at most in a `Profile`
BINS = 24  # of a map's histogram
LARGE = 96  # px; windows of at most that are shown whole
PROBED = 6  # maps whose strongest projections say how much of them is filled
LABELS = 4  # of a map that are listed
FACES = 5  # pictures below the histogram, from the weakest to the strongest


class Facts:
    """What is known of the maps of a network: of `model`, from `photos` and the table `top`.

    Attributes:
        fields: receptive field by layer.
        shown: pictures of each map: 9, or fewer where fewer were mined.
        profiles: `Profile` by layer, as far as `measure` was called.
        frequencies: mean frequency in cycles/px of each map, (C,), by layer, as far as `measure_frequency` was called.
        picture: one of your own, uint8 (3, S, S), or None; `look_at` sets it.
        answers: (C,) each map's maximum in it, by layer, as far as `measure_order` was asked for them.
    """

    def __init__(self, model: VisionModel, photos: ImageSet, top: TopK, layers: tuple[str, ...]) -> None:
        self.model, self.photos, self.top = model, photos, top
        self.fields = {name: Field(*field_in(model, photos.size, name)) for name in layers}
        self.shown = max(1, min(SHOWN, top.k))
        self.profiles: dict[str, Profile] = {}
        self.frequencies: dict[str, np.ndarray] = {}
        self.picture: Tensor | None = None
        self.answers: dict[str, np.ndarray] = {}
        self.kept = Kept(model, photos, top)
        self._notes: dict[str, str] = {}
        self._frames: dict[tuple[str, Rule], Frame] = {}
        self._warned: dict[str, list[list[MapWarning]]] = {}
        # What `measure` did before it was cancelled: pictures looked at, their maxima by layer, and places.
        self._measured: tuple[int, dict[str, np.ndarray], list[int]] | None = None

    # ------------------------------------------------------------------------------------ names of pictures

    @property
    def source(self) -> str:
        """Where the pictures come from, in a few letters: of a path only what it ends with."""
        kind, colon, rest = self.photos.source.partition(":")
        paths = kind in ("folder", "parquet") and colon
        return f"{kind} {Path(rest).expanduser().absolute().name or rest}" if paths else self.photos.source

    def label(self, i: int) -> str:
        """Class of picture i, or the photograph it was cut from; "" where neither is known."""
        return label_of(self.photos, i)

    def about(self, i: int) -> str:
        """Name of picture i, and its class where it has one."""
        name, label = self.photos.name(i), self.label(i)
        return f"{name} ({label})" if label and label not in name else name

    def short(self, i: int) -> str:
        """A few letters for picture i."""
        name = self.photos.name(i)
        name = name.split(" (")[0] if self.photos.windows is not None else self.label(i) or Path(name).name
        return name if len(name) <= 18 else name[:17] + "…"

    # -------------------------------------------------------------------------------------- order of the maps

    def order(self, state: State) -> np.ndarray:
        """Channels in the state's order, as on the strip; found by its search, if it has one.

        An order that has not been measured yet (see `lacks`) gives the index. A search without result gives no
        channel.
        """
        layer, t = state.layer, self.top[state.layer]
        if state.search.strip():
            wanted, shown = state.search.strip().lower(), t.image.unique().tolist()
            places = [i for i in shown if i >= 0 and wanted in self.about(i).lower()]
            hits = torch.isin(t.image, torch.tensor(places, dtype=torch.long)).sum(1).numpy()
            channels = np.flatnonzero(hits)
            return channels[np.argsort(-hits[channels], kind="stable")]
        key: np.ndarray = np.arange(len(t.value))
        if state.order == "max activation":
            key = -t.max.numpy()
        elif state.order == "dead first":
            key = t.active.numpy() + 1e-6 * t.max.numpy() / max(float(t.max.max()), 1e-9)
        elif state.order == "selectivity" and layer in self.profiles:
            key = -self.profiles[layer].selectivity[0]
        elif state.order == "mean frequency" and layer in self.frequencies:
            key = np.nan_to_num(self.frequencies[layer], nan=np.inf)
        elif state.order == "your picture" and layer in self.answers:
            key = -self.answers[layer]
        return np.argsort(key, kind="stable")

    def lacks(self, state: State) -> bool:
        """Has what the order needs to be measured first?"""
        by_order: dict[str, Mapping[str, Any]] = {
            "selectivity": self.profiles,
            "mean frequency": self.frequencies,
            "your picture": {state.layer: None} if self.picture is None else self.answers,
        }
        measured = by_order.get(state.order)
        return measured is not None and state.layer not in measured and not state.search.strip()

    def measure_order(self, state: State, on_step: OnStep | None = None) -> None:
        """Measure what the state's order needs."""
        if not self.lacks(state):
            return
        if state.order == "your picture":
            assert self.picture is not None
            output = next(y for _, y in activations(self.model, self.picture[None], [state.layer]))[0]
            self.answers[state.layer] = _strongest(output, None)
        else:
            measure = self.measure if state.order == "selectivity" else self.measure_frequency
            measure(state.layer, on_step)

    def look_at(self, picture: Tensor | None) -> None:
        """Take a picture of your own for the order of that name."""
        if picture is not self.picture:
            self.picture, self.answers = picture, {}

    def heights(self, state: State) -> tuple[list[float], list[int]]:
        """Of the bars on the strip, 0 to 1: the maps' maxima, or in your picture, if it sorts them; and who is dead."""
        largest = self.top[state.layer].max.clamp(min=0)
        dead = (largest <= 0).nonzero()[:, 0].tolist()
        if state.order == "your picture" and state.layer in self.answers:
            largest = torch.from_numpy(self.answers[state.layer]).clamp(min=0)
        return (largest / largest.max().clamp(min=1e-30)).sqrt().round(decimals=3).tolist(), dead

    # ------------------------------------------------------------------------------------------ measuring

    def measure(self, layer: str, on_step: OnStep | None = None) -> None:
        """Fill in `profiles`, for all layers at once, as the pass to the last of them goes through the others anyway.

        By a forward pass of each picture, of at most 400, evenly spread. After `on_step` cancelled it, it goes on where
        it was. Raises ImageError where no picture can be read.
        """
        if layer in self.profiles or self._read_profile(layer):
            return
        wanted = [name for name in self.fields if name not in self.profiles and not self._read_profile(name)]
        n = min(len(self.photos), PROFILED)
        if self._measured is None or set(self._measured[1]) != set(wanted):
            # Arrays from the start: small ones, kept one by one between large ones that are freed, hold memory.
            arrays = {name: np.empty((n, len(self.top[name].max)), np.float32) for name in wanted}
            self._measured = 0, arrays, []
        seen, values, places = self._measured
        inside = {
            name: units_inside(self.model, name, self.photos.size) if self.top.inside else None
            for name in wanted
        }
        for count in range(seen, n):
            i = count * len(self.photos) // n
            with suppress(ImageError):  # one that cannot be read is left out
                for name, output in activations(self.model, self.photos.take([i]), wanted):
                    values[name][len(places)] = _strongest(output[0], inside[name])
                places.append(i)
            self._measured = count + 1, values, places
            if on_step:
                on_step(count + 1, n)
        if not places:
            raise ImageError(f"none of the pictures of {self.photos.source!r} can be read")
        self._measured = None
        for name in wanted:
            found = values[name][: len(places)]
            self._take_profile(name, found, places)
            content = {"values": torch.from_numpy(found), "places": torch.tensor(places)}
            self.kept.save(name, "profile", content)

    def _take_profile(self, layer: str, values: np.ndarray, places: list[int]) -> None:
        labels, kind = labels_of(self.photos, places)
        self.profiles[layer] = Profile(values, np.array(places), labels, kind)

    def _read_profile(self, layer: str) -> bool:
        """Take the profile that was kept on disk, if there is one of this layer's shape."""
        kept, _ = self.kept.load(layer, "profile") or ({}, {})
        values, places = kept.get("values"), kept.get("places")
        C = len(self.top[layer].max)
        if values is None or places is None or values.shape != (len(places), C) or not len(places):
            return False
        self._take_profile(layer, values.float().numpy(), places.tolist())
        return True

    def measure_frequency(self, layer: str, on_step: OnStep | None = None) -> None:
        """Fill in `frequencies[layer]`: the mean frequency of each map's three strongest projections."""
        if layer in self.frequencies:
            return
        C, means = len(self.top[layer].value), []
        kept, _ = self.kept.load(layer, "frequencies") or ({}, {})
        if "means" in kept and kept["means"].shape == (C,):
            self.frequencies[layer] = kept["means"].numpy()
            return
        for start in range(0, C, 8):
            chosen = list(range(start, min(start + 8, C)))
            p = project_top(
                self.model, self.photos, self.top, layer, chosen, k=min(3, self.shown), progress=False
            )
            means.append(mean_frequency(p.projection.flatten(0, 1)).view(len(chosen), -1).nanmean(1))
            if on_step:
                on_step(chosen[-1] + 1, C)
        self.frequencies[layer] = torch.cat(means).numpy()
        self.kept.save(layer, "frequencies", {"means": torch.cat(means)})

    def some_alive(self, layer: str, count: int) -> Tensor:
        """So many of a layer's maps that something excites, evenly spread."""
        live = (self.top[layer].max > 0).nonzero()[:, 0]
        return live[torch.linspace(0, len(live) - 1, min(count, len(live))).long()]

    def frame(self, layer: str, rule: Rule) -> Frame | None:
        """The part of large windows that a layer's projections fill, which is shown of them; None for whole windows."""
        if self._is_whole(layer):
            return None
        if (layer, rule) not in self._frames:
            kept, words = self.kept.load(layer, f"frame-{rule}") or ({}, {})
            if "size" in kept and "factor" in words:
                frame = Frame((int(kept["size"][0]), int(kept["size"][1])), float(words["factor"]))
            else:
                some = {layer: self.some_alive(layer, PROBED)}
                try:
                    p = project_many(self.model, self.photos, self.top, some, k=1, options=Options(rule))
                except LayerError:  # it has patches alone
                    return None
                frame = Frame.of(p[layer])
                size, factor = torch.tensor(frame.size), repr(frame.factor)
                self.kept.save(layer, f"frame-{rule}", {"size": size}, {"factor": factor})
            self._frames[layer, rule] = frame
        frame = self._frames[layer, rule]
        return frame if frame.factor > 1 else None

    def _is_whole(self, layer: str) -> bool:
        window = max(axis.size for axis in window_in(self.model, self.photos.size, layer))
        return window <= LARGE or not bool((self.top[layer].max > 0).any())

    def knows_frame(self, layer: str, rule: Rule) -> bool:
        """Does `frame` answer without projecting anything?"""
        return (layer, rule) in self._frames or self._is_whole(layer)

    # ---------------------------------------------------------------------------------------------- words

    def notes(self, layer: str) -> str:
        """What has to be said beside projections of a layer; kept, since every move asks for it."""
        if layer not in self._notes:
            with suppress(LayerError):  # it cannot be projected, which is said where projections would be
                self._notes[layer] = "".join(f" {note}" for note in notes_on(self.model, layer))
        return self._notes.get(layer, "")

    def sees(self, layer: str) -> str:
        """How much of the picture a unit of the layer sees."""
        field = self.fields[layer]
        return f"{field.size} px" if field.stride else "the whole picture"

    def of_map(self, layer: str, c: int) -> dict[str, Any]:
        """What is known of a map, as far as it is measured: numbers and words, for the page to lay out."""
        t, share = self.top[layer], reach(self.model, self.top, layer)
        record = "" if share is None else reached(float(share[c]))
        words = (
            f"Strongest {number(t.max[c])}; above 0 on {float(t.active[c]):.0%} of {self.top.count:,} pictures. "
            + (f"{record[0].upper()}{record[1:]}. " if record else "")
            + f"Units see {self.sees(layer)}."
        )
        if layer in self.frequencies:
            words += f" Projections of {self.frequencies[layer][c]:.2f} cycles/px."
        known: dict[str, Any] = {"words": words, "warnings": [list(w) for w in self.warnings(layer)[c]]}
        if profile := self.profiles.get(layer):
            values = profile.values[:, c]
            low, high = min(0.0, float(values.min())), float(values.max())
            counts, edges = np.histogram(values, BINS, (low, high if high > low else low + 1))
            known["histogram"] = {
                "counts": counts.tolist(), "low": float(edges[0]), "high": float(edges[-1]), "measured": len(values),
                "shown": float(t.value[c, self.shown - 1]), "active": float((values > 0).mean()),
                "faces": [[float(values[i]), self.short(int(profile.image[i]))] for i in self._spread(profile, c)],
            }  # fmt: skip
            known["near"] = [[n, round(r, 2)] for n, r in profile.nearest(c)]
            counted, looked = profile.top_labels(c)
            if profile.kind and looked:
                selectivity, names = profile.selectivity
                known["labels"] = {
                    "kind": profile.kind, "of": looked, "rows": counted[:LABELS], "all": len(counted),
                    "selectivity": round(float(selectivity[c]), 2), "favourite": str(names[c]),
                }  # fmt: skip
        return known

    def points(self, on_step: OnStep | None = None) -> dict[str, Any]:
        """All maps of all layers, as lists for each: reach, selectivity, and the share of pictures that excite them.

        Reach is None for a map without a record, selectivity where the pictures have no classes.
        """
        found = []
        for layer in self.fields:
            self.measure(layer, on_step)
            profile, share = self.profiles[layer], reach_or_share(self.model, self.top, layer)
            found.append({
                "layer": layer, "reach": [None if v != v else round(v, 4) for v in share.tolist()],
                "active": self.top[layer].active.double().round(decimals=4).tolist(),
                "selectivity": profile.selectivity[0].round(4).tolist() if profile.kind else None,
            })  # fmt: skip
        return {"layers": found, "recorded": bool(records(self.model))}

    def faces(self, layer: str, c: int) -> list[int]:
        """The pictures below the histogram, from the one that the map answers to least to its strongest."""
        profile = self.profiles[layer]
        return [int(profile.image[i]) for i in self._spread(profile, c)]

    def _spread(self, profile: Profile, c: int) -> list[int]:
        """Rows of a profile, evenly spread over the range of the map's values."""
        values = profile.values[:, c]
        wanted = np.linspace(values.min(), values.max(), FACES)
        return [int(np.abs(values - value).argmin()) for value in wanted]

    def filter(self, layer: str, channel: int) -> Tensor | None:
        """The map's filter (channels, h, w), in a layer that looks at the picture itself."""
        step, network = self.model.network.steps[layer], self.model.network
        if not isinstance(step.module, nn.Conv2d) or step.inputs[0] != network.input:
            return None
        return step.module.weight[channel].detach().cpu().float()

    def warnings(self, layer: str) -> list[list[MapWarning]]:
        """What is wrong with each map of the layer, and what mends it."""
        if layer not in self._warned:
            self._warned[layer] = map_warnings(self.model, self.top, layer)
        return self._warned[layer]


def _strongest(output: Tensor, inside: tuple[slice, slice] | None) -> np.ndarray:
    """(C,) of every map's activations (C, H, W) in one picture, at units that see no border where those were mined."""
    if inside is not None and output.dim() == 3:
        output = output[:, inside[0], inside[1]]
    strongest = output.flatten(1).amax(1) if output.dim() > 1 else output
    return np.asarray(strongest.detach().float().cpu())
