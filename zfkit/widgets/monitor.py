"""A training, watched: loss, accuracy, the first layer's filters and chosen projections, redrawn each epoch."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import ZfkitError
from ..figures.pictures import montage, signed_to_rgb
from ..figures.training import training_figure
from ..images.imageset import ImageSet
from ..topk.mine import mine
from ..topk.patches import project_many
from ..training.fit import Watched
from .panel import Panel, Picture, encode, guarded, row, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILTERS = 96  # of the first layer, at most


class Monitor(Panel):
    """Shows a training as it runs: give it to `fit` as `watch`.

    Args:
        images: pictures to look for the chosen maps' strongest patches in; only with `maps`.
        maps: layer -> feature maps whose single strongest activation is projected after each epoch.
        every: redraw the filters and projections every so many epochs; the curves, after each.

    >>> monitor = zfkit.widgets.Monitor(val, {"conv2": [0, 1, 2], "conv5": [0, 1, 2]})
    >>> display(monitor)
    >>> zfkit.fit("zfnet64-narrow", train, val, zfkit.Recipe(epochs=20), watch=monitor)
    """

    def __init__(
        self,
        images: ImageSet | None = None,
        maps: Mapping[str, Sequence[int]] | None = None,
        every: int = 1,
    ) -> None:
        super().__init__("Training")
        if maps and images is None:
            raise ZfkitError("to project feature maps the monitor needs pictures: Monitor(images, maps)")
        self.images, self.maps, self.every = (
            images,
            {k: list(v) for k, v in (maps or {}).items()},
            max(1, every),
        )
        self.told = text("<p>Nothing yet: waiting for the first epoch.</p>", "told")
        self.curves = Picture("loss, accuracy and dominance over epochs", 900, 280)
        self.filters = Picture("the first layer's filters", 320, 320)
        self.projections = Picture("projections of the chosen feature maps' strongest activations", 560, 320)
        self.curves.say("The curves begin after the first epoch.")
        self.filters.say("The first layer's filters will stand here.")
        self.projections.say("" if self.maps else "No feature maps chosen: Monitor(images, maps) shows some.")
        self.content.children = [self.told, self.curves, row(self.filters, self.projections)]
        self.history: tuple[dict[str, float], ...] = ()

    @guarded
    def __call__(self, now: Watched) -> None:
        """Draw the state after an epoch; an error here is shown and does not stop the training."""
        import pandas as pd

        self.history = now.history
        self.told.value = f"<p>{html.escape(_in_words(now))}</p>"
        if now.history:
            self.curves.show(_encoded(training_figure(pd.DataFrame(now.history))))
        if now.epoch % self.every and now.epoch != now.epochs:
            return
        first = now.model.conv_layers[0]
        weights = now.model.net.get_submodule(first).get_parameter("weight").detach()[:FILTERS].float().cpu()
        loudest = float(weights.abs().amax())
        sheet = montage(signed_to_rgb(weights, loudest), columns=_columns(len(weights)), tile=28)
        self.filters.show(
            encode(_fitted(sheet, 320, 320)),
            f"{len(weights)} filters of {first} after epoch {now.epoch}, one scale: +-{loudest:.3g}",
        )
        if self.maps and self.images is not None:
            self.projections.show(
                encode(_fitted(self._projections(now), 560, 320)),
                f"strongest activation of {sum(map(len, self.maps.values()))} maps, projected, after epoch {now.epoch}",
            )

    def _projections(self, now: Watched) -> np.ndarray:
        """A row for each layer: each map's strongest patch, projected, above the patch itself."""
        from PIL import Image

        assert self.images is not None
        top = mine(now.model, self.images, [*self.maps], k=1, progress=False)
        rows = []
        for layer, channels in self.maps.items():
            found = project_many(now.model, self.images, top, {layer: channels})[layer]
            pictures = torch.cat([signed_to_rgb(found.projection[:, 0]), found.photo[:, 0]])
            rows.append(montage(pictures, columns=len(channels), tile=64))
        whole = Image.new("RGB", (max(r.width for r in rows), sum(r.height + 8 for r in rows) - 8), "white")
        top_edge = 0
        for picture in rows:
            whole.paste(picture, (0, top_edge))
            top_edge += picture.height + 8
        return np.asarray(whole)


def _in_words(now: Watched) -> str:
    if not now.history:
        return f"Before training: random weights. {now.epochs} epochs to go."
    last = now.history[-1]
    return (
        f"Epoch {now.epoch} of {now.epochs}: training loss {last['loss']:.3f}, validation {last['top1']:.1f} % top-1, "
        f"lr {last['lr']:g}, {last['images_per_second']:,.0f} images/s."
    )


def _columns(count: int) -> int:
    return max(1, round(count**0.5))


def _fitted(picture: object, width: int, height: int) -> np.ndarray:
    """The picture on white, as large as it fits."""
    from PIL import Image

    image = picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))
    factor = min(width / image.width, height / image.height)
    resample = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    image = image.resize((max(1, int(image.width * factor)), max(1, int(image.height * factor))), resample)
    whole = Image.new("RGB", (width, height), "white")
    whole.paste(image, (0, 0))
    return np.asarray(whole)


def _encoded(figure: Figure) -> bytes:
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    plt.close(figure)
    return buffer.getvalue()
