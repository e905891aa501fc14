"""Networks out of ONNX files: the zoo's zfnet512 and drawn chains, against onnxruntime."""

import math
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import zfkit
from zfkit.errors import ModelError
from zfkit.nets.onnx import load_onnx

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"  # graphs without weights
ZFNET512 = LIGHT / "light_zfnet512.onnx"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("onnx")


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def op(kind: str, *weights: np.ndarray | None, **attributes) -> tuple:
    return kind, weights, attributes


def chain(*ops: tuple, shape=(2, 3, 9, 8), opset=13, kind=TensorProto.FLOAT) -> onnx.ModelProto:
    """A file of operations one after the other, t0 -> t1 -> ...; weights come after the data."""
    nodes, initialisers = [], []
    for i, (operator, weights, attributes) in enumerate(ops):
        names = [f"w{i}_{j}" if w is not None else "" for j, w in enumerate(weights)]
        initialisers += [
            numpy_helper.from_array(np.asarray(w), n) for w, n in zip(weights, names, strict=True) if n
        ]
        nodes.append(
            helper.make_node(operator, [f"t{i}", *names], [f"t{i + 1}"], name=f"node{i}", **attributes)
        )
    data = helper.make_tensor_value_info("t0", kind, shape)
    output = helper.make_tensor_value_info(f"t{len(ops)}", kind, None)
    return finished(nodes, [data], [output], initialisers, opset)


def finished(nodes, inputs, outputs, initialisers=(), opset=13) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "net", inputs, outputs, initialisers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def saved(model: onnx.ModelProto, folder: Path, name: str = "net.onnx") -> Path:
    (folder / name).write_bytes(model.SerializeToString())
    return folder / name


def onnxruntimes(model: onnx.ModelProto, x: np.ndarray, tensors: list[str]) -> list[np.ndarray]:
    """What onnxruntime computes for these tensors of the file."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(t) for t in tensors)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    real = next(i.name for i in session.get_inputs())
    return session.run(None, {real: x})


def same(ours: torch.Tensor, theirs: np.ndarray, tolerance: float = 1e-5) -> None:
    assert tuple(ours.shape) == theirs.shape
    assert np.abs(ours.numpy() - theirs).max() <= tolerance * max(1e-3, np.abs(theirs).max())


def agrees(model: onnx.ModelProto, folder: Path, seed: int = 0) -> nn.Sequential:
    """Load the file, run it beside onnxruntime, compare the outputs; returns what was loaded."""
    net = load_onnx(saved(model, folder))
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = numbers(*shape, seed=seed)
    (theirs,) = onnxruntimes(model, x, [model.graph.output[0].name])
    with torch.no_grad():
        same(net(torch.tensor(x)), theirs)
    return net


def refusal(model_or_path, folder: Path | None = None) -> str:
    path = saved(model_or_path, folder) if folder else model_or_path
    with pytest.raises(ModelError) as error:
        load_onnx(path)
    assert "\n" not in str(error.value)
    return str(error.value)


# --------------------------------------------------------------------------------------------- zfnet512


def with_random_weights(fc6: int, fc7: int) -> onnx.ModelProto:
    """The zoo's graph with its constants replaced by random numbers; fc6 and fc7 narrower, to save 300 MB."""
    model = onnx.load(ZFNET512)
    given = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    narrow = {
        "gpu_0/fc6_w_0": (fc6, 18432), "gpu_0/fc6_b_0": (fc6,), "gpu_0/fc7_w_0": (fc7, fc6),
        "gpu_0/fc7_b_0": (fc7,), "gpu_0/fc8_w_0": (1000, fc7),
    }  # fmt: skip
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for i, node in enumerate(nodes):
        if node.op_type != "ConstantOfShape":
            model.graph.node.append(node)
            continue
        name = node.output[0]
        shape = narrow.get(name, tuple(given[node.input[0]]))
        scale = math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.1
        model.graph.initializer.append(numpy_helper.from_array(numbers(*shape, seed=i, scale=scale), name))
    return model


@pytest.fixture(scope="module")
def zfnet512(folder):
    model = with_random_weights(64, 32)
    return model, saved(model, folder, "narrow.onnx")


@pytest.fixture(scope="module")
def photo():
    """One photograph as zfnet512 takes it: (1, 3, 224, 224), about -128 to 128."""
    pixels = zfkit.load_images("photos", size=224, limit=1, progress=False).take([0])
    return pixels.float() - 118


def test_zfnet512_has_the_papers_names_in_the_zoos_order(zfnet512):
    net = load_onnx(zfnet512[1])
    assert [n for n, _ in net.named_children()] == [
        "conv1", "relu1", "norm1", "pool1", "conv2", "relu2", "norm2", "pool2", "conv3", "relu3", "conv4", "relu4",
        "conv5", "relu5", "pool5", "flatten", "fc6", "relu6", "fc7", "relu7", "fc8", "softmax",
    ]  # fmt: skip
    convolutions = {
        n: (m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding)
        for n, m in net.named_children()
        if isinstance(m, nn.Conv2d)
    }
    assert convolutions == {
        "conv1": (3, 96, (7, 7), (2, 2), (0, 0)),
        "conv2": (96, 256, (5, 5), (2, 2), (0, 0)),
        "conv3": (256, 512, (3, 3), (1, 1), (1, 1)),
        "conv4": (512, 512, (3, 3), (1, 1), (1, 1)),
        "conv5": (512, 512, (3, 3), (1, 1), (1, 1)),
    }
    for name, kernel in (("pool1", 3), ("pool2", 3), ("pool5", 2)):
        pool = net.get_submodule(name)
        assert (pool.kernel_size, pool.stride, pool.padding) == ((kernel, kernel), (2, 2), (0, 0))
        assert not pool.ceil_mode
    for norm in (net.norm1, net.norm2):
        assert (norm.size, norm.beta, norm.k) == (5, 0.75, 2.0) and norm.alpha == pytest.approx(
            5e-4, rel=1e-6
        )
    assert net.input_shape == (3, 224, 224) and not net.training


@pytest.mark.slow
def test_zfnet512_has_87_million_parameters():
    net = load_onnx(ZFNET512)
    connected = [tuple(net.get_submodule(n).weight.shape) for n in ("fc6", "fc7", "fc8")]
    assert connected == [(4096, 18432), (1024, 4096), (1000, 1024)]
    assert sum(p.numel() for p in net.parameters()) == 87_250_536


def test_zfnet512_computes_what_onnxruntime_does_in_every_layer(zfnet512, photo):
    model, path = zfnet512
    tensors = [n.output[0] for n in model.graph.node]
    theirs = onnxruntimes(model, photo.numpy(), tensors)
    x = photo
    with torch.no_grad():
        for (name, layer), expected in zip(load_onnx(path).named_children(), theirs, strict=True):
            x = layer(x)
            assert expected.std() > 0, name
            same(x, expected, tolerance=1e-4)
    assert x.sum() == pytest.approx(1) and x.max() > 2e-3  # probabilities, not all the same


def zoos(folder: Path) -> tuple[Path, np.ndarray]:
    """The zoo's graph at its true size, random in conv1 alone, which keeps the file small."""
    model = onnx.load(ZFNET512)
    (node,) = (n for n in model.graph.node if list(n.output) == ["gpu_0/conv1_w_0"])
    model.graph.node.remove(node)
    weight = numbers(96, 3, 7, 7)
    model.graph.initializer.append(numpy_helper.from_array(weight, "gpu_0/conv1_w_0"))
    return saved(model, folder, "model.onnx"), weight  # as it is called in the zoo's archives


def test_load_model_gives_zfnet512_blue_first_without_imagenets_mean(tmp_path):
    path, weight = zoos(tmp_path)
    model = zfkit.load_model(path, device="cpu")
    assert (model.name, model.input_size, model.classes) == ("model", 224, ())
    assert "assumed" in model.provenance["data"] and model.conv_layers == tuple(f"conv{n}" for n in "12345")
    rgb = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    blue_first = rgb.flip(1).float() - torch.tensor([103.939, 116.779, 123.68]).view(3, 1, 1)
    expected = F.conv2d(blue_first, torch.tensor(weight), stride=2)
    found = model.net.conv1(model.preprocess(rgb)) - model.net.conv1.bias.view(-1, 1, 1)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_way_from_an_onnx_file_that_says_nothing_of_its_input_is_told(folder):
    path = saved(chain(op("Conv", numbers(4, 3, 3, 3)), op("GlobalAveragePool"), op("Flatten")), folder)
    with pytest.raises(ModelError, match=r"net\.onnx does not say how pictures go in: give mean=, scale="):
        zfkit.load_model(path)
    model = zfkit.load_model(path, mean=120, scale=0.01, input_size=9, device="cpu")
    assert model.layers == ("conv1", "pool1", "flatten")


def test_filters_are_turned_round_only_where_asked(folder):
    weight = numbers(4, 3, 3, 3)
    path = saved(chain(op("Conv", weight)), folder)
    assert np.array_equal(load_onnx(path).conv1.weight, weight)
    assert np.array_equal(load_onnx(path, channels="bgr").conv1.weight, weight[:, ::-1])
    with pytest.raises(ModelError, match=r"no order of channels 'grb'.*There are: rgb, bgr"):
        load_onnx(path, channels="grb")
    first = saved(chain(op("Relu"), op("Conv", weight)), folder)
    with pytest.raises(ModelError, match=r"a first convolution of 3 channels, not of ReLU\(\)"):
        load_onnx(first, channels="bgr")


# ------------------------------------------------------------------------------------- drawn operations

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def windows(draw, dilated=True):
    """Attributes that convolutions and pools share."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    attributes = {"kernel_shape": kernel, "strides": draw(pairs)}
    kind = draw(st.sampled_from(["none", "even", "uneven", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    same = kind.startswith("SAME")
    if dilated and not same:  # onnxruntime refuses the two together, or does not count the dilation
        attributes["dilations"] = draw(st.sampled_from([(1, 1), (2, 1), (2, 2)]))
    most = [k // 2 for k in kernel]  # torch's pools take no more
    if kind in ("even", "uneven"):
        before = [draw(st.integers(0, m)) for m in most]
        after = before if kind == "even" else [draw(st.integers(0, m)) for m in most]
        attributes["pads"] = [*before, *after]
    elif kind != "none":
        attributes["auto_pad"] = kind
        # Nor does it run SAME where the stride leaves places out.
        assume(not same or all(k >= s for k, s in zip(kernel, attributes["strides"], strict=True)))
    return attributes


def agrees_or_is_uneven(model, folder, attributes):
    """Padding that is the same on both sides is never refused, any other only as such."""
    try:
        agrees(model, folder)
    except ModelError as error:
        assert "pads unevenly (top" in str(error) and "torch's layers do not" in str(error)
        pads = attributes.get("pads", (0, 1, 1, 0))
        assert pads[:2] != pads[2:] and attributes.get("auto_pad") != "VALID"


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(windows(), st.sampled_from([1, 2]), st.booleans())
def test_convolutions_agree_with_onnxruntime(folder, attributes, groups, biased):
    weight = numbers(6, 4 // groups, *attributes["kernel_shape"])
    bias = [numbers(6, seed=1)] if biased else []
    model = chain(op("Conv", weight, *bias, group=groups, **attributes), shape=(2, 4, 9, 8))
    agrees_or_is_uneven(model, folder, attributes)


@given(windows(), st.booleans())
def test_max_pools_agree_with_onnxruntime(folder, attributes, ceil):
    model = chain(op("MaxPool", ceil_mode=int(ceil), **attributes))
    agrees_or_is_uneven(model, folder, attributes)


@given(windows(dilated=False), st.booleans(), st.booleans())
def test_average_pools_agree_with_onnxruntime(folder, attributes, ceil, counted):
    model = chain(op("AveragePool", ceil_mode=int(ceil), count_include_pad=int(counted), **attributes))
    agrees_or_is_uneven(model, folder, attributes)


@given(
    st.booleans(), st.sampled_from([1.0, 0.5]), st.sampled_from([1.0, -2.0]),
    st.sampled_from([None, (5,), (1, 5), (1,), (1, 1), ()]),
)  # fmt: skip
def test_gemm_agrees_with_onnxruntime(folder, transposed, alpha, beta, bias):
    weight = numbers(5, 12) if transposed else numbers(12, 5)
    weights = [weight] if bias is None else [weight, numbers(*bias, seed=1)]
    gemm = op("Gemm", *weights, transB=int(transposed), alpha=alpha, beta=beta)
    net = agrees(chain(op("Flatten"), gemm, shape=(3, 3, 2, 2)), folder)
    assert [n for n, _ in net.named_children()] == ["flatten", "fc1"]


@given(
    st.sampled_from([3, 5, 7]), st.floats(1e-4, 2), st.floats(0.3, 1.5), st.floats(0.5, 3), st.integers(2, 9)
)
def test_contrast_normalisation_agrees_with_onnxruntime(folder, size, alpha, beta, bias, maps):
    agrees(chain(op("LRN", size=size, alpha=alpha, beta=beta, bias=bias), shape=(2, maps, 3, 2)), folder)


@given(st.data())
def test_whole_chains_agree_with_onnxruntime(folder, data):
    ops, channels = [], 3
    for i in range(data.draw(st.integers(1, 3))):
        wide = data.draw(st.sampled_from([2, 4, 5]))
        ops.append(op("Conv", numbers(wide, channels, 3, 3, seed=i), numbers(wide, seed=i), pads=[1] * 4))
        channels = wide
        if data.draw(st.booleans()):
            statistics = [numbers(channels, seed=j) for j in range(3)]
            ops.append(op("BatchNormalization", *statistics, np.abs(numbers(channels)) + 0.1, epsilon=0.01))
        ops.append(op("Relu"))
        if data.draw(st.booleans()):
            ops.append(op("LRN", size=3))  # alpha, beta and k as ONNX has them by default
        if data.draw(st.booleans()):
            ops.append(op("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1))
        ops.append(op("Identity"))
    ops += [op("GlobalAveragePool"), op(data.draw(st.sampled_from(["Flatten", "Reshape"])))]
    if ops[-1][0] == "Reshape":
        ops[-1] = op("Reshape", np.array(data.draw(st.sampled_from([(2, -1), (0, -1), (-1, channels)]))))
    ops += [
        op("MatMul", numbers(channels, 7)), op("Add", numbers(7)), op("Relu"), op("Dropout"),
        op("Gemm", numbers(7, 4), numbers(4)), op("Softmax", axis=1),
    ]  # fmt: skip
    agrees(chain(*ops), folder)


# --------------------------------------------------------------------------------------------- subtleties


def test_a_bias_added_afterwards_goes_into_the_layer(folder):
    weight = numbers(4, 3, 3, 3)
    for bias in (numbers(4, 1, 1), numbers(1, 4, 1, 1), numbers(1, 1, 1), numbers(1)):
        net = agrees(chain(op("Conv", weight, numbers(4)), op("Add", bias), op("Relu")), folder)
        assert [n for n, _ in net.named_children()] == ["conv1", "relu1"]
    model = chain(op("Flatten"), op("MatMul", numbers(12, 5)), op("Add", numbers(5)), shape=(3, 3, 2, 2))
    node = model.graph.node[2]
    node.input[:] = [node.input[1], node.input[0]]  # the bias first
    assert [n for n, _ in agrees(model, folder).named_children()] == ["flatten", "fc1"]
    assert "cannot work on an input (2, 4, 7, 6)" in refusal(
        chain(op("Conv", weight), op("Add", numbers(4, 7, 6))), folder
    )
    assert "adds numbers to something else" in refusal(chain(op("Relu"), op("Add", numbers(1))), folder)


def test_padding_at_the_end_is_read_as_rounding_up(folder):
    """What converters make of Caffe's pools; the two agree at every size."""
    pool = op("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])
    for side in (7, 8):
        layer = agrees(chain(pool, shape=(1, 3, side, side)), folder).pool0
        assert layer.ceil_mode and layer.padding == (0, 0)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_an_even_filter_of_stride_one_is_padded_to_the_same_size(folder):
    for pads in ({"auto_pad": "SAME_UPPER"}, {"pads": [1, 0, 2, 1]}):
        layer = agrees(chain(op("Conv", numbers(5, 3, 4, 2), **pads)), folder).conv1
        assert layer.padding == "same"


def test_padding_to_the_same_size_counts_the_dilation(folder):
    """For which onnxruntime needs the padding in numbers."""
    weight = numbers(4, 3, 3, 3)
    net = load_onnx(saved(chain(op("Conv", weight, auto_pad="SAME_UPPER", dilations=[2, 2])), folder))
    x = numbers(2, 3, 9, 8)
    told = chain(op("Conv", weight, pads=[2] * 4, dilations=[2, 2]))
    same(net(torch.tensor(x)), onnxruntimes(told, x, ["t1"])[0])


def test_a_chain_for_one_picture_takes_many(folder):
    """The file fixes N = 1, as zfnet512 does, also where it flattens."""
    ops = [op("Conv", numbers(2, 3, 3, 3)), op("Reshape", np.array([1, 84])), op("Gemm", numbers(84, 5))]
    net = agrees(chain(*ops, shape=(1, 3, 9, 8)), folder)
    x = torch.tensor(numbers(3, 3, 9, 8))
    assert torch.allclose(net(x)[1:2], net(x[1:2]), atol=1e-5)
    named = chain(*ops[:1], shape=("batch", 3, 9, 8))
    assert load_onnx(saved(named, folder))(x).shape == (3, 2, 7, 6)


@pytest.mark.parametrize("opset, dropout, softmax", [
    (9, op("Dropout", ratio=0.3), op("Softmax")),
    (12, op("Dropout", np.float32(0.3)), op("Softmax")),
    (13, op("Dropout", np.float32(0.3), np.array(False)), op("Softmax")),
    (13, op("Dropout", np.float32(0.3)), op("Softmax", axis=-1)),
])  # fmt: skip
def test_dropout_and_softmax_of_every_opset(opset, dropout, softmax, folder):
    net = agrees(chain(op("Flatten"), dropout, softmax, shape=(3, 2, 2, 1), opset=opset), folder)
    assert [n for n, _ in net.named_children()] == ["flatten", "drop0", "softmax"]
    assert net.drop0.p == pytest.approx(0.3)


def test_the_first_opsets_say_the_same_with_attributes(folder):
    """The zoo has zfnet512 in opsets 3 and 6, which onnxruntime does not run: computed here with numpy."""
    weight, bias, x = numbers(4, 3, 1, 1), numbers(4), numbers(1, 3, 2, 2)
    gemm, offset = numbers(5, 16), numbers(5, seed=1)
    ops = [
        op("Conv", weight), op("Add", bias, broadcast=1, axis=1), op("Relu", consumed_inputs=[0]),
        op("Dropout", is_test=1, ratio=0.5), op("Reshape", shape=[1, 16]),
        op("Gemm", gemm, offset, transB=1, broadcast=1),
    ]  # fmt: skip
    net = load_onnx(saved(chain(*ops, shape=(1, 3, 2, 2), opset=3), folder))
    maps = np.maximum(np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], x) + bias[:, None, None], 0)
    same(net(torch.tensor(x)), maps.reshape(1, 16) @ gemm.T + offset)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_weights_of_every_precision_become_float32(kind, folder):
    weight = numbers(4, 3, 3, 3).astype(kind)
    proto = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    found = load_onnx(saved(chain(op("Conv", weight), kind=proto), folder)).conv1.weight
    assert found.dtype == torch.float32 and np.array_equal(found, weight.astype(np.float32))


def test_weights_out_of_constant_nodes(folder):
    """Constant, ConstantOfShape and what rearranges them are worked out once."""
    model = chain(op("Flatten"), op("MatMul", numbers(12, 5)), op("Add", numbers(5)), shape=(3, 3, 2, 2))
    value = numpy_helper.from_array(np.array([0.5], np.float32))
    nodes = [
        helper.make_node("Constant", [], ["five"], value_ints=[5]),
        helper.make_node("ConstantOfShape", ["five"], ["halves"], value=value),
        helper.make_node("Constant", [], ["raw"], value=numpy_helper.from_array(numbers(5, 12, seed=2))),
        helper.make_node("Transpose", ["raw"], ["turned"], perm=[1, 0]),
        helper.make_node("Identity", ["turned"], ["weight"]),
    ]
    flatten, matmul, add = model.graph.node
    matmul.input[1], add.input[1] = "weight", "halves"
    ordered = [*nodes, flatten, matmul, add]
    net = agrees(finished(ordered, model.graph.input, model.graph.output), folder)
    assert (net.fc1.bias == 0.5).all()


def test_a_second_layer_of_the_same_name_is_counted(folder):
    ops = [op("Conv", numbers(4, 3, 3, 3)), op("Relu"), op("MaxPool", kernel_shape=[2, 2])]
    ops += [op("GlobalAveragePool"), op("Relu"), op("Relu")]
    net = agrees(chain(*ops), folder)
    names = "conv1 relu1 pool1 pool1_2 relu1_2 relu1_3"
    assert [n for n, _ in net.named_children()] == names.split()


def test_an_output_that_nobody_reads_is_no_branch(folder):
    """Older files have dropout's mask as a second output."""
    model = chain(op("Flatten"), op("Dropout"), op("Softmax"))
    model.graph.node[1].output.append("mask")
    agrees(model, folder)


@pytest.mark.filterwarnings("ignore")  # torch recommends its newer exporter, which needs one more package
def test_a_network_that_torch_exported_comes_back(folder):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(), nn.Linear(6, 5), nn.Softmax(1),
    ).eval()  # fmt: skip
    nn.init.uniform_(net[1].running_var, 0.5, 2)
    x = torch.tensor(numbers(2, 3, 13, 12))
    torch.onnx.export(net, (x,), str(folder / "torch.onnx"), dynamo=False)
    back = load_onnx(folder / "torch.onnx")
    with torch.no_grad():
        same(back(x), net(x).numpy())
    assert [n for n, _ in back.named_children()][-3:] == ["flatten", "fc3", "softmax"]


def test_weights_beside_the_file_are_read(tmp_path):
    model = chain(op("Conv", numbers(4, 3, 3, 3)))
    path = tmp_path / "net.onnx"
    onnx.save(model, path, save_as_external_data=True, location="net.bin", size_threshold=0)
    assert np.array_equal(load_onnx(path).conv1.weight, numbers(4, 3, 3, 3))
    whole = (tmp_path / "net.bin").read_bytes()
    (tmp_path / "net.bin").write_bytes(whole[:50])
    assert "net.onnx" in refusal(path)
    (tmp_path / "net.bin").unlink()
    assert "keeps its weights in net.bin, which cannot be read" in refusal(path)
    assert "put it into the same folder" in refusal(path)


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name, operator", [
    ("resnet50", "Conv"), ("inception_v1", "Conv"), ("squeezenet", "Conv"), ("densenet121", "Mul"),
    ("shufflenet", "Reshape"),
])  # fmt: skip
def test_networks_of_the_zoo_that_are_no_chains_are_refused_by_node(name, operator):
    text = refusal(LIGHT / f"light_{name}.onnx")
    assert f"light_{name}.onnx: node 'n" in text and f"({operator})" in text
    assert text.endswith("convert the network to PyTorch and use zfkit.wrap_model(net, ...)")


def test_a_branch_names_the_node_and_both_of_its_ends(folder):
    model = chain(op("Relu"), op("Relu"), op("Add"))
    model.graph.node[2].input.append("t1")
    text = refusal(model, folder)
    assert "node 'node2' (Add) reads 't2' and 't1' and gives 't3': the network branches there" in text
    places = chain(op("MaxPool", kernel_shape=[2, 2]), op("Relu"))
    places.graph.node[0].output.append("places")
    places.graph.node[1].input[0] = "places"
    assert "(MaxPool) reads 't0' and gives 't1' and 'places': the network branches" in refusal(places, folder)
    lost = chain(op("Conv", numbers(4, 3, 3, 3)))
    del lost.graph.initializer[:]
    assert "node 'node0' (Conv) reads 'w0_0', which the file does not hold" in refusal(lost, folder)
    again = chain(op("Relu"), op("Relu"), op("Relu"))
    again.graph.node[2].input[0] = "t1"
    assert "node 'node2' (Relu) reads 't1'" in refusal(again, folder)


@pytest.mark.parametrize("operation, said", [
    (op("Tanh"), "(Tanh) is none of the operations that zfkit reads (Conv, Relu, LRN"),
    (op("Relu", domain="com.microsoft"), "(Relu) is none of the operations that zfkit reads"),
    (op("MaxPool", kernel_shape=[2, 2], storage_order=1), "storage_order=1"),
    (op("MaxPool", kernel_shape=[3]), "has kernel_shape [3]; zfkit reads networks of pictures"),
    (op("MaxPool", kernel_shape=[2, 2], auto_pad="ODD"), "auto_pad='ODD', which ONNX does not define"),
    (op("MaxPool", kernel_shape=[2, 2], pads=[2, 2, 2, 2]), "cannot work on an input (2, 3, 9, 8) (pad should be"),
    (op("MaxPool", kernel_shape=[2, 2], colour=1), "has an attribute zfkit does not know, 'colour'"),
    (op("AveragePool", kernel_shape=[2, 2], dilations=[2, 2]), "is dilated"),
    (op("Conv", numbers(4, 3, 3, 3), strides=[2, 2], pads=[1, 0, 0, 2]),
     "(Conv) pads unevenly (top 1, left 0, bottom 0, right 2), which torch's layers do not"),
    (op("Conv", numbers(4, 3, 3)), "has weights of shape (4, 3, 3)"),
    (op("Conv", numbers(4, 5, 3, 3)), "cannot work on an input (2, 3, 9, 8)"),
    (op("Conv", numbers(4, 3, 3, 3), kernel_shape=[2, 2]), "cannot work on an input"),
    (op("Conv", numbers(4, 3, 3, 3) * np.float32(np.nan)), "weight (float32) must be finite"),
    (op("Conv"), "lacks its input 2"),
    (op("LRN", size=4), "has size 4: torch has the odd neighbour of an even number on the other side"),
    (op("Softmax"), "reads (2, 3, 9, 8) where flattened features (N, F) belong"),
    (op("Gemm", numbers(8, 4)), "reads (2, 3, 9, 8) where flattened features (N, F) belong"),
    (op("Flatten", axis=2), "has axis=2, and zfkit reads 1 or -3"),
    (op("Reshape", np.array([2, 9, 8, 3])), "makes [2, 9, 8, 3] out of (2, 3, 9, 8)"),
    (op("Reshape", np.array([4, -1])), "makes [4, -1] out of (2, 3, 9, 8)"),
    (op("BatchNormalization", *[numbers(3)] * 3, numbers(3) ** 2, training_mode=1), "has training_mode=1"),
    (op("Dropout", np.float32(0.5), np.array(True)), "is in training mode"),
])  # fmt: skip
def test_what_has_no_equal_is_refused_by_name(operation, said, folder):
    text = refusal(chain(operation, opset=14), folder)
    assert said in text and text.startswith("net.onnx: node 'node0' (")


@pytest.mark.parametrize("operation, said", [
    (op("Gemm", numbers(3, 4), transA=1), "has transA=1, and zfkit reads 0"),
    (op("Gemm", numbers(5, 4)), "cannot work on an input (2, 216)"),
    (op("Softmax", axis=0), "has axis=0, and zfkit reads 1 or -1"),
    (op("MaxPool", kernel_shape=[2, 2]), "reads (2, 216) where feature maps (N, C, H, W) belong"),
    (op("GlobalAveragePool"), "reads (2, 216) where feature maps (N, C, H, W) belong"),
])  # fmt: skip
def test_what_has_no_equal_after_flattening_is_refused_by_name(operation, said, folder):
    assert said in refusal(chain(op("Flatten"), operation), folder)


def test_inputs_and_outputs_have_to_be_one_and_of_a_known_size(folder):
    relu = [helper.make_node("Relu", ["x"], ["y"])]

    def value(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    x, y, z = value("x", 1, 3, 8, 8), value("y"), value("z", 1)
    assert "inputs here: 'x', 'z'; outputs: 'y'" in refusal(finished(relu, [x, z], [y]), folder)
    assert "inputs here: 'x'; outputs: 'y', 'z'" in refusal(finished(relu, [x], [y, z]), folder)
    assert "its output 'z' is not where its chain of layers ends, 'y'" in refusal(
        finished(relu, [x], [z]), folder
    )
    open_size = finished(relu, [value("x", "n", 3, "height", "width")], [y])
    assert "is stated as (n, 3, height, width)" in refusal(open_size, folder)
    assert "export it for pictures of a fixed size" in refusal(open_size, folder)


def test_a_file_that_is_missing_or_none_is_told_in_a_line(tmp_path):
    assert "there is no file" in refusal(tmp_path / "none.onnx")
    path = tmp_path / "net.onnx"
    for text in (b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", b"<html>404</html>"):
        path.write_bytes(text)
        assert "download or copy it again" in refusal(path)
    with pytest.raises(ModelError, match="there is no file"):
        zfkit.load_model(tmp_path / "none.onnx")


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    model = chain(op("Conv", numbers(4, 3, 3, 3)), op("Relu"), op("Flatten"), op("Gemm", numbers(168, 5)))
    whole = model.SerializeToString()
    path = tmp_path / "net.onnx"
    for end in [*range(0, len(whole), 101), *range(len(whole) - 12, len(whole))]:
        path.write_bytes(whole[:end])
        refusal(path)


def test_without_onnx_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "needs the package onnx: pip install 'zfkit[onnx]'" in refusal(ZFNET512)
