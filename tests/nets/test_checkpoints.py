"""Weights in files: what is written comes back, and a file that cannot be trusted is refused in one line."""

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from zfkit import load_model, save_weights
from zfkit.errors import ModelError
from zfkit.nets import Architecture, load_state, load_weights, read_provenance
from zfkit.nets.paper import build
from zfkit.nets.zoo import describe

TINY = Architecture("zfnet", 32, (7, 2, 1), (5, 1, 2), widths=(4, 5, 6, 7, 8), hidden=9, classes=3)
PROVENANCE = {
    "architecture": describe(TINY),
    "input_size": 32,
    "mean": [120.0, 110.0, 100.0],
    "classes": ["cat", "dog", "eel"],
    "recipe": {"epochs": 2, "rates": [0.01, 0.001]},
    "data": "noise, größer als nötig",
}
PROVENANCE = json.loads(json.dumps(PROVENANCE))  # JSON knows lists, not tuples


def tiny(seed: int = 0) -> nn.Module:
    """A ZFNet of 2,471 parameters."""
    torch.manual_seed(seed)
    return build(TINY).eval()


@pytest.fixture
def saved(tmp_path) -> Path:
    return save_weights(tmp_path / "tiny.safetensors", tiny().state_dict(), PROVENANCE)


def refused(path, message: str, load=load_model) -> None:
    """Loading it is a ModelError that names the file, in one line."""
    with pytest.raises(ModelError, match=message) as error:
        load(path)
    text = str(error.value)
    assert "\n" not in text and Path(path).name in text


# ------------------------------------------------------------------------------------------- there and back


def test_weights_and_provenance_come_back(saved):
    tensors, provenance = load_weights(saved)
    assert provenance == read_provenance(saved) == PROVENANCE
    for name, tensor in tiny().state_dict().items():
        assert tensors[name].dtype == torch.float32
        # Half precision keeps 11 bits; below 2^-14 its step stays 2^-24.
        assert torch.allclose(tensors[name], tensor, rtol=2**-11, atol=2**-25)
    assert tensors.keys() == tiny().state_dict().keys()


def test_a_saved_network_computes_what_it_did(tmp_path):
    net, images = tiny(), torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    path = save_weights(tmp_path / "a.safetensors", net.state_dict(), PROVENANCE, dtype=torch.float32)
    for model in (load_model(path, device="cpu"), load_model(str(path), device="cpu")):
        mean = torch.tensor(PROVENANCE["mean"]).view(3, 1, 1)
        with torch.no_grad():
            assert torch.equal(model.net(model.preprocess(images)), net(images.float() - mean))
        assert (model.name, model.classes, model.input_size) == ("a", ("cat", "dog", "eel"), 32)
        assert model.provenance == PROVENANCE


def test_the_file_takes_two_bytes_a_number_unless_told_otherwise(saved, tmp_path):
    assert 2 * 2471 < saved.stat().st_size < 2 * 2471 + 4000
    wide = save_weights(tmp_path / "w.safetensors", tiny().state_dict(), PROVENANCE, dtype=torch.float32)
    assert wide.stat().st_size - saved.stat().st_size == pytest.approx(2 * 2471, abs=64)


@pytest.mark.parametrize("dtype, digits", [(torch.float64, 24), (torch.bfloat16, 8)])
def test_files_in_other_precisions_load_as_float32(dtype, digits, tmp_path):
    path = save_weights(tmp_path / "a.safetensors", tiny().state_dict(), PROVENANCE, dtype=dtype)
    model = load_model(path, device="cpu")
    for name, tensor in tiny().state_dict().items():
        loaded = model.net.state_dict()[name]
        assert loaded.dtype == torch.float32
        assert torch.allclose(loaded, tensor, rtol=2.0**-digits, atol=0)


def test_weights_on_a_strided_view_are_written_in_order(tmp_path):
    """A transposed tensor is not contiguous, and safetensors writes bytes as they lie."""
    weight = torch.arange(6.0).view(2, 3).t()
    path = save_weights(tmp_path / "a.safetensors", {"w": weight}, PROVENANCE)
    assert load_weights(path)[0]["w"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_provenance_with_the_architecture_alone_is_enough(tmp_path):
    path = save_weights(tmp_path / "a.safetensors", tiny().state_dict(), {"architecture": describe(TINY)})
    model = load_model(path, device="cpu")
    assert model.input_size == 32 and model.classes == ()


def test_no_length_of_header_is_taken_for_a_pickle(tmp_path):
    """The first byte of a file is the low byte of its header's length: one in 32 begins as pickles do."""
    first = set()
    for length in range(0, 256, 8):
        path = save_weights(tmp_path / "a.safetensors", {"w": torch.ones(1)}, {"note": "x" * length})
        first.add(path.read_bytes()[0])
        assert read_provenance(path) == {"note": "x" * length}
    assert 0x80 in first and len(first) == 32  # every multiple of 8 occurred


# ------------------------------------------------------------------------------ files that cannot be trusted


class Payload:
    """Runs code when it is unpickled, as a hostile checkpoint would."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return (Path.touch, (self.witness,))


@pytest.mark.parametrize(
    "suffix, protocol", [(".pt", 2), (".safetensors", 0), (".pth", pickle.HIGHEST_PROTOCOL)]
)
def test_a_pickled_payload_does_not_run(suffix, protocol, tmp_path):
    witness, path = tmp_path / "it ran", tmp_path / f"model{suffix}"
    content = pickle.dumps({"state_dict": Payload(witness)}, protocol=protocol)
    path.write_bytes(content)
    # Protocol 0 has no mark of its own: plain text, and so just no checkpoint.
    refused(path, "no checkpoint" if protocol == 0 else "does not say which network.*Name the network")
    refused(path, "more than weights|no checkpoint", load_state)
    refused(path, "checkpoint", load_weights)
    refused(path, "checkpoint", read_provenance)
    assert not witness.exists()
    pickle.loads(content)
    assert witness.exists()  # so that the lines above did test something


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_refused_with_the_way_to_load_it(zipped, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(tiny().state_dict(), path, _use_new_zipfile_serialization=zipped)
    refused(path, r"Name the network: zfkit\.load_model\('torchvision:resnet18', weights='.*model\.pt'\)")
    assert load_state(path).keys() == tiny().state_dict().keys()


def broken(content: bytes) -> dict[str, bytes]:
    """The bytes of a good file, spoilt in different ways."""
    length = struct.unpack("<Q", content[:8])[0]
    return {
        "empty": b"",
        "one byte": b"{",
        "eight bytes": content[:8],
        "cut in the header": content[: 8 + length // 2],
        "cut after the header": content[: 8 + length],
        "cut in the data": content[:-1],
        "longer than it says": content + b"\0",
        "header said to be endless": b"\xff" * 8 + content[8:],
        "header said to be longer than the file": struct.pack("<Q", len(content)) + content[8:],
        "header said to be shorter": struct.pack("<Q", length // 2) + content[8:],
        "header said to be empty": struct.pack("<Q", 0) + content[8:],
        "header that is no JSON": content[:9] + b"\xff" * (length - 1) + content[8 + length :],
        "a web page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "random": np.random.default_rng(0).bytes(5000),
        "zeros": bytes(5000),
    }


@pytest.mark.parametrize("how", broken(b"\1" + bytes(200)))
def test_a_spoilt_file_says_to_fetch_it_again(how, saved):
    saved.write_bytes(broken(saved.read_bytes())[how])
    refused(
        saved, r"(is damaged|is no checkpoint: it is not in safetensors format, or it is cut short).*again"
    )
    refused(saved, "damaged|no checkpoint", load_weights)


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "gone.safetensors", tmp_path):
        refused(path, "there is no file .*check the path", load_weights)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"zfkit": "{not JSON"}])
def test_a_file_that_zfkit_did_not_write_is_refused(metadata, tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(tiny().state_dict(), path, metadata)
    refused(path, "does not say which network.*not written by zfkit.*Name the network")


@pytest.mark.parametrize("provenance", [
    None, [], {}, {"architecture": None}, {"architecture": "zfnet64"}, {"architecture": {"family": "zfnet"}},
    *({"architecture": {**describe(TINY), **change}} for change in (
        {"family": "vgg"}, {"depth": 5}, {"widths": [4, 5, 6]}, {"widths": [4, 5, 6, 7, "8"]}, {"conv1": [7, 0, 1]},
        {"conv1": "7x7"}, {"without": ["conv6"]},
    )),
])  # fmt: skip
def test_provenance_that_names_no_architecture_is_refused(provenance, tmp_path):
    path = save_weights(tmp_path / "a.safetensors", tiny().state_dict(), provenance)
    refused(path, "its provenance names no architecture that zfkit can build .*; was it edited")


def without(tensors: dict, name: str) -> dict:
    return {k: v for k, v in tensors.items() if k != name}


@pytest.mark.parametrize("change, message", [
    (lambda t: without(t, "conv3.weight"),
     r"1 tensors differ, first conv3\.weight: expected \(6, 5, 3, 3\), found none"),
    (lambda t: {**t, "conv6.bias": torch.zeros(8)},
     r"1 tensors differ, first conv6\.bias: expected none, found \(8,\)"),
    (lambda t: {**t, "fc8.weight": torch.zeros(5, 9), "fc8.bias": torch.zeros(5)},
     r"2 tensors differ, first fc8\.bias: expected \(3,\), found \(5,\)"),
    (lambda t: {"net." + k: v for k, v in t.items()}, r"32 tensors differ, first conv1\.bias"),
])  # fmt: skip
def test_tensors_of_another_network_are_refused(change, message, tmp_path):
    path = save_weights(tmp_path / "a.safetensors", change(tiny().state_dict()), PROVENANCE)
    refused(path, f"does not fit the zfnet its provenance names: {message}")


@pytest.mark.parametrize("value, dtype", [
    (float("nan"), torch.float16), (float("inf"), torch.float32), (-float("inf"), torch.bfloat16),
    (70_000, torch.float16),  # which ends at 65,504
    (1e300, torch.float64),  # finite in the file, infinite as the float32 that it becomes
])  # fmt: skip
def test_weights_that_are_not_finite_are_refused_by_name(value, dtype, tmp_path):
    tensors = {k: v.double() for k, v in tiny().state_dict().items()}
    tensors["conv4.bias"][2] = value
    path = tmp_path / "a.safetensors"
    if value != 1e300:  # finite in float64, but not in float32, in which weights are loaded
        with pytest.raises(
            ModelError, match=r"conv4\.bias hold values that are not finite .* nothing was written"
        ):
            save_weights(path, tensors, PROVENANCE, dtype=dtype)
        assert not path.exists()
    # Written by something else, the file is refused when it is read.
    kept = {k: v.to(dtype) for k, v in tensors.items()}
    safetensors.torch.save_file(kept, path, {"zfkit": json.dumps(PROVENANCE)})
    refused(path, r"conv4\.bias hold NaN or infinite values; train it again")


# ------------------------------------------------------------------------------------- interrupted writing


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file(failure, saved, monkeypatch):
    before = saved.read_bytes()

    def half(tensors, path, metadata):
        Path(path).write_bytes(before[: len(before) // 2])
        raise failure

    monkeypatch.setattr(safetensors.torch, "save_file", half)
    with pytest.raises(type(failure)):
        save_weights(saved, tiny(seed=1).state_dict(), PROVENANCE)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]  # no temporary file


def test_a_write_replaces_the_old_file_whole_and_others_may_read_it(saved, monkeypatch):
    seen = []
    real = safetensors.torch.save_file

    def watch(tensors, path, metadata):
        real(tensors, path, metadata)
        seen.append(saved.read_bytes())  # while the new one is being written, the old one is there

    before = saved.read_bytes()
    monkeypatch.setattr(safetensors.torch, "save_file", watch)
    save_weights(saved, tiny(seed=1).state_dict(), {**PROVENANCE, "data": "newer"})
    assert seen == [before] and read_provenance(saved)["data"] == "newer"
    ordinary = saved.parent / "ordinary"
    ordinary.touch()
    assert saved.stat().st_mode == ordinary.stat().st_mode  # not private, as temporary files are
