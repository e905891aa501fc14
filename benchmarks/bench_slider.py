"""The time of one slider step: a feature map's nine projections from photographs of 224 px, from a warm model.

    .venv/bin/python benchmarks/bench_slider.py [--maps 20]

zfnet64, every convolutional layer; beside it Captum on the same nine units, cut model, one batch of nine. The two
take turns, map by map.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import torch
from captum.attr import NeuronDeconvolution
from common import machine, spread, table
from torch import nn

import zfkit


def main() -> None:
    """Time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--maps", type=int, default=20)
    count = parser.parse_args().maps
    warnings.filterwarnings("ignore", module="captum")
    model = zfkit.load_model("zfnet64")
    photos = zfkit.load_images("photos", progress=False)
    top = zfkit.mine(model, photos, inside=True, progress=False)
    net = model.net
    assert isinstance(net, nn.Sequential)
    rows = []
    for layer in model.conv_layers:
        names = [name for name, _ in net.named_children()]
        cut = net[: names.index(layer) + 1]
        attribution = NeuronDeconvolution(cut, cut[-1])
        maps = torch.linspace(0, len(top[layer].value) - 1, count).long().tolist()
        ours, theirs = [], []
        zfkit.project_top(model, photos, top, layer, [0])
        for channel in maps:
            start = time.perf_counter()
            zfkit.project_top(model, photos, top, layer, [channel])
            ours.append(1000 * (time.perf_counter() - start))
            best = top[layer]
            start = time.perf_counter()
            images = model.preprocess(photos.take(best.image[channel])).requires_grad_()
            row, col = best.row[channel], best.col[channel]
            attribution.attribute(
                images, lambda y, row=row, col=col, c=channel: y[torch.arange(9), c, row, col]
            )
            theirs.append(1000 * (time.perf_counter() - start))
        ratio = [t / o for t, o in zip(theirs, ours, strict=True)]
        high = sorted(ours)[int(0.95 * (len(ours) - 1))]
        rows.append(
            [
                layer,
                f"{statistics.median(ours):.0f}",
                f"{high:.0f}",
                f"{statistics.median(theirs):.0f}",
                spread(ratio, 1),
            ]
        )
    print(f"{machine()}; {count} maps of each layer\n")
    table(["layer", "zfkit, ms (median)", "p95", "Captum, ms (median)", "ratio"], rows)


if __name__ == "__main__":
    main()
