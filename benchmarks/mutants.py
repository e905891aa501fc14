"""Forty small faults, one at a time, in the rooms that everything rests on: how many does `make test` notice?

    .venv/bin/python benchmarks/mutants.py [--only N ...] [--list]

Each fault is put into a copy of the repository, in a folder of its own; the quick tests of the rooms that it could
show in are run until the first failure. A fault that no test notices is one that a change could bring in unseen.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# File, what stands there, what is put in its place. Each text stands once in its file.
FAULTS: list[tuple[str, str, str]] = [
    # the deconvnet
    ("deconv/rules.py", "R = R.clamp_(min=0)", "R = R.clamp_(max=0)"),
    ("deconv/rules.py", "return (y > 0) & (y < 6) if", "return (y > 0) & (y < 7) if"),
    ("deconv/rules.py", "reach = dilation[0] * (height - 1), dilation[1] * (width - 1)",
     "reach = dilation[0] * (height - 1), dilation[0] * (width - 1)"),
    ("deconv/rules.py", "weight.transpose(0, 1).flip(2, 3)", "weight.transpose(0, 1).flip(2)"),
    ("deconv/rules.py", "return y[:, :, : (R.shape[2] - 1) * sh + kh,",
     "return y[:, :, : (R.shape[2] - 1) * sh + kw,"),
    ("deconv/rules.py", "unpooled.scatter_add_(1, place", "unpooled.scatter_(1, place"),
    ("deconv/rules.py", "return (means / counts).expand", "return means.expand"),
    ("deconv/rules.py", "(module.running_var + module.eps).rsqrt()",
     "(module.running_var + module.eps).sqrt()"),
    ("deconv/rules.py", "before, behind = n // 2, (n - 1) // 2", "before, behind = (n - 1) // 2, n // 2"),
    ("deconv/rules.py", "- 2 * alpha * beta / n * x", "+ 2 * alpha * beta / n * x"),
    ("deconv/rules.py", "return R @ module.weight", "return R.clamp(min=0) @ module.weight"),
    ("deconv/rules.py", "list(R.split([shape[0] for shape in context.shapes], 1))",
     "list(R.split([shape[0] for shape in context.shapes], 1))[::-1]"),
    ("deconv/project.py", "coming[name].add_(part) if name in coming else part", "part"),
    ("deconv/project.py", "place = (flat == flat.amax(1, keepdim=True)).int().argmax(1).cpu()",
     "place = flat.abs().argmax(1).cpu()"),
    ("deconv/windows.py", ".clamp(0, H - 1)\n        columns", ".clamp(0, H)\n        columns"),
    ("deconv/windows.py", "((columns >= 0) & (columns < R.shape[3]))",
     "((columns > 0) & (columns < R.shape[3]))"),
    ("deconv/windows.py", "return maps * (inside_rows & inside_columns)[:, None]", "return maps"),
    ("deconv/windows.py", "if first < 0 or last >= length:", "if first < 0 or last > length:"),
    ("deconv/generic.py", 'if context.options.rule != "gradient":\n        R = R.clamp_(min=0)',
     "if False:\n        pass"),
    ("deconv/generic.py", "values.append(B)", "values.append(1)"),
    # what a unit sees
    ("deconv/receptive_field.py", "f.stride * i.high - f.padding + f.dilation * (f.kernel - 1)",
     "f.stride * i.high - f.padding + f.dilation * f.kernel"),
    ("deconv/receptive_field.py", "min(x.low, y.low), max(x.high, y.high)",
     "max(x.low, y.low), max(x.high, y.high)"),
    ("deconv/receptive_field.py", "last = (side - 1 - i.high) // i.stride",
     "last = (side - i.high) // i.stride"),
    # the traced network
    ("nets/graph.py", "and last_use[step.inputs[0]] == i", ""),
    ("nets/trace.py", "maps and not _is_a_number(node)", "maps"),
    ("nets/trace.py", "if node.target in DROPOUTS:", "if False:"),
    ("nets/model.py", "return (x - x.new_tensor(self.mean).view(-1, 1, 1))",
     "return (x + x.new_tensor(self.mean).view(-1, 1, 1))"),
    # the strongest activations
    ("topk/running.py", "candidate = strongest > self.value[:, -1]",
     "candidate = strongest > self.value[:, 0]"),
    ("topk/running.py", "torch.cat([old[changed], new[:, changed].T], 1)",
     "torch.cat([new[:, changed].T, old[changed]], 1)"),
    ("topk/running.py", "row=(place // self.width).cpu() + self.inside[0].start",
     "row=(place // self.width).cpu()"),
    ("topk/running.py", "self.active += (strongest > 0).sum(0)", "self.active += (strongest >= 0).sum(0)"),
    ("topk/running.py", "value = value.masked_fill(overlap[pick[0]].T, -torch.inf)", "pass"),
    ("topk/mine.py", "-(-k // 3)", "k // 3"),
    ("topk/table.py", "torch.nonzero(top.image >= 0, as_tuple=True)",
     "torch.nonzero(top.image > 0, as_tuple=True)"),
    # frequencies
    ("frequency/plane.py", "u.abs() > 1 / (2 * stride[0])", "u.abs() > 1 / stride[0]"),
    ("frequency/plane.py", "(torch.arange(size, dtype=torch.float64) - size // 2) / size",
     "(torch.arange(size, dtype=torch.float64) - size // 2 + 1) / size"),
    ("frequency/aliasing.py", "<= 0.5 + 1e-9\n    columns", "<= 1 + 1e-9\n    columns"),
    ("frequency/intervals.py", "(1 - level) / 2, (1 + level) / 2", "(1 - level), (1 + level) / 2"),
    # pictures
    ("images/imageset.py", "return (low < high).all(-1) &", "return (low < high).any(-1) &"),
    ("images/colour.py", "rgb = (128 + 127 * share)", "rgb = (128 - 127 * share)"),
]  # fmt: skip
BESIDE = {"nets": ["deconv"], "deconv": ["topk"], "images": ["topk"], "topk": [], "frequency": []}


def tests_of(file: str) -> list[str]:
    """Folders of tests that a fault in this file could show in, its own first."""
    room = file.split("/")[0]
    return [f"tests/{name}" for name in [room, *BESIDE[room]]]


def noticed(fault: tuple[str, str, str]) -> bool:
    """Does a quick test fail with this fault?"""
    file, old, new = fault
    with tempfile.TemporaryDirectory(prefix="zfkit-mutant-") as folder:
        for name in ("zfkit", "tests", "benchmarks", "data", "pyproject.toml"):
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, Path(folder) / name)
        path = Path(folder) / "zfkit" / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file}: {old!r} stands {text.count(old)} times"
        path.write_text(text.replace(old, new))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", "2", "--dist",
                   "loadfile", "-m", "not slow and not browser", *tests_of(file)]  # fmt: skip
        # By what pytest says: stopped at the first failure, its exit status depends on the number of workers.
        return " failed" in subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout


def main() -> None:
    """Try each, print, count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", type=int, help="numbers of faults, from 1 on")
    parser.add_argument("--list", action="store_true", help="check that each fault finds its place, and stop")
    options = parser.parse_args()
    chosen = [(i, f) for i, f in enumerate(FAULTS, 1) if not options.only or i in options.only]
    if options.list:
        for i, (file, old, _) in chosen:
            count = (ROOT / "zfkit" / file).read_text().count(old)
            print(i, file, "" if count == 1 else f"{old!r} stands {count} times")
        return
    lived = []
    for i, fault in chosen:
        start = time.perf_counter()
        found = noticed(fault)
        lived += [] if found else [i]
        first = fault[2].splitlines()[0] if fault[2] else "(left out)"
        print(
            f"{i:3} {'noticed' if found else 'LIVED  '} {time.perf_counter() - start:5.0f} s  {fault[0]}: {first}",
            flush=True,
        )
    print(f"{len(chosen) - len(lived)} of {len(chosen)} noticed" + (f"; lived: {lived}" if lived else ""))


if __name__ == "__main__":
    main()
