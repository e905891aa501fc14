"""`project` on the networks people use: exact on each of them, at every kind of layer, for every rule."""

import contextlib
import math
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from captum.attr import NeuronDeconvolution, NeuronGradient, NeuronGuidedBackprop
from torch import fx, nn

import zfkit
from zfkit.errors import ModelError

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import networks

RULES = ["deconvnet", "guided", "gradient"]

# Of each network: the first and last convolution, some inside branches, pools, ReLUs, norms, the classifier.
LAYERS = {
    "alexnet": [
        "features.0", "features.1", "features.2", "features.6", "features.10", "features.12", "avgpool",
        "classifier.1", "classifier.2", "classifier.6",
    ],
    "vgg11": ["features.0", "features.2", "features.8", "features.18", "features.20", "classifier.6"],
    "vgg16": ["features.0", "features.4", "features.12", "features.28", "classifier.4"],
    "vgg16_bn": [
        "features.0", "features.1", "features.6", "features.25", "features.40", "classifier.6",
    ],
    "squeezenet1_1": [
        "features.0", "features.2", "features.3.expand3x3", "features.7.squeeze", "features.9.expand1x1_activation",
        "features.12.expand3x3", "classifier.1", "classifier.3",
    ],
    "googlenet": [
        "conv1.conv", "maxpool1", "inception3a.branch2.0.conv", "inception3b.branch3.1.bn", "inception4c.branch4.0",
        "inception4e.branch4.1.conv", "maxpool4", "inception5b.branch3.1.conv", "avgpool", "fc",
    ],
    "resnet18": [
        "conv1", "relu", "maxpool", "layer1.0.relu_1", "layer2.0.downsample.0", "layer3.0.conv2", "layer4.1.conv2",
        "layer4.1.relu_1", "avgpool", "fc",
    ],
    "resnet50": [
        "conv1", "bn1", "layer1.0.downsample.1", "layer2.0.conv2", "layer2.3.relu_1", "layer3.5.relu_2",
        "layer4.2.conv3", "avgpool", "fc",
    ],
    "densenet121": [
        "features.conv0", "features.pool0", "features.denseblock1.denselayer3.norm1",
        "features.denseblock2.denselayer5.conv2", "features.transition2.pool",
        "features.denseblock3.denselayer24.relu2", "features.denseblock4.denselayer16.conv2", "features.norm5",
        "classifier",
    ],
    "mobilenet_v2": [
        "features.0.0", "features.0.2", "features.1.conv.0.0", "features.3.conv.2", "features.7.conv.1.2",
        "features.14.conv.1.0", "features.18.0", "features.18.2", "classifier.1",
    ],
    "lenet": ["conv1", "conv2", "fc1", "fc3"],
}  # fmt: skip


class LeNet(nn.Module):
    """For one channel, written as in PyTorch's first tutorial: with functions."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), (2, 2))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, 16 * 5 * 5)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def load(name):
    """The network with random weights in float64, and two noisy images for it."""
    torch.manual_seed(0)
    if name == "lenet":
        model = zfkit.wrap_model(LeNet(), mean=33.3, scale=1 / 78.6, input_size=32)
        x = torch.randn(2, 1, 32, 32, dtype=torch.float64)
    else:
        model = zfkit.load_model(f"torchvision:{name}", weights=None, device="cpu")
        x = torch.randn(2, 3, 64, 72, dtype=torch.float64)
    if name == "googlenet":  # its trained weights come with this: the net changes the images' normalisation
        model.net.transform_input = True
        model = zfkit.wrap_model(model.net, mean=model.mean, scale=model.scale, input_size=224)
    model.net.double()
    give_norms_a_past(model.net, x)
    return model, x


def give_norms_a_past(net, x):
    """Statistics and weights of batch norms near those of the images, so that signals live, but not equal."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(x)
        net.eval()
        for norm in norms:
            norm.running_mean += 0.3 * torch.randn_like(norm.running_mean) * norm.running_var.sqrt()
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.3)


QUICK = ("squeezenet1_1", "resnet18", "lenet")  # plain, branching, one channel; the others in `make test-all`


@pytest.fixture(
    scope="module", params=[n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in LAYERS]
)
def network(request):
    return (request.param, *load(request.param))


def assert_close(found, expected, tolerance=1e-10):
    """Of each image, the largest difference is at most `tolerance` of the largest expected value."""
    assert found.shape == expected.shape
    for image, (a, b) in enumerate(zip(found, expected, strict=True)):
        error, largest = (a - b).abs().max(), b.abs().max()
        assert error <= tolerance * largest, f"image {image}: {error:.1e} of {largest:.1e}"


# --------------------------------------------------------------- the truth: autograd through the rule's ReLUs


class RuledReLU(torch.autograd.Function):
    """ReLU (up to `limit`) with the backward pass of one of the rules."""

    @staticmethod
    def forward(ctx, x, rule, limit):
        ctx.save_for_backward(x)
        ctx.rule, ctx.limit = rule, limit
        return x.clamp(0, limit)

    @staticmethod
    def backward(ctx, R):
        (x,) = ctx.saved_tensors
        passed = (x > 0) & (x < ctx.limit)
        return {
            "deconvnet": R.clamp(min=0), "guided": R.clamp(min=0) * passed, "gradient": R * passed
        }[ctx.rule], None, None  # fmt: skip


@contextlib.contextmanager
def relus_of(rule):
    """Every ReLU that is called in here, as a module or as a function, goes back by this rule."""

    def relu(x, inplace=False):
        return RuledReLU.apply(x, rule, math.inf)

    def hardtanh(x, low, high, inplace=False):  # what nn.ReLU6 calls
        assert (low, high) == (0, 6)
        return RuledReLU.apply(x, rule, high)

    with mock.patch.multiple(F, relu=relu, hardtanh=hardtanh):
        yield


@contextlib.contextmanager
def watched(net):
    """What every module of the net without modules inside gives, in order; its second use is called NAME_1."""
    outputs, hooks = {}, []
    for name, module in net.named_modules():
        if not any(module.children()):

            def keep(module, inputs, output, name=name):
                uses = sum(known == name or known.startswith(f"{name}_") for known in outputs)
                # a copy, since what follows may work in place
                outputs[f"{name}_{uses}" if uses else name] = output.clone()

            hooks.append(module.register_forward_hook(keep))
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def run(net, x):
    """The images, as a source of gradients, and the output of every layer."""
    source = x.clone().requires_grad_(True)
    with watched(net) as outputs:
        net(source * 1)  # so that layers in place do not overwrite the source
    return source, outputs


def strong_channels(maps):
    """A map for each image: the most active one of the first image, the second most of the second."""
    most = maps.detach().flatten(2).amax(2) if maps.dim() == 4 else maps.detach()
    ranking = most.argsort(1, descending=True)
    return [int(ranking[0, 0]), int(ranking[1, 1])]


def strongest(maps):
    """Row and column of the maximum of one map (H, W)."""
    return divmod(int(maps.detach().argmax()), maps.shape[1])


def values_of(maps, channels, positions):
    """The sum over images of one unit of each: no image has a part in another's, so gradients stay apart."""
    if maps.dim() == 2:
        return sum(maps[n, c] for n, c in enumerate(channels))
    return sum(maps[n, c, i, j] for n, (c, (i, j)) in enumerate(zip(channels, positions, strict=True)))


@pytest.mark.parametrize("rule", RULES)
def test_every_kind_of_layer_equals_autograd_through_the_rules_relus(network, rule):
    name, model, x = network
    with relus_of(rule):
        source, outputs = run(model.net, x)
    for layer in LAYERS[name]:
        maps = outputs[layer]
        channels, positions = strong_channels(maps), None
        if maps.dim() == 4:  # the first image's maximum, and a unit at the border of the second
            first = maps[0, channels[0]]
            first = first.masked_fill(first == 6, 0)  # where ReLU6 caps, only the deconvnet goes on
            positions = [strongest(first), (maps.shape[2] // 2, maps.shape[3] - 1)]
        (expected,) = torch.autograd.grad(values_of(maps, channels, positions), source, retain_graph=True)
        assert expected[0].abs().max() > 0
        found = zfkit.project(model, x, layer, channels, positions, rule=rule, lrn="gradient")
        assert_close(found, expected)


def test_without_a_position_each_image_shows_the_maximum_of_its_own_map(network):
    name, model, x = network
    layer = LAYERS[name][1]
    with relus_of("deconvnet"):
        source, outputs = run(model.net, x)
    maps, channels = outputs[layer], [3, 5]
    positions = [strongest(maps[n, c]) for n, c in enumerate(channels)]
    assert positions[0] != positions[1]
    (expected,) = torch.autograd.grad(values_of(maps, channels, positions), source)
    assert_close(zfkit.project(model, x, layer, channels), expected)


# Every convolutional layer, in networks that gate, normalise over the picture, shuffle channels, and leave rows
# and columns for other axes. `benchmarks/networks.py` does the same for a hundred networks.
EVERY = [
    ("torchvision", "mobilenet_v3_small"), ("torchvision", "convnext_tiny"), ("torchvision", "shufflenet_v2_x0_5"),
    ("torchvision", "efficientnet_b0"), ("timm", "resnetv2_18"), ("timm", "nf_resnet26"), ("timm", "ghostnet_050"),
    ("timm", "convnextv2_atto"), ("timm", "regnety_002"), ("timm", "hgnetv2_b0"), ("timm", "dla46_c"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family, name", EVERY)
def test_every_convolutional_layer_of_any_network_equals_autograd(family, name):
    pytest.importorskip(family)
    for row in networks.check(family, name):
        # A layer of which nothing comes back, by autograd neither, is equal, too; there are a few at most.
        assert row["right"] + row["nothing"] == row["layers"] > 10 and row["nothing"] < row["layers"] / 20, (
            row
        )


# ---------------------------------------------------------------------------------------------- Captum

CAPTUM = {"deconvnet": NeuronDeconvolution, "guided": NeuronGuidedBackprop, "gradient": NeuronGradient}

# A shallow or middle one; one deep inside or the classes, or both.
CAPTUM_LAYERS = {
    "alexnet": ["features.3", "features.8", "classifier.6"],
    "vgg11": ["features.6", "classifier.6"],
    "vgg16": ["features.7", "features.24"],
    "vgg16_bn": ["features.7", "features.30"],
    "squeezenet1_1": ["features.4.expand3x3", "features.10.expand1x1", "classifier.3"],
    "googlenet": ["inception3a.branch2.1.conv", "inception4d.branch3.1.conv", "fc"],
    "resnet18": ["layer2.0.downsample.0", "layer3.1.conv2", "fc"],
    "resnet50": ["layer1.2.conv3", "layer3.0.conv2", "fc"],
    "densenet121": [
        "features.denseblock1.denselayer6.conv2", "features.denseblock3.denselayer9.conv1", "classifier",
    ],
    "mobilenet_v2": ["features.4.conv.1.0", "features.11.conv.2", "classifier.1"],
    "lenet": ["conv2", "fc1", "fc3"],
}  # fmt: skip


class CappedReLU(nn.ReLU):
    """ReLU6 as a kind of ReLU, since Captum looks for nothing else."""

    def forward(self, x):
        return x.clamp(0, 6)


def for_captum(net):
    """The net with every ReLU a module of its own that leaves its input alone: Captum sees no others."""
    copied = fx.symbolic_trace(net)
    for i, node in enumerate(copied.graph.nodes):
        module = copied.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, nn.ReLU | nn.ReLU6) or node.target is F.relu:
            copied.add_submodule(f"own_relu_{i}", CappedReLU() if isinstance(module, nn.ReLU6) else nn.ReLU())
            node.op, node.target, node.kwargs = "call_module", f"own_relu_{i}", {}
    copied.recompile()
    return copied


def from_captum(net, x, layer, channels, positions, rule):
    def selector(maps):
        if positions is None:
            return maps[[0, 1], channels]
        rows, columns = zip(*positions, strict=True)
        return maps[[0, 1], channels, rows, columns]

    attribution = CAPTUM[rule](net, net.get_submodule(layer))
    return attribution.attribute(x.clone().requires_grad_(True), selector).detach()


def units(maps):
    """A strong map of each image, and a place in each: in the middle of the first, at a corner of the second."""
    positions = (
        [(maps.shape[2] // 2, maps.shape[3] // 3), (0, maps.shape[3] - 1)] if maps.dim() == 4 else None
    )
    return strong_channels(maps), positions


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
@pytest.mark.parametrize("rule", RULES)
def test_equals_captum_where_captum_sees_the_relus(network, rule):
    name, model, x = network
    net = for_captum(model.net)
    with torch.no_grad():
        _, outputs = run(net, x)
    for layer in CAPTUM_LAYERS[name][: 1 if rule == "gradient" else None]:  # it is autograd's, as above
        channels, positions = units(outputs[layer])
        found = zfkit.project(model, x, layer, channels, positions, rule=rule, lrn="gradient")
        assert_close(found, from_captum(net, x, layer, channels, positions, rule))


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
def test_single_precision_equals_captum_to_1e_5(network):
    name, model, x = network
    layer = CAPTUM_LAYERS[name][0]
    net = for_captum(model.net.float())  # for both: they share their weights
    try:
        with torch.no_grad():
            _, outputs = run(net, x.float())
        channels, positions = units(outputs[layer])
        found = zfkit.project(model, x.float(), layer, channels, positions)
        assert found.dtype == torch.float32
        assert_close(found, from_captum(net, x.float(), layer, channels, positions, "deconvnet"), 1e-5)
    finally:
        model.net.double()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
def test_captum_takes_the_plain_gradient_for_functional_relus_and_zfkit_does_not():
    # GoogLeNet calls F.relu. Captum's hooks are on nn.ReLU modules, of which there are none, so what it
    # returns as the deconvnet's picture is the gradient, with no word about it.
    model, x = load("googlenet")
    layer = "inception3b.branch1.conv"
    with relus_of("deconvnet"):
        source, outputs = run(model.net, x)
    channels, positions = units(outputs[layer])
    (truth,) = torch.autograd.grad(values_of(outputs[layer], channels, positions), source)
    captum = from_captum(model.net, x, layer, channels, positions, "deconvnet")
    assert captum.equal(from_captum(model.net, x, layer, channels, positions, "gradient"))
    assert (captum - truth).norm() > 0.5 * truth.norm()
    assert_close(zfkit.project(model, x, layer, channels, positions), truth)


# ------------------------------------------------------------------------------------------ receptive fields

FIELDS = {
    "vgg16": ["features.0", "features.7", "features.14", "features.21"],
    "resnet18": ["conv1", "layer1.1.conv2", "layer2.0.downsample.0", "layer2.0.conv2", "layer3.0.conv1"],
    "googlenet": [
        "conv1.conv", "conv3.conv", "inception3a.branch1.conv", "inception3a.branch2.1.conv",
        "inception3b.branch4.1.conv", "inception4a.branch3.1.conv",
    ],
}  # fmt: skip


@pytest.mark.parametrize("transform_input", [False, True])
def test_fields_look_through_a_change_of_the_images_channels(transform_input):
    net = zfkit.load_model("torchvision:googlenet", weights=None, device="cpu").net
    net.transform_input = transform_input
    field = zfkit.receptive_field(zfkit.wrap_model(net, mean=0.0, scale=1.0, input_size=224), "conv1.conv")
    assert (field.size, field.stride, field.offset) == (7, 2, -3)  # of its convolution: 7x7/2, padded by 3


@pytest.mark.parametrize(
    "name", [n if n == "resnet18" else pytest.param(n, marks=pytest.mark.slow) for n in FIELDS]
)
def test_a_units_field_is_where_pixels_change_it(name):
    model = zfkit.load_model(f"torchvision:{name}", weights=None, device="cpu")
    make_all_positive(model.net)
    for layer in FIELDS[name]:
        field = zfkit.receptive_field(model, layer)
        row = -field.offset // field.stride + 1
        column = row + 1
        left, top, right, bottom = field.box(row, column)
        assert left > 0 and top > 0
        height, width = max(64, bottom + field.stride), max(64, right + field.stride)

        # All pixels around the box; then only its first row, last row, first column and last column.
        images = torch.zeros(5, 3, height, width)
        images[0] = 1
        images[0, :, top:bottom, left:right] = 0
        images[1, :, top, left:right] = 1
        images[2, :, bottom - 1, left:right] = 1
        images[3, :, top:bottom, left] = 1
        images[4, :, top:bottom, right - 1] = 1
        with torch.no_grad(), watched(model.net) as outputs:
            model.net(images)
        unit = outputs[layer][:, 0, row, column]
        assert (unit > 0).tolist() == [False, True, True, True, True], layer


def make_all_positive(net):
    """Nothing cancels and no pool hides anything: a unit is 0 just where all the pixels it sees are 0."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d):
            nn.init.uniform_(module.weight, 0.5, 1)
            module.weight.data /= module.weight[0].numel()  # means, which neither grow nor vanish
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# ------------------------------------------------------------------- networks that overwrite their own tensors


class Net(nn.Module):
    """Two convolutions, joined by a function of (net, x), and one more."""

    def __init__(self, join):
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)
        self.relu, self.same = nn.ReLU(inplace=True), nn.Identity()
        self.join = join

    def forward(self, x):
        return self.last(self.join(self, x))


def then(overwrite):
    """What the first convolution gives, after this has changed it."""

    def join(n, x):
        y = n.a(x)
        overwrite(n, x, y)
        return y

    return join


def read_twice(n, x):
    y = n.a(x)
    return n.relu(y) + n.b(x) + y


def read_before_and_after(n, x):
    y = n.a(x)
    before = y * 2
    y.mul_(3).relu_()
    return before + y


def added_under_another_name(n, x):
    y = z = n.a(x)
    y += n.b(x)
    return z


def scaled_under_another_name(n, x):
    y = z = n.a(x)
    y *= -3
    z /= 2
    return y


def relu_of_a_copy(n, x):
    y = n.a(x)
    z = y.clone()
    return n.relu(z) + y


IN_PLACE = [
    then(lambda n, x, y: y.relu_()), then(lambda n, x, y: n.relu(y)), then(lambda n, x, y: F.relu(y, True)),
    then(lambda n, x, y: y.add_(n.b(x))), read_twice, read_before_and_after, added_under_another_name,
    scaled_under_another_name, relu_of_a_copy,
]  # fmt: skip


@pytest.mark.parametrize("join", IN_PLACE)
def test_what_is_read_after_an_operation_in_place_is_what_it_wrote(join):
    torch.manual_seed(0)
    net, x = Net(join).double(), torch.randn(2, 3, 20, 20, dtype=torch.float64)
    source, outputs = run(net, x)  # PyTorch itself keeps track of what was overwritten
    expected = torch.autograd.grad(values_of(outputs["last"], [0, 1], [(2, 3), (15, 0)]), source)[0]
    model = zfkit.wrap_model(net, mean=0.0, scale=1.0, input_size=20)
    assert_close(zfkit.project(model, x, "last", [0, 1], [(2, 3), (15, 0)], rule="gradient"), expected)


def overwritten_view(n, x):
    y = n.a(x)
    y[:, 1:].relu_()
    return y


def overwritten_alias(n, x):
    y = n.a(x)
    n.relu(n.same(y))
    return y


@pytest.mark.parametrize("join, called", [(overwritten_view, "'relu_'"), (overwritten_alias, "'relu'")])
def test_a_tensor_overwritten_through_a_view_of_it_is_refused(join, called):
    with pytest.raises(ModelError) as caught:
        zfkit.wrap_model(Net(join), mean=0.0, scale=1.0, input_size=20)
    assert f"{called} changes, in place, numbers that 'last' reads as 'a'" in str(caught.value)
    assert "inplace=True" in str(caught.value)


def test_a_network_that_overwrites_its_input_leaves_the_users_images_alone():
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3))
    model = zfkit.wrap_model(net, mean=0.0, scale=1.0, input_size=20)
    x = torch.randn(2, 3, 20, 20).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    zfkit.project(model, x, "1", 0)
    assert x.equal(before)


# ------------------------------------------------------------------------------------------- names and shapes


class Numbered(nn.Module):
    """Uses `relu` twice, and has a module of the name that the second use would get."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 3)
        self.relu, self.relu_1 = nn.ReLU(), nn.ReLU()

    def forward(self, a):  # and its argument has the name of a module
        a = self.relu(self.a(a))
        return self.relu_1(self.c(self.relu(self.b(a))))


def test_names_stay_apart_where_modules_are_numbered():
    torch.manual_seed(0)
    net, x = Numbered().double(), torch.randn(1, 3, 20, 20, dtype=torch.float64)
    model = zfkit.wrap_model(net, mean=0.0, scale=1.0, input_size=20)
    assert model.layers == ("a", "relu", "b", "relu_2", "c", "relu_1")
    for layer in ("a", "relu_1"):
        source = x.clone().requires_grad_(True)
        maps = net.a(source) if layer == "a" else net(source)
        (expected,) = torch.autograd.grad(maps[0, 1].max(), source)
        assert_close(zfkit.project(model, x, layer, 1, rule="gradient"), expected)


@pytest.mark.parametrize("images", [1, 2])
def test_a_head_that_squeezes_works_for_one_image_too(images):
    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, x):
            return self.fc(F.adaptive_avg_pool2d(F.relu(self.a(x)), 1).squeeze())

    torch.manual_seed(0)
    net, x = Squeezed().double(), torch.randn(images, 3, 20, 20, dtype=torch.float64)
    model = zfkit.wrap_model(net, mean=0.0, scale=1.0, input_size=20)
    expected = []
    for image in x.split(1):
        source = image.clone().requires_grad_(True)
        expected += torch.autograd.grad(net(source).flatten()[3], source)
    assert_close(zfkit.project(model, x, "fc", 3, rule="gradient"), torch.cat(expected))
