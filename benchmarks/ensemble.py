"""Table 2 on the bundled networks: errors of zfnet64 and alexnet64 alone and averaged, for one crop and for ten.

.venv/bin/python benchmarks/ensemble.py --images "parquet:TINY/valid-*.parquet" [--models zfnet64 alexnet64]

TINY holds Tiny ImageNet's validation set in the Hugging Face image layout; `--limit 2000` takes a part of it. Further
networks of the same classes, such as those of `make reference` with other seeds, go behind `--models` as files.
"""

from __future__ import annotations

import argparse
import itertools

from common import machine, table

import zfkit


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", required=True, help="as for zfkit.load_images, with the networks' classes"
    )
    parser.add_argument("--models", nargs="+", default=["zfnet64", "alexnet64"])
    parser.add_argument("--limit", type=int, help="only the first so many pictures")
    options = parser.parse_args()
    models = [zfkit.load_model(name) for name in options.models]
    size = max(model.input_size for model in models)
    images = zfkit.load_images(options.images, size=size, limit=options.limit)
    print(machine())
    rows, pairs = [], []
    for crops in (1, 10):
        found = zfkit.experiments.ensemble(models, images, crops)
        for row in found.table().itertuples():
            rows.append(
                [row.Index, str(crops), f"{row.top1_error:.1f}", f"{row.top5_error:.1f}", f"{row.loss:.2f}"]
            )
        for i, j in itertools.combinations(range(len(models)), 2):
            pair = f"{found.models[i]}, {found.models[j]}, {crops} crop{'s' if crops > 1 else ''}"
            pairs.append(
                f"{pair}: same top class {found.agreement[i, j]:.1f} %, both wrong {found.both_wrong[i, j]:.1f} %"
            )
    print(f"{found.count:,} pictures of {options.images}\n")
    table(["averaged", "crops", "top-1 error, %", "top-5 error, %", "loss, nats"], rows)
    print("\n" + "\n".join(pairs))


if __name__ == "__main__":
    main()
