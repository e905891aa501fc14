"""benchmarks/gpu.py at toy size on the CPU: every part runs, and what it measures is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


def run(out, *options):
    command = [sys.executable, str(SCRIPT), "--toy", "--device", "cpu", "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_the_gpu_script_at_toy_size(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    values = {(row["part"], row["what"]): row["value"] for row in rows}
    assert {part for part, _ in values} == {"right", "mining", "atlas", "training", "memory"}
    assert [row["what"] for row in rows if row["good"] is False] == []
    for network in ("zfnet64", "resnet18"):  # against autograd in float64
        assert values["right", f"{network}: project in float64, largest error"] < 1e-12
        assert 0 < values["right", f"{network}: project in float32, median error"] < 1e-5
    # Top 9 against all activations, sorted; in bf16 some differ, or it was not bf16.
    ranks = "zfnet64: ranks of the top 9 that name another picture, "
    assert values["right", ranks + "float32"] == 0 < values["right", ranks + "bf16"] < 20
    assert values["atlas", "largest difference from Captum"] < 1e-5
    assert 0 < values["training", "top-1 at the end, drawn textures"] <= 100
    assert values["memory", "times that memory ran out and the batch was halved"] == 2  # 64, 32, 16
    assert values["memory", "pictures of the table that differ from mining with the default batch"] == 0
    page = (tmp_path / "gpu.md").read_text()
    assert all(what in page for _, what in values) and "toy sizes" in page


@pytest.mark.slow
def test_what_was_measured_before_a_part_failed_is_kept(tmp_path):
    """A folder where the profile should be written: the atlas's first lines stay, and the exit code says so."""
    (tmp_path / "atlas_profile.txt").mkdir()
    done = run(tmp_path, "--only", "atlas")
    assert done.returncode == 1 and "atlas failed" in done.stdout
    assert "left on the device" in (tmp_path / "gpu.md").read_text()
