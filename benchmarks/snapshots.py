"""Trains the bundled snapshots, three seeds of a small ZFNet on textures: ``python benchmarks/snapshots.py``.

Each seed becomes zfkit/weights/evolution/seedN, with eleven snapshots and its history;
`zfkit.experiments.bundled_runs` opens them. About 50 s a seed on one core; stopped, the same command goes on.

The recipe is the paper's, so that features form from its small start, but for three things (`RECIPE`): batches of 32,
since 2,048 pictures are 16 batches of 128; a dropout of 0.1, since 0.5 leaves little of 64 hidden units; and lr never
falls, so that no layer settles merely because steps have become smaller. What makes the files small: a sixth to a
twelfth of the paper's width (`ARCHITECTURE`: 54 thousand weights), half precision, no momentum, and no history in each
file. What half precision costs is measured against the float32 weights at the end and printed.

With --measure, nothing is trained, and the table of convergence is printed for what is bundled.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from common import machine, table

import zfkit
from zfkit.experiments.evolution import convergence, evolution
from zfkit.nets.paper import ARCHITECTURES
from zfkit.nets.weights import load_weights, read_provenance, save_weights

ARCHITECTURE = replace(ARCHITECTURES["zfnet64"], widths=(16, 24, 32, 32, 24), hidden=64)
RECIPE = zfkit.Recipe(
    epochs=30, batch_size=32, dropout=0.1, patience=10_000, snapshots=(0, 1, 2, 3, 5, 7, 10, 15, 20, 25, 30)
)
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
BUNDLED = Path(zfkit.__file__).parent / "weights" / "evolution"


def main() -> None:
    """Train, make small, put into the package, measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", default="runs/evolution", help="folder for the runs (default: %(default)s)")
    parser.add_argument("--measure", action="store_true", help="train nothing, measure what is there")
    options = parser.parse_args()
    val = zfkit.load_images("textures", size=64, split="val", progress=False)
    if not options.measure:
        train = zfkit.load_images("textures", size=64, split="train", limit=2048, progress=False)
        few = zfkit.load_images("textures", size=64, split="val", limit=256, progress=False)
        for seed in options.seeds:
            run = zfkit.fit(
                ARCHITECTURE, train, few, replace(RECIPE, random_seed=seed), Path(options.out) / f"seed{seed}"
            )
            bundle(run, val, BUNDLED / f"seed{seed}")
        return
    runs = zfkit.experiments.bundled_runs()
    print(machine())
    found = [evolution(run, val, LAYERS, maps=1) for run in runs]
    shown = convergence(found)
    for run in runs:
        print(f"{run.folder.name}: {run.history.top1.iloc[-1]:.1f} % top-1")
    rows = [
        [name, f"{r.cka:.1f} ({r.cka_low:.1f} to {r.cka_high:.1f})", f"{r.rise:.1f}",
         f"{r['map']:.1f} ({r.map_q25:.1f} to {r.map_q75:.1f})", f"{r.start:.2f}"]
        for name, r in shown.iterrows()
    ]  # fmt: skip
    head = ["layer", "CKA >= 0.9 from epoch", "90 % of the rise", "maps (quartiles)", "CKA untrained"]
    table(head, rows)


def bundle(run: zfkit.Run, val: zfkit.ImageSet, out: Path) -> None:
    """Copy a run's snapshots and history into the package; print size, and what half precision costs."""
    from safetensors import safe_open

    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for path in run.snapshots.values():
        tensors, known = load_weights(path)
        known = {k: v for k, v in known.items() if k != "history"}  # it is in history.parquet
        save_weights(part / "snapshots" / path.name, tensors, known, torch.float16)
    shutil.copyfile(run.folder / "history.parquet", part / "history.parquet")
    shutil.rmtree(out, ignore_errors=True)
    part.replace(out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    half = zfkit.Run(out).model()
    with safe_open(run.folder / "state.safetensors", "pt") as file:
        exact = {n: file.get_tensor(f"weight/{n}") for n, _ in half.net.named_parameters()}
    errors = [float((p - exact[n]).norm() / exact[n].norm()) for n, p in half.net.named_parameters()]
    with torch.inference_mode():
        x = half.preprocess(val.take(range(256)))
        low = half.net(x)
        half.net.load_state_dict(exact)
        high = half.net(x)
    told = read_provenance(max(zfkit.Run(out).snapshots.values()))
    print(
        f"{out.name}: {size / 2**20:.2f} MiB, top-1 {told['top1']} %; half precision: largest relative error of a "
        f"tensor {max(errors):.1e}, of the logits {float((low - high).norm() / high.norm()):.1e}, another answer for "
        f"{int((low.argmax(1) != high.argmax(1)).sum())} of {len(x)} pictures"
    )


if __name__ == "__main__":
    main()
