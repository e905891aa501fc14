"""A training, watched: loss, accuracy, the first layer's filters and chosen projections, redrawn each epoch."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image

from ..checks import whole_number
from ..errors import ZfkitError
from ..figures.pictures import montage
from ..figures.style import new_figure
from ..images.colour import signed_to_rgb
from ..images.imageset import ImageSet
from ..topk.mine import mine
from ..topk.patches import project_many
from ..training.fit import Watched
from .controls import Picture, encode, joined, row
from .panel import Panel, guarded

if TYPE_CHECKING:
    import pandas as pd

FILTERS = 96  # of the first layer, at most
SIDE, WIDTH = 320, 560  # of the filters' picture, and of the projections' beside it, in px


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
        self, images: ImageSet | None = None, maps: Mapping[str, Sequence[int]] | None = None, every: int = 1
    ) -> None:
        super().__init__("Training")
        if maps and images is None:
            raise ZfkitError("to project feature maps the monitor needs pictures: Monitor(images, maps)")
        self.images, self.every = images, whole_number(every, "every, in epochs,")
        self.maps = {layer: list(channels) for layer, channels in (maps or {}).items()}
        self.caption("Nothing yet: waiting for the first epoch.")
        self.curves = Picture("loss, accuracy and dominance over epochs", 900, 280)
        self.filters = Picture("the first layer's filters", SIDE, SIDE)
        label = "projections of the chosen feature maps' strongest activations"
        self.projections = Picture(label, WIDTH, SIDE)
        self.curves.say("The curves begin after the first epoch.")
        self.filters.say("The first layer's filters will stand here.")
        self.projections.say("" if self.maps else "No feature maps chosen: Monitor(images, maps) shows some.")
        self.content.children = [self.words, self.curves, row(self.filters, self.projections)]
        self.history: tuple[dict[str, float], ...] = ()

    @guarded
    def __call__(self, now: Watched) -> None:
        """Draw the state after an epoch; an error here is shown and does not stop the training."""
        import pandas as pd

        self.history = now.history
        last = now.history[-1] if now.history else {}
        self.caption(
            f"Epoch {now.epoch} of {now.epochs}: training loss {last['loss']:.3f}, validation {last['top1']:.1f} % "
            f"top-1, lr {last['lr']:g}, {last['images_per_second']:,.0f} images/s."
            if last
            else f"Before training: random weights. {now.epochs} epochs to go."
        )
        if now.history:
            self.curves.show(_curves(pd.DataFrame(now.history)))
        if now.epoch % self.every and now.epoch != now.epochs:
            return
        first = now.model.conv_layers[0]
        weights = now.model.net.get_submodule(first).get_parameter("weight").detach()[:FILTERS].float().cpu()
        largest = float(weights.abs().amax())
        columns = max(1, round(len(weights) ** 0.5))
        sheet = montage(signed_to_rgb(weights, largest), columns, tile=28)
        words = f"{len(weights)} filters of {first} after epoch {now.epoch}, one scale: +-{largest:.3g}"
        self.filters.show(encode(_fitted(sheet, SIDE, SIDE)), words)
        if self.maps and self.images is not None:
            count = sum(map(len, self.maps.values()))
            words = f"strongest activation of {count} maps, projected, after epoch {now.epoch}"
            self.projections.show(encode(_fitted(self._projections(now, self.images), WIDTH, SIDE)), words)

    def _projections(self, now: Watched, images: ImageSet) -> Image.Image:
        """A row for each layer: each map's strongest patch, projected, above the patch itself."""
        top = mine(now.model, images, [*self.maps], k=1, progress=False)
        rows = []
        for layer, patches in project_many(now.model, images, top, self.maps).items():
            pictures = torch.cat([signed_to_rgb(patches.projection[:, 0]), patches.photo[:, 0]])
            rows.append(montage(pictures, columns=len(self.maps[layer]), tile=64))
        return joined(rows, gap=8)


def _fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The picture on white, as large as it fits."""
    factor = min(width / picture.width, height / picture.height)
    how = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    size = max(1, int(picture.width * factor)), max(1, int(picture.height * factor))
    whole = Image.new("RGB", (width, height), "white")
    whole.paste(picture.resize(size, how), (0, 0))
    return whole


def _curves(history: pd.DataFrame) -> bytes:
    """Loss, accuracy and dominance over epochs as PNG: drawn quickly, after each epoch, without a browser."""
    import matplotlib.pyplot as plt

    figure, panels = new_figure(1, 3, size=(9, 2.8))
    both = ["loss", "val_loss"]
    shown = {"cross-entropy, nats": both, "validation top-1, %": ["top1"], "dominance": ["dominance"]}
    for axes, (title, columns) in zip(panels, shown.items(), strict=True):
        axes.plot(history.epoch, history[columns], label=["training", "validation"][: len(columns)])
        axes.set(title=title, xlabel="epoch", ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    plt.close(figure)
    return buffer.getvalue()
