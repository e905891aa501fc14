"""What `import zfkit` costs over `import torch`: fresh interpreters, taken in turn.

.venv/bin/python benchmarks/bench_import.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 10


def seconds(code: str) -> float:
    """Wall time of a fresh interpreter running this."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Print the medians and the spread of their difference."""
    seconds("import torch, zfkit")  # the files are in the disk cache from here on
    times = [(seconds("import torch"), seconds("import zfkit")) for _ in range(ROUNDS)]
    torch_time, zfkit_time = (statistics.median(column) for column in zip(*times, strict=True))
    extra = sorted(z - t for t, z in times)
    print(f"import torch  {torch_time:.2f} s (median of {ROUNDS})")
    print(f"import zfkit  {zfkit_time:.2f} s, {zfkit_time / torch_time:.2f} times as long")
    print(
        f"difference    {1000 * statistics.median(extra):.0f} ms (from {1000 * extra[0]:.0f} to {1000 * extra[-1]:.0f})"
    )


if __name__ == "__main__":
    main()
