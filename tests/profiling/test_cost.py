"""The counter compared with independent formulas and with the paper's tables."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from fewtokens import networks as models
from fewtokens.profiling.latency import latency
from fewtokens.profiling.memory import activation_bytes
from fewtokens.profiling.operations import count_operations, count_parameters, count_torch_macs


def block(N: int, d: int, h: int) -> tuple[int, int]:
    """Returns MACs and elementwise operations of one block, counted by hand per part."""
    macs = 4 * N * d * d + 2 * N * N * d + 8 * N * d * d
    norms = 2 * (7 * N * d + 4 * N)
    attention = 4 * N * d + N * d + h * (4 * N * N - N)
    mlp = 4 * N * d + 8 * 4 * N * d + N * d
    return macs, norms + attention + mlp + 2 * N * d


def vit(size: int, patch: int, d: int, depth: int, h: int, classes: int, S: int = 0, at: int = 0, fuser: bool = False):
    g = size // patch
    N = g * g
    macs, elementwise = N * patch * patch * 3 * d, 2 * N * d + 6 * size * size  # bias, positions, normalization
    remaining = N
    for layer in range(depth):
        if S and (layer == at or (fuser and layer > at)):
            macs += (3 * g - 2) ** 2 * (d * S + 3 * S * S) + N * S * d
            elementwise += 7 * N * d + 4 * N + 3 * 8 * N * S + 3 * N * S
            remaining = S
        m, e = block(remaining, d, h)
        macs, elementwise = macs + m, elementwise + e
        if fuser and layer >= at:
            macs += d * S * S + 2 * N * d * S
            elementwise += 2 * (7 * S * d + 4 * S) + S * d + 7 * N * d + 4 * N + 3 * N * S + N * d
            remaining = N
    elementwise += 7 * remaining * d + 4 * remaining + remaining * d + classes
    return macs + d * classes, elementwise


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("vit_b16", 384, (16, 768, 12, 12, 1000)),
        ("vit_s32", 224, (32, 384, 12, 6, 1000)),
        ("tokenlearner_vit_b16_8at6", 384, (16, 768, 12, 12, 1000, 8, 6)),
        ("tokenlearner_vit_b16_8at6_fuser", 384, (16, 768, 12, 12, 1000, 8, 6, True)),
        ("tokenlearner_vit_l16_35_16at12", 512, (16, 1024, 35, 16, 1000, 16, 12)),
        ("tokenlearner_vit_ti8_5at0", 64, (8, 192, 12, 3, 1000, 5, 0)),
        ("tokenlearner_vit_h14_3at31_fuser", 224, (14, 1280, 32, 16, 1000, 3, 31, True)),
    ],
)
def test_the_counter_equals_the_formula(name, size, shape):
    model = models.build_on_meta(name, image_size=(size, size))
    counted = count_operations(model, torch.empty(1, 1, 3, size, size, device="meta"))
    macs, elementwise = vit(size, *shape)
    assert counted.unknown == ()
    assert counted.macs == macs
    assert counted.elementwise == pytest.approx(elementwise, rel=2e-3)
    assert counted.giga("paper") == pytest.approx((2 * macs + elementwise) / 2e9, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "printed", "within"),
    [
        ("vit_b16", 384, 55.63, 1e-3),
        ("vit_l16", 512, 363.1, 1e-3),
        ("tokenlearner_vit_l16_16at2", 384, 20.91, 1e-3),
        ("tokenlearner_vit_l16_16at3", 384, 28.66, 1e-3),
        ("tokenlearner_vit_l16_16at12", 512, 184.6, 1e-3),
        ("tokenlearner_vit_l16_35_16at12", 512, 186.8, 1e-3),
        ("tokenlearner_vit_l16_8at18", 512, 273.2, 1e-3),
        ("tokenlearner_vit_l16_8at18_fuser", 512, 273.8, 1e-3),
        ("vivit_l16", 224, 1446, 1e-3),
        ("tokenlearner_vivit_l16_16at12", 224, 766, 1e-3),
        ("tokenlearner_vit_b16_8at6", 384, 28.3, 5e-3),
        ("tokenlearner_vit_b16_8at6_fuser", 384, 28.5, 5e-3),
        ("tokenlearner_vit_l16_30_8at18", 512, 274.2, 5e-3),
    ],
)
def test_the_papers_tables(name, size, printed, within):
    model = models.build_on_meta(name, image_size=(size, size))
    counted = count_operations(model, torch.empty(1, model.config.num_frames, 3, size, size, device="meta"))
    assert counted.giga("paper") == pytest.approx(printed, rel=within)


def test_the_misprint_is_not_reproduced():
    model = models.build_on_meta("tokenlearner_vit_l16_16at12", image_size=(512, 512))
    counted = count_operations(model, torch.empty(1, 1, 3, 512, 512, device="meta"))
    assert counted.giga("paper") / 178.1 > 1.03


def test_avid_totals():
    totals = []
    for module in ("conv2d+conv1d", "spatial+temporal", "tokenlearner"):
        model = models.build_on_meta("x2plus1d_m", module=module)
        totals.append(count_operations(model, torch.empty(1, 64, 3, 256, 256, device="meta")).giga("paper_video"))
    assert [round(532 - (totals[0] - total)) for total in totals] == [532, 493, 487]


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (1, 1), (2, 9)])
@pytest.mark.parametrize(("side", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (5, 2, 0), (1, 1, 0), (3, 3, 2)])
def test_taps_on_real_pixels(size, side, stride, padding):
    """The output of a convolution of ones over ones sums to its number of taps on pixels."""
    if size[0] + 2 * padding < side or size[1] + 2 * padding < side:
        pytest.skip("smaller than the kernel")
    conv = nn.Conv2d(3, 2, side, stride, padding, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.ones(1, 3, *size)
    counted = count_operations(conv, x)
    assert counted.macs == int(conv(x).sum())
    assert counted.macs + counted.border == conv(x).numel() * 3 * side * side


def test_groups_batches_and_devices():
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.ones(3, 4, 5, 5)
    assert count_operations(conv, x).macs == int(conv(x).sum())
    model, meta_model = (
        models.build("tokenlearner_vit_nano8_8at2", image_size=(32, 32)),
        models.build_on_meta("tokenlearner_vit_nano8_8at2", image_size=(32, 32)),
    )
    assert count_operations(model, torch.rand(2, 1, 3, 32, 32)) == count_operations(
        meta_model, torch.empty(2, 1, 3, 32, 32, device="meta")
    )


def test_macs_agree_with_torch():
    for name in ("tokenlearner_vivit_nano8_8at2", "vivit_nano8_factorized_self", "vivit_nano8_factorized_dot"):
        model = models.build(name, image_size=(32, 32), num_frames=4)
        clip = torch.rand(1, 4, 3, 32, 32)
        assert count_torch_macs(model, clip) == pytest.approx(count_operations(model, clip).giga("macs"), rel=1e-9)


def test_an_unknown_operation_is_named():
    assert count_operations(lambda x: torch.linalg.inv(x), torch.eye(3)).unknown != ()


def test_parameters_and_time():
    layer = nn.Linear(10, 5)
    assert count_parameters(layer) == 55
    measured = latency(layer, torch.rand(2, 10), repeats=5)
    assert 0 < measured.low <= measured.median <= measured.high
    assert measured.repeats == 5
    times = iter([0.001, 0.02])
    two = latency(lambda x: time.sleep(next(times)), torch.rand(1), repeats=2, warm_up=0)
    assert 0 < two.low < two.median < two.high  # not outside the two times


def test_attention_with_named_arguments():
    """`scaled_dot_product_attention` accepts its tensors by name."""
    q = torch.rand(2, 3, 5, 4)
    attention = torch.nn.functional.scaled_dot_product_attention
    expected = count_operations(attention, q, q, q)
    assert expected.macs == 2 * (2 * 3 * 5 * 5 * 4)
    assert count_operations(lambda x: attention(query=x, key=x, value=x), q) == expected
    assert count_operations(lambda x: attention(x, x, value=x), q) == expected


def test_activation_memory():
    """Linear, ReLU, Linear keep the input, which is not counted, and the hidden map."""
    network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    bytes_saved = activation_bytes(network, torch.rand(10, 8))
    assert bytes_saved == 10 * 64 * 4
    with torch.inference_mode():
        assert activation_bytes(network, torch.rand(10, 8)) == bytes_saved
    with torch.device("meta"):
        same = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    assert activation_bytes(same, torch.empty(10, 8, device="meta")) == bytes_saved
    few = models.build_on_meta("tokenlearner_vit_b16_8at6")
    all_ = models.build_on_meta("vit_b16")
    x = torch.empty(1, 1, 3, 224, 224, device="meta")
    assert activation_bytes(few, x) < 0.7 * activation_bytes(all_, x)
