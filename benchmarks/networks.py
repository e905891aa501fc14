"""In how many networks of torchvision and timm can every convolutional layer be projected, and is it right?

    .venv/bin/python benchmarks/networks.py [--only NAME ...] [--family torchvision|timm] [--out FILE.csv]

Each network gets random weights in double precision. One unit of every convolutional layer is carried back under every
rule, and held to autograd through the user's own module, in which activations like ReLU have the rule's backward pass.
The oracle knows nothing of zfkit: it replaces the functions that torch calls.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
import time
import warnings
from collections.abc import Iterator
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


def build(family: str, name: str) -> nn.Module:
    """Random weights in double precision, with normalisations that have seen something."""
    torch.manual_seed(0)
    if family == "timm":
        import timm

        net = timm.create_model(name, pretrained=False)
    else:
        import torchvision

        more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        net = torchvision.models.get_model(name, weights=None, **more)
    for module in net.modules():
        if (
            isinstance(module, nn.BatchNorm2d)
            and module.running_var is not None
            and module.running_mean is not None
        ):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net.double().eval()


def check(family: str, name: str, units: int = 1) -> Iterator[dict[str, Any]]:
    """One row a rule: layers, layers that were projected and right, the largest error, seconds."""
    net = build(family, name)
    side = next(s for s in (64, 96, 128, 160, 224, 256, 299) if runs(net, s))
    model = zfkit.wrap_model(net, mean=127.5, scale=1 / 64, input_size=side, name=name)
    x = torch.randn(1, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    draw = random.Random(0)
    for rule in RULES:
        start, worst, right, reasons = time.perf_counter(), 0.0, 0, set()
        given, source = oracle.outputs(net, x, model.conv_layers, rule)
        deconvnet = Deconvnet(model.network, model.conv_layers, Options(rule, lrn="gradient"))
        tape = deconvnet.forward(x.clone())
        for layer in model.conv_layers:
            y = given[layer]
            channel, row, col = (draw.randrange(n) for n in (y.shape[1], y.shape[2], y.shape[3]))
            unit = y[0, channel, row, col]
            (expected,) = torch.autograd.grad(unit, source, retain_graph=True, allow_unused=True)
            if expected is None:  # a layer that does not look at the picture
                right += 1
                continue
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
            right += error < 1e-10
        yield {
            "family": family, "network": name, "rule": rule, "px": side, "layers": len(model.conv_layers),
            "right": right, "largest error": f"{worst:.0e}",
            "seconds": f"{time.perf_counter() - start:.1f}",
            "why not": "; ".join(sorted(reasons))[:300],
        }  # fmt: skip


@torch.no_grad()
def runs(net: nn.Module, side: int) -> bool:
    """Does the network take pictures of this size?"""
    try:
        net(torch.zeros(1, 3, side, side, dtype=torch.float64))
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True


def main() -> None:
    """Check, print, and write a table as it goes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--family", choices=["torchvision", "timm"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    for family, names in (("torchvision", TORCHVISION), ("timm", TIMM)):
        for name in names:
            if (options.only and name not in options.only) or options.family not in (None, family):
                continue
            try:
                new = list(check(family, name))
            except Exception as error:  # what is refused is a result, too
                blank = dict.fromkeys(("px", "layers", "right", "largest error", "seconds"), "")
                why = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
                new = [{"family": family, "network": name, "rule": "all", **blank, "why not": why}]
            rows += new
            for row in new:
                print(*row.values(), sep="\t", flush=True)
            if options.out:
                with options.out.open("w", newline="") as file:
                    writer = csv.DictWriter(file, rows[0].keys())
                    writer.writeheader()
                    writer.writerows(rows)
    for family in ("torchvision", "timm"):
        tried = {r["network"] for r in rows if r["family"] == family}
        whole = [
            n
            for n in tried
            if all(
                r["layers"] == r["right"] and r["layers"]
                for r in rows
                if r["network"] == n and r["family"] == family
            )
        ]
        if tried:
            print(f"{family}: {len(whole)} of {len(tried)} in every convolutional layer, under every rule")


if __name__ == "__main__":
    main()
