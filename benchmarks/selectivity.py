"""Is layer 4 class-specific, and does layer 5 show objects in any pose? The numbers that notebook 01 cites.

.venv/bin/python benchmarks/selectivity.py --images "parquet:PATH/valid-*.parquet" [--model zfnet64] [--limit N]

Class-selectivity index and entropy of the top 9's classes for every feature map, beside shuffled labels; and how
different a map's nine are, in pixels and in the layers up to its own, beside nine of different maps. Notebook 01 cites
zfnet64 on Tiny ImageNet's validation set, 10,000 pictures of 64 px (about 3 minutes on 2 cores).
"""

from __future__ import annotations

import argparse

from common import machine, table

import zfkit


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", required=True, help="labelled, as for zfkit.load_images")
    parser.add_argument("--model", default="zfnet64")
    parser.add_argument("--limit", type=int, help="pictures; default: all")
    parser.add_argument("--maps", type=int, default=24, help="of each layer, for pose variation")
    options = parser.parse_args()
    model = zfkit.load_model(options.model)
    images = zfkit.load_images(options.images, size=model.input_size, limit=options.limit, progress=False)
    hidden = [name for name in model.layers if name in ("fc6", "fc7")]
    found = zfkit.selectivity(model, images, [*model.conv_layers, *hidden])
    print(machine())
    print(f"{model.name} on {found.pictures:,} pictures of {found.classes} classes of {options.images}\n")
    table(
        ["layer", "index (middle half)", "shuffled", "above", "entropy, bits", "shuffled", "of at most"],
        [
            [
                row.Index, f"{row.index_:.2f} ({row.index_q25:.2f} to {row.index_q75:.2f})",
                f"{row.index_shuffled:.2f}", f"{row.above:.0%}", f"{row.entropy:.2f}", f"{row.entropy_shuffled:.2f}",
                f"{row.entropy_most:.2f}",
            ]
            for row in found.table().rename(columns={"index": "index_"}).itertuples()
        ],
    )  # fmt: skip
    pose = (
        zfkit.experiments.pose_variation(model, images, maps=options.maps)
        .table()["ratio"]
        .unstack(sort=False)
    )
    print()
    table(
        ["top 9 of", *pose.columns],
        [
            [layer, *("" if v != v else f"{v:.2f}" for v in row)]
            for layer, row in zip(pose.index, pose.values, strict=True)
        ],
    )


if __name__ == "__main__":
    main()
