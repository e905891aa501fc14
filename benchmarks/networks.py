"""In how many networks of torchvision and timm can every convolutional layer be projected, and is it right?

    .venv/bin/python benchmarks/networks.py [--only NAME ...] [--family torchvision|timm] [--out FILE.csv]
    .venv/bin/python benchmarks/networks.py --table FILE.csv

Each network gets random weights in double precision, and pictures of the smallest of `SIDES` that it takes. One unit of
every convolutional layer is carried back under every rule, and held to autograd through the user's own module, in which
activations like ReLU have the rule's backward pass. The oracle knows nothing of zfkit: it replaces the functions that
torch calls.

Rows are written as they come, the deconvnet's first, and what stands in the file is not measured again. `--table`
prints it for the README.
"""

from __future__ import annotations

import argparse
import csv
import random
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

import zfkit
from zfkit.deconv import Deconvnet, Options, Rule

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import oracle

TORCHVISION = """
alexnet convnext_tiny densenet121 densenet161 efficientnet_b0 efficientnet_b1 efficientnet_v2_s googlenet inception_v3
mnasnet0_5 mnasnet1_0 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet34
resnet50 resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 squeezenet1_0 squeezenet1_1 vgg11 vgg16_bn
wide_resnet50_2
""".split()
TIMM = """
bat_resnext26ts botnet26t_256 convmixer_768_32 convnext_atto convnext_pico convnextv2_atto cs3darknet_s
cs3darknet_focus_s cspdarknet53 cspresnet50 darknet17 densenet121 dla34 dla46_c dm_nfnet_f0 dpn48b dpn68
eca_nfnet_l0 eca_resnext26ts edgenext_xx_small efficientnet_b0 efficientnet_es efficientnet_lite0
ese_vovnet19b_slim fbnetc_100 fbnetv3_b fastvit_t8 gcresnet33ts gernet_s ghostnet_050 ghostnetv2_100
haloregnetz_b hardcorenas_a hgnet_tiny hgnetv2_b0 hrnet_w18_small inception_next_atto inception_resnet_v2
inception_v3 inception_v4 lambda_resnet26t lcnet_050 legacy_xception mixnet_s mnasnet_small mobilenetv2_050
mobilenetv3_small_050 mobilenetv4_conv_small_035 mobileone_s0 nf_regnet_b0 nf_resnet26 pit_ti_224
poolformer_s12 rdnet_tiny regnetx_002 regnety_002 regnetz_005 repghostnet_050 repvgg_a0 res2net50_14w_8s
resnest14d resnet10t resnet18 resnetv2_18 rexnetr_100 selecsls42 semnasnet_075 skresnet18 spnasnet_100
starnet_s1 tf_efficientnet_b0 tinynet_e tresnet_m vgg11_bn vovnet39a xception41p
""".split()
RULES: tuple[Rule, ...] = ("deconvnet", "guided", "gradient")
SIDES = (40, 64, 96, 128, 160, 224, 256, 299)  # px
COLUMNS = (
    "family",
    "network",
    "rule",
    "px",
    "layers",
    "right",
    "nothing",
    "largest error",
    "seconds",
    "why not",
)


class OutOfTime(BaseException):
    """A network took longer than it may. No `Exception`: those are what layers fail with."""


def build(family: str, name: str) -> nn.Module:
    """Random weights in double precision, in which nothing is switched off.

    Many networks begin with branches that count for nothing, by gains of 0 or 1e-6. What goes back through them would
    be lost in rounding, and the check would say nothing of it: so parameters that are all alike are drawn anew.
    """
    torch.manual_seed(0)
    if family == "timm":
        import timm

        net = timm.create_model(name, pretrained=False)
    else:
        import torchvision

        more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        net = torchvision.models.get_model(name, weights=None, **more)
    with torch.no_grad():
        for parameter_name, parameter in net.named_parameters():
            if bool((parameter == parameter.flatten()[0]).all()):
                is_bias = parameter_name.endswith("bias")
                parameter.normal_(0, 0.1) if is_bias else parameter.uniform_(0.5, 1.5)
        for buffer_name, buffer in net.named_buffers():
            if buffer_name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif buffer_name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return net.double().eval().requires_grad_(False)


def check(family: str, name: str, rules: Sequence[Rule] = RULES) -> Iterator[dict[str, Any]]:
    """One row a rule: layers, layers that were projected and right, those of nothing, the largest error, seconds.

    Layers are all the network's own convolutions that the picture reaches, whether zfkit lists them or not. Of each a
    unit is drawn whose projection is not 0 everywhere, if five draws bring one. Where none does, nothing should come
    back, and nothing is said of what would: such layers are counted apart.
    """
    net = build(family, name)
    side = next(s for s in SIDES if runs(net, s))
    model = zfkit.wrap_model(net, mean=127.5, scale=1 / 64, input_size=side, name=name)
    x = torch.randn(1, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    draw = random.Random(0)
    for rule in rules:
        start, worst, right, nothing, reasons = time.perf_counter(), 0.0, 0, 0, set()
        convolutions = [n for n, module in net.named_modules() if isinstance(module, nn.Conv2d)]
        given, source = oracle.outputs(net, x, convolutions, rule)
        given = {n: y for n, y in given.items() if y.requires_grad}
        deconvnet = Deconvnet(model.network, model.conv_layers, Options(rule, lrn="gradient"))
        tape = deconvnet.forward(x.clone())
        for layer, y in given.items():
            if layer not in model.conv_layers:
                reasons.add("convolutions within an operation that torch.fx cannot follow")
                continue
            for _ in range(5):
                channel, row, col = (draw.randrange(n) for n in y.shape[1:])
                (expected,) = torch.autograd.grad(y[0, channel, row, col], source, retain_graph=True)
                if expected.any():
                    break
            try:
                pixels, window = deconvnet.reverse(
                    tape, layer, torch.tensor([0]), torch.tensor([channel]), torch.tensor([[row, col]])
                )
            except Exception as failure:
                reasons.add(f"{type(failure).__name__}: {str(failure)[:150]}")
                continue
            found = zfkit.deconv.paste(pixels, window.origin, x.shape[2:])
            scale = float(expected.abs().max())
            error = float((found - expected).abs().max()) / (scale or 1.0)
            worst = max(worst, error)
            right += error < 1e-10 and scale > 0
            nothing += error < 1e-10 and scale == 0
        yield line(
            family, name, rule, side, len(given), right, nothing, f"{worst:.0e}",
            f"{time.perf_counter() - start:.1f}", "; ".join(sorted(reasons)),
        )  # fmt: skip


def line(*values: Any) -> dict[str, Any]:
    """A line of the table; texts in one line."""
    texts = (" ".join(v.split())[:300] if isinstance(v, str) else v for v in values)
    return dict(zip(COLUMNS, texts, strict=True))


@torch.no_grad()
def runs(net: nn.Module, side: int) -> bool:
    """Does the network take pictures of this size?"""
    try:
        net(torch.zeros(1, 3, side, side, dtype=torch.float64))
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True


def measured(family: str, name: str, rule: Rule, limit: int) -> dict[str, Any]:
    """The row of one network and rule; what is refused, or takes more than `limit` seconds, is a result, too."""

    def stop(*_: Any) -> None:
        raise OutOfTime(f"more than {limit} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    try:
        return next(check(family, name, [rule]))
    except (Exception, OutOfTime) as error:
        return line(family, name, rule, *[""] * 6, f"{type(error).__name__}: {error}")
    finally:
        signal.alarm(0)


def read(file: Path | None) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The rows of a file, by family and network."""
    by_network: dict[tuple[str, str], list[dict[str, Any]]] = {}
    if file is not None and file.exists():
        with file.open(newline="") as opened:
            for one in csv.DictReader(opened):
                by_network.setdefault((one["family"], one["network"]), []).append(one)
    return by_network


def is_right(row: dict[str, Any]) -> bool:
    """In every convolutional layer of which something gets to the picture?"""
    return int(row["layers"] or 0) - int(row["nothing"] or 0) == int(row["right"] or 0) > 0


def table(by_network: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """What was measured, in Markdown: how many are right, what the others fail on, and how many layers each has."""
    lines = [
        "| networks | rule | right in every layer | their layers | of these nothing comes back | largest error |",
        "|---|---|---|---|---|---|",
    ]
    layers: dict[str, list[str]] = {}
    for family, rule in product(("torchvision", "timm"), RULES):
        mine = [r for rows in by_network.values() for r in rows if (r["family"], r["rule"]) == (family, rule)]
        right = [r for r in mine if is_right(r)]
        if mine:
            worst = max((float(r["largest error"]) for r in right), default=0.0)
            layers_and_nothing = [sum(int(r[column]) for r in right) for column in ("layers", "nothing")]
            cells = (f"{len(mine)} of {family}", rule, len(right), *layers_and_nothing, f"{worst:.0e}")
            lines.append(f"| {' | '.join(map(str, cells))} |")
        if rule == RULES[0]:
            layers[family] = [f"{r['network']} {r['layers']}" for r in right]
    wrong = []
    for (family, name), rows in by_network.items():
        failed = [r for r in rows if not is_right(r)]
        counts = [f"{r['rule']} {r['right'] or 0} of {r['layers'] or '?'}" for r in failed]
        why = dict.fromkeys(r["why not"] for r in failed if r["why not"])
        if failed:
            wrong.append(f"- {family} {name}: {', '.join(counts)}; {'; '.join(why)}")
    named = [f"{family}: {', '.join(names)}." for family, names in layers.items()]
    return "\n\n".join(["\n".join(lines), "\n".join(wrong), *named])


def main() -> None:
    """Check, print, and write a table as it goes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--family", choices=["torchvision", "timm"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--limit", type=int, default=600, help="seconds for one network")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print what stands in this file, and stop")
    options = parser.parse_args()
    if options.table:
        print(table(read(options.table)))
        return
    warnings.simplefilter("ignore")
    done = read(options.out)
    listed = [
        (family, name) for family, names in (("torchvision", TORCHVISION), ("timm", TIMM)) for name in names
    ]
    for rule, (family, name) in product(RULES, listed):
        wanted = name in (options.only or [name]) and options.family in (None, family)
        rows = done.setdefault((family, name), []) if wanted else []
        if not wanted or rule in {r["rule"] for r in rows}:
            continue
        rows.append(measured(family, name, rule, options.limit))
        print(*rows[-1].values(), sep="\t", flush=True)
        if options.out:
            begun = options.out.exists()
            with options.out.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                if not begun:
                    writer.writeheader()
                writer.writerow(rows[-1])
    print(table(done))


if __name__ == "__main__":
    main()
