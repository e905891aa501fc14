"""A whole atlas against Captum: torchvision's AlexNet, 9 projections for each of its 1152 convolutional maps.

    .venv/bin/python benchmarks/bench_atlas.py [--rounds 3] [--units 20]

Both get the same table of the strongest activations in 200 photographs of 224 px, and random weights. Captum is
called the best way it offers: the model cut after the layer, nine images at a time, a callable that picks each
image's own unit; `--units` feature maps of each layer are timed and extrapolated to all. zfkit makes all of them.
Rounds are interleaved. Before, the two are compared.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterable

import torch
from captum.attr import NeuronDeconvolution
from common import machine, spread, table
from torch import Tensor, nn

import zfkit
from zfkit.images.imageset import ImageSet
from zfkit.topk import project_many


class Captum:
    """Captum's deconvnet on AlexNet, cut after each layer, for units of a table."""

    def __init__(self, model: zfkit.VisionModel, photos: ImageSet, top: zfkit.TopK) -> None:
        self.model, self.photos, self.top = model, photos, top

    def unit(self, name: str, channel: int) -> Tensor:
        """Projections of one map's nine units, one in each image: (9, 3, 224, 224)."""
        features, index = self.model.net.features, int(name.split(".")[1])
        assert isinstance(features, nn.Sequential)
        best = self.top[name]
        images = self.model.preprocess(self.photos.take(best.image[channel]))
        row, col = (t[channel].to(images.device) for t in (best.row, best.col))
        place = torch.arange(len(images), device=images.device)

        def pick(output: Tensor) -> Tensor:
            return output[place, channel, row, col]

        deconvolution = NeuronDeconvolution(features[: index + 1], features[index])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="captum")
            result: Tensor = deconvolution.attribute(images.clone().requires_grad_(), pick)
        return result

    def difference(self, layers: Iterable[str]) -> float:
        """Largest difference between zfkit's projections and these, relative, over the units of each layer's map 5."""
        worst = 0.0
        for name in layers:
            best = self.top[name]
            position = torch.stack([best.row[5], best.col[5]], 1)
            x = self.model.preprocess(self.photos.take(best.image[5]))
            ours, theirs = zfkit.project(self.model, x, name, 5, position), self.unit(name, 5)
            worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
        return worst

    def seconds(self, layers: Iterable[str], units: int) -> float:
        """For all maps of these layers, extrapolated from so many of each."""
        total = 0.0
        for name in layers:
            maps = len(self.top[name].value)
            chosen = torch.linspace(0, maps - 1, min(units, maps)).long().tolist()
            self.unit(name, 0)
            start = synchronised()
            for channel in chosen:
                self.unit(name, channel)
            total += (synchronised() - start) / len(chosen) * maps
        return total


def synchronised() -> float:
    """The time, once a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--units", type=int, default=20)
    args = parser.parse_args()
    model = zfkit.load_model("torchvision:alexnet", weights=None)
    photos = zfkit.load_images("photos", limit=200, progress=False)
    top = zfkit.mine(model, photos, progress=False)
    layers, captum = model.conv_layers, Captum(model, photos, top)
    worst = captum.difference(layers)
    times: dict[str, list[float]] = {"zfkit": [], "captum": []}
    for _ in range(args.rounds):
        start = synchronised()
        project_many(model, photos, top, dict.fromkeys(layers))
        times["zfkit"].append(synchronised() - start)
        times["captum"].append(captum.seconds(layers, args.units))
    ratios = [c / z for c, z in zip(times["captum"], times["zfkit"], strict=True)]
    print(f"{machine()}; {args.rounds} rounds; largest relative difference between the two {worst:.1e}\n")
    table(
        ["1152 maps x 9 projections", "seconds"],
        [
            ["Captum, cut model, batches of 9 (extrapolated)", spread(times["captum"], 1)],
            ["zfkit", spread(times["zfkit"], 1)],
            ["**ratio**", f"**{spread(ratios, 1)}**"],
        ],
    )


if __name__ == "__main__":
    main()
