"""What mining costs over the bare forward pass: every convolutional layer, top 9, pictures of 224 px.

    .venv/bin/python benchmarks/bench_mining.py [--rounds 5] [--models NAME ...]

The floor is the same network cut after the same layer, run on the same batches from the same uint8 pictures:
preprocessing and forward pass, outputs thrown away. Rounds are interleaved. The album is 1,090 windows of 220
photographs, of which no two of a feature map's nine may overlap; the other set are its windows and their mirror
images as 2,180 separate pictures.
"""

from __future__ import annotations

import argparse
import time

import torch
from common import machine, spread, table
from PIL import Image, ImageOps
from torch import nn

import zfkit
from zfkit.images.imageset import ImageSet
from zfkit.nets.activations import default_batch_size


def separate(album: ImageSet) -> ImageSet:
    """The album's windows and their mirror images, as pictures that have nothing to do with each other."""
    images = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels, _ in album]
    images += [ImageOps.mirror(image) for image in images]
    names = [str(i) for i in range(len(images))]
    return ImageSet(lambda i: (images[i], -1), names, size=album.size).in_memory(progress=False)


def main() -> None:
    """Time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=["torchvision:alexnet", "zfnet64"])
    args = parser.parse_args()
    rounds = args.rounds
    album = zfkit.load_images("photos", progress=False)
    sets = {"album": album, "separate": separate(album)}
    rows = []
    for name, what in [(n, w) for n in args.models for w in sets]:
        photos = sets[what]
        model = zfkit.load_model(name, weights=None)
        net = getattr(model.net, "features", model.net)
        assert isinstance(net, nn.Sequential)
        last = max(i for i, layer in enumerate(net) if isinstance(layer, nn.Conv2d))
        cut = net[: last + 1]
        size = default_batch_size(model, photos.size, model.conv_layers)
        cuda = model.device.type == "cuda"

        def now(cuda: bool = cuda) -> float:
            if cuda:
                torch.cuda.synchronize()
            return time.perf_counter()

        @torch.inference_mode()
        def bare(
            cut: nn.Sequential = cut,
            model: zfkit.VisionModel = model,
            size: int = size,
            photos: ImageSet = photos,
        ) -> None:
            for batch in photos.batches(size):
                cut(model.preprocess(batch.pixels).contiguous(memory_format=torch.channels_last))

        floor, ours = [], []
        bare()
        zfkit.mine(model, photos, progress=False)
        for _ in range(rounds):
            start = now()
            bare()
            floor.append(now() - start)
            start = now()
            zfkit.mine(model, photos, progress=False)
            ours.append(now() - start)
        ratios = [o / f for o, f in zip(ours, floor, strict=True)]
        rows.append(
            [
                name,
                what,
                spread(floor),
                spread(ours),
                f"**{spread(ratios)}**",
                f"{len(photos) / min(ours):.0f}",
            ]
        )
    print(f"{machine()}; {rounds} rounds\n")
    table(["network", "pictures", "bare forward, s", "`mine`, s", "ratio", "images/s"], rows)


if __name__ == "__main__":
    main()
