"""Makes what ships in zfkit/topk/data: the bundled networks' tables on the bundled photographs, and their records;
and in zfkit/widgets/data, zfnet64's profiles and thumbnails on them, for the explorer.

A map's record is the 99.9 % quantile of its maximum over pictures like those that its network was trained on; only
these numbers are kept, nothing of the pictures.

.venv/bin/python benchmarks/bundled.py --tiny "tiny/valid-*.parquet" --imagenet "imagenet/test-*.parquet"
.venv/bin/python benchmarks/bundled.py --only tables    # needs neither
.venv/bin/python benchmarks/bundled.py --only explorer  # likewise, once the table is there
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import save_file
from torch import Tensor

import zfkit
from zfkit.checksums import sealed
from zfkit.deconv import fits_inside
from zfkit.nets.activations import features
from zfkit.topk.bundled import DATA, QUANTILE
from zfkit.widgets import ExplorerView, kept


def maximum(layer: str, outputs: Tensor, index: Tensor) -> Tensor:  # (n, C, H, W) -> (n, C)
    return outputs.flatten(2).amax(2)


def explorer() -> None:
    """Profiles, in half precision, and thumbnails of every layer of zfnet64; they replace those that ship."""
    shipped = kept.DATA
    model, photos = zfkit.load_model("zfnet64", device="cpu"), zfkit.load_images("photos", progress=False)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"ZFKIT_CACHE": folder}),
        mock.patch.object(kept, "DATA", Path(folder)),  # where nothing ships
    ):
        view = ExplorerView(model, photos, zfkit.topk.mined(model, photos))
        for layer in view.layers:
            view.facts.measure(layer)
            view.thumbnails(layer)
            for name in ("profile", "thumbnails"):
                found = view.facts.kept.load(layer, name)
                assert found is not None
                tensors, words = found
                if name == "profile":
                    tensors["values"] = tensors["values"].half()
                file = Path(folder) / "made" / f"{model.name}-{photos.source}" / f"{layer}-{name}.safetensors"
                file.parent.mkdir(parents=True, exist_ok=True)
                save_file(tensors, file, sealed(tensors, words))
        shutil.rmtree(shipped, ignore_errors=True)
        shutil.copytree(Path(folder) / "made", shipped)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", help="Parquet of Tiny ImageNet's validation set")
    parser.add_argument("--imagenet", help="Parquet of ImageNet photographs")
    parser.add_argument("--only", choices=("tables", "records", "explorer"), help="make these alone")
    args = parser.parse_args()
    if args.only == "explorer":
        explorer()
        return
    if args.only != "tables" and not (args.tiny and args.imagenet):
        parser.error("records need --tiny and --imagenet")
    DATA.mkdir(exist_ok=True)
    rows = []
    for name, source in (
        ("zfnet64", args.tiny), ("alexnet64", args.tiny), ("squeezenet1_1", args.imagenet),
    ):  # fmt: skip
        model = zfkit.load_model(name, device="cpu")
        if args.only != "records":
            photos = zfkit.load_images("photos", progress=False)
            start = time.perf_counter()
            top = zfkit.mine(model, photos, inside=fits_inside(model, list(model.conv_layers), photos.size))
            print(f"{name}: {len(photos)} windows mined in {time.perf_counter() - start:.0f} s")
            top.save(DATA / f"{name}-photos.parquet")
        if args.only != "tables":
            images = zfkit.load_images(f"parquet:{source}", size=model.input_size)
            largest = features(model, images, list(model.conv_layers), maximum, progress=True)
            rows += [
                {
                    "weights": model.fingerprint(),
                    "layer": layer,
                    "record": [float(f"{v:.3g}") for v in values.quantile(QUANTILE, 0).tolist()],
                }
                for layer, values in largest.items()
            ]
            print(f"{name}: records of {len(images):,} pictures")
    if rows:
        kinds = pa.schema(
            [("weights", pa.string()), ("layer", pa.string()), ("record", pa.list_(pa.float32()))]
        )
        pq.write_table(pa.Table.from_pylist(rows, kinds), DATA / "records.parquet", compression="zstd")


if __name__ == "__main__":
    main()
