"""Trains the two bundled networks: ``python benchmarks/reference.py --data tiny-imagenet`` (= ``make reference``).

Tiny ImageNet is read as Parquet in the Hugging Face image layout: a folder with train-*.parquet and
valid-*.parquet (https://huggingface.co/datasets/zh-plus/tiny-imagenet). Each network gets a run folder with
snapshots and history; with --replace, the trained weights take the place of the bundled ones where they are at
least as accurate. Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

import zfkit
from zfkit.images.imageset import ImageSet
from zfkit.training import Accuracy, Recipe, Run

TARGETS = {"zfnet64": 46.0, "alexnet64": 0.0}  # validation top-1, %; alexnet64 has to end below zfnet64
WEIGHTS = Path(zfkit.__file__).parent / "weights"


def train(
    name: str, images: ImageSet, val: ImageSet, recipe: Recipe, out: Path, **options: Any
) -> tuple[Accuracy, Accuracy, Run]:
    """Train into `out` and evaluate what was written, with one crop and with ten; `options` are those of `fit`."""
    run = zfkit.fit(name, images, val, recipe, out, **options)
    model = zfkit.load_model(out / "model.safetensors", device=options.get("device"))
    one, ten = zfkit.evaluate(model, val), zfkit.evaluate(model, val, crops=10)
    history = run.history
    print(
        f"{name}: {one.top1:.1f}/{one.top5:.1f} one crop, {ten.top1:.1f}/{ten.top5:.1f} ten crops, of "
        f"{one.count:,}; {len(history)} epochs, {history.seconds.sum():.0f} s of training, "
        f"{history.images_per_second.median():,.0f} images/s; {model.provenance['device']}, "
        f"{model.provenance['precision']}"
    )
    return one, ten, run


def main() -> int:
    """Train, evaluate, write; returns 1 where the accuracy was not reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder with train-*.parquet and valid-*.parquet")
    parser.add_argument("--out", default="runs/reference", help="folder for the runs (default: %(default)s)")
    parser.add_argument("--models", nargs="+", default=[*TARGETS], choices=[*TARGETS])
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", default="train-*.parquet", help="which training files (default: all)")
    parser.add_argument("--limit", type=int, help="only the first so many training pictures")
    parser.add_argument("--val-limit", type=int, help="measure on the first so many validation pictures only")
    parser.add_argument("--device")
    parser.add_argument("--precision")
    parser.add_argument(
        "--compile", nargs="?", const=True, default=False, metavar="MODE", help="or a mode of torch.compile"
    )
    parser.add_argument(
        "--replace", action="store_true", help="put the weights into the package where they are good"
    )
    args = parser.parse_args()

    images = zfkit.load_images(f"parquet:{args.data}/{args.shards}", size=64, limit=args.limit).in_memory()
    val = zfkit.load_images(f"parquet:{args.data}/valid-*.parquet", size=64, limit=args.val_limit)
    recipe = zfkit.Recipe(epochs=args.epochs, random_seed=args.seed)
    data = f"Tiny ImageNet, {len(images.classes)} classes, {len(images):,} training images of 64 px"
    print(f"torch {torch.__version__}, {platform.machine()}, {data}")
    reached, top1 = True, {}
    for name in args.models:
        out = Path(args.out) / name
        one, _, _ = train(
            name, images, val, recipe, out, data=data,
            device=args.device, precision=args.precision, compile=args.compile,
        )  # fmt: skip
        top1[name] = one.top1
        bundled = zfkit.nets.read_provenance(WEIGHTS / f"{name}.safetensors")["top1"]
        good = one.top1 >= TARGETS[name] and (name != "alexnet64" or one.top1 < top1.get("zfnet64", 100))
        reached &= good
        if args.replace and good and one.top1 >= bundled - 0.5:
            shutil.copyfile(out / "model.safetensors", WEIGHTS / f".{name}.part")
            (WEIGHTS / f".{name}.part").replace(WEIGHTS / f"{name}.safetensors")
            print(f"  now bundled (was {bundled})")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
