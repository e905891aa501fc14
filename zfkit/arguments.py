"""The words of the command line: examples for its help, and what is written behind its options, as values."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from .checks import Size, as_path
from .errors import ZfkitError

ATLAS_EXAMPLE = """examples:
  zfkit atlas                                                   the bundled network on the bundled photographs
  zfkit atlas --images folder:my/pictures --out mine --maps all
  zfkit atlas --model torchvision:vgg11 --maps features.8:17,42 features.18:5
  zfkit atlas --model my_module.py:make_net --weights my.pt --mean 123.7 116.3 103.5 --scale 0.017 \\
      --input-size 66x200 --classes names.txt --images folder:my/pictures --size 66x200
"""
SITE_EXAMPLE = """examples:
  zfkit site                                                    the bundled network on the bundled photographs
  zfkit site --model zfnet64 --model squeezenet1_1 --out pair   two networks side by side
  zfkit site --model torchvision:resnet18 --images folder:my/pictures --maps 24

Stopped for any reason, the same command goes on. Open OUT/index.html, or put OUT on any web server of files.
"""
MINE_EXAMPLE = """examples:
  zfkit mine --images "parquet:shards/*.parquet" --size 64 --out topk.parquet
  zfkit mine --images folder:my/pictures --dry-run                           how long it will take, how much disk
  torchrun --nproc-per-node 2 -m zfkit mine --images folder:my/pictures      in two processes, the same table
  zfkit mine --images folder:/data/pictures --scheduler tcp://10.0.0.1:8786  on a Dask cluster, the same table
  python -c 'import zfkit; print(zfkit.TopK.load("topk.parquet").table("conv5"))'
"""
TRAIN_EXAMPLE = """examples:
  zfkit train --epochs 30                                       a narrow network on drawn textures, a few minutes
  zfkit train --model zfnet64 --images "parquet:tiny/train-*.parquet" --val "parquet:tiny/valid-*.parquet" \\
      --size 64 --epochs 50 --out runs/zfnet64
  torchrun --nproc-per-node 8 -m zfkit train --model zfnet224 --images "parquet:imagenet/train-*.parquet" \\
      --val "parquet:imagenet/val-*.parquet" --size 256 --save-every 1000 --out runs/zfnet224

Stopped for any reason, the same command goes on where it was.
"""
SWEEP_EXAMPLE = """examples:
  zfkit sweep notebooks/01_what_do_the_layers_see.ipynb --grid grid.yaml --out runs
  zfkit sweep notebooks/01_what_do_the_layers_see.ipynb --grid grid.yaml --out runs --scheduler tcp://10.0.0.1:8786

grid.yaml, every combination:                 or each run by itself:
  model: [zfnet64, alexnet64]                   - {model: zfnet64, layer: conv3}
  seed: [0, 1, 2]                               - {model: alexnet64, layer: conv5, seed: 7}

The same command again runs what is missing or failed. Exit code 1: at least one run failed.
"""
DOCTOR_EXAMPLE = """examples:
  zfkit doctor                  look at it
  zfkit doctor > report.md      to paste into a bug report

Exit code 1: something is broken.
"""
CACHE_EXAMPLE = """examples:
  zfkit cache                   what is kept, and where
  zfkit cache --limit 500       delete what was not used for the longest, until 500 MB are left
  zfkit cache --limit 0         delete all of it

Everything there is made or fetched again when it is needed. ZFKIT_CACHE says where it is, or XDG_CACHE_HOME.
"""


def file_path(text: str) -> Path:
    try:
        return as_path(text)
    except ZfkitError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def key(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def side(text: str) -> Size:
    """A side in pixels, or "HEIGHTxWIDTH"."""
    sides = text.split("x")
    if len(sides) > 2 or not all(n.isdecimal() for n in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a side in pixels nor HEIGHTxWIDTH")
    return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def number(text: str) -> float | None:
    return None if text.lower() == "none" else float(text)


def feature_maps(texts: list[str]) -> Any:
    """How many feature maps, or which, as `write_atlas` takes them; see the help of --maps."""
    if len(texts) == 1 and (texts[0] == "all" or (texts[0].isdecimal() and int(texts[0]))):
        return "all" if texts[0] == "all" else int(texts[0])
    matches = [re.fullmatch(r"(?:(.+):)?(\d+(?:,\d+)*),?", text) for text in texts]
    maps = {m[1]: [int(n) for n in m[2].split(",")] for m in matches if m}
    if len(maps) == len(texts) and (None not in maps or (len(texts) == 1 and "," in texts[0])):
        return maps.get(None) or maps
    raise ZfkitError(
        f"--maps {' '.join(texts)} is neither a number, 'all', maps as 17,42, nor conv3:5 conv5:17,42"
    )
