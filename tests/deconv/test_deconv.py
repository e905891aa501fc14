"""`project` against a literal deconvnet, Captum, autograd and numbers worked out by hand."""

import copy
import math

import literal
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import NeuronDeconvolution, NeuronGradient, NeuronGuidedBackprop
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle import assert_close
from torch import nn

import zfkit
import zfkit.deconv as deconv
from zfkit.deconv import Options
from zfkit.deconv.windows import paste
from zfkit.errors import LayerError
from zfkit.nets import BlurPool

F64 = torch.float64


def wrap(net, size=20):
    return zfkit.wrap_model(net.double().eval(), mean=0.0, scale=1.0, input_size=size)


def chain(*layers, size=20):
    return wrap(nn.Sequential(*layers), size)


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------ the literal, slow deconvnet


@st.composite
def chains(draw):
    """A random chain of layers in float64 with two images for it, and whether it is fully connected."""
    number = st.integers
    torch.manual_seed(draw(number(0, 10**6)))
    channels = draw(st.sampled_from([1, 3]))
    ends_in_linear = draw(st.booleans())
    height = draw(number(8, 20))
    width = height if ends_in_linear else draw(number(8, 20))
    x = torch.randn(2, channels, height, width, dtype=F64)
    layers, size = [], (height, width)

    def kernel_that_fits(largest):
        return tuple(draw(number(1, min(largest, n))) for n in size)

    for _ in range(draw(number(1, 3))):
        kernel = kernel_that_fits(5)
        stride = (draw(number(1, 3)), draw(number(1, 3)))
        # A filter that lies in the padding altogether would make exact ties for the pools.
        padding = tuple(draw(number(0, min(2, k - 1))) for k in kernel)
        dilation = draw(number(1, 2)) if max(kernel) * 2 <= min(size) else 1
        outputs = draw(number(1, 4))
        bias = draw(st.booleans())
        layers.append(nn.Conv2d(channels, outputs, kernel, stride, padding, dilation, bias=bias))
        channels = outputs
        if draw(st.booleans()):
            layers.append(nn.ReLU(inplace=draw(st.booleans())))
        size = _size_after(layers, x)
        if draw(st.booleans()):
            kernel = kernel_that_fits(3)
            stride = draw(st.sampled_from([1, 2, 3, kernel]))  # overlapping, apart, or with gaps
            padding = tuple(draw(number(0, k // 2)) for k in kernel)
            layers.append(nn.MaxPool2d(kernel, stride, padding, ceil_mode=draw(st.booleans())))
            size = _size_after(layers, x)
        if draw(st.booleans()):
            layers.append(
                nn.LocalResponseNorm(draw(number(1, 5)), alpha=0.5, k=draw(st.sampled_from([1, 2])))
            )
    if ends_in_linear:
        layers += [nn.Flatten(), nn.Linear(math.prod((channels, *size)), 5), nn.ReLU(), nn.Linear(5, 3)]
    return nn.Sequential(*layers).double(), x, ends_in_linear


def _size_after(layers, x):
    return tuple(nn.Sequential(*layers).double()(x.clone()).shape[2:])


def _has_near_tie(pool, x):
    """Does a window of `pool` hold two values that rounding errors could put in either order?"""
    for channel, i, j in np.ndindex(len(x), *pool.output_size(x.shape[1:])):
        values = sorted(x[(channel, *place)] for place in pool.places(i, j, x.shape))
        if len(values) > 1 and 0 < values[-1] - values[-2] < 1e-9:
            return True
    return False


@given(chains(), st.data())
def test_equals_the_literal_deconvnet(drawn, data):
    net, x, is_connected = drawn
    model = zfkit.wrap_model(net, mean=0.0, scale=1.0, input_size=x.shape[2] if is_connected else 20)
    layers = literal.layers_of(net)
    maps = [[image.numpy()] for image in x]  # of each image: the input of every layer, and the last output
    for of_image in maps:
        for layer in layers:
            assume(not (isinstance(layer, literal.MaxPool) and _has_near_tie(layer, of_image[-1])))
            of_image.append(layer.forward(of_image[-1])[0])

    candidates = [i for i, layer in enumerate(layers) if not isinstance(layer, literal.Flatten)]
    for last in data.draw(st.lists(st.sampled_from(candidates), min_size=1, max_size=2, unique=True)):
        shape = maps[0][last + 1].shape
        # Corners and borders are where windows stick out of the maps: draw them often.
        unit = st.tuples(*(st.one_of(st.sampled_from([0, n - 1]), st.integers(0, n - 1)) for n in shape))
        units = [data.draw(unit), data.draw(unit)]
        position = [u[1:] for u in units] if len(shape) == 3 else None
        found = zfkit.project(model, x, str(last), [u[0] for u in units], position)
        for of_image, u, pixels in zip(maps, units, found, strict=True):
            assert_close(pixels, literal.deconvnet(layers[: last + 1], of_image[0], u))


@given(chains(), st.sampled_from(["deconvnet", "guided", "gradient"]), st.sampled_from(["skip", "gradient"]))
def test_a_pass_without_outputs_keeps_the_same_and_ends_at_the_last_switch(drawn, rule, lrn):
    net, x, is_connected = drawn
    size = x.shape[2] if is_connected else 20
    network = zfkit.wrap_model(net, mean=0.0, scale=1.0, input_size=size).network
    layer = network.layers[-1]
    deconvnet = deconv.Deconvnet(network, [layer], Options(rule, "one", lrn))
    whole = deconvnet.forward(x.clone())
    seen = {}
    hooks = [
        m.register_forward_hook(lambda module, inputs, y, n=n: seen.update({n: len(y)}))
        for n, m in net.named_modules()
    ]
    short = deconvnet.forward(x.clone(), outputs=False)
    for hook in hooks:
        hook.remove()
    assert short.shapes == whole.shapes and not short.outputs and short.kept.keys() == whole.kept.keys()
    assert all(torch.equal(short.kept[n], whole.kept[n]) for n in whole.kept)
    names = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    kept = [network.layers.index(n) for n in whole.kept]
    for name in names:  # filters after the last step that keeps anything see no image
        assert seen[name] == (len(x) if kept and network.layers.index(name) < max(kept) else 0)


class Sized(nn.Module):
    """Asks for its input's length, which an empty batch does not have."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2), nn.Linear(4 * 8 * 8, 3)

    def forward(self, x):
        return self.fc(self.pool(self.conv(x)).view(x.size(0), -1))


def test_where_an_operation_takes_no_empty_batch_the_pass_goes_on_to_the_end():
    torch.manual_seed(0)
    model, x = wrap(Sized()), noise(2, 3, 20, 20)
    deconvnet = deconv.Deconvnet(model.network, ["fc"])
    short, whole = deconvnet.forward(x.clone(), outputs=False), deconvnet.forward(x.clone())
    assert short.shapes == whole.shapes and torch.equal(short.kept["pool"], whole.kept["pool"])
    image, channel = torch.tensor([0, 1]), torch.tensor([2, 0])
    back = [deconvnet.reverse(tape, "fc", image, channel, None)[0] for tape in (short, whole)]
    assert torch.equal(*back) and back[0].any()


def test_without_a_position_each_image_shows_its_strongest_unit():
    torch.manual_seed(1)
    model = chain(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(4, 4, 3))
    x = noise(3, 3, 20, 17)
    maps = model.net(x)[:, 2]
    places = [np.unravel_index(m.argmax(), m.shape) for m in maps.detach().numpy()]
    assert len(set(places)) > 1  # or the test would not see a mix-up of images
    assert_close(
        zfkit.project(model, x, "3", 2),
        torch.stack([literal_of(model, x[n], "3", (2, *places[n])) for n in range(3)]),
    )


def literal_of(model, image, layer, unit):
    layers = literal.layers_of(model.net)[: int(layer) + 1]
    return torch.as_tensor(literal.deconvnet(layers, image.numpy(), tuple(unit)))


def test_of_equal_maxima_the_first_along_the_rows_is_shown():
    model = chain(nn.Conv2d(1, 1, 1, bias=False))
    x = torch.zeros(1, 1, 4, 5, dtype=F64)
    x[0, 0, 1, 3] = x[0, 0, 2, 0] = x[0, 0, 3, 4] = 7
    with torch.no_grad():
        model.net[0].weight.fill_(1)
    assert zfkit.project(model, x, "0", 0).nonzero().tolist() == [[0, 0, 1, 3]]


# ---------------------------------------------------------------------------------------------- Captum


def torchvision_model(name):
    """In double precision: in single, pools over nearly equal values switch with the order of summation."""
    model = zfkit.load_model(f"torchvision:{name}", weights=None, device="cpu")
    model.net.features.double()
    return model


def captum_net(model, classifier=True):
    """A copy for Captum, whose hooks need ReLUs that leave the convolutions' outputs alone.

    Captum runs the whole network for every unit; `classifier` says whether there is need to.
    """
    net = copy.deepcopy(model.net)
    if not classifier:
        net.classifier = nn.Identity()
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return net


CAPTUM = {"deconvnet": NeuronDeconvolution, "guided": NeuronGuidedBackprop, "gradient": NeuronGradient}


def from_captum(net, x, layer, unit, rule):
    x = x.clone().requires_grad_(True)
    return CAPTUM[rule](net, net.get_submodule(layer)).attribute(x, unit).detach()


@pytest.mark.parametrize(
    "name, convolutions", [("alexnet", 5), pytest.param("vgg11", 8, marks=pytest.mark.slow)]
)
def test_equals_captum_at_every_conv_layer(name, convolutions):
    model, x = torchvision_model(name), noise(1, 3, 71, 80)
    net = captum_net(model, classifier=False)
    assert len(model.conv_layers) == convolutions
    for layer in model.conv_layers:
        outputs, height, width = _shape_at(model, x, layer)
        for unit in [(7, 0, 0), (outputs - 1, height // 2, width - 1)]:
            found = zfkit.project(model, x, layer, unit[0], unit[1:], lrn="gradient")
            assert_close(found, from_captum(net, x, layer, unit, "deconvnet"))


def _shape_at(model, x, layer):
    stop = int(layer.removeprefix("features.")) + 1
    with torch.no_grad():
        return model.net.features[:stop](x).shape[1:]


def test_equals_captum_for_fully_connected_units():
    model, x = torchvision_model("alexnet"), noise(1, 3, 71, 80)  # an adaptive pool makes it fit
    model.net.double()
    net, layer = captum_net(model), "classifier.6"
    assert_close(zfkit.project(model, x, layer, 42), from_captum(net, x, layer, (42,), "deconvnet"))


@pytest.mark.parametrize("rule", ["guided", "gradient"])
def test_the_other_rules_equal_captum(rule):
    model, x = torchvision_model("alexnet"), noise(1, 3, 95, 107)
    net = captum_net(model, classifier=False)
    for layer, unit in [("features.0", (3, 0, 4)), ("features.3", (9, 5, 6)), ("features.10", (200, 2, 4))]:
        found = zfkit.project(model, x, layer, unit[0], unit[1:], rule=rule)
        assert_close(found, from_captum(net, x, layer, unit, rule))


def test_single_precision_equals_captum_to_1e_5():
    model = zfkit.load_model("torchvision:alexnet", weights=None, device="cpu")
    x, unit = noise(1, 3, 224, 224).float(), (17, 13, 20)
    found = zfkit.project(model, x, "features.3", unit[0], unit[1:])
    assert_close(found, from_captum(captum_net(model), x, "features.3", unit, "deconvnet"), 1e-5)


# ------------------------------------------------------------------------ switches shared by several windows


def shared_switch():
    """3x3 windows with stride 2 over 5x5 pixels that all have their maximum, 9, in the middle.

    The unit looked at is 1, 2, 3, 4 times the four pooled values, so these numbers come back to the pool.
    """
    model = chain(nn.Conv2d(1, 1, 1, bias=False), nn.MaxPool2d(3, 2), nn.Conv2d(1, 1, 2, bias=False))
    with torch.no_grad():
        model.net[0].weight.fill_(1)
        model.net[2].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    image = torch.ones(1, 1, 5, 5, dtype=F64)
    image[0, 0, 2, 2] = 9
    return model, image


def test_windows_that_share_a_switch_add_up_there():
    model, image = shared_switch()
    expected = torch.zeros(1, 1, 5, 5, dtype=F64)
    expected[0, 0, 2, 2] = 1 + 2 + 3 + 4
    assert zfkit.project(model, image, "2", 0, (0, 0)).equal(expected)
    assert literal_of(model, image[0], "2", (0, 0, 0)).equal(expected[0])


def test_max_unpool2d_loses_all_but_one_of_them():
    _, image = shared_switch()
    pooled, switches = F.max_pool2d(image, 3, 2, return_indices=True)
    back = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=F64)
    overwritten = F.max_unpool2d(back, switches, 3, 2, output_size=(5, 5))
    assert pooled.flatten().tolist() == [9, 9, 9, 9]
    assert overwritten.sum() == overwritten[0, 0, 2, 2]
    assert overwritten.sum() <= 4  # of 10


def test_on_the_bundled_network_overwriting_is_far_off_and_adding_is_right():
    model = zfkit.load_model("zfnet64", device="cpu")
    model.net.double()
    photos = zfkit.load_images("photos-small", size=64, limit=81).take([0, 40, 80])
    x, channel, row, column = model.preprocess(photos), 30, 3, 4
    added = paper_chain(model.net, x, channel, row, column, unpool_by_adding)
    overwritten = paper_chain(model.net, x, channel, row, column, unpool_by_overwriting)
    assert_close(zfkit.project(model, x, "conv3", channel, (row, column)), added)
    error = (added - overwritten).flatten(1).norm(dim=1) / added.flatten(1).norm(dim=1)
    assert (error > 0.1).all()


def paper_chain(net, x, channel, row, column, unpool):
    """conv3 of the paper's network back to the pixels, written out, with one or the other way to unpool."""
    with torch.no_grad():
        map1 = net.relu1(net.conv1(x))
        pooled1, switches1 = F.max_pool2d(map1, 3, 2, ceil_mode=True, return_indices=True)
        map2 = net.relu2(net.conv2(net.norm1(pooled1)))
        pooled2, switches2 = F.max_pool2d(map2, 3, 2, ceil_mode=True, return_indices=True)
        R = torch.zeros_like(net.conv3(net.norm2(pooled2)))
        R[:, channel, row, column] = 1
        R = F.conv_transpose2d(R, net.conv3.weight, padding=1)
        R = unpool(R, switches2, map2.shape).clamp(min=0)
        R = F.conv_transpose2d(R, net.conv2.weight, padding=2)
        R = unpool(R, switches1, map1.shape).clamp(min=0)
        # 64 px is one more than the filters of conv1 reach with padding 1 on both sides: output_padding
        rest = (x.shape[2] + 2 - 7) % 2
        return F.conv_transpose2d(R, net.conv1.weight, stride=2, padding=1, output_padding=rest)


def unpool_by_adding(R, switches, shape):
    """The backward pass of max-pooling itself."""
    x = torch.zeros(shape, dtype=R.dtype, requires_grad=True)
    with torch.enable_grad():
        picked = x.flatten(2).gather(2, switches.flatten(2))
        return torch.autograd.grad(picked, x, R.flatten(2))[0]


def unpool_by_overwriting(R, switches, shape):
    return F.max_unpool2d(R, switches, 3, 2, output_size=shape[2:])


@pytest.mark.parametrize("kernel", [(300, 2), (2, 300), (130, 130)])
def test_switches_of_very_large_pools_are_kept(kernel):
    torch.manual_seed(0)
    model = chain(nn.Conv2d(1, 2, 3), nn.MaxPool2d(kernel, 1), size=310)
    x = noise(1, 1, 310, 310)
    x[..., -20:, -20:] *= 10  # the maxima lie far from where the windows begin
    assert_close(zfkit.project(model, x, "1", 1, (5, 6)), autograd_of(model.net, x, "1", 1, (5, 6)))


# -------------------------------------------------------------- windows around units against whole images


class DeconvReLU(torch.autograd.Function):
    """ReLU whose gradient is the deconvnet's, R <- max(R, 0)."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, R):
        return R.clamp(min=0)


class SkippedNorm(torch.autograd.Function):
    """What contrast normalisation gives, with the identity as its gradient."""

    @staticmethod
    def forward(ctx, x, norm):
        return norm(x)

    @staticmethod
    def backward(ctx, R):
        return R, None


def autograd_deconvnet(net, image, layers):
    """Outputs of `layers` of a chain over one whole image, with a graph whose gradient is the deconvnet's."""
    x = image.clone().requires_grad_(True)
    y, outputs = x, {}
    for name, module in net.named_children():
        if isinstance(module, nn.ReLU):
            y = DeconvReLU.apply(y)
        elif isinstance(module, nn.LocalResponseNorm):
            y = SkippedNorm.apply(y, module)
        else:
            y = module(y)
        outputs[name] = y
        if set(layers) <= set(outputs):
            break
    return x, outputs


def test_windows_equal_whole_images_at_corners_borders_and_inside():
    model = zfkit.load_model("zfnet64", device="cpu")
    model.net.double()
    photo = torch.randint(
        0, 256, (1, 3, 101, 93), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    image = model.preprocess(photo)
    source, outputs = autograd_deconvnet(model.net, image, ["pool5"])
    for layer in [*model.conv_layers, "norm1", "pool2", "pool5"]:
        maps = outputs[layer]
        bottom, right = maps.shape[2] - 1, maps.shape[3] - 1
        middle = (bottom // 2, right // 2)
        units = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
        units += [(0, right // 2), (bottom // 2, right), middle]
        channels = [11 * n % maps.shape[1] for n in range(len(units))]
        batch = image.expand(len(units), -1, -1, -1)
        found = zfkit.project(model, batch, layer, channels, units)
        for channel, (row, column), pixels in zip(channels, units, found, strict=True):
            expected = torch.autograd.grad(maps[0, channel, row, column], source, retain_graph=True)[0]
            assert_close(pixels, expected[0])
            # and each unit alone, since a batch shares the size of its windows
        alone = zfkit.project(model, image, layer, channels[1], units[1])
        assert_close(alone[0], found[1])


# ---------------------------------------------------------------------------------------- what the rules do


def small_chain():
    torch.manual_seed(5)
    return chain(
        nn.Conv2d(3, 6, 5, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), nn.LocalResponseNorm(5),
        nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), size=32,
    )  # fmt: skip


def test_the_seed_activation_multiplies_the_picture():
    model, x = small_chain(), noise(2, 3, 32, 32)
    unit = {"layer": "6", "channel": 2, "position": (3, 4)}
    activation = model.net(x)[:, 2, 3, 4].detach()
    # The deconvnet rectifies, so this holds for positive activations; the gradient is linear in the seed.
    one = zfkit.project(model, x, **unit, rule="gradient", lrn="gradient")
    scaled = zfkit.project(model, x, **unit, rule="gradient", lrn="gradient", seed="activation")
    assert_close(scaled, one * activation[:, None, None, None])
    at_relu = {"layer": "5", "channel": 1}  # each image's maximum: positive
    activation = model.net[:6](x)[:, 1].flatten(1).max(1).values.detach()
    assert (activation > 0).all()
    one, scaled = zfkit.project(model, x, **at_relu), zfkit.project(model, x, **at_relu, seed="activation")
    assert_close(scaled, one * activation[:, None, None, None])


def test_a_unit_that_is_not_active_still_projects_but_not_under_the_other_rules():
    model, x = small_chain(), noise(1, 3, 32, 32)
    rectified = model.net[:6](x)[0]
    channel, row, column = (rectified == 0).nonzero()[0].tolist()
    unit = ("5", channel, (row, column))
    assert zfkit.project(model, x, *unit).abs().max() > 0
    assert zfkit.project(model, x, *unit).equal(zfkit.project(model, x, "4", *unit[1:]))  # the unit before it
    assert zfkit.project(model, x, *unit, rule="gradient").abs().max() == 0
    assert zfkit.project(model, x, *unit, rule="guided").abs().max() == 0


def test_biases_have_no_part_in_the_reverse_path():
    # Without pools and under the deconvnet rule, nothing of the forward pass is used on the way back.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).double()
    x = noise(1, 3, 20, 20)
    before = zfkit.project(wrap(net), x, "2", 1, (5, 5))
    with torch.no_grad():
        net[0].bias.fill_(100)
        net[2].bias.fill_(-100)
    assert zfkit.project(wrap(net), x, "2", 1, (5, 5)).equal(before)


def test_the_picture_is_signed_and_0_outside_the_receptive_field():
    model = zfkit.load_model("zfnet64", device="cpu")
    x = model.preprocess(zfkit.load_images("photos", size=160).take([0]))
    box = zfkit.receptive_field(model, "conv3").box(8, 9)
    assert 0 < box.left < box.right < 160 and 0 < box.top < box.bottom < 160  # all of it inside the image
    pixels = zfkit.project(model, x, "conv3", 5, (8, 9))
    assert pixels.min() < 0 < pixels.max()
    assert pixels[..., box.top : box.bottom, box.left : box.right].abs().max() > 0
    pixels[..., box.top : box.bottom, box.left : box.right] = 0
    assert (pixels == 0).all()


def test_projecting_changes_neither_the_images_nor_the_network():
    # An Identity and a ReLU stand first, and the layout is the one that needs no copy on the way in.
    model = wrap(NETS["a ReLU on the image"]())
    x = noise(2, 3, 20, 20).contiguous(memory_format=torch.channels_last)
    weights, images = copy.deepcopy(model.net.state_dict()), x.clone()
    zfkit.project(model, x, "last", 0)
    assert x.equal(images)
    assert all(weights[k].equal(v) for k, v in model.net.state_dict().items())
    assert not any(m._forward_hooks for m in model.net.modules())


# ------------------------------------------------------------------- other ways to write a net, other layers


class Net(nn.Module):
    """A network out of a function of (net, x) and the modules that it uses."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.function(self, x)


def autograd_of(net, x, layer, channel, position=None):
    """The gradient of one unit of each image, from a hook on its layer."""
    outputs = []
    hook = net.get_submodule(layer).register_forward_hook(lambda m, i, o: outputs.append(o))
    x = x.clone().requires_grad_(True)
    net(x * 1.0)  # so that layers in place do not overwrite the leaf
    hook.remove()
    unit = outputs[0][:, channel] if position is None else outputs[0][:, channel, position[0], position[1]]
    return torch.autograd.grad(unit.sum(), x)[0]


WRITTEN = {
    "nn.ReLU in place": lambda n, x: n.b(n.inplace(n.pool(n.inplace(n.a(x))))),
    "one nn.ReLU used twice": lambda n, x: n.b(n.relu(n.pool(n.relu(n.a(x))))),
    "F.relu": lambda n, x: n.b(F.relu(n.pool(F.relu(n.a(x))))),
    "F.relu in place": lambda n, x: n.b(F.relu(n.pool(F.relu(n.a(x), inplace=True)), inplace=True)),
    "x.relu_()": lambda n, x: n.b(n.pool(n.a(x).relu_()).relu_()),
    "torch.relu": lambda n, x: n.b(torch.relu(n.pool(torch.relu(n.a(x))))),
    "F.max_pool2d": lambda n, x: n.b(F.relu(F.max_pool2d(F.relu(n.a(x)), 3, 2, 1))),
}


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("rule", ["deconvnet", "guided", "gradient"])
def test_however_the_relu_is_written_the_picture_is_the_same(written, rule):
    torch.manual_seed(0)
    a, b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)
    plain = chain(a, nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.ReLU(), b)
    net = Net(WRITTEN[written], a=a, b=b, pool=nn.MaxPool2d(3, 2, 1), relu=nn.ReLU(), inplace=nn.ReLU(True))
    x = noise(2, 3, 20, 20)
    expected = zfkit.project(plain, x, "4", 1, (2, 3), rule=rule)
    assert_close(zfkit.project(wrap(net), x, "b", 1, (2, 3), rule=rule), expected)


def conv(inputs, outputs, kernel, **options):
    return nn.Conv2d(inputs, outputs, kernel, **options)


def trained_norm(channels):
    """A BatchNorm2d with statistics and weights that matter."""
    norm = nn.BatchNorm2d(channels)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.2, 3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def residual(n, x):
    y = n.a(x)
    return n.last(F.relu(n.c(F.relu(n.b(y))) + y))


def aliased(n, x):
    """The identity returns the very tensor it was given, which is needed once more after the ReLU."""
    y = n.a(x)
    z = n.relu(n.same(y))
    return n.last(F.relu(n.b(y) + z))


def relu_of_the_image(n, x):
    return n.last(n.relu(n.same(x)) + n.a(x))


# What each net is made of; the unit is in its layer `last`.
NETS = {
    "a picture of weights": lambda: Net(
        lambda n, x: n.last(n.relu(n.b(F.relu(n.a(x) + n.picture)))), a=conv(3, 4, 3), b=conv(4, 4, 1),
        picture=nn.Parameter(noise(1, 4, 18, 18)), relu=nn.ReLU(), last=conv(4, 2, 1),
    ),
    "batch norm": lambda: Net(
        lambda n, x: n.last(n.relu(n.norm(n.a(x)))), a=conv(3, 4, 3), norm=trained_norm(4), relu=nn.ReLU(),
        last=conv(4, 2, 3),
    ),
    "contrast norm": lambda: Net(
        lambda n, x: n.last(n.norm(n.relu(n.a(x)))), a=conv(3, 6, 3),
        norm=nn.LocalResponseNorm(4, alpha=2.0, k=1.5), relu=nn.ReLU(), last=conv(6, 2, 3),
    ),
    "average pool": lambda: Net(
        lambda n, x: n.last(n.pool(n.a(x))), a=conv(3, 4, 3),
        pool=nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), last=conv(4, 2, 3),
    ),
    "average pool that counts its padding": lambda: Net(
        lambda n, x: n.last(F.avg_pool2d(n.a(x), 3, 2, 1)), a=conv(3, 4, 3), last=conv(4, 2, 3)
    ),
    "adaptive average pool": lambda: Net(
        lambda n, x: n.last(n.pool(F.relu(n.a(x)))), a=conv(3, 4, 3), pool=nn.AdaptiveAvgPool2d((7, 5)),
        last=conv(4, 2, 2),
    ),
    "adaptive average pool asked": lambda: Net(
        lambda n, x: n.last(F.relu(n.a(x))), a=conv(3, 4, 3), last=nn.AdaptiveAvgPool2d((7, 5))
    ),
    "adaptive maximum pool asked": lambda: Net(
        lambda n, x: n.last(F.relu(n.a(x))), a=conv(3, 4, 3), last=nn.AdaptiveMaxPool2d((7, 5))
    ),
    "dilated maximum pool": lambda: Net(
        lambda n, x: n.last(n.pool(n.a(x))), a=conv(3, 4, 3), pool=nn.MaxPool2d(3, 2, 1, 2), last=conv(4, 2, 3)
    ),
    "blurred pools of rows left over": lambda: Net(
        lambda n, x: n.last(n.blur(F.max_pool2d(n.b(n.relu(n.pool(n.a(x)))), 2, 2, 1))), a=conv(3, 4, 3, padding=2),
        pool=nn.MaxPool2d(3, 2, ceil_mode=True), relu=nn.ReLU(True), b=conv(4, 6, 3, padding=1), blur=BlurPool(3, 1),
        last=conv(6, 4, 1),
    ),
    "residual": lambda: Net(residual, a=conv(3, 4, 3), b=conv(4, 4, 3, padding=1), c=conv(4, 4, 1), last=conv(4, 2, 3)),
    "branches with other strides": lambda: Net(
        lambda n, x: n.last(n.a(x) + F.max_pool2d(n.b(x), 2)), a=conv(3, 4, 3, stride=2, padding=1), b=conv(3, 4, 1),
        last=conv(4, 2, 3),
    ),
    "concatenated": lambda: Net(
        lambda n, x: n.last(torch.cat([F.relu(n.a(x)), n.b(x), x[:, 1:]], 1)), a=conv(3, 4, 5, padding=2),
        b=conv(3, 2, 1), last=conv(8, 2, 3),
    ),
    "dilation": lambda: Net(
        lambda n, x: n.last(F.relu(n.a(x))), a=conv(3, 4, 3, dilation=(2, 1), stride=2),
        last=conv(4, 2, 3, dilation=(1, 2)),
    ),
    "groups": lambda: Net(
        lambda n, x: n.last(F.relu(n.a(x))), a=conv(3, 6, 3, groups=3, padding=1), last=conv(6, 4, 3, groups=2)
    ),
    "padding same": lambda: Net(
        lambda n, x: n.last(F.relu(n.a(x))), a=conv(3, 4, 4, padding="same"), last=conv(4, 2, (3, 2), padding="same")
    ),
    "padding reflect": lambda: Net(
        lambda n, x: n.last(F.relu(n.a(x))), a=conv(3, 4, 3, padding=1, padding_mode="reflect"), last=conv(4, 2, 3)
    ),
    "padding circular": lambda: Net(
        lambda n, x: n.last(F.relu(n.a(x))), a=conv(3, 4, 3), last=conv(4, 2, 3, padding=1, padding_mode="circular")
    ),
    "rows left out": lambda: Net(
        lambda n, x: n.last(F.relu(n.a(x))[:, :, ::2]), a=conv(3, 4, 3), last=conv(4, 2, 3)
    ),
    "constants": lambda: Net(
        lambda n, x: n.last(2 * F.relu(n.a(x) / 3 + n.shift) + 1), a=conv(3, 4, 3), last=conv(4, 2, 3),
        shift=nn.Parameter(torch.randn(1, 4, 1, 1)),
    ),
    "an alias in front of a ReLU": lambda: Net(
        aliased, a=conv(3, 4, 3), b=conv(4, 4, 1), same=nn.Identity(), relu=nn.ReLU(), last=conv(4, 2, 3)
    ),
    "a ReLU on the image": lambda: Net(
        relu_of_the_image, a=conv(3, 3, 1), same=nn.Identity(), relu=nn.ReLU(), last=conv(3, 2, 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_the_gradient_rule_is_the_gradient(name):
    torch.manual_seed(0)
    model, x = wrap(NETS[name]()), noise(2, 3, 20, 20)
    for position in [(0, 0), (2, 3)]:
        found = zfkit.project(model, x, "last", 1, position, rule="gradient", lrn="gradient")
        assert_close(found, autograd_of(model.net, x, "last", 1, position))


@pytest.mark.parametrize("name", NETS)
def test_the_deconvnet_rule_is_the_gradient_with_rectified_relus(name, monkeypatch):
    torch.manual_seed(0)
    model, x = wrap(NETS[name]()), noise(2, 3, 20, 20)
    found = zfkit.project(model, x, "last", 1, (1, 2), lrn="gradient")
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: DeconvReLU.apply(x))
    assert_close(found, autograd_of(model.net, x, "last", 1, (1, 2)))


@pytest.mark.parametrize("rule", ["deconvnet", "guided", "gradient"])
@pytest.mark.parametrize("name", NETS)
def test_a_pass_for_one_unit_of_each_image_gives_what_whole_maps_give(name, rule):
    torch.manual_seed(0)
    network, x = wrap(NETS[name]()).network, noise(6, 3, 20, 20)
    _, H, W = network.shapes["last"]
    units = torch.tensor([(0, 0), (0, W - 1), (H - 1, 0), (H - 1, W - 1), (H // 2, 0), (H // 2, W // 2)])
    deconvnet = deconv.Deconvnet(network, ["last"], Options(rule, "activation", "gradient"))
    chosen = "last", torch.arange(6), torch.arange(6) % 2, units
    whole, _ = deconvnet.reverse(deconvnet.forward(x.clone()), *chosen, whole_maps=True)
    found, window = deconvnet.reverse(deconvnet.forward(x.clone(), position=units), *chosen)
    assert_close(paste(found, window.origin, (20, 20)), whole)


def test_a_pass_for_one_unit_keeps_its_windows_alone():
    """conv3 reads 3x3 places of the second pool, and these 7x7 of conv2, which reads 11x11 of the first."""
    deconvnet = deconv.Deconvnet(
        zfkit.load_model("zfnet64", device="cpu").network, ["conv3"], Options("guided")
    )
    tape = deconvnet.forward(torch.zeros(1, 3, 120, 120), position=torch.tensor([[6, 6]]))
    sizes = {name: kept.shape[2] for name, kept in tape.kept.items()}
    assert sizes == {"pool2": 3, "relu2": 7, "pool1": 11, "relu1": 23}


@pytest.mark.parametrize(
    "head",
    [lambda n, x: x.view(x.size(0), -1), lambda n, x: x.reshape(x.shape[0], -1), lambda n, x: x.flatten(1)],
    ids=["view", "reshape", "flatten"],
)
def test_maps_flattened_by_hand(head):
    torch.manual_seed(0)
    net = Net(lambda n, x: n.fc(head(n, F.relu(n.a(x)))), a=conv(3, 4, 3), fc=nn.Linear(4 * 18 * 18, 5))
    x = noise(2, 3, 20, 20)
    model = wrap(net)
    assert_close(zfkit.project(model, x, "fc", 3, rule="gradient"), autograd_of(net, x, "fc", 3))


def test_the_mean_over_a_map_as_a_head():
    torch.manual_seed(0)
    net = Net(lambda n, x: n.fc(F.relu(n.a(x)).mean((2, 3))), a=conv(3, 4, 3), fc=nn.Linear(4, 5))
    x = noise(2, 3, 20, 20)
    assert_close(zfkit.project(wrap(net), x, "fc", 3, rule="gradient"), autograd_of(net, x, "fc", 3))


def test_a_class_of_a_softmax_is_shown_by_its_logit():
    torch.manual_seed(0)
    model = chain(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 18 * 18, 5), nn.Softmax(1))
    x = noise(1, 3, 20, 20)
    assert zfkit.project(model, x, "4", 2).equal(zfkit.project(model, x, "3", 2))


# ------------------------------------------------------------------------------------------ rules of users


class Leaky(nn.Module):
    """An activation that zfkit does not know: x, or a tenth of it below 0."""

    def forward(self, x):
        return torch.where(x > 0, x, x * 0.1)


def slope(module, x, y, options):
    return torch.where(x > 0, torch.ones_like(x), torch.full_like(x, 0.1))


def test_a_registered_module_gets_its_own_way_back(own_rules):
    torch.manual_seed(0)
    model, x = chain(nn.Conv2d(3, 4, 3), Leaky(), nn.MaxPool2d(3, 2), nn.Conv2d(4, 2, 3)), noise(2, 3, 20, 20)

    @zfkit.register_rule(Leaky, record=slope)
    def leaky(R, module, context):
        return R * context.cut(context.kept)

    assert "1" in model.layers
    assert_close(
        zfkit.project(model, x, "3", 1, (0, 2), rule="gradient"), autograd_of(model.net, x, "3", 1, (0, 2))
    )


def test_a_registered_function_gets_its_own_way_back(own_rules):
    torch.manual_seed(0)
    net = Net(lambda n, x: n.b(F.leaky_relu(n.a(x), 0.1)), a=conv(3, 4, 3), b=conv(4, 2, 3))
    model, x = wrap(net), noise(2, 3, 20, 20)

    @zfkit.register_rule(F.leaky_relu, record=slope)
    def leaky(R, module, context):
        return R * context.cut(context.kept)

    assert_close(
        zfkit.project(model, x, "b", 1, (9, 9), rule="gradient"), autograd_of(net, x, "b", 1, (9, 9))
    )


def test_a_registered_operation_on_whole_maps(own_rules):
    torch.manual_seed(0)
    model = chain(nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 3))
    x = noise(2, 3, 20, 20)

    @zfkit.register_rule(nn.Upsample, elementwise=False)
    def upsample(R, module, context):
        B, C, H, W = R.shape
        return R.view(B, C, H // 2, 2, W // 2, 2).sum((3, 5))

    assert_close(
        zfkit.project(model, x, "2", 1, (4, 5), rule="gradient"), autograd_of(model.net, x, "2", 1, (4, 5))
    )


# ---------------------------------------------------------------------------------------------- bad input


@pytest.fixture(scope="module")
def zfnet():
    return zfkit.load_model("zfnet64", device="cpu")


def batch(*shape):
    return torch.zeros(*shape)


IMAGES = batch(2, 3, 64, 64)
BAD = {
    "unknown layer": ((IMAGES, "conv6", 0), ["'conv6'", "Did you mean 'conv", "conv1", "fc8"]),
    "layer by number": ((IMAGES, 3, 0), ["'3'", "conv3"]),
    "channel too high": ((IMAGES, "conv3", 384), ["384", "'conv3'", "0 to 383"]),
    "channel below 0": ((IMAGES, "conv3", -1), ["-1", "0 to 383"]),
    "one channel of several too high": ((IMAGES, "conv1", [0, 96]), ["96", "0 to 95"]),
    "channels for other images": ((IMAGES, "conv3", [1, 2, 3]), ["each of the 2 images", "[1, 2, 3]"]),
    "channel with a fraction": ((IMAGES, "conv3", 1.5), ["whole number", "1.5"]),
    "channel that is a word": ((IMAGES, "conv3", "red"), ["whole number", "'red'"]),
    "position out of range": ((IMAGES, "conv3", 0, (7, 0)), ["[7, 0]", "7 x 7"]),
    "position below 0": ((IMAGES, "conv3", 0, (0, -1)), ["[0, -1]", "7 x 7"]),
    "positions for other images": ((IMAGES, "conv3", 0, [(1, 2)] * 3), ["(row, column)", "each of the 2 images"]),
    "position with fractions": ((IMAGES, "conv3", 0, (0.5, 1.0)), ["whole numbers", "0.5"]),
    "uneven positions": ((IMAGES, "conv3", 0, [(1, 2), (3,)]), ["(row, column)", "(3,)"]),
    "position in a connected layer": ((IMAGES, "fc6", 0, (1, 2)), ["'fc6'", "leave out position"]),
    "pictures not preprocessed": ((IMAGES.byte(), "conv1", 0), ["model.preprocess", "uint8 (2, 3, 64, 64)"]),
    "one channel": ((IMAGES[:, :1], "conv1", 0), ["(N, 3, H, W)", "(2, 1, 64, 64)"]),
    "no batch": ((IMAGES[0], "conv1", 0), ["(N, 3, H, W)", "(3, 64, 64)"]),
    "no images": ((IMAGES[:0], "conv1", 0), ["(N, 3, H, W)", "(0, 3, 64, 64)"]),
    "other precision": ((IMAGES.double(), "conv1", 0), ["float32", "got float64"]),
    "numpy": ((IMAGES.numpy(), "conv1", 0), ["model.preprocess", "ndarray"]),
    "too small for the layer": ((batch(2, 3, 9, 12), "conv5", 0), ["conv5", "9 x 12 px", "64 px"]),
    "too large for a connected layer": ((batch(2, 3, 96, 96), "fc6", 0), ["fc6", "96 x 96 px", "64 px"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_in_one_line(case, zfnet):
    arguments, said = BAD[case]
    with pytest.raises(LayerError) as caught:
        zfkit.project(zfnet, *arguments)
    assert "\n" not in str(caught.value)
    for text in said:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    "option, value, known",
    [("rule", "deconv", "deconvnet"), ("seed", "ones", "activation"), ("lrn", "skipped", "gradient")],
)
def test_an_unknown_option_lists_the_known_ones(option, value, known, zfnet):
    with pytest.raises(LayerError) as caught:
        zfkit.project(zfnet, IMAGES, "conv1", 0, **{option: value})
    assert f"no {option} {value!r}" in str(caught.value) and known in str(caught.value)


def test_memory_of_a_unit_counts_whole_maps_where_a_rule_needs_them():
    # Circular padding carries whole maps back: 8 maps of 40 x 40 for each unit, not 8 windows of 3 x 3.
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), nn.Conv2d(8, 4, 3, padding=1)
    ).double()
    model = zfkit.wrap_model(net, mean=0, scale=1, input_size=40)
    deconvnet = zfkit.deconv.Deconvnet(model.network, ["1"])
    tape = deconvnet.forward(torch.zeros(1, 3, 40, 40, dtype=torch.float64))
    assert deconvnet.unit_bytes("1", tape) == 4 * 8 * (8 * 40 * 40)
