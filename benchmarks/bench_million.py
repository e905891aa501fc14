"""A long-lived store: memory of mining from 10^3 to 10^6 pictures, killed and resumed, on a cluster, merged.

    .venv/bin/python benchmarks/bench_million.py [--pictures 1000000] [--what memory kill cluster merge] [--folder DIR]

The source are Parquet shards of 8 x 8 px PNGs of noise, 50,000 rows each, drawn and encoded here and streamed as
ImageNet would be (sets that fit are otherwise kept in memory); the network is two small convolutions, so that what is
measured is the way of the pictures and the table. Every measurement is a process of its own with one thread.

memory   peak resident memory, by number of pictures
kill     the run is ended by SIGKILL three times on its way; the table has to be that of the undisturbed run, byte by
         byte
cluster  on a Dask cluster of two workers, one of which is killed on its way; the table has to be the same
merge    what merging the tables of parts costs, by number of parts
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from common import machine, resident, table
from torch import nn

import zfkit
import zfkit.images.imageset

SIDE, ROWS, GROUP = 8, 50_000, 1_000
OPTIONS = {"k": 9, "batch_size": 250, "progress": False}
EVERY = 10_000


def png(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as a PNG, without Pillow: a million of them in half a minute."""
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(lines, 1))
        + chunk(b"IEND", b"")
    )


def draw(folder: Path, count: int) -> None:
    """Shards in the Hugging Face image layout; those that are there stay."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for shard in range(-(-count // ROWS)):
        file = folder / f"shard-{shard:03d}.parquet"
        if file.exists():
            continue
        pixels = np.random.default_rng(shard).integers(0, 256, (ROWS, SIDE, SIDE, 3), dtype=np.uint8)
        images = pa.array([{"bytes": png(p), "path": None} for p in pixels])
        part = file.with_suffix(".part")
        pq.write_table(pa.table({"image": images}), part, row_group_size=GROUP, compression="none")
        part.rename(file)


def network() -> zfkit.VisionModel:
    """Two small convolutions with the weights of a fixed seed."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3))
    return zfkit.wrap_model(net, mean=128, scale=1 / 64, input_size=SIDE, name="two small convolutions")


def worker(folder: Path, count: int, out: Path) -> None:
    """One process: mine so many pictures, and tell of time and memory."""
    torch.set_num_threads(1)
    model = network()
    before = resident()
    started = time.perf_counter()
    images = load(folder, count)
    zfkit.mine(model, images, checkpoint=f"{out}.part", checkpoint_every=EVERY, **OPTIONS).save(out)  # type: ignore[arg-type]
    told = {"seconds": time.perf_counter() - started, "before": before, "peak": resident()}
    print(json.dumps(told))


def start(folder: Path, count: int, out: Path) -> subprocess.Popen[str]:
    """The same in another process."""
    command = [sys.executable, __file__, "--folder", str(folder), "--worker", str(count), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def told(process: subprocess.Popen[str]) -> dict[str, float]:
    """What a process says at its end."""
    said = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"a process ended with {process.returncode}: {said}")
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found


def picture_at(part: Path) -> int:
    """How far the run whose state this is has come."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(part, "pt") as file:
            return int(json.loads(file.metadata()["zfkit mining"])["next"])
    except (FileNotFoundError, SafetensorError):
        return 0


def kill_at(process: subprocess.Popen[str], part: Path, picture: int) -> int:
    """SIGKILL once the state has passed this picture; returns where it stood."""
    while process.poll() is None and picture_at(part) < picture:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if process.returncode != -signal.SIGKILL:
        raise SystemExit("it was done before it could be killed")
    return picture_at(part)


def memory(folder: Path, out: Path, count: int) -> None:
    """Peak resident memory at 10^3, 10^4, ... pictures."""
    rows = []
    for n in [10**e for e in range(3, 10) if 10**e <= count]:
        found = told(start(folder, n, out / f"{n}.parquet"))
        rows.append([f"{n:,}", f"{found['seconds']:.1f}", f"{found['before']:.0f}", f"{found['peak']:.0f}"])
    table(["pictures", "seconds", "MiB before", "peak, MiB"], rows)


def kill(folder: Path, out: Path, count: int) -> None:
    """Killed at about 20, 50 and 80 % and resumed: the identical file."""
    whole, killed = out / f"{count}.parquet", out / "killed.parquet"
    if not whole.exists():
        told(start(folder, count, whole))
    stood = []
    for share in (0.2, 0.5, 0.8):
        stood.append(kill_at(start(folder, count, killed), Path(f"{killed}.part"), int(share * count)))
    told(start(folder, count, killed))
    same = whole.read_bytes() == killed.read_bytes()
    print(f"killed at {', '.join(f'{n:,}' for n in stood)} of {count:,} and resumed: identical: {same}")


def cluster(folder: Path, out: Path, count: int) -> None:
    """A rehearsal of many machines: two workers, one dies when the first third is done."""
    from distributed import Client, LocalCluster

    whole, shared = out / f"{count}.parquet", out / "cluster.parquet"
    if not whole.exists():
        told(start(folder, count, whole))
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as local,
        Client(local) as client,
    ):
        pids = list(client.run(os.getpid).values())
        started = time.perf_counter()
        # A million pictures take one process some minutes: in the middle of the work.
        killer = threading.Timer(2 + count / 10_000, os.kill, (pids[0], signal.SIGKILL))
        killer.start()
        zfkit.mine(network(), load(folder, count), scheduler=client, **OPTIONS).save(shared)  # type: ignore[arg-type]
        seconds = time.perf_counter() - started
        killer.cancel()
        survivors = len({*pids} & {*client.run(os.getpid).values()})
    same = shared.read_bytes() == whole.read_bytes()
    print(f"two workers, {2 - survivors} of them killed on the way: {seconds:.0f} s; identical: {same}")


def merge(folder: Path, out: Path, count: int) -> None:
    """What merging costs: tables as large as those of an AlexNet's five layers, whatever made them."""
    torch.manual_seed(0)
    channels = ((3, 64), (64, 192), (192, 384), (384, 256), (256, 256))
    net = nn.Sequential(*[nn.Conv2d(a, b, 1) for a, b in channels])
    model = zfkit.wrap_model(net, mean=0, scale=1, input_size=SIDE, name="as many maps as AlexNet")
    images, rows = load(folder, 256 * 10), []
    plan = zfkit.topk.MiningPlan.checked(model, images, None, 9, None, False, 10, "float32")
    for n in (1, 4, 16, 64, 256):
        tables = [zfkit.topk.mine_part(plan, part) for part in plan.parts(n)]
        times = []
        for _ in range(3):
            begun = time.perf_counter()
            zfkit.TopK.merge(tables, images)
            times.append(time.perf_counter() - begun)
        rows.append([str(n), f"{min(times) * 1e3:.0f}", f"{min(times) / n * 1e3:.1f}"])
    print("1,152 feature maps, k 9:\n")
    table(["parts", "merging, ms", "ms a part"], rows)


def load(folder: Path, count: int) -> zfkit.ImageSet:
    """The pictures, streamed, as a set is that does not fit."""
    zfkit.images.imageset.IN_MEMORY_BYTES = 0
    return zfkit.load_images(f"parquet:{folder}", size=SIDE, limit=count, progress=False)


def main() -> None:
    """Draw, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--what", nargs="+", default=["memory", "kill", "cluster", "merge"])
    parser.add_argument("--folder", type=Path, help="keep the shards there (default: a temporary folder)")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        count, out = args.worker
        worker(args.folder, int(count), Path(out))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / "shards"
        folder.mkdir(parents=True, exist_ok=True)
        out = folder / "tables"
        out.mkdir(exist_ok=True)
        started = time.perf_counter()
        draw(folder, args.pictures)
        size = sum(f.stat().st_size for f in folder.glob("*.parquet"))
        print(f"{machine()}; one thread a process; {args.pictures:,} pictures, {size / 1e6:.0f} MB, drawn in "
              f"{time.perf_counter() - started:.0f} s\n", flush=True)  # fmt: skip
        for what in args.what:
            {"memory": memory, "kill": kill, "cluster": cluster, "merge": merge}[what](
                folder, out, args.pictures
            )
            print(flush=True)


if __name__ == "__main__":
    main()
