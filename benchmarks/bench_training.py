"""Training against its floor: images/s of `Trainer.step` with augmentation over a bare forward and backward pass.

    python benchmarks/bench_training.py [--device cuda] [--batches 20] [--model zfnet64]

The floor is the network with torch's own layers on one fixed batch, in the same precision: forward, cross-entropy,
backward; no optimiser, no new pictures. Rounds of both alternate; median and range of the ratio are given.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from common import machine, spread, table

import zfkit
from zfkit.nets.paper import ARCHITECTURES
from zfkit.training import Trainer, TrainingPlan, make_fabric
from zfkit.training.data import Resident


def measure(
    name: str, batches: int, rounds: int, device: str | None, compile: bool | str
) -> list[tuple[float, float]]:
    """images/s of the step and of the floor, round by round."""
    recipe = zfkit.Recipe(snapshots=())
    count = recipe.batch_size * batches
    train = zfkit.load_images("textures", split="train", limit=count, progress=False)
    val = zfkit.load_images("textures", limit=16, progress=False)
    fabric = make_fabric(device, None)
    plan = TrainingPlan.make(replace(ARCHITECTURES[name], classes=16), train, val, recipe, None)
    trainer = Trainer(plan, fabric, compile)
    feed = Resident(train, plan.geometry, plan.mean, fabric.device)
    bare = fabric.setup_module(zfkit.nets.build(plan.architecture).train())
    if fabric.device.type == "cuda":
        bare.to(memory_format=torch.channels_last)
    x = torch.randn(recipe.batch_size, 3, 64, 64, device=fabric.device).mul_(60)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.randint(16, (recipe.batch_size,), device=fabric.device)

    def ours() -> None:
        trainer.state.step = 0
        for _ in trainer.epoch(feed):
            pass

    def floor() -> None:
        for _ in range(batches):
            bare.zero_grad()
            fabric.backward(F.cross_entropy(bare(x), y))

    def seconds(job: Callable[[], None]) -> float:
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        job()
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    ours()
    floor()
    return [(count / seconds(ours), count / seconds(floor)) for _ in range(rounds)]


def row(name: str, pairs: list[tuple[float, float]]) -> list[str]:
    """Of the table: network, images/s of the step and of the floor, the ratio of their times."""
    ours, floor = zip(*pairs, strict=True)
    return [name, spread(ours, 0), spread(floor, 0), spread([f / o for o, f in pairs])]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["zfnet64-narrow", "zfnet64"])
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    print(machine())
    rows = [row(n, measure(n, args.batches, args.rounds, args.device, args.compile)) for n in args.models]
    table(["network", "training, images/s", "floor, images/s", "time over the floor"], rows)
