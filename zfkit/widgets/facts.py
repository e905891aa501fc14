"""What is known of feature maps beside their pictures: names, numbers, warnings, and the order on the slider.

`Facts` computes it; nothing here knows of widgets. Two things take a while and are measured a layer at a time, when
they are asked for: every map's maximum in each picture (`measure`), and its mean frequency (`measure_frequency`).
"""

from __future__ import annotations

import html
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..batching import OnStep
from ..deconv.receptive_field import Field, field_in, units_inside
from ..errors import ImageError, LayerError
from ..figures.pictures import number, to_picture
from ..frequency import mean_frequency, power_spectrum
from ..health.maps import MapWarning, map_warnings
from ..images.imageset import ImageSet
from ..nets.activations import activations
from ..nets.model import VisionModel
from ..topk.bundled import reach, reached
from ..topk.patches import notes_on, project_top
from ..topk.profile import Profile, label_of, labels_of
from ..topk.table import LayerTop, TopK
from . import drawing
from .controls import encode
from .state import State

SHOWN = 9  # pictures of each map
PROFILED = 2000  # pictures at most in a `Profile`


class Facts:
    """What is known of the maps of a network: of `model`, from `photos` and the table `top`.

    Attributes:
        fields: receptive field by layer.
        shown: pictures of each map: 9, or fewer where fewer were mined.
        profiles: `Profile` by layer, as far as `measure` was called.
        frequencies: mean frequency in cycles/px of each map, (C,), by layer, as far as `measure_frequency` was called.
    """

    def __init__(self, model: VisionModel, photos: ImageSet, top: TopK, layers: tuple[str, ...]) -> None:
        self.model, self.photos, self.top = model, photos, top
        self.fields = {name: Field(*field_in(model, photos.size, name)) for name in layers}
        self.shown = max(1, min(SHOWN, top.k))
        self.profiles: dict[str, Profile] = {}
        self.frequencies: dict[str, np.ndarray] = {}
        self._notes: dict[str, str] = {}
        self._warned: dict[str, list[list[MapWarning]]] = {}
        # What `measure` did before it was cancelled, by layer: pictures looked at, their maxima and places.
        self._measured: dict[str, tuple[int, np.ndarray, list[int]]] = {}

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
        """Channels in the state's order, as on the slider; found by its search, if it has one.

        An order that has not been measured yet (see `lacks`) gives the index. A search without result gives no
        channel.
        """
        layer, t = state.layer, self.top[state.layer]
        if state.search.strip():
            hits = self._hits(t, state.search.strip().lower())
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
        return np.argsort(key, kind="stable")

    def lacks(self, state: State) -> bool:
        """Has what the order needs to be measured first?"""
        if state.search.strip():
            return False
        selectivity, frequency = state.order == "selectivity", state.order == "mean frequency"
        return (selectivity and state.layer not in self.profiles) or (
            frequency and state.layer not in self.frequencies
        )

    def measure_order(self, state: State, on_step: OnStep | None = None) -> None:
        """Measure what the state's order needs."""
        if self.lacks(state):
            measure = self.measure if state.order == "selectivity" else self.measure_frequency
            measure(state.layer, on_step)

    def _hits(self, table: LayerTop, wanted: str) -> np.ndarray:
        """How many of each map's strongest pictures have a name or class with this in it; (C,)."""
        places = [i for i in table.image.unique().tolist() if i >= 0 and wanted in self.about(i).lower()]
        return torch.isin(table.image, torch.tensor(places, dtype=torch.long)).sum(1).numpy()

    # ------------------------------------------------------------------------------------------ measuring

    def measure(self, layer: str, on_step: OnStep | None = None) -> None:
        """Fill in `profiles[layer]`, by a forward pass of each picture, of at most 2,000, evenly spread.

        After `on_step` cancelled it, it goes on where it was. Raises ImageError where no picture can be read.
        """
        if layer in self.profiles:
            return
        n = min(len(self.photos), PROFILED)
        C = len(self.top[layer].max)
        # One array from the start: small ones, kept one by one between large ones that are freed, hold memory together.
        seen, values, places = self._measured.get(layer, (0, np.empty((n, C), np.float32), []))
        inside = units_inside(self.model, layer, self.photos.size) if self.top.inside else None
        for count in range(seen, n):
            i = count * len(self.photos) // n
            with suppress(ImageError):  # one that cannot be read is left out
                values[len(places)] = self._strongest(layer, self.photos[i][0], inside)
                places.append(i)
            self._measured[layer] = count + 1, values, places
            if on_step:
                on_step(count + 1, n)
        if not places:
            raise ImageError(f"none of the pictures of {self.photos.source!r} can be read")
        labels, kind = labels_of(self.photos, places)
        self.profiles[layer] = Profile(values[: len(places)], np.array(places), labels, kind)
        del self._measured[layer]

    def _strongest(self, layer: str, pixels: Tensor, inside: tuple[slice, slice] | None) -> np.ndarray:
        """(C,) of every map's activations in one picture, at units that see no border where those were mined."""
        with torch.no_grad():
            output = next(y for _, y in activations(self.model, pixels[None], [layer]))[0]
        if inside is not None and output.dim() == 3:
            output = output[:, inside[0], inside[1]]
        strongest = output.flatten(1).amax(1) if output.dim() > 1 else output
        return np.asarray(strongest.float().cpu())

    def measure_frequency(self, layer: str, on_step: OnStep | None = None) -> None:
        """Fill in `frequencies[layer]`: the mean frequency of each map's three strongest projections."""
        if layer in self.frequencies:
            return
        C, means = len(self.top[layer].value), []
        for start in range(0, C, 8):
            chosen = list(range(start, min(start + 8, C)))
            p = project_top(self.model, self.photos, self.top, layer, chosen, k=min(3, self.shown))
            means.append(mean_frequency(p.projection.flatten(0, 1)).view(len(chosen), -1).nanmean(1))
            if on_step:
                on_step(chosen[-1] + 1, C)
        self.frequencies[layer] = torch.cat(means).numpy()

    # ---------------------------------------------------------------------------------------------- words

    def nearest(self, state: State) -> list[tuple[int, float]]:
        """Maps that respond most alike over the pictures, with the correlation; none until that is measured."""
        profile = self.profiles.get(state.layer)
        return profile.nearest(state.channel) if profile else []

    def notes(self, layer: str) -> str:
        """What has to be said beside projections of a layer; kept, since every move of a slider asks for it."""
        if layer not in self._notes:
            with suppress(LayerError):  # it cannot be projected, which is said where projections would be
                self._notes[layer] = "".join(f" {note}" for note in notes_on(self.model, layer))
        return self._notes.get(layer, "")

    def html(self, state: State) -> str:
        """What is known of the state's map: words and small plots."""
        layer, c = state.layer, state.channel
        t, field, escape = self.top[layer], self.fields[layer], html.escape
        sees = f"sees {field.size} × {field.size} px, the next unit {field.stride} px further on"
        labels = Counter(self.label(int(i)) for i in t.image[c, : self.shown] if i >= 0)
        name, often = labels.most_common(1)[0] if labels else ("", 0)
        share = reach(self.model, self.top, layer)
        record = "" if share is None else reached(float(share[c]))
        mostly = name and often > 1 and float(t.max[c]) > 0
        return (
            self._warnings(layer, c)
            + f"<p>A unit of {escape(layer)} {sees if field.stride else 'sees the whole picture'}.</p>"
            f"<p>Strongest activation <b>{number(t.max[c])}</b>; the mean over {self.top.count:,} pictures of the "
            f"strongest in each is {number(t.mean[c])}. Above 0 on <b>{float(t.active[c]):.0%}</b> of them."
            + (f" {record[0].upper()}{record[1:]}." if record else "")
            + (f" {often} of the {self.shown} strongest show <b>{escape(name)}</b>." if mostly else "")
            + "</p>"
            + self._filter(layer, c)
            + self._activations(layer, c)
        )

    def _activations(self, layer: str, c: int) -> str:
        """Histogram of the map's maxima, and of the classes that excite it most."""
        profile = self.profiles.get(layer)
        if profile is None:
            return '<p class="zfkit-soft">More is measured while nothing else is to be done …</p>'
        values, last_shown = profile.values[:, c], float(self.top[layer].value[c, self.shown - 1])
        label = (
            f"Histogram of the map's maximum over {len(values)} pictures; from {number(values.min())} to "
            f"{number(values.max())}"
        )
        markup = f"<h4>Its maximum in each picture</h4>{drawing.histogram(values, last_shown, label)}"
        if not profile.kind:
            return markup + '<p class="zfkit-soft">No class histogram: these pictures have no labels.</p>'
        counts, n = profile.top_labels(c)
        if not n:
            return markup
        selectivity, names = profile.selectivity
        first = counts[:5]
        rows = [(name, often / counts[0][1], str(often)) for name, often in first]
        kinds = {"class": "classes", "photograph": "photographs"}[profile.kind]
        more = f"The first five of {len(counts)} {kinds}. " if len(counts) > 5 else ""
        return (
            markup + f"<h4>Its top {n} by {profile.kind}</h4>"
            + drawing.bars(rows, label="; ".join(f"{name}: {often}" for name, often in first))
            + f'<p class="zfkit-soft">{more}Selectivity {selectivity[c]:.2f} for {html.escape(str(names[c]))} '
            f"(0 none, 1 that {profile.kind} alone).</p>"
        )  # fmt: skip

    def _weights(self, layer: str) -> Tensor | None:
        module = self.model.network.steps[layer].module
        return module.weight.detach().cpu().float() if isinstance(module, nn.Conv2d | nn.Linear) else None

    def _filter(self, layer: str, channel: int) -> str:
        """Filter and spectrum, for layers that look at the picture itself."""
        weights, network = self._weights(layer), self.model.network
        if weights is None or weights.dim() != 4 or network.steps[layer].inputs[0] != network.input:
            return ""
        w = weights[channel]
        pictures = (
            (
                "filter",
                f"filter, {w.shape[1]} × {w.shape[2]}",
                to_picture(drawing.coloured(w[None])[0]),
            ),
            ("spectrum of the filter", "spectrum, ±½ c/px", drawing.grey(power_spectrum(w.double()))),
        )
        images = "".join(
            f'<figure><img alt="{alt}" width="96" height="96" src="{drawing.data_url(encode(drawing.fitted(p, 96)))}">'
            f"<figcaption>{caption}</figcaption></figure>"
            for alt, caption, p in pictures
        )
        rho = float(mean_frequency(w[None])[0])
        return f'<div class="zfkit-pair">{images}</div><p class="zfkit-soft">Mean frequency {rho:.2f} cycles/px.</p>'

    def _warnings(self, layer: str, c: int) -> str:
        """What is wrong with the map, in words."""
        if layer not in self._warned:
            self._warned[layer] = map_warnings(self.model, self.top, layer)
        warnings = [warning.sentence for warning in self._warned[layer][c]]
        if not warnings:
            return '<p class="zfkit-healthy">No health warning.</p>'
        items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in warnings)
        return f'<ul class="zfkit-warnings" aria-label="health warnings">{items}</ul>'
