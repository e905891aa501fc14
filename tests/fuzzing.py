"""What is thrown at zfkit by test_fuzz (hypothesis draws it) and benchmarks/fuzz.py (a random generator does).

A target makes an input out of random choices, and tries it: "ok", or "refused" with a ZfkitError of one printable
line. Everything else, another exception, a wrong shape, is a failure.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from nbformat import v4
from PIL import Image
from torch import nn

import zfkit
import zfkit.cli
import zfkit.images.imageset
from zfkit import ZfkitError, load_images
from zfkit.images.decode import decode, sized
from zfkit.nets.paper import Architecture, build
from zfkit.nets.zoo import describe
from zfkit.sweeps import expand, read_grid, read_parameters

BORDERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# No "/" and no "~": what they name is large, and may be written to.
TEXTS = (
    "", "\0", "\n", "..", "../..", "~nobody/x", "%s", "é", "\ud800", "\U0001f600", "a" * 5000, "*", "[", "]", "**",
    "<script>", "-1", "0", "1", "1e9", "nan", "inf", "None", "none", "true", "{}", "[[[", ":", "&a [*a]", "'", '"',
)  # fmt: skip
ODD_VALUES = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, 0.5, float("nan"), float("inf"), "", "x", "zfnet", [], [1], [1, 2, 3],
    [[]], {}, {"a": 1}, "a" * 300, [10**9] * 5, [0] * 5, ["3"] * 3, -(2**40),
)  # fmt: skip


def mutated(rng: random.Random, content: bytes, others: list[bytes] | None = None) -> bytes:
    """The bytes with one to six changes: bits, borders of integers, cuts, holes, doublings, pieces of other samples."""
    data = bytearray(content)
    for _ in range(rng.randrange(1, 7)):
        at = rng.randrange(len(data) + 1)
        # Headers and footers are where the sense is.
        at = rng.choice((at, min(at, 64), max(0, len(data) - at % 512)))
        how = rng.randrange(8)
        if how == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1 and at < len(data):
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
        elif how == 2:
            width = rng.choice("HIQ")
            number = struct.pack(
                rng.choice("<>") + width, rng.choice(BORDERS) & (2 ** (8 * struct.calcsize(width)) - 1)
            )
            data[at : at + len(number)] = number
        elif how == 3:
            del data[at : at + rng.choice((1, 2, 4, 16, 64))]
        elif how == 4:
            data[at:at] = bytes(rng.choice((0, 0xFF)) for _ in range(rng.choice((1, 4, 16))))
        elif how == 5:
            length = rng.choice((4, 16, 64))
            data[at:at] = data[at : at + length]
        elif how == 6:
            del data[at:]
        elif others:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            data[at : at + 32] = other[start : start + 32]
    return bytes(data)


def changed_tree(rng: random.Random, tree: Any) -> Any:
    """A copy of nested dicts and lists with one to three places changed."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.randrange(1, 4)):
        place = tree
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
                place = place[key]
                continue
            how = rng.randrange(4)
            if how == 0 and isinstance(place, dict):
                del place[key]
            elif how == 1 and isinstance(place, dict):
                place[rng.choice(("x", "", "blur", "without", "k"))] = rng.choice(ODD_VALUES)
            else:
                place[key] = rng.choice(ODD_VALUES)
            break
    return tree


class Target:
    """One thing to throw at; `folder` is a scratch folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prepare()

    def prepare(self) -> None:
        """Samples and files that inputs are made of."""

    def draw(self, rng: random.Random) -> Any:
        """An input."""
        raise NotImplementedError

    def attempt(self, given: Any) -> None:
        """Use it; raises AssertionError where what comes out is not what it has to be."""
        raise NotImplementedError

    def outcome(self, given: Any) -> str:
        """ "ok" or "refused"; any other exception comes through."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self.attempt(given)
            except ZfkitError as error:
                assert str(error).strip(), "an error that says nothing"
                return "refused"
        return "ok"


def encoded(pixels: np.ndarray | Image.Image, format: str, **options: Any) -> bytes:
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def pixels(height: int = 12, width: int = 10, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Images(Target):
    """Bytes of pictures in 14 formats, changed; in half of the PNGs the sums of chunks are made right again."""

    def prepare(self) -> None:
        rgb, grey = pixels(), pixels()[..., 0]
        exif = Image.Exif()
        exif[0x0112] = 6
        palette = Image.fromarray(rgb).quantize(16)
        self.samples = {
            f: encoded(rgb, f)
            for f in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "TGA", "PPM", "ICO", "DDS", "PCX", "SGI")
        } | {
            "JPEG progressive": encoded(rgb, "JPEG", progressive=True, exif=exif),
            "PNG palette": encoded(palette, "PNG", transparency=3),
            "PNG 16": encoded(grey.astype(np.uint16) * 257, "PNG"),
            "PNG alpha": encoded(np.dstack([rgb, grey]), "PNG", icc_profile=b"x" * 50),
            "GIF animated": encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
            "TIFF lzw": encoded(rgb, "TIFF", compression="tiff_lzw"),
            "TIFF jpeg": encoded(rgb, "TIFF", compression="jpeg"),
            "JPEG2000": encoded(rgb, "JPEG2000"),
        }

    def draw(self, rng: random.Random) -> bytes:
        kind = rng.choice(sorted(self.samples))
        data = mutated(rng, self.samples[kind], list(self.samples.values()))
        return mended(data) if kind.startswith("PNG") and rng.random() < 0.5 else data

    def attempt(self, given: bytes) -> None:
        picture = decode(given, "holiday")
        assert picture.mode == "RGB" and picture.width * picture.height <= zfkit.images.decode.MAX_PIXELS
        tensor = sized(picture, 8)
        assert tensor.shape == (3, 8, 8) and tensor.dtype == torch.uint8


def mended(png: bytes) -> bytes:
    """The same with every chunk's sum made right, so that what is behind the check is reached."""
    at, out = 8, bytearray(png[:8])
    while at + 12 <= len(png):
        length = struct.unpack(">I", png[at : at + 4])[0]
        body = png[at + 4 : at + 8 + length]
        out += png[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(out + png[at:])


class Parquet(Target):
    """Changed files in the Hugging Face layout, and whole ones with columns of other types."""

    def prepare(self) -> None:
        self.file = self.folder / "rows.parquet"
        rows = [{"bytes": encoded(pixels(8, 8, i), "PNG"), "path": f"{i}.png"} for i in range(6)]
        names = {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
        self.samples = []
        for options in ({}, {"compression": "none"}, {"use_dictionary": False, "row_group_size": 2}):
            table = pa.table({"image": rows, "label": pa.array([0, 1, None, 0, 1, 0])})
            table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
            pq.write_table(table, self.file, **options)
            self.samples.append(self.file.read_bytes())
        self.rows = rows

    def draw(self, rng: random.Random) -> bytes:
        if rng.random() < 0.8:
            return mutated(rng, rng.choice(self.samples), self.samples)
        content = rng.choice((
            pa.binary(), pa.large_binary(), pa.string(), pa.binary(3), pa.int8(), pa.list_(pa.uint8()), pa.null(),
        ))  # fmt: skip
        values = {
            pa.string(): ["/etc/passwd", "x", None],
            pa.binary(3): [b"abc", None, b"\xff\xd8\xff"],
            pa.int8(): [1, None, 3],
            pa.list_(pa.uint8()): [[1], None, [255, 216]],
            pa.null(): [None] * 3,
        }.get(content, [self.rows[0]["bytes"], None, b""])
        image = [None if rng.random() < 0.2 else {rng.choice(("bytes", "bytes", "data")): v} for v in values]
        label = rng.choice((
            pa.int64(), pa.uint8(), pa.uint64(), pa.bool_(), pa.float32(), pa.string(), pa.null(), pa.date32(),
        ))  # fmt: skip
        labels = (
            pa.array([1, 0, 1]).cast(label) if label not in (pa.date32(), pa.null()) else pa.nulls(3, label)
        )
        with contextlib.suppress(pa.ArrowException, TypeError):
            kind = pa.struct([("bytes", content)])
            columns = {"image": pa.array([r and {"bytes": next(iter(r.values()))} for r in image], kind)}
            if rng.random() < 0.7:
                columns["label"] = labels
            table = pa.table(columns)
            if rng.random() < 0.3:
                table = table.rename_columns([rng.choice(("image", "img", "label")) for _ in columns])
            described = rng.choice((
                b"", b"{}", b"[]", b'{"info": 3}', b'{"info": {"features": {"label": {"names": 7}}}}', b"\xff",
            ))  # fmt: skip
            stream = io.BytesIO()
            pq.write_table(table.replace_schema_metadata({b"huggingface": described}), stream)
            return stream.getvalue()
        return self.samples[0]

    def attempt(self, given: bytes) -> None:
        self.file.write_bytes(given)
        before = zfkit.images.imageset.IN_MEMORY_BYTES
        for keep in (0, before):
            zfkit.images.imageset.IN_MEMORY_BYTES = keep
            try:
                images = load_images(f"parquet:{self.file}", size=8, limit=50, progress=False)
            finally:
                zfkit.images.imageset.IN_MEMORY_BYTES = before
            seen = 0
            for batch in images.batches(4):
                n = len(batch.indices)
                assert batch.pixels.shape == (n, 3, 8, 8) and batch.label.shape == (n,)
                seen += n
            labels = images.known_labels()
            assert labels is None or labels.shape == (len(images),)
            assert len(images.fingerprint()) == 16 and all(isinstance(c, str) for c in images.classes)
            assert seen + len(images.skipped) >= len(images)


class Checkpoints(Target):
    """Files of weights: changed bytes, and whole files with changed provenance, header or tensors."""

    TINY = Architecture(
        "zfnet", 32, conv1=(7, 2, 1), conv2=(5, 1, 2), widths=(2, 3, 2, 3, 2), hidden=4, classes=3
    )

    def prepare(self) -> None:
        self.file = self.folder / "w.safetensors"
        torch.manual_seed(0)
        self.tensors = build(self.TINY).state_dict()
        self.provenance = json.loads(json.dumps({
            "architecture": describe(self.TINY), "input_size": 32, "mean": [120.0, 110.0, 100.0], "scale": 1.0,
            "classes": ["cat", "dog", "eel"], "data": "noise", "top1": 50.0,
        }))  # fmt: skip
        zfkit.save_weights(self.file, self.tensors, self.provenance)
        self.sample = self.file.read_bytes()

    def draw(self, rng: random.Random) -> bytes:
        length = struct.unpack("<Q", self.sample[:8])[0]
        header = json.loads(self.sample[8 : 8 + length])
        how = rng.randrange(3)
        if how == 0:
            return mutated(rng, self.sample)
        if how == 1:
            header["__metadata__"]["zfkit"] = json.dumps(changed_tree(rng, self.provenance))
        else:
            header = changed_tree(rng, header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + self.sample[8 + length :]

    def attempt(self, given: bytes) -> None:
        self.file.write_bytes(given)
        model = zfkit.load_model(self.file, device="cpu")
        x = model.preprocess(torch.zeros(2, 3, model.input_size, model.input_size, dtype=torch.uint8))
        with torch.no_grad():
            out = model.net(x)
        assert out.shape == (2, len(model.classes) or out.shape[1])


class Onnx(Target):
    """ONNX files: changed bytes, and whole graphs with changed attributes, names, shapes and operators."""

    def prepare(self) -> None:
        from onnx import TensorProto, helper, numpy_helper

        self.file = self.folder / "net.onnx"
        r = np.random.default_rng(0)

        def weight(name: str, *shape: int) -> Any:
            return numpy_helper.from_array(r.standard_normal(shape).astype(np.float32), name)

        nodes = [
            helper.make_node("Conv", ["x", "w", "b"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
            helper.make_node("Relu", ["a"], ["c"]),
            helper.make_node("LRN", ["c"], ["d"], size=3, alpha=1e-4, beta=0.75, bias=1.0),
            helper.make_node("MaxPool", ["d"], ["e"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("BatchNormalization", ["e", "s", "t", "m", "v"], ["f"]),
            helper.make_node("Flatten", ["f"], ["g"]),
            helper.make_node("Gemm", ["g", "u", "z"], ["h"], transB=1),
            helper.make_node("Softmax", ["h"], ["y"], axis=1),
        ]  # fmt: skip
        weights = [
            weight("w", 4, 3, 3, 3), weight("b", 4), weight("s", 4), weight("t", 4), weight("m", 4),
            numpy_helper.from_array(np.ones(4, np.float32), "v"), weight("u", 5, 16), weight("z", 5),
        ]  # fmt: skip
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])
        graph = helper.make_graph(nodes, "net", [x], [y], weights)
        self.model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        self.sample = self.model.SerializeToString()

    def draw(self, rng: random.Random) -> bytes:
        import onnx

        if rng.random() < 0.4:
            return mutated(rng, self.sample)
        model = onnx.ModelProto.FromString(self.sample)
        for _ in range(rng.randrange(1, 4)):
            node = rng.choice(list(model.graph.node) or [onnx.NodeProto()])
            how = rng.randrange(8)
            if how == 0 and node.attribute:
                attribute = rng.choice(list(node.attribute))
                attribute.i = rng.choice((-1, 0, 1, 2, 7, 2**40))
                if attribute.ints:
                    attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(
                        (-1, 0, 1, 2, 9, 2**31, 2**62)
                    )
                attribute.f = rng.choice((0.0, -1.0, float("nan"), 1e30))
            elif how == 1 and node.input:
                node.input[rng.randrange(len(node.input))] = rng.choice(
                    ("x", "w", "", "a", "y", "gone", "../w")
                )
            elif how == 2 and node.output:
                node.output[0] = rng.choice(("x", "a", "y", ""))
            elif how == 3:
                node.op_type = rng.choice(
                    ("Conv", "Gemm", "Relu", "MaxPool", "Loop", "Reshape", "Add", "Dropout", "", "LRN")
                )
            elif how == 4:
                tensor = rng.choice(list(model.graph.initializer) or [onnx.TensorProto()])
                if tensor.dims:
                    tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((-1, 0, 1, 5, 2**20, 2**40))
            elif how == 5:
                tensor = rng.choice(list(model.graph.initializer) or [onnx.TensorProto()])
                tensor.data_type = rng.choice((0, 1, 2, 6, 7, 8, 10, 11, 14, 99))
            elif how == 6 and model.graph.input:
                dims = model.graph.input[0].type.tensor_type.shape.dim
                if dims:
                    rng.choice(list(dims)).dim_value = rng.choice((-1, 0, 1, 3, 9, 2**31))
            elif model.graph.initializer:
                tensor = rng.choice(list(model.graph.initializer))
                tensor.data_location = onnx.TensorProto.EXTERNAL
                entry = tensor.external_data.add()
                entry.key, entry.value = "location", rng.choice(("/etc/passwd", "../../x", "gone.bin", ""))
        return bytes(model.SerializeToString())

    def attempt(self, given: bytes) -> None:
        self.file.write_bytes(given)
        net = zfkit.nets.load_onnx(self.file)
        x = torch.zeros(1, *net.input_shape)
        if x.numel() <= 10**6:
            with torch.no_grad():
                assert isinstance(net(x), torch.Tensor)


class Tables(Target):
    """Tables and checkpoints of `mine`, changed."""

    def prepare(self) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3))
        self.model = zfkit.wrap_model(net, mean=0, scale=1 / 255, input_size=8, name="m")
        drawn = [Image.fromarray(pixels(8, 8, i)) for i in range(6)]
        self.images = zfkit.ImageSet(
            lambda i: (drawn[i], -1), [f"p{i}" for i in range(6)], size=8, stamp=lambda: "drawn"
        )
        self.table, self.state = self.folder / "t.parquet", self.folder / "t.part"
        self.mine().save(self.table)
        self.samples = {self.table: self.table.read_bytes(), self.state: self.state.read_bytes()}
        self.metadata = pq.read_table(self.table)

    def mine(self) -> zfkit.TopK:
        """With a checkpoint, which it goes on from."""
        return zfkit.mine(self.model, self.images, k=2, checkpoint=self.state, progress=False)

    def draw(self, rng: random.Random) -> tuple[str, bytes]:
        file = rng.choice(sorted(self.samples))
        if file == self.table and rng.random() < 0.4:
            table = self.metadata
            if rng.random() < 0.5:
                head = changed_tree(rng, json.loads(table.schema.metadata[b"zfkit"]))
                table = table.replace_schema_metadata({"zfkit": json.dumps(head)})
            else:
                name = rng.choice(table.column_names)
                odd = 7 * [rng.choice((None, 1.5, "x", [1, 2], [1], [None, 1], 0, [9**9] * 2))]
                table = table.set_column(table.column_names.index(name), name, pa.array(odd))
            stream = io.BytesIO()
            pq.write_table(table, stream)
            return file.name, stream.getvalue()
        if file == self.state and rng.random() < 0.5:
            length = struct.unpack("<Q", self.samples[file][:8])[0]
            header = json.loads(self.samples[file][8 : 8 + length])
            if rng.random() < 0.5:
                told = changed_tree(rng, json.loads(header["__metadata__"]["zfkit mining"]))
                header["__metadata__"]["zfkit mining"] = json.dumps(told)
            else:
                header = changed_tree(rng, header)
            text = json.dumps(header).encode()
            return file.name, struct.pack("<Q", len(text)) + text + self.samples[file][8 + length :]
        return file.name, mutated(rng, self.samples[file])

    def attempt(self, given: tuple[str, bytes]) -> None:
        file = self.folder / given[0]
        file.write_bytes(given[1])
        try:
            top = zfkit.TopK.load(file) if file == self.table else self.mine()
            assert isinstance(top, zfkit.TopK) and "TopK" in repr(top)
            for layer, t in top.layers.items():
                assert t.value.shape == (len(t.max), top.k) == t.image.shape
                assert len(top.table(layer)) == int((t.image >= 0).sum())
            if top.layers and top.count == 6:
                with contextlib.suppress(ZfkitError):
                    top.check(self.model, self.images)
        finally:
            file.write_bytes(self.samples[file])


class Specs(Target):
    """Arguments of `load_images`."""

    def prepare(self) -> None:
        self.folder = self.folder / "a" / "b"  # so that ../.. stays among what is ours
        (self.folder / "pictures").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels()).save(self.folder / "pictures" / "a.png")
        pq.write_table(pa.table({"image": [{"bytes": encoded(pixels(), "PNG")}]}), self.folder / "a.parquet")

    def draw(self, rng: random.Random) -> dict[str, Any]:
        kinds = [*"photos textures folder parquet torchvision Folder hdf5 torchvision:FakeDat".split(), ""]
        here = (
            str(self.folder / "pictures"), str(self.folder / "a.parquet"), str(self.folder), "seed=3", "no-middle",
            "seed=x", "seed=", ",", "no-middle,seed=-1", "seed=99999999999999999999", "NoSuchSet",
        )  # fmt: skip
        rest = "".join(rng.choice((*TEXTS, *here)) for _ in range(rng.randrange(0, 3)))
        source: Any = rng.choice(
            (rng.choice(kinds) + ":" + rest, rng.choice(kinds), rest, None, 7, Path(rest.replace("\0", "")))
        )
        numbers = (None, 1, 3, 8, 0, -1, 2**40, 1.5, "8", True, float("nan"), [8])
        plain = rng.random() < 0.6
        return {
            "source": source, "size": 8 if plain else rng.choice(numbers), "limit": 2 if plain else rng.choice(numbers),
            "split": rng.choice(("val", "val", "train", "test", "", None, 3)),
        }  # fmt: skip

    def attempt(self, given: dict[str, Any]) -> None:
        given = dict(given)
        if str(given["source"]).startswith(("photos", "textures")):
            given["limit"] = 2 if given["limit"] is None else given["limit"]  # the whole set takes a second
        here = Path.cwd()
        os.chdir(self.folder)
        try:
            images = load_images(given.pop("source"), **given, progress=False)
            assert len(images) >= 1
            picture, label = images[0]
            assert picture.shape == (3, images.size, images.size) and isinstance(label, int)
        finally:
            os.chdir(here)


FLAGS = {
    "atlas": "--out --maps --rule --seed --notebook --limit --layers -k --device",
    "mine": "--out --batch-size --precision --inside --checkpoint-every --dry-run --limit --layers -k --device",
    "train": "--val --out --widths --hidden --conv1 --blur --without --recipe --epochs --lr --batch-size --precision "
    "--workers --rms-clip --snapshots --size",
    "sweep": "--grid --out --jobs --timeout --max-runs --threads",
    "models": "--size",
    "": "--size",
    "doctr": "--size",
}
VALUES = (
    "2 9 0/2 all deconvnet gradient float32 bf16 conv1 conv9 out out/t.parquet g.yaml n.ipynb folder:pictures "
    "parquet:a.parquet photos w.safetensors cpu cuda:99 meta tpu 99999999999999999999 -5 \udcff"
).split()


class Cli(Target):
    """Command lines out of real and odd words. Training stops before its first step, sweeps only list their runs."""

    def prepare(self) -> None:
        Specs.prepare(self)  # type: ignore[arg-type]
        self.weights = self.folder / "w.safetensors"
        torch.manual_seed(0)
        zfkit.save_weights(
            self.weights, build(Checkpoints.TINY).state_dict(), {"architecture": describe(Checkpoints.TINY)}
        )
        cell = v4.new_code_cell("x = 1  # 0, 1, ...", metadata={"tags": ["parameters"]})
        nbformat.write(v4.new_notebook(cells=[cell]), self.folder / "n.ipynb")
        (self.folder / "g.yaml").write_text("x: [1, 2]")

    def draw(self, rng: random.Random) -> list[str]:
        command = rng.choice(("atlas", "mine", "mine", "mine", "train", "sweep", "models", "", "doctr"))
        words = [t for t in TEXTS if t not in ("\0", "\ud800")]  # which no shell can hand over
        line = [command] if command else []
        if command in ("atlas", "mine"):
            files = (*["w.safetensors"] * 3, "gone.safetensors", "zfnet65", "a.onnx", "")
            sources = (*["folder:pictures"] * 2, "parquet:a.parquet", "folder:x", rng.choice(words))
            line += ["--model", rng.choice(files), "--images", rng.choice(sources)]
            line += ["--size", rng.choice(("32", "32", "32", "8", "0", "x"))]
        elif command == "sweep":
            line += [rng.choice(("n.ipynb", "n.ipynb", "gone.ipynb", "a.parquet")), "--dry-run"]
        elif command == "train":  # the textures would be drawn first, which takes seconds
            line += ["--images", "folder:pictures", "--val", rng.choice(("folder:pictures", "folder:x"))]
        for _ in range(rng.randrange(0, 5)):
            if rng.random() < 0.9:
                flag = rng.choice(FLAGS[command].split())
                line.append(flag)
                if flag not in ("--inside", "--dry-run"):
                    line += [rng.choice((*words, *VALUES)) for _ in range(rng.choice((1, 1, 1, 1, 0, 3)))]
            else:
                line.append(rng.choice((*words, *VALUES)))
        return line

    def attempt(self, given: list[str]) -> None:
        def no_training(*_: Any, **__: Any) -> None:
            raise ZfkitError("no training here")

        out, err, fit, here = io.StringIO(), io.StringIO(), zfkit.cli.fit, Path.cwd()
        zfkit.cli.fit = no_training  # type: ignore[assignment]
        os.chdir(self.folder)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    code: Any = zfkit.cli.main(given)
                except SystemExit as stopped:
                    code = stopped.code
        finally:
            os.chdir(here)
            zfkit.cli.fit = fit  # type: ignore[assignment]
            for left in self.folder.glob("**/*.part*"):
                left.unlink(missing_ok=True)
        assert code in (0, 1, 2), code
        assert "Traceback" not in err.getvalue()
        if code:
            assert err.getvalue().strip(), "an error that says nothing"
            raise ZfkitError("refused")


class Grids(Target):
    """YAML of grids, changed or put together at random."""

    SAMPLES = (
        "x: [0, 1, 2]\nname: [a, b]\nrate: [0.1, 1.0]\n",
        "- {x: 1, name: a}\n- {x: 2}\n",
        "x: [[1]]\n",
        "{x: [1], rate: [0.5]}",
        "a: &l [1, 2]\nx: *l\n",
        "x: !!python/object/apply:os.system ['true']\n",
        "? [x]\n: 1\n",
        "x: [2001-01-01, 0x1F, 1e3, .inf]\n",
    )

    def prepare(self) -> None:
        source = (
            'x = 1  # 0, 1, ...\nname = "a"  # "a" or "b"\nrate = 0.5  # 0 to 1\nflag = False\nlayers = []'
        )
        cell = v4.new_code_cell(source, metadata={"tags": ["parameters"]})
        self.parameters = read_parameters(v4.new_notebook(cells=[cell]))
        self.file = self.folder / "grid.yaml"

    def draw(self, rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            samples = [s.encode() for s in self.SAMPLES]
            return mutated(rng, rng.choice(samples), samples)
        marks = (": ", "- ", "\n", "  ", ", ", "\t", *"[]{}<!|>#", "<<", "!!", "---", "...", "&a", "*a")
        words = (*TEXTS, *marks, *"x name rate flag layers 1 0.5 null 0o7 1_000".split())
        return "".join(rng.choice(words) for _ in range(rng.randrange(1, 14))).encode(
            "utf-8", "surrogatepass"
        )

    def attempt(self, given: bytes) -> None:
        self.file.write_bytes(given)
        runs = expand(read_grid(self.file), self.parameters)
        assert len({r.name.lower() for r in runs}) == len(runs)
        assert all(set(r.parameters) == set(self.parameters) and "/" not in r.name for r in runs)


TARGETS: dict[str, Callable[[Path], Target]] = {
    target.__name__.lower(): target
    for target in (Images, Parquet, Checkpoints, Onnx, Tables, Specs, Cli, Grids)
}
