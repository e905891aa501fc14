"""All that a GPU has to show, within 12 minutes: ``python benchmarks/gpu.py --data TINY --out FOLDER``.

    right      project and mine in float32 against float64 on the CPU; TF32; bf16; two runs alike
    mining     images/s of `mine` over the bare network
    atlas      nine projections for each map of AlexNet, beside Captum where it is installed
    training   zfnet64 on Tiny ImageNet: images/s of every way to compile, then 50 epochs the quickest way
    memory     of 100,000 pictures; and the table after memory ran out

TINY holds train-*.parquet and valid-*.parquet, as for reference.py; without it, training is on drawn textures.
A part is a process of its own and is ended at its limit (`LIMITS`). A line goes into FOLDER/gpu.jsonl as soon as it is
measured, so what was measured before a stop is kept; ``--only training`` adds to it. FOLDER/gpu.md is the table.
``--toy`` shrinks everything: on a CPU that says whether it runs and is right, not how fast it is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import machine, table
from errors import load, outputs_of, relus_of
from errors import spread as some_of
from torch import Tensor, nn

import zfkit
from zfkit.nets.graph import evaluation_mode
from zfkit.topk import project_many

LIMITS = {
    "right": 170,
    "mining": 80,
    "atlas": 60,
    "training": 330,
    "memory": 70,
}  # seconds; in all under 12 minutes
NETWORKS = ("zfnet64", "alexnet", "vgg16_bn", "resnet18", "squeezenet1_1")
SNAPSHOTS = (0, 1, 2, 5, 10, 20, 30, 40, 50)


@dataclass(frozen=True)
class Trial:
    """What one part is given: the device, its size, the data, and where its lines go."""

    part: str
    device: str
    toy: bool
    data: str | None
    out: Path

    def line(self, what: str, value: float, unit: str = "", aim: str = "") -> None:
        """Write one measurement; `aim` is "< LIMIT", "> LIMIT" or nothing."""
        good = None
        if aim:
            sign, limit = aim.split()
            good = value < float(limit) if sign == "<" else value > float(limit)
        row = {"part": self.part, "what": what, "value": value, "unit": unit, "aim": aim, "good": good}
        row |= {"machine": machine(), "toy": self.toy}
        with (self.out / "gpu.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{self.part}: {what}: {value:.4g} {unit} {aim}", flush=True)

    def fast(self, aim: str) -> str:
        """An aim for speed: none at toy size."""
        return "" if self.toy else aim

    def seconds(self, job: Callable[[], object]) -> float:
        """How long it takes, until the GPU is done."""
        synchronise = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        synchronise()
        started = time.perf_counter()
        job()
        synchronise()
        return time.perf_counter() - started


def right(trial: Trial) -> None:
    """Errors against autograd in float64 on the CPU, network by network."""
    count = 3 if trial.toy else 8
    for name in ("zfnet64", "resnet18") if trial.toy else NETWORKS:
        side = 64 if name == "zfnet64" or trial.toy else 224
        exact = load(name, side, "cpu")[0]
        layers = some_of(exact.conv_layers, 5)
        pixels = spread_over("textures", 200, side, count)
        photos = spread_over("photos", None, side, count)
        truth, of_photos = (list(autograd(exact, x, layers)) for x in (pixels, photos))
        model = exact.to(trial.device)  # of the same weights, float64 and then float32, on the device
        largest = max(relative(model, pixels, *unit).max() for unit in truth)
        trial.line(f"{name}: project in float64, largest error", float(largest), aim="< 1e-9")
        model.net.float()
        error = torch.cat([relative(model, pixels, *unit) for unit in truth])
        # Where two values of a pool are equal but for rounding, the other one may be the larger: that moves a whole
        # branch. So the median says how exact the arithmetic is, and the share how often a switch falls otherwise.
        trial.line(f"{name}: project in float32, median error", float(error.median()), aim="< 1e-5")
        within = 100 * float((error < 1e-5).double().mean())
        trial.line(f"{name}: units within 1e-5", within, "%", "> 90")  # of 40 units, at toy size of 15
        # Flat areas of photographs hold many such ties: how many is the photographs' doing, so there is no aim.
        error = torch.cat([relative(model, photos, *unit) for unit in of_photos])
        within = 100 * float((error < 1e-5).double().mean())
        trial.line(f"{name}: units within 1e-5 in photographs, whose flat areas tie", within, "%")
        if trial.device == "cuda":
            with mock.patch("zfkit.nets.graph.tf32_switches", return_value=[]):
                error = torch.cat([relative(model, pixels, *unit) for unit in truth])
            trial.line(f"{name}: the same if TF32 were allowed, median error", float(error.median()))
        again = [zfkit.project(model, model.preprocess(pixels), *truth[-1][:3]) for _ in range(2)]
        trial.line(
            f"{name}: two runs of project, largest difference", float((again[0] - again[1]).abs().max())
        )
    mined(trial)


def spread_over(source: str, limit: int | None, side: int, count: int) -> Tensor:
    """(count, 3, side, side) uint8, evenly spread over the first `limit` pictures of a set."""
    images = zfkit.load_images(source, size=side, limit=limit, progress=False)
    return images.take(torch.linspace(0, len(images) - 1, count).long())


def autograd(
    exact: zfkit.VisionModel, pixels: Tensor, layers: list[str]
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Layer, channels, positions and projections of each picture's strongest unit, by autograd."""
    source = exact.preprocess(pixels).clone(memory_format=torch.channels_last).requires_grad_()
    with relus_of("deconvnet"), evaluation_mode(exact.net):
        outputs = outputs_of(exact.net, source * 1)
    for layer in layers:
        maps = outputs[layer]
        place = maps.detach().flatten(1).argmax(1)
        channel, row, col = torch.unravel_index(place, maps.shape[1:])
        (truth,) = torch.autograd.grad(
            maps.flatten(1).gather(1, place[:, None]).sum(), source, retain_graph=True
        )
        yield layer, channel, torch.stack([row, col], 1), truth


def relative(
    model: zfkit.VisionModel, pixels: Tensor, layer: str, channel: Tensor, position: Tensor, truth: Tensor
) -> Tensor:
    """(N,) largest difference of each projection from the truth, over the truth's largest value."""
    x = model.preprocess(pixels)
    ours = zfkit.project(model, x, layer, channel, position, lrn="gradient").cpu().double()
    return (ours - truth).abs().amax((1, 2, 3)) / truth.abs().amax((1, 2, 3)).clamp_min(1e-30)


def mined(trial: Trial) -> None:
    """Top 9 against every activation in float64 on the CPU, sorted."""
    # Drawn, and all different: overlapping windows of photographs tie where they show a unit the same.
    images = zfkit.load_images("textures", limit=40 if trial.toy else 1000, progress=False)
    pixels, images = images.take(range(len(images))), images.to(trial.device)
    exact = load("zfnet64", 64, "cpu")[0]
    layers = exact.conv_layers
    with torch.no_grad(), evaluation_mode(exact.net):
        parts = [outputs_of(exact.net, exact.preprocess(part)) for part in pixels.split(32)]
    truth = {n: torch.cat([part[n].amax((2, 3)) for part in parts]).topk(9, 0) for n in layers}
    model = exact.to(trial.device)
    model.net.float()
    for precision in ("float32", "bf16"):
        top = zfkit.mine(model, images, k=9, precision=precision, progress=False)
        same = torch.cat([(top[n].image == truth[n].indices.T).flatten() for n in layers])
        off = max(
            float((top[n].value - truth[n].values.T).abs().max() / truth[n].values.max()) for n in layers
        )
        exactly = precision == "float32"
        trial.line(f"zfnet64: mine in {precision}, largest error", off, aim="< 1e-5" if exactly else "")
        share = 100 * float((~same).double().mean())
        trial.line(f"zfnet64: ranks of the top 9 that name another picture, {precision}", share, "%",
                   "< 0.1" if exactly else "")  # fmt: skip
    again = [zfkit.mine(model, images, progress=False) for _ in range(2)]
    differ = sum(int((again[0][n].value != again[1][n].value).sum()) for n in layers)
    trial.line("zfnet64: two runs of mine, values that differ", differ)


def mining(trial: Trial) -> None:
    """`mine` over the same network, cut after the same layer, outputs thrown away; both from pictures on the device."""
    side, count, rounds = (64, 16, 1) if trial.toy else (224, 20_000, 3)
    name = "zfnet64" if trial.toy else "zfnet224"
    model = zfkit.load_model(name, weights=None, device=trial.device)
    images = noise(count, side).to(trial.device)
    cut = nn.Sequential(*list(model.net.children()))[: list(model.net._modules).index("conv5") + 1]
    size = zfkit.nets.activations.default_batch_size(model, side, model.conv_layers)

    @torch.inference_mode()
    def bare(net: Callable[[Tensor], Tensor]) -> None:
        with torch.autocast(trial.device, torch.bfloat16):
            for batch in images.batches(size):
                net(model.preprocess(batch.pixels).contiguous(memory_format=torch.channels_last))

    def rate(job: Callable[[], object]) -> float:
        job()
        return count / statistics.median(trial.seconds(job) for _ in range(rounds))

    with evaluation_mode(model.net):
        trial.line("bare forward pass in bf16", rate(lambda: bare(cut)), "images/s")
    ours = rate(lambda: zfkit.mine(model, images, precision="bf16", progress=False))
    trial.line("mine in bf16", ours, "images/s")
    single = rate(lambda: zfkit.mine(model, images, progress=False))
    trial.line("mine in float32", single, "images/s")
    if trial.toy:
        return  # compiling for a CPU takes longer than all the rest
    with evaluation_mode(model.net):
        floor = rate(lambda: bare(torch.compile(cut)))
    trial.line("bare forward pass in bf16, compiled", floor, "images/s")
    trial.line("mine over the compiled pass", 100 * ours / floor, "%", "> 90")


def noise(count: int, side: int) -> zfkit.ImageSet:
    """So many pictures of noise, in memory."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return zfkit.ImageSet.of(pixels, progress=False)


def atlas(trial: Trial) -> None:
    """All maps of AlexNet, nine projections each, left on the device; and where the time goes."""
    from torch.profiler import ProfilerActivity, profile

    model = zfkit.load_model("torchvision:alexnet", weights=None, device=trial.device)
    photos = zfkit.load_images("photos", limit=20 if trial.toy else 200, progress=False).to(trial.device)
    top = zfkit.mine(model, photos, progress=False)
    layers = model.conv_layers[:2] if trial.toy else model.conv_layers
    wanted: dict[str, Any] = {layer: range(4) if trial.toy else None for layer in layers}
    maps = sum(4 if trial.toy else len(top[layer].value) for layer in layers)

    def ours(device: str) -> None:
        project_many(model, photos, top, wanted, device=device)

    ours(trial.device)
    taken = statistics.median(trial.seconds(lambda: ours(trial.device)) for _ in range(2 if trial.toy else 5))
    trial.line(f"{maps} maps x 9 projections, left on the device", taken, "s", trial.fast("< 0.4"))
    trial.line("the same, brought into the machine's memory", trial.seconds(lambda: ours("cpu")), "s")
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if trial.device == "cuda" else [])]
    with profile(activities=kinds) as profiled:
        trial.seconds(lambda: ours(trial.device))
    order = f"self_{trial.device}_time_total"
    (trial.out / "atlas_profile.txt").write_text(profiled.key_averages().table(sort_by=order, row_limit=20))
    try:
        from bench_atlas import Captum
    except ImportError:
        print("atlas: Captum is not installed here", flush=True)
        return
    captum = Captum(model, photos, top)
    trial.line("largest difference from Captum", captum.difference(layers), aim="< 1e-5")
    trial.line(
        "Captum on the cut network, extrapolated", captum.seconds(list(layers), 2 if trial.toy else 20), "s"
    )


def training(trial: Trial) -> None:
    """images/s with and without compiling; then `reference.py`'s training, the quickest way, to 46 % top-1."""
    from bench_training import measure
    from reference import TARGETS, train

    rates: dict[bool | str, float] = {}
    for way in (False,) if trial.toy else (False, True, "reduce-overhead"):
        batches, rounds = (2, 1) if trial.toy else (60, 3)
        name = "zfnet64-narrow" if trial.toy else "zfnet64"
        try:
            pairs = measure(name, batches, rounds, trial.device, way)
        except Exception as error:  # whatever the compiler raises: the other ways are still to be tried
            print(f"training: compile={way!r} failed: {error}", flush=True)
            continue
        rates[way] = statistics.median(ours for ours, _ in pairs)
        trial.line(f"training steps of {name}, compile={way}", rates[way], "images/s")
        trial.line(f"bare passes of {name}, not compiled", statistics.median(b for _, b in pairs), "images/s")
    quickest = max(rates, key=lambda way: rates[way])
    if trial.data:
        pictures, val = (
            zfkit.load_images(f"parquet:{trial.data}/{part}-*.parquet", size=64, progress=False).in_memory(
                False
            )
            for part in ("train", "valid")
        )
    else:
        limit = 256 if trial.toy else None
        pictures = zfkit.load_images("textures", split="train", limit=limit, progress=False)
        val = zfkit.load_images("textures", split="val", limit=limit, progress=False)
    recipe = zfkit.Recipe(epochs=1 if trial.toy else 50, snapshots=SNAPSHOTS)
    name, started, target = (
        "zfnet64-narrow" if trial.toy else "zfnet64",
        time.perf_counter(),
        TARGETS["zfnet64"],
    )
    reached: list[float] = []

    def watch(now: zfkit.training.Watched) -> None:
        """Lines while it goes on: a training that is stopped at the limit has told them."""
        if not now.history:
            return
        top1, elapsed = now.history[-1]["top1"], time.perf_counter() - started
        if now.epoch in SNAPSHOTS:
            trial.line(f"top-1 after epoch {now.epoch}", top1, "%")
        if top1 >= target and not reached:
            reached.append(elapsed)
            aim = "< 90" if trial.data else ""
            trial.line(f"seconds to {target:g} % top-1, epoch {now.epoch}", elapsed, "s", aim)

    out = trial.out / "reference" / name
    one, ten, run = train(
        name, pictures, val, recipe, out, device=trial.device, compile=quickest, watch=watch
    )
    what = "Tiny ImageNet" if trial.data else "drawn textures"
    trial.line(f"top-1 at the end, {what}", one.top1, "%", trial.fast(f"> {target:g}" if trial.data else ""))
    trial.line("top-1 at the end, ten crops", ten.top1, "%")
    trial.line("training with its data", float(run.history.images_per_second.median()), "images/s")
    trial.line("all epochs, with evaluation", time.perf_counter() - started, "s")


def memory(trial: Trial) -> None:
    """Peak of mining many pictures; then with too little memory for the batch, to the same table."""
    count = 70 if trial.toy else 100_000
    model = zfkit.load_model("zfnet64", device=trial.device)
    images = noise(count, 64).to(trial.device)
    cuda, began = trial.device == "cuda", 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        began = torch.cuda.memory_allocated()
    whole = zfkit.mine(model, images, progress=False)
    if cuda:
        peak = torch.cuda.max_memory_allocated() - began
        trial.line(f"peak of mining {count:,} pictures, beside them", peak / 2**30, "GiB", "< 4")
    with warnings.catch_warnings(record=True) as said, too_little(trial, began):
        warnings.simplefilter("always")
        table = zfkit.mine(model, images, batch_size=64 if trial.toy else 8192, progress=False)
    sizes = [
        int(m[1]) for w in said if (m := re.search(r"out of memory .* going on with (\d+)", str(w.message)))
    ]
    trial.line("times that memory ran out and the batch was halved", len(sizes), aim="> 0")
    if not sizes:
        return
    plain = zfkit.mine(model, images, batch_size=sizes[-1], progress=False)
    for other, what in (
        (plain, f"with batches of {sizes[-1]} from the start"),
        (whole, "with the default batch"),
    ):
        differ = sum(int((table[n].image != other[n].image).sum()) for n in model.conv_layers)
        trial.line(f"pictures of the table that differ from mining {what}", differ, aim="< 1")


@contextlib.contextmanager
def too_little(trial: Trial, began: int) -> Iterator[None]:
    """On a GPU, 2 GiB beside the pictures; on a CPU, convolutions that say so for more than 16 pictures."""
    if trial.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((began + 2 * 2**30) / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    forward = nn.Conv2d.forward

    def limited(self: nn.Conv2d, x: Tensor) -> Tensor:
        if len(x) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x)

    with mock.patch.object(nn.Conv2d, "forward", limited):
        yield


PARTS: dict[str, Callable[[Trial], None]] = {
    "right": right, "mining": mining, "atlas": atlas, "training": training, "memory": memory,
}  # fmt: skip


def main() -> int:
    """Run the parts, each in a process of its own, and print the table; returns 1 where one did not end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=[*PARTS], default=[*PARTS], metavar="PART")
    parser.add_argument("--data", help="folder with train-*.parquet and valid-*.parquet")
    parser.add_argument("--out", default="runs/gpu", help="folder to write to (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--toy", action="store_true", help="small sizes, to try it on a CPU")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    if args.here:
        for part in args.only:
            PARTS[part](Trial(part, args.device, args.toy, args.data, out))
        return 0
    failed = []
    for part in args.only:
        options = [*sys.argv[1:], "--only", part, "--here"]  # of two --only the last holds
        try:
            subprocess.run([sys.executable, __file__, *options], check=True, timeout=LIMITS[part])
        except subprocess.TimeoutExpired:
            failed.append(f"{part} was ended after {LIMITS[part]} s")
        except subprocess.CalledProcessError as error:
            failed.append(f"{part} failed with exit code {error.returncode}")
    if (out / "gpu.jsonl").exists():
        report(out)
    for what in failed:
        print(what)
    return 1 if failed else 0


def report(out: Path) -> None:
    """The table of all lines so far, the last of each, in FOLDER/gpu.md and on the screen."""
    rows = [json.loads(line) for line in (out / "gpu.jsonl").read_text().splitlines()]
    latest = {(row["part"], row["what"]): row for row in rows}
    with (out / "gpu.md").open("w") as file, contextlib.redirect_stdout(file):
        print(f"{rows[-1]['machine']}{'; toy sizes' if rows[-1]['toy'] else ''}\n")
        table(
            ["part", "measured", "value", "aim", "met"],
            [
                [part, what, f"{row['value']:.4g} {row['unit']}".strip(), row["aim"],
                 {None: "", True: "yes", False: "**no**"}[row["good"]]]
                for (part, what), row in latest.items()
            ],
        )  # fmt: skip
    print((out / "gpu.md").read_text())


if __name__ == "__main__":
    sys.exit(main())
