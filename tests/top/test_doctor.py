"""The doctor: healthy where everything is, and able to tell what is broken."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib
import shutil
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import literal
import numpy as np
import pytest
import torch
from torch import nn

from zfkit import doctor
from zfkit.cli import main
from zfkit.deconv.rules import RULES
from zfkit.doctor import Check, DoctorReport, examine
from zfkit.images.album import INSTALLED, Photograph

SECTIONS = ["Versions", "Optional parts", "Devices", "Folders", "Bundled files", "Self-test", "Speed"]


def found(section):
    """What a section says, by what it looked at."""
    return {c.what: c for c in (Check("", *line) for line in section())}


@pytest.fixture
def only(monkeypatch):
    """Leave out all sections but one, or all."""

    def leave(*kept):
        for name in ("_versions", "_optional", "_devices", "_folders", "_bundled", "_self_test", "_speed"):
            if name not in kept:
                monkeypatch.setattr(doctor, name, lambda: iter(()))

    return leave


# ------------------------------------------------------------------------------------------ a healthy place


@pytest.mark.slow  # imports everything, asks the system about its GPU, measures
def test_a_healthy_place_has_nothing_broken_and_reads_as_markdown():
    report = examine()
    assert report.broken == []
    assert list(dict.fromkeys(c.section for c in report.checks)) == SECTIONS
    facts = {c.what: c.found for c in report.checks}
    assert facts["torch"] == metadata.version("torch")
    assert facts["photographs"] == "220 of 220"
    digest = hashlib.sha256((doctor.WEIGHTS / "zfnet64.safetensors").read_bytes()).hexdigest()
    assert f"SHA-256 {digest[:12]}" in facts["weights of zfnet64"]
    text = report.markdown()
    assert text.startswith("### zfkit doctor: everything works\n\n**Versions**\n\n- zfkit: ")
    listed = [line for line in text.splitlines() if line and not line.startswith(("###", "**", "_"))]
    assert all(line.startswith("- ") for line in listed)
    assert len(listed) == len(report.checks)
    assert str(Path.cwd()) not in text


def test_it_names_no_person_and_no_folder(monkeypatch, only, tmp_path):
    home = tmp_path / "home" / "ada.lovelace"
    monkeypatch.setattr(doctor.Path, "home", lambda: home)
    monkeypatch.setattr(doctor.getpass, "getuser", lambda: "ada.lovelace")
    monkeypatch.setattr(doctor.platform, "node", lambda: "engine-1")
    only()
    line = f"{home}/x and /data/ada.lovelace/y on engine-1, not adaxlovelace"
    monkeypatch.setattr(doctor, "_speed", lambda: iter([("it", line, "broken")]))
    assert examine().broken == ["it: ~/x and /data/USER/y on HOST, not adaxlovelace"]


def test_the_command_prints_it_and_ends_well(only, capsys):
    only("_folders")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("### zfkit doctor: everything works")
    assert "- temporary files: can be written to, " in printed.out
    assert printed.err == ""


# ------------------------------------------------------------------------------------------ what is broken


def test_a_rule_that_computes_something_else_is_found(monkeypatch, only, capsys):
    """Without its rectification the deconvnet is wrong, and so is guided backpropagation; the gradient is not."""
    right = RULES[nn.ReLU]

    def forgets(R, module, context):
        return right.reverse(R, module, context) if context.options.rule == "gradient" else R

    monkeypatch.setitem(RULES, nn.ReLU, dataclasses.replace(right, reverse=forgets))
    only("_self_test")
    assert main(["doctor"]) == 1
    printed = capsys.readouterr()
    expected = "### zfkit doctor: 2 things are broken\n\n- **broken** deconvnet of zfnet64"
    assert printed.out.startswith(expected)
    lines = printed.err.splitlines()
    broken = [f"zfkit doctor: broken: {rule}" for rule in ("deconvnet", "guided")]
    assert [line.partition(" of ")[0] for line in lines] == broken


def test_overlapping_windows_that_do_not_add_up_are_found(monkeypatch):
    """What `F.max_unpool2d` does: where two windows share a maximum, one of the two values is lost."""
    right = RULES[nn.MaxPool2d]

    def loses(R, module, context):
        back = right.reverse(R.clone(), module, context)
        ones = right.reverse(torch.ones_like(R), module, context)
        return torch.where(ones > 1, back / ones, back)

    monkeypatch.setitem(RULES, nn.MaxPool2d, dataclasses.replace(right, reverse=loses))
    assert {check.status for check in found(doctor._self_test).values()} == {"broken"}


def test_what_autograd_derives_is_the_literal_deconvnet(monkeypatch):
    """The doctor's own truth against another one: numpy, a loop for every window."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 5, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), nn.LocalResponseNorm(3, 0.1, k=2.0),
        nn.Conv2d(4, 5, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 3, 3),
    ).double()  # fmt: skip
    model = SimpleNamespace(net=net, layers=[str(i) for i in range(len(net))])
    x = torch.randn(1, 3, 35, 35, dtype=torch.float64)
    for unit in ((0, 0, 0), (2, 1, 0)):
        monkeypatch.setattr(doctor, "UNIT", ("7", unit[0], unit[1:]))
        expected = literal.deconvnet(literal.layers_of(net), x[0].numpy(), unit)
        assert np.abs(expected).max() > 0
        derived = doctor._by_autograd(model, x, "deconvnet")[0].numpy()
        np.testing.assert_allclose(derived, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_a_difference_of_shape_or_a_nan_is_no_agreement():
    one = torch.ones(2, 2)
    assert doctor._difference(one, one) == 0
    assert doctor._difference(torch.ones(3, 2), one) == np.inf
    assert doctor._difference(torch.full((2, 2), np.nan), one) == np.inf


def test_a_section_that_fails_is_reported_and_the_others_go_on(monkeypatch, only):
    def bursts():
        yield "first", "fine"
        raise RuntimeError("boom `x` <script>\nsecond line")

    only("_folders")
    monkeypatch.setattr(doctor, "_devices", bursts)
    report = examine()
    assert report.broken == ["devices: stopped with `RuntimeError: boom 'x' <script>`"]
    assert {"devices", "temporary files"} <= {c.what for c in report.checks}


def test_broken_things_come_first_in_the_report():
    checks = (Check("A", "x", "1"), Check("B", "y", "gone", "broken"), Check("B", "z", "odd", "note"))
    assert DoctorReport(checks, 1.2).markdown() == (
        "### zfkit doctor: 1 thing is broken\n\n- **broken** y: gone\n\n**A**\n\n- x: 1\n\n**B**\n\n"
        "- **broken** y: gone\n- **note** z: odd\n\n_Examined in 1 s._"
    )


# ------------------------------------------------------------------------------------------ files


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A copy of the bundled weights that may be damaged."""
    shutil.copy(doctor.WEIGHTS / "zfnet64.safetensors", tmp_path)
    monkeypatch.setattr(doctor, "WEIGHTS", tmp_path)
    return tmp_path / "zfnet64.safetensors"


def test_weights_that_are_cut_short_or_missing(weights):
    weights.write_bytes(weights.read_bytes()[:100_000])
    check = found(doctor._bundled)["weights of zfnet64"]
    assert (check.status, "zfnet64.safetensors" in check.found) == ("broken", True)
    weights.unlink()
    assert found(doctor._bundled)["weights"].status == "broken"


def test_weights_with_a_flipped_bit(weights, monkeypatch):
    """Still a sound file, with other numbers in it: only what pip noted on installing tells."""
    digest = hashlib.sha256(weights.read_bytes()).digest()
    noted = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    listed = [SimpleNamespace(name=weights.name, hash=SimpleNamespace(mode="sha256", value=noted))]
    monkeypatch.setattr(doctor.metadata, "files", lambda name: listed)
    assert found(doctor._bundled)["weights of zfnet64"].status == "fine"
    data = bytearray(weights.read_bytes())
    data[-1000] ^= 1
    weights.write_bytes(data)
    check = found(doctor._bundled)["weights of zfnet64"]
    assert (check.status, "SHA-256 differs" in check.found) == ("broken", True)


def test_photographs_that_are_missing_or_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "WEIGHTS", tmp_path)
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    whole, torn = INSTALLED[1], SimpleNamespace(name="torn", sha256="", checked=lambda: tmp_path / "torn.png")
    gone = Photograph("gone", "skimage", "gone.png", "")
    lost = Photograph("lost", "zfkit", "a", "", sha256="0" * 64)
    for album, status, told in (
        ((whole, gone, torn), "note", "1 of 3: gone is not in the installed packages, torn is damaged ("),
        (
            (whole, lost),
            "broken",
            "1 of 2: lost is damaged (`ImageError: the bundled photograph a is missing",
        ),
        ((gone,), "broken", "0 of 1: gone"),
    ):
        monkeypatch.setattr(doctor, "photographs", lambda album=album: album)
        check = found(doctor._bundled)["photographs"]
        assert check.status == status and check.found.startswith(told)


def test_folders_that_cannot_be_written_to_or_are_nearly_full(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    line = doctor._folder("it", tmp_path / "file", "go elsewhere", "broken")
    assert line == ("it", "cannot be written to (Not a directory): go elsewhere", "broken")
    assert doctor._folder("it", tmp_path / "not" / "yet", "", "broken")[1].startswith("can be written to, ")
    assert not (tmp_path / "not").exists()
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=3e7))
    line = doctor._folder("it", tmp_path, "go elsewhere", "broken")
    assert line == ("it", "can be written to, 0.0 GB free: little; make room, or go elsewhere", "note")


# ------------------------------------------------------------------------------------------ packages


def test_packages_that_are_missing_too_old_or_do_not_import(monkeypatch):
    versions = {"pyarrow": None, "torch": "2.3.9+cpu", "numpy": "2.0rc1", "papermill": None, "onnx": None}
    real_version, real_import = doctor._version, importlib.import_module
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, real_version(name)))

    def refuses(name):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real_import(name)

    monkeypatch.setattr(doctor.importlib, "import_module", refuses)
    required, optional = found(doctor._versions), found(doctor._optional)
    assert required["pyarrow"] == Check("", "pyarrow", "is missing: pip install pyarrow", "broken")
    assert required["torch"].status == "broken"
    assert required["torch"].found.startswith("2.3.9+cpu is too old: pip install --upgrade 'torch>=2.4")
    assert required["numpy"].status == "fine"
    assert required["torchvision"].status == "broken"
    assert "cannot be imported (`RuntimeError: operator torchvision::nms" in required["torchvision"].found
    assert optional["notebooks"].status == "note"
    told = "missing papermill: pip install 'zfkit[notebooks]' (there: "
    assert optional["notebooks"].found.startswith(told)
    assert optional["onnx"].found.startswith("missing onnx: pip install 'zfkit[onnx]'")
    assert optional["cluster"].status == "fine"
    assert "dev" not in optional


def test_zfkit_run_from_its_sources_has_no_list_of_packages(monkeypatch):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "zfkit" else real(name))
    assert set(found(doctor._optional)) == {"notebook kernel"}
    assert set(found(doctor._versions)) == {"zfkit", "Python", "system"}


@pytest.mark.parametrize(
    ("command", "status"),
    [("python", "fine"), ("python3.12", "fine"), (sys.executable, "fine"), ("/other/python", "note")],
)
def test_a_kernel_of_another_python_is_noticed(monkeypatch, command, status):
    kernelspec = pytest.importorskip("jupyter_client.kernelspec")
    spec = SimpleNamespace(argv=[command, "-m", "ipykernel_launcher"])
    monkeypatch.setattr(kernelspec.KernelSpecManager, "get_kernel_spec", lambda self, name: spec)
    assert Check("", *doctor._kernel()).status == status
