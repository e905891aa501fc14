"""Makes what ships in zfkit/topk/data: the bundled networks' tables on the bundled photographs, and their records;
their profiles and thumbnails on them in zfkit/widgets/data, for the explorer, and the figure that its page opens with.

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
from collections.abc import Sequence
from dataclasses import replace
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
from zfkit.widgets import ExplorerView, State, kept

NETWORKS = ("zfnet64", "alexnet64", "squeezenet1_1")
PAGE = Path(kept.__file__).parent / "page" / "voila" / "templates" / "zfkit"


def maximum(layer: str, outputs: Tensor, index: Tensor) -> Tensor:  # (n, C, H, W) -> (n, C)
    return outputs.flatten(2).amax(2)


def explorer(networks: Sequence[str]) -> None:
    """Profiles, in half precision, and thumbnails of every layer, for those that ship; and the opening figure."""
    shipped, photos = kept.DATA, zfkit.load_images("photos", progress=False)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"ZFKIT_CACHE": folder}),
        mock.patch.object(kept, "DATA", Path(folder)),  # where nothing ships
    ):
        for name in networks:
            model = zfkit.load_model(name, device="cpu")
            view = ExplorerView(model, photos, zfkit.topk.mined(model, photos))
            made = Path(folder) / f"{model.name}-{photos.source}"
            made.mkdir()
            for layer in view.layers:
                view.facts.measure(layer)
                view.thumbnails(layer)
                for what in ("profile", "thumbnails"):
                    found = view.facts.kept.load(layer, what)
                    assert found is not None
                    tensors, words = found
                    if what == "profile":
                        tensors["values"] = tensors["values"].half()
                    save_file(tensors, made / f"{layer}-{what}.part", sealed(tensors, words))
            for file in made.iterdir():  # not before: what is there counts as shipped
                file.rename(file.with_suffix(".safetensors"))
            if name == "zfnet64":
                figure = view.figure(view.checked(replace(State(), **view.worth_a_look())))
                figure.save(PAGE / "static" / "opening.jpg", quality=88, optimize=True)
            shutil.rmtree(shipped / made.name, ignore_errors=True)
            shutil.copytree(made, shipped / made.name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", help="Parquet of Tiny ImageNet's validation set")
    parser.add_argument("--imagenet", help="Parquet of ImageNet photographs")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="for the explorer")
    parser.add_argument("--only", choices=("tables", "records", "explorer"), help="make these alone")
    args = parser.parse_args()
    if args.only == "explorer":
        explorer(args.networks)
        return
    if args.only != "tables" and not (args.tiny and args.imagenet):
        parser.error("records need --tiny and --imagenet")
    DATA.mkdir(exist_ok=True)
    rows = []
    for name, source in zip(NETWORKS, (args.tiny, args.tiny, args.imagenet), strict=True):
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
