"""float32 stays float32 while zfkit looks at a network, and torch's settings are the user's again afterwards."""

from __future__ import annotations

import threading

import pytest
import torch
from tiny import noise
from torch import nn

import zfkit
from zfkit.nets.graph import full_float32

MATMUL, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn
NEW = hasattr(MATMUL, "fp32_precision")


def settings():
    """Everything that says how exact float32 is, as users read it."""
    if NEW:
        kinds = (MATMUL, CUDNN.conv, torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv)
        return [kind.fp32_precision for kind in kinds]
    return [MATMUL.allow_tf32, CUDNN.allow_tf32]


def exact():
    """Is neither of the two kinds of product allowed TF32?"""
    if NEW:
        return not {MATMUL.fp32_precision, CUDNN.conv.fp32_precision} & {"tf32", "bf16"}
    return not MATMUL.allow_tf32 and not CUDNN.allow_tf32


def by_old_names():
    MATMUL.allow_tf32 = CUDNN.allow_tf32 = True


def by_new_names():
    MATMUL.fp32_precision = "tf32"
    CUDNN.conv.fp32_precision = "ieee"  # and RNNs still TF32: now the old names cannot be read


def by_one_number():
    torch.set_float32_matmul_precision("medium")


@pytest.fixture(params=[by_old_names, by_one_number, *([by_new_names] if NEW else [])])
def allowed(request):
    """A process in which somebody allowed TF32, in one of torch's three ways."""
    before = settings()
    request.param()
    yield settings()
    torch.set_float32_matmul_precision("highest")
    CUDNN.allow_tf32 = True
    assert settings()[:2] in (before[:2], ["ieee", "tf32"])


class Watching(nn.Conv2d):
    """A convolution that notes how exact it may be."""

    seen: list[bool] = []  # noqa: RUF012

    def forward(self, x):
        self.seen.append(exact())
        return super().forward(x)


def watched():
    Watching.seen.clear()
    net = nn.Sequential(Watching(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    return zfkit.wrap_model(net, mean=128, scale=1 / 64, input_size=12)


def test_project_and_mine_compute_in_full_float32(allowed, own_rules):
    model, pixels = watched(), noise(2, 12)

    @zfkit.register_rule(Watching)
    def back(R, module, context):
        Watching.seen.append(exact())
        return nn.functional.conv_transpose2d(R, module.weight)

    _ = model.network  # traced, in whatever precision
    Watching.seen.clear()
    zfkit.project(model, model.preprocess(pixels), "2", 0)
    assert len(Watching.seen) == 2 and all(Watching.seen)  # forward and back
    zfkit.mine(model, zfkit.ImageSet.of(pixels), progress=False)
    assert len(Watching.seen) > 2 and all(Watching.seen)
    assert settings() == allowed


def test_settings_are_put_back_after_an_exception(allowed):
    model = watched()
    with pytest.raises(zfkit.ZfkitError):
        zfkit.project(model, model.preprocess(noise(1, 2)), "2", 0)  # too small for the second convolution
    assert settings() == allowed
    with pytest.raises(KeyboardInterrupt), full_float32():
        assert exact()
        raise KeyboardInterrupt
    assert settings() == allowed


def test_threads_that_overlap_leave_what_the_first_one_found(allowed):
    """The first to come in is the first to leave: the second still computes in float32."""
    first_in, second_in, first_out = (threading.Event() for _ in range(3))
    seen = []

    def first():
        with full_float32():
            first_in.set()
            assert second_in.wait(10)
        first_out.set()

    def second():
        assert first_in.wait(10)
        with full_float32():
            second_in.set()
            assert first_out.wait(10)
            seen.append(exact())

    threads = [threading.Thread(target=job) for job in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] and settings() == allowed


def test_torchs_old_names_can_be_read_as_before(allowed):
    """Its old and new names must not be mixed: what could be read before can be read afterwards, and is the same."""

    def old_names():
        try:
            return torch.get_float32_matmul_precision(), MATMUL.allow_tf32, CUDNN.allow_tf32
        except RuntimeError as error:
            return str(error)

    before = old_names()
    with full_float32():
        pass
    assert old_names() == before
