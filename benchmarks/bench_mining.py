"""What mining costs over the bare forward pass: every convolutional layer, top 9, 355 photographs of 224 px.

    .venv/bin/python benchmarks/bench_mining.py [--rounds 5]

The floor is the same network cut after the same layer, run on the same batches from the same uint8 pictures:
preprocessing and forward pass, outputs thrown away. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import time

import torch
from common import machine, spread, table
from torch import nn

import zfkit
from zfkit.topk import _batch_size


def main() -> None:
    """Time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    photos = zfkit.load_images("photos", progress=False)
    rows = []
    for name in ("torchvision:alexnet", "zfnet64"):
        model = zfkit.load_model(name, weights=None)
        net = getattr(model.net, "features", model.net)
        assert isinstance(net, nn.Sequential)
        last = max(i for i, layer in enumerate(net) if isinstance(layer, nn.Conv2d))
        cut = net[: last + 1]
        size = _batch_size(model, photos, model.conv_layers)
        cuda = model.device.type == "cuda"

        def now(cuda: bool = cuda) -> float:
            if cuda:
                torch.cuda.synchronize()
            return time.perf_counter()

        @torch.inference_mode()
        def bare(cut: nn.Sequential = cut, model: zfkit.VisionModel = model, size: int = size) -> None:
            for batch in photos.batches(size):
                cut(model.preprocess(batch.pixels).contiguous(memory_format=torch.channels_last))

        floor, ours = [], []
        bare()
        for _ in range(rounds):
            start = now()
            bare()
            floor.append(now() - start)
            start = now()
            zfkit.mine(model, photos, progress=False)
            ours.append(now() - start)
        ratios = [o / f for o, f in zip(ours, floor, strict=True)]
        rows.append(
            [name, spread(floor), spread(ours), f"**{spread(ratios)}**", f"{len(photos) / min(ours):.0f}"]
        )
    print(f"{machine()}; {rounds} rounds\n")
    table(["network", "bare forward, s", "`mine`, s", "ratio", "images/s"], rows)


if __name__ == "__main__":
    main()
