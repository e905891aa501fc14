"""Nothing that zfkit reads is run: no file of weights, table, grid, data set or message of another process."""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from mining import assert_same, exact_model, pictures

import zfkit
from zfkit.errors import ImageError, ModelError
from zfkit.images.sources import DATA_SETS

ROOT = Path(__file__).resolve().parents[2]

# What runs what it reads, unless it is told not to; and the places that may use it, with the reason.
UNPICKLERS = {"pickle", "cloudpickle", "dill", "shelve", "marshal"}
ALLOWED = {
    ("zfkit/topk/mine.py", "pickle"),  # between the workers of a Dask cluster, which pickles by itself
    ("zfkit/topk/mine.py", "cloudpickle"),
    ("zfkit/nets/zoo.py", "exec_module"),  # the module that the user names
    ("benchmarks/same.py", "pickle"),  # files that it wrote itself
}


def what_runs(file):
    """Names of what could run code in a source file, but for the harmless forms."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {getattr(node, "module", None) or ""} | {a.name for a in node.names}
            yield from UNPICKLERS & {name.split(".")[0] for name in names}
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        name = called.rpartition(".")[2]
        if called in ("eval", "exec", "compile", "__import__") or name == "exec_module":
            yield name
        elif any([
            called == "torch.load" and keywords.get("weights_only") != "True",
            called in ("np.load", "numpy.load") and "allow_pickle" in keywords,
            name in ("load", "load_all") and "yaml" in called and "Loader" not in ast.unparse(node),
            name.endswith(("_object", "_object_list")) or called in ("joblib.load", "pd.read_pickle"),
        ]):  # fmt: skip
            yield called


def test_no_source_unpickles():
    found = {
        (file.relative_to(ROOT).as_posix(), what)
        for room in ("zfkit", "benchmarks", "data")
        for file in (ROOT / room).rglob("*.py")
        for what in what_runs(file)
    }
    assert found == ALLOWED


def test_the_walk_finds_what_it_looks_for(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        "import pickle, joblib\nfrom cloudpickle import loads\ntorch.load(x)\ntorch.load(x, weights_only=True)\n"
        "np.load(x)\nnp.load(x, allow_pickle=True)\nyaml.load(x)\nyaml.load(x, SafeLoader)\neval(x)\nnet.eval()\n"
        "dist.all_gather_object(x, y)\ndist.broadcast_object_list(x)\njoblib.load(x)\nspec.loader.exec_module(x)\n"
    )
    assert sorted(what_runs(file)) == sorted([
        "pickle", "cloudpickle", "torch.load", "np.load", "yaml.load", "eval", "dist.all_gather_object",
        "dist.broadcast_object_list", "joblib.load", "exec_module",
    ])  # fmt: skip


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    yield tmp_path / "it ran"
    assert not (tmp_path / "it ran").exists()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch's folder of downloads; nothing can be downloaded."""

    def offline(url, file, prefix=None, progress=True):
        raise OSError("no network in a test")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


CHOSEN = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1


def test_a_planted_checkpoint_is_neither_run_nor_used(hub, mark):
    """Not the name alone: its SHA-256 is looked at."""
    file = hub / CHOSEN.url.rpartition("/")[2]
    torch.save({"features.0.weight": Bomb(mark)}, file)
    with pytest.raises(
        ModelError, match=r"hub/checkpoints/squeezenet1_1-.*is not what was published.*delete it"
    ) as e:
        zfkit.load_model("torchvision:squeezenet1_1", device="cpu")
    assert "could not be downloaded" not in str(e.value)


def published(hub, monkeypatch, content, name="squeezenet1_1"):
    """A checkpoint whose name says its hash, as if torchvision offered it."""
    torch.save(content, hub / "new.pth")
    digest = hashlib.sha256((hub / "new.pth").read_bytes()).hexdigest()[:8]
    (hub / "new.pth").rename(hub / f"{name}-{digest}.pth")
    monkeypatch.setattr(CHOSEN.value, "url", f"https://download.invalid/models/{name}-{digest}.pth")


def test_nor_one_whose_hash_fits(hub, mark, monkeypatch):
    published(hub, monkeypatch, {"features.0.weight": Bomb(mark)})
    with pytest.raises(ModelError, match=r"squeezenet1_1-\w+\.pth is damaged, or holds more than weights"):
        zfkit.load_model("torchvision:squeezenet1_1", device="cpu")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_nor_a_file_that_the_hub_gives_timm(name, mark, tmp_path, monkeypatch):
    pytest.importorskip("timm")
    from timm.models import _hub

    torch.save({"conv1.weight": Bomb(mark)}, tmp_path / name)
    asked = []

    def download(repo_id, filename, **_):
        asked.append(filename)
        if filename == name:
            return str(tmp_path / name)
        raise _hub.EntryNotFoundError("not there")

    monkeypatch.setattr(_hub, "hf_hub_download", download)
    with pytest.raises(ModelError, match="timm cannot use its weights of test_resnet"):
        zfkit.load_model("timm:test_resnet.r160_in1k", device="cpu")
    assert asked[0] == "model.safetensors" and asked[-1] == name


def test_what_torchvision_published_is_used(hub, monkeypatch):
    torch.manual_seed(5)
    state = torchvision.models.squeezenet1_1().state_dict()
    published(hub, monkeypatch, state)
    model = zfkit.load_model("torchvision:squeezenet1_1", device="cpu")
    assert all(torch.equal(t, state[n]) for n, t in model.net.state_dict().items())
    assert model.classes[0] == "tench" and type(CHOSEN).__members__["IMAGENET1K_V1"] is CHOSEN
    assert CHOSEN.get_state_dict.__func__ is torchvision.models.WeightsEnum.get_state_dict  # left as it was


def test_a_download_is_spoken_of_where_it_failed(hub):
    with pytest.raises(ModelError, match=r"weights of squeezenet1_1 could not be downloaded .no network"):
        zfkit.load_model("torchvision:squeezenet1_1", device="cpu")


# ------------------------------------------------------------------------------------------------- data sets


@pytest.mark.parametrize("name", DATA_SETS)
def test_no_listed_data_set_unpickles_what_it_was_not_given(name):
    """Of the classes that make it up, CIFAR's alone unpickle, and look at the md5 of every file first."""
    for kind in getattr(torchvision.datasets, name).__mro__:
        if kind.__module__.startswith("torchvision.datasets"):
            text = Path(inspect.getsourcefile(kind)).read_text()
            assert ("pickle" in text) == kind.__name__.startswith("CIFAR"), kind
            loads = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)]
            loads = [ast.unparse(n) for n in loads if ast.unparse(n.func) in ("torch.load", "np.load")]
            assert all("weights_only=True" in call and "allow_pickle" not in call for call in loads)


def test_lsun_is_refused_before_it_looks_around(tmp_path, monkeypatch, mark):
    monkeypatch.chdir(tmp_path)
    for name in ("_cache_church_outdoor_train_lmdb", "_cache_val"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ImageError, match=r"torchvision's LSUN is not read: .*runs what lies in a folder"):
        zfkit.load_images("torchvision:LSUN", root=tmp_path)


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_cifar_looks_at_the_md5_before_it_unpickles(name, tmp_path, mark, monkeypatch):
    kind = getattr(torchvision.datasets, name)
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    for file, _ in [*kind.train_list, *kind.test_list, (kind.meta["filename"], "")]:
        (folder / file).write_bytes(pickle.dumps(Bomb(mark)))

    def offline(*_, **__):
        raise OSError("no network in a test")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(ImageError, match=f"could not provide {name} .OSError: no network"):
        zfkit.load_images(f"torchvision:{name}", root=tmp_path)


# ------------------------------------------------------------------------------------------- other processes

WORKER = """
import sys; sys.path.insert(0, {tests!r})
import torch, torch.distributed as dist, zfkit
import torch.distributed.distributed_c10d as c10d

def forbidden(*_, **__):
    raise AssertionError("a pickle travels")

c10d._tensor_to_object = c10d._object_to_tensor = forbidden
from mining import exact_model, pictures
dist.init_process_group("gloo")
top = zfkit.mine(exact_model(), pictures(40), k=4, batch_size=7, progress=False)
top.save({out!r} + f"/{{dist.get_rank()}}.parquet")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_no_pickle_travels_between_processes(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(ROOT / "tests"), out=str(tmp_path)))
    options = "-m torch.distributed.run --standalone --nproc-per-node=2".split()
    command = [sys.executable, *options, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    one = zfkit.mine(exact_model(), pictures(40), k=4, batch_size=7, progress=False)
    for rank in range(2):
        assert_same(zfkit.TopK.load(tmp_path / f"{rank}.parquet"), one)
