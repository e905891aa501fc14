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

import torch
from captum.attr import NeuronDeconvolution
from common import machine, spread, table
from torch import Tensor, nn

import zfkit
from zfkit.topk.patches import project_many


def captum_unit(
    cut: nn.Module, layer: nn.Module, images: Tensor, row: Tensor, col: Tensor, channel: int
) -> Tensor:
    """Captum's projection of one map's nine units, one in each image: (9, 3, 224, 224)."""
    place = torch.arange(len(images))

    def pick(output: Tensor) -> Tensor:
        return output[place, channel, row, col]

    result: Tensor = NeuronDeconvolution(cut, layer).attribute(images.clone().requires_grad_(), pick)
    return result


def main() -> None:
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--units", type=int, default=20)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="captum")
    model = zfkit.load_model("torchvision:alexnet", weights=None)
    device = model.device
    photos = zfkit.load_images("photos", limit=200, progress=False)
    top = zfkit.mine(model, photos, progress=False)
    cuts: dict[str, tuple[nn.Sequential, nn.Module]] = {}
    features = model.net.features
    assert isinstance(features, nn.Sequential)
    for name in model.conv_layers:
        index = int(name.split(".")[1])
        cuts[name] = features[: index + 1], features[index]

    def captum(name: str, channel: int) -> Tensor:
        best = top[name]
        images = model.preprocess(photos.take(best.image[channel]))
        row, col = best.row[channel].to(device), best.col[channel].to(device)
        return captum_unit(*cuts[name], images, row, col, channel)

    def synchronised() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    worst = 0.0
    for name in cuts:
        position = torch.stack([top[name].row[5], top[name].col[5]], 1)
        ours = zfkit.project(model, model.preprocess(photos.take(top[name].image[5])), name, 5, position)
        theirs = captum(name, 5)
        worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))

    times: dict[str, list[float]] = {"zfkit": [], "captum": []}
    for _ in range(args.rounds):
        start = synchronised()
        project_many(model, photos, top, dict.fromkeys(cuts))
        times["zfkit"].append(synchronised() - start)
        total = 0.0
        for name in cuts:
            maps = len(top[name].value)
            chosen = torch.linspace(0, maps - 1, min(args.units, maps)).long().tolist()
            captum(name, 0)
            start = synchronised()
            for channel in chosen:
                captum(name, channel)
            total += (synchronised() - start) / len(chosen) * maps
        times["captum"].append(total)
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
