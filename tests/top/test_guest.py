"""A user's network is a guest: it comes wrapped, and leaves as it came."""

import contextlib
import hashlib

import pytest
import torch
from tiny import image_set, noise, random_weights
from torch import nn

import zfkit
from zfkit.errors import ModelError

SIDE = 20


def network() -> nn.Sequential:
    """In training mode but for one part, with statistics to overwrite and a part that is not trained."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5),
        nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip
    random_weights(net).train()
    net[5].eval()
    net[0].requires_grad_(False)
    net[4].register_forward_hook(lambda module, inputs, output: None)
    return net


def state(net: nn.Module) -> str:
    """A digest of parameters, buffers, gradients, modes, requires_grad and hooks."""
    digest = hashlib.sha256()
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        digest.update(f"{name} {tensor.requires_grad} {tensor.grad}".encode())
        digest.update(tensor.detach().numpy().tobytes())
    for name, module in net.named_modules():
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        hooks = [list(getattr(module, kind)) for kind in kinds]
        digest.update(f"{name} {module.training} {hooks}".encode())
    return digest.hexdigest()


def wrapped(net: nn.Module) -> zfkit.VisionModel:
    return zfkit.wrap_model(net, mean=127.0, scale=1 / 60, input_size=SIDE, classes=list("abc"))


@pytest.fixture(scope="module")
def images():
    return image_set(noise(12, SIDE), labels=[i % 3 for i in range(12)], classes=tuple("abc"))


def boxes(n: int) -> dict[str, list[list[int]]]:
    return {part: [[x, x, x + 6, x + 6]] * n for part, x in (("left", 2), ("right", 9))}


# Every function that takes a network: (model, pictures, a folder).
ENTRIES = {
    "receptive_field": lambda m, p, out: zfkit.receptive_field(m, "4"),
    "way_back": lambda m, p, out: zfkit.way_back(m, "4"),
    "project": lambda m, p, out: zfkit.project(m, torch.zeros(1, 3, SIDE, SIDE), "4", 0),
    "mine": lambda m, p, out: zfkit.mine(m, p, ["4"], k=2, progress=False),
    "project_top": lambda m, p, out: zfkit.project_top(m, p, zfkit.mine(m, p, ["4"], k=2, progress=False), "4"),
    "filter_spectra": lambda m, p, out: zfkit.filter_spectra(m, "0"),
    "measure_aliasing": lambda m, p, out: zfkit.measure_aliasing(m, p, "3"),
    "shift_consistency": lambda m, p, out: zfkit.shift_consistency(m, p, shifts=2, circular=True),
    "evaluate": lambda m, p, out: zfkit.evaluate(m, p),
    "diagnose": lambda m, p, out: zfkit.diagnose(m, p, progress=False),
    "occlude": lambda m, p, out: zfkit.occlude(m, p[0][0], layer="4", size=8, stride=6),
    "invariance": lambda m, p, out: zfkit.invariance(m, p.take([0, 1]), "rotation", values=[0, 90], layers=["4"]),
    "correspondence": lambda m, p, out: zfkit.correspondence(
        m, p.take([0, 1, 2]), boxes(3), layers=["4"], draws=2, progress=False
    ),
    "evolution": lambda m, p, out: zfkit.evolution(
        {0: m, 1: m}, p, ["4"], maps=1, places=1, progress=False, model=m
    ),
    "selectivity": lambda m, p, out: zfkit.selectivity(m, p, ["4"], k=2, shuffles=1, progress=False),
    "sanity_checks": lambda m, p, out: zfkit.sanity_checks(m, p, ["4"], units=2, draws=1, keep=1, progress=False),
    "transfer": lambda m, p, out: zfkit.transfer(m, p, p, ["6"], controls=[], progress=False),
    "write_atlas": lambda m, p, out: zfkit.write_atlas(m, p, out, layers=["4"], maps=1, k=2, progress=False),
    "explore_parts": lambda m, p, out: zfkit.widgets.explore_parts(m, p.take([0, 1])).close(),
    "explore_occlusion": lambda m, p, out: zfkit.widgets.explore_occlusion(m, p[0][0], 1, layer="4").close(),
    "explore_gratings": lambda m, p, out: zfkit.widgets.explore_gratings(m).close(),
    "explore": lambda m, p, out: zfkit.explore(m, p, zfkit.mine(m, p, ["4"], k=2, progress=False)),
    "write_site": lambda m, p, out: zfkit.write_site(m, p, out, layers=["4"], maps=1, k=2, progress=False),
    "features": lambda m, p, out: zfkit.nets.features(m, p, ["4"]),
    "refusals": lambda m, p, out: zfkit.deconv.refusals(m, ["4"], SIDE),
    "units_inside": lambda m, p, out: zfkit.deconv.units_inside(m, "4", SIDE),
    "stages": lambda m, p, out: zfkit.deconv.stages(m, p[0][0], "4", 0),
    "cut_top": lambda m, p, out: zfkit.topk.cut_top(m, p, zfkit.mine(m, p, ["4"], k=2, progress=False), "4"),
    "records": lambda m, p, out: zfkit.topk.records(m),
    "activations": lambda m, p, out: zfkit.activations(m, p, "4", progress=False),
    "estimate_atlas": lambda m, p, out: zfkit.atlas.page.estimate_atlas(m, p, layers=["4"], maps=1, k=2),
    "filters": lambda m, p, out: zfkit.figures.filters(m, "0"),
    "heat_map": lambda m, p, out: zfkit.figures.heat_map(m, p[0][0], "4", 0),
    "estimate_mining": lambda m, p, out: zfkit.topk.estimate_mining(m, p, ["4"]),
    "grating_response": lambda m, p, out: zfkit.frequency.grating_response(m, "0", [0]),
    "spectral_table": lambda m, p, out: zfkit.frequency.spectral_table(m, ["0"]),
    "subsampling_layers": lambda m, p, out: zfkit.frequency.subsampling_layers(m),
    "ensemble": lambda m, p, out: zfkit.experiments.ensemble([m, m], p),
    "feature_layers": lambda m, p, out: zfkit.experiments.feature_layers(m),
    "pose_variation": lambda m, p, out: zfkit.experiments.pose_variation(m, p, ["4"]),
    "randomise": lambda m, p, out: zfkit.experiments.randomise(m, ["4"]),
    "there_and_back": lambda m, p, out: zfkit.figures.there_and_back(m, p[0][0], "4", 0),
}  # fmt: skip
BY_NAME = ("filter_spectra", "spectral_table")  # they take the name of a network, too


@pytest.mark.parametrize("name", ENTRIES)
def test_a_network_leaves_as_it_came(name, images, tmp_path):
    net = network()
    before = state(net)
    model = wrapped(net)
    assert state(net) == before
    ENTRIES[name](model, images, tmp_path)
    assert state(net) == before


@pytest.mark.parametrize("name", ENTRIES)
def test_the_bare_network_is_told_how_to_be_wrapped(name, images, tmp_path):
    with pytest.raises(ModelError, match=r"got Sequential: wrap it first: model = zfkit\.wrap_model\(net"):
        ENTRIES[name](network(), images, tmp_path)
    with pytest.raises(ModelError, match=r"load it first: model = zfkit\.load_model\('zfnet46'\)"):
        ENTRIES["way_back" if name in BY_NAME else name]("zfnet46", images, tmp_path)


def test_also_where_something_fails(images):
    class Interrupted(Exception):
        pass

    net = network()
    model = wrapped(net)
    calls = [0]

    def fail(module, inputs, output):
        calls[0] += 1
        raise Interrupted

    net[6].register_forward_hook(fail)
    before = state(net)
    for run in (
        lambda: model.logits(torch.zeros(1, 3, SIDE, SIDE)),
        lambda: zfkit.evaluate(model, images),
        lambda: zfkit.diagnose(model, images, progress=False),
        lambda: zfkit.mine(model, images, ["6"], progress=False),
        lambda: zfkit.wrap_model(net, mean=0, scale=1, input_size=SIDE),
    ):
        with contextlib.suppress(Interrupted, zfkit.ZfkitError):
            run()
        assert state(net) == before
    assert calls[0] > 2


@pytest.mark.parametrize("head", [[nn.Linear(5, 1), nn.Flatten(0)], [nn.Linear(5, 1)]])
def test_a_network_that_gives_one_number_is_diagnosed_without_classes(head, images):
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)
    model = zfkit.wrap_model(random_weights(net), mean=127.0, scale=1 / 60, input_size=SIDE)
    report = zfkit.diagnose(model, images, progress=False)
    assert "gives no classes but" in repr(report)
    if isinstance(head[-1], nn.Flatten):
        with pytest.raises(zfkit.ZfkitError, match="gives one number for a picture"):
            zfkit.evaluate(model, images)
