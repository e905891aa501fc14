"""The doctor: healthy where everything is, and able to tell what is broken."""

from __future__ import annotations

import base64
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

import zfkit
import zfkit.deconv.project as deconv
from zfkit import doctor
from zfkit.cli import main
from zfkit.doctor import Check, Report, examine

SECTIONS = ["Versions", "Optional parts", "Devices", "Folders", "Bundled files", "Self-test", "Speed"]


def found(section):
    """What a section says, by what it looked at."""
    return {c.what: c for c in (Check("", *told) for told in section())}


@pytest.fixture(scope="module")
def report():
    return examine()


@pytest.fixture
def only(monkeypatch):
    """Leave out all sections but one, or all."""

    def leave(*kept):
        for name in ("_versions", "_optional", "_devices", "_folders", "_bundled", "_self_test", "_speed"):
            if name not in kept:
                monkeypatch.setattr(doctor, name, lambda: iter(()))

    return leave


# ------------------------------------------------------------------------------------------ a healthy place


def test_a_healthy_place_has_nothing_broken(report):
    assert report.broken == []
    assert list(dict.fromkeys(c.section for c in report.checks)) == SECTIONS
    told = {c.what: c.found for c in report.checks}
    assert told["torch"] == torch.__version__.partition("+")[0] or told["torch"] == metadata.version("torch")
    assert told["photographs"] == "17 of 17"
    assert "SHA-256" in told["weights of zfnet64"]
    digest = hashlib.sha256((doctor.WEIGHTS / "zfnet64.safetensors").read_bytes()).hexdigest()
    assert digest[:12] in told["weights of zfnet64"]


def test_it_reads_as_markdown(report):
    text = report.markdown()
    assert text.startswith("### zfkit doctor: everything works\n\n**Versions**\n\n- zfkit: ")
    lists = [line for line in text.splitlines() if line and not line.startswith(("###", "**", "_"))]
    assert all(line.startswith("- ") for line in lists)
    assert len(lists) == len(report.checks)


def test_it_names_no_person_and_no_folder(report, monkeypatch, only, tmp_path):
    text = report.markdown()
    assert str(Path.cwd()) not in text
    assert len(str(Path.home())) < 2 or str(Path.home()) not in text
    home = tmp_path / "home" / "ada.lovelace"
    monkeypatch.setattr(doctor.Path, "home", lambda: home)
    monkeypatch.setattr(doctor.getpass, "getuser", lambda: "ada.lovelace")
    monkeypatch.setattr(doctor.platform, "node", lambda: "engine-1")
    only()
    said = f"{home}/x and /data/ada.lovelace/y on engine-1, not adaxlovelace"
    monkeypatch.setattr(doctor, "_speed", lambda: iter([("it", said, "broken")]))
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
    right = deconv.RULES[nn.ReLU]

    def forgets(R, module, context):
        return right.reverse(R, module, context) if context.options.rule == "gradient" else R

    monkeypatch.setitem(deconv.RULES, nn.ReLU, deconv._Entry(forgets, right.record))
    only("_self_test")
    assert main(["doctor"]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith(
        "### zfkit doctor: 2 things are broken\n\n- **broken** deconvnet of a tiny network"
    )
    lines = printed.err.splitlines()
    assert [line.partition(" of ")[0] for line in lines] == [
        f"zfkit doctor: broken: {r}" for r in ("deconvnet", "guided")
    ]
    assert all("must not" in line for line in lines)


def test_overlapping_windows_that_do_not_add_up_are_found(monkeypatch):
    """What `F.max_unpool2d` does: where two windows share a maximum, one of the two values is lost."""
    right = deconv.RULES[nn.MaxPool2d]

    def loses(R, module, context):
        back = right.reverse(R.clone(), module, context)
        ones = right.reverse(torch.ones_like(R), module, context)
        return torch.where(ones > 1, back / ones, back)

    monkeypatch.setitem(deconv.RULES, nn.MaxPool2d, deconv._Entry(loses, right.record))
    status = {what: check.status for what, check in found(doctor._self_test).items()}
    assert set(status.values()) == {"broken"}


def test_a_section_that_fails_is_told_and_the_others_go_on(monkeypatch, only):
    def bursts():
        yield "first", "fine"
        raise RuntimeError("boom `x` <script>\nsecond line")

    only("_folders")
    monkeypatch.setattr(doctor, "_devices", bursts)
    report = examine()
    assert report.broken == ["devices: stopped with `RuntimeError: boom 'x' <script>`"]
    assert {"devices", "temporary files"} <= {c.what for c in report.checks}


# ------------------------------------------------------------------------------------------ files


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A copy of the bundled weights that may be damaged."""
    shutil.copy(doctor.WEIGHTS / "zfnet64.safetensors", tmp_path)
    monkeypatch.setattr(doctor, "WEIGHTS", tmp_path)
    return tmp_path / "zfnet64.safetensors"


def test_weights_that_are_cut_short(weights):
    weights.write_bytes(weights.read_bytes()[:100_000])
    check = found(doctor._bundled)["weights of zfnet64"]
    assert check.status == "broken"
    assert "zfnet64.safetensors" in check.found
    assert check.found.endswith("install zfkit again")


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


def test_a_package_without_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "WEIGHTS", tmp_path)
    check = found(doctor._bundled)["weights"]
    assert (check.status, check.found) == ("broken", "none in the package: install zfkit again")


def test_photographs_that_are_missing_or_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "WEIGHTS", tmp_path)
    real = doctor.PHOTOGRAPHS[:2]
    gone = SimpleNamespace(name="gone", path=None)
    torn = SimpleNamespace(name="torn", path=tmp_path / "torn.png")
    torn.path.write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    monkeypatch.setattr(doctor, "PHOTOGRAPHS", (*real, gone, torn))
    check = found(doctor._bundled)["photographs"]
    assert check.status == "note"
    assert check.found.startswith("2 of 4; damaged: torn (")
    assert "not in the installed packages: gone; pip install" in check.found
    monkeypatch.setattr(doctor, "PHOTOGRAPHS", (gone,))
    assert found(doctor._bundled)["photographs"].status == "broken"


def test_folders_that_cannot_be_written_to_or_are_nearly_full(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    told = doctor._folder("it", tmp_path / "file", "go elsewhere", "broken")
    assert told == ("it", "cannot be written to (Not a directory): go elsewhere", "broken")
    assert doctor._folder("it", tmp_path / "not" / "yet", "", "broken")[1].startswith("can be written to, ")
    assert not (tmp_path / "not").exists()
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=3e7))
    told = doctor._folder("it", tmp_path, "go elsewhere", "broken")
    assert told == ("it", "can be written to, 0.0 GB free: little; make room, or go elsewhere", "note")


# ------------------------------------------------------------------------------------------ packages


def without(monkeypatch, **changed):
    """Let packages be missing (None) or of another version."""
    real = metadata.version
    names = {name.replace("_", "-"): version for name, version in changed.items()}

    def version(name):
        if name in names:
            if names[name] is None:
                raise metadata.PackageNotFoundError(name)
            return names[name]
        return real(name)

    monkeypatch.setattr(doctor.metadata, "version", version)


def test_a_missing_optional_package_is_a_note_with_its_command(monkeypatch):
    without(monkeypatch, papermill=None, onnx=None)
    told = found(doctor._optional)
    assert told["notebooks"].status == "note"
    assert told["notebooks"].found.startswith("missing papermill: pip install 'zfkit[notebooks]' (there: ")
    assert told["onnx"].found == "missing onnx: pip install 'zfkit[onnx]'"
    assert told["cluster"].status == "fine"
    assert "dev" not in told


def test_a_missing_or_too_old_required_package_is_broken(monkeypatch):
    without(monkeypatch, pyarrow=None, torch="2.3.9+cpu", numpy="2.0rc1")
    told = found(doctor._versions)
    assert (told["pyarrow"].status, told["pyarrow"].found) == ("broken", "is missing: pip install pyarrow")
    assert told["torch"].status == "broken"
    assert told["torch"].found.startswith("2.3.9+cpu is too old: pip install --upgrade 'torch>=2.4")
    assert told["numpy"].status == "fine"


def test_a_package_that_is_there_but_does_not_import(monkeypatch):
    real = importlib.import_module

    def refuses(name):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name)

    monkeypatch.setattr(doctor.importlib, "import_module", refuses)
    check = found(doctor._versions)["torchvision"]
    assert check.status == "broken"
    assert "cannot be imported (`RuntimeError: operator torchvision::nms does not exist`)" in check.found


def test_zfkit_run_from_its_sources_has_no_list_of_extras(monkeypatch):
    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "requires", nothing)
    assert found(doctor._optional)["extras"].status == "note"
    assert found(doctor._versions)["torch"].status == "fine"


@pytest.mark.parametrize(
    ("command", "status"),
    [("python", "fine"), ("python3.12", "fine"), (sys.executable, "fine"), ("/other/python", "note")],
)
def test_a_kernel_of_another_python_is_noticed(monkeypatch, command, status):
    kernelspec = pytest.importorskip("jupyter_client.kernelspec")
    spec = SimpleNamespace(argv=[command, "-m", "ipykernel_launcher"])
    monkeypatch.setattr(kernelspec.KernelSpecManager, "get_kernel_spec", lambda self, name: spec)
    assert Check("", *doctor._kernel()).status == status


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("2.14.1+cu130", (2, 14, 1)), ("13.0.0", (13, 0, 0)), ("2.0rc1", (2, 0)), ("1.2.post3", (1, 2))],
)
def test_versions_compare_by_their_numbers(version, numbers):
    assert doctor._numbers(version) == numbers


# ------------------------------------------------------------------------------------------ its own literal deconvnet


def test_two_literal_deconvnets_written_apart_agree():
    net, image = doctor._tiny_network()
    for unit in ((0, 0, 0), (2, 1, 0)):
        ours = doctor.literal_projection(net, image, unit, "deconvnet")
        theirs = literal.deconvnet(literal.layers_of(net), image, unit)
        assert np.abs(theirs).max() > 0
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())


def test_its_gradient_is_that_of_autograd():
    net, image = doctor._tiny_network()
    x = torch.from_numpy(image)[None].requires_grad_()
    without_norm = nn.Sequential(*(layer for layer in net if not isinstance(layer, nn.LocalResponseNorm)))
    (expected,) = torch.autograd.grad(without_norm(x)[0, 1, 1, 0], x)
    ours = doctor.literal_projection(without_norm, image, (1, 1, 0), "gradient")
    np.testing.assert_allclose(ours, expected[0].numpy(), atol=1e-12 * float(expected.abs().max()))


def test_a_difference_of_shape_or_a_nan_is_no_agreement():
    one = np.ones((2, 2))
    assert doctor._difference(one, one) == 0
    assert doctor._difference(np.ones((3, 2)), one) == np.inf
    assert doctor._difference(np.full((2, 2), np.nan), one) == np.inf
    assert doctor._status(np.inf, 1) == "broken"


def test_broken_things_come_first_in_the_report():
    checks = (Check("A", "x", "1"), Check("B", "y", "gone", "broken"), Check("B", "z", "odd", "note"))
    assert Report(checks, 1.2).markdown() == (
        "### zfkit doctor: 1 thing is broken\n\n- **broken** y: gone\n\n**A**\n\n- x: 1\n\n**B**\n\n"
        "- **broken** y: gone\n- **note** z: odd\n\n_Examined in 1 s._"
    )


def test_help_shows_an_example(capsys):
    for command in ("doctor", "sweep"):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
        assert f"zfkit {command}" in capsys.readouterr().out.split("example", 1)[1]
    assert zfkit.sweep.__doc__
