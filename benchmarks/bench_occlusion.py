"""A grey square over every place of a picture: zfkit beside Captum's Occlusion and a plain batched loop.

    .venv/bin/python benchmarks/bench_occlusion.py [--model zfnet64] [--stride 2] [--pictures 3] [--repeat 3]

Pictures of the network's own size and a square of a quarter of their side: for zfnet64 the default, 16 px at 25 x 25
places. Captum is given the same batches; the three
take turns. Captum answers for the class alone; zfkit's time has the activity of the strongest map of conv5, its
projection and the most probable class in it, too. Their attributions are compared first.
"""

from __future__ import annotations

import argparse
import time

import torch
from captum.attr import Occlusion
from common import machine, spread, table
from torch import Tensor

import zfkit
from zfkit.checks import square_side


def main() -> None:
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="zfnet64")
    parser.add_argument("--stride", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    model = zfkit.load_model(options.model, weights="none")  # "none": torchvision's without a download
    side, stride = (
        square_side(model.input_size, "the grey square has a quarter of the side of square pictures"),
        options.stride,
    )
    size, batch = side // 4, max(1, 2**18 // side**2)
    photos = zfkit.load_images("photos", size=side, progress=False)
    captum = Occlusion(lambda x: model.net(x).softmax(1))
    times: dict[str, list[float]] = {"zfkit": [], "plain loop": [], "Captum": []}
    difference = 0.0
    for i in torch.linspace(0, len(photos) - 1, options.pictures).long().tolist():
        image = photos[i][0]
        for _ in range(options.repeat):
            start = time.perf_counter()
            found = zfkit.occlude(model, image, size=size, stride=stride, batch_size=batch, progress=False)
            times["zfkit"].append(time.perf_counter() - start)
            assert found.target is not None
            start = time.perf_counter()
            plain(model, image, found.target, size, stride, batch)
            times["plain loop"].append(time.perf_counter() - start)
            start = time.perf_counter()
            with torch.no_grad():
                theirs = captum.attribute(
                    model.preprocess(image), (3, size, size), (3, stride, stride), 0, found.target,
                    perturbations_per_eval=batch,
                )  # fmt: skip
            times["Captum"].append(time.perf_counter() - start)
            ours = found.drop_per_pixel().to(theirs)
            difference = max(difference, float((ours - theirs[0, 0]).abs().max()))
    places = found.activity.numel()
    head = f"{machine()}; {model.name}, {places} places of {size} px"
    print(f"{head}; {options.pictures} pictures, {options.repeat} times each")
    print(f"largest difference of the attributions from Captum's: {difference:.1e} (probabilities)\n")
    rows = []
    for name, taken in times.items():
        ratio = [t / o for t, o in zip(taken, times["zfkit"], strict=True)]
        rows.append([name, spread(taken), spread(ratio, 1)])
    table(["", "seconds a picture: median (range)", "times zfkit's"], rows)


@torch.inference_mode()
def plain(model: zfkit.VisionModel, image: Tensor, target: int, size: int, stride: int, batch: int) -> Tensor:
    """What one writes first: copies of the picture with the square in them, in batches through the network."""
    x = model.preprocess(image)
    places = torch.cartesian_prod(*(torch.arange(0, n - size + 1, stride) for n in x.shape[2:]))
    told = []
    for part in places.split(batch):
        covered = x.repeat(len(part), 1, 1, 1)
        for picture, (top, left) in zip(covered, part.tolist(), strict=True):
            picture[:, top : top + size, left : left + size] = 0
        told.append(model.net(covered).softmax(1)[:, target])
    return torch.cat(told)


if __name__ == "__main__":
    main()
