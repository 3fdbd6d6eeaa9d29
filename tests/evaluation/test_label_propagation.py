"""Label propagation against slow reference implementations of the published descriptions, and its invariants."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from fewtokens.evaluation import label_propagation
from fewtokens.evaluation.davis import jaccard
from fewtokens.evaluation.label_propagation import PROTOCOLS, Protocol, first_labels, make_protocol, propagate, to_masks
from fewtokens.profiling.memory import peak_memory

A, B = PROTOCOLS["davis"]["A"], PROTOCOLS["davis"]["B"]


def slow_a(x, labels, protocol):
    """Protocol A cell by cell: softmax of the top cosines over T; the first frame replaces frames before the start."""
    T, h, w, _ = x.shape
    unit = x / np.linalg.norm(x, axis=3, keepdims=True)
    cells = [(i, j) for i in range(h) for j in range(w)]
    soft = [labels.reshape(h * w, -1)]
    for t in range(1, T):
        current = []
        for y, column in cells:
            voters = []
            for number, s in enumerate([0, *(max(0, s) for s in range(t - protocol.context, t))]):
                for cell, (i, j) in enumerate(cells):
                    if number == 0 or math.hypot(i - y, j - column) < protocol.radius:
                        voters.append((-float(unit[t, y, column] @ unit[s, i, j]), number, cell, s))
            voters.sort()
            best = voters[: protocol.top]
            weight = np.exp(np.array([-v[0] for v in best]) / protocol.temperature)
            weight /= weight.sum()
            current.append(sum(p * soft[s][cell] for p, (_, _, cell, s) in zip(weight, best, strict=True)))
        soft.append(np.stack(current))
    return np.stack(soft).reshape(T, h, w, -1)


def slow_b(x, labels, protocol):
    """Protocol B with full matrices: exp(cosine / T) within the window; the top values, normalized to sum 1."""
    T, h, w, _ = x.shape
    unit = (x / np.linalg.norm(x, axis=3, keepdims=True)).reshape(T, h * w, -1)
    y, column = np.divmod(np.arange(h * w), w)
    square = np.maximum(abs(y[:, None] - y), abs(column[:, None] - column)) <= protocol.radius
    soft = [labels.reshape(h * w, -1)]
    for t in range(1, T):
        sources = [0, *range(max(1, t - protocol.context), t)]
        weight = np.concatenate([np.exp(unit[t] @ unit[s].T / protocol.temperature) * square for s in sources], 1)
        threshold = np.sort(weight, 1)[:, -protocol.top, None]
        weight = np.where(weight < threshold, 0, weight)
        weight /= weight.sum(1, keepdims=True)
        soft.append(weight @ np.concatenate([soft[s] for s in sources]))
    return np.stack(soft).reshape(T, h, w, -1)


def clip(T=6, h=4, w=5, C=6, K=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(T, h, w, C, generator=g), torch.rand(h, w, K, generator=g)


@pytest.mark.parametrize("shape", [(4, 5), (7, 3)])
@pytest.mark.parametrize(("context", "radius"), [(2, 2.5), (20, 2.0), (3, 100.0), (0, 3.0), (40, 1.5)])
def test_a_against_loops(context, radius, shape, monkeypatch):
    x, labels = clip(5, *shape)
    protocol = dataclasses.replace(A, context=context, radius=radius, top=4)
    expected = slow_a(x.double().numpy(), labels.double().numpy(), protocol)
    np.testing.assert_allclose(propagate(x, labels, protocol).numpy(), expected, atol=1e-5)
    # The result does not depend on the memory limit.
    monkeypatch.setattr(label_propagation, "_MAX_SIMILARITIES", 30)
    np.testing.assert_allclose(propagate(x, labels, protocol).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 5), (7, 3)])
@pytest.mark.parametrize(("context", "radius", "top"), [(2, 1, 4), (7, 2, 5), (3, 30, 7)])
def test_b_against_full_matrices(context, radius, top, shape):
    x, labels = clip(7, *shape)
    protocol = dataclasses.replace(B, context=context, radius=radius, top=top)
    expected = slow_b(x.double().numpy(), labels.double().numpy(), protocol)
    np.testing.assert_allclose(propagate(x, labels, protocol).numpy(), expected, atol=1e-4)


def test_one_frame_one_cell_and_half_precision():
    x, labels = clip(1)
    assert torch.equal(propagate(x, labels)[0], labels)
    one = propagate(torch.randn(3, 1, 1, 4), torch.tensor([[[0.25, 0.75]]]))
    torch.testing.assert_close(one[2, 0, 0], torch.tensor([0.25, 0.75]))
    x, labels = clip(5, 5, 8)
    for dtype in (torch.float16, torch.bfloat16):
        half = propagate(1000 * x.to(dtype), labels.to(dtype), A)
        assert half.dtype == torch.float32 and bool(half.isfinite().all())
        # Cosines are computed in float32, so half precision only rounds the inputs.
        torch.testing.assert_close(half, propagate((1000 * x.to(dtype)).float(), labels.to(dtype).float(), A))
    with pytest.raises(ValueError, match="labels"):
        propagate(x, labels[:4])


class TestScenes:
    """Scenes with known results."""

    def scene(self, h=12, w=16):
        """A frame in which every cell has a different feature."""
        return torch.randn(h, w, 64, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize("protocol", [dataclasses.replace(A, top=1), A, B, PROTOCOLS["davis"]["B-rsp"]])
    def test_a_static_scene_preserves_the_mask(self, protocol):
        mask = torch.zeros(192, 256, dtype=torch.uint8)
        mask[48:112, 64:192] = 1
        # Every previous frame contains the same cell, so all top voters are at the correct position.
        features = self.scene().expand(9, -1, -1, -1)
        first = first_labels(mask, 1, (192, 256), (12, 16), protocol.labels)
        masks = to_masks(propagate(features, first, protocol), (192, 256), rescale=protocol.rescale)
        minimum = float(jaccard(masks == 1, (mask == 1).expand(9, -1, -1))[1:-1].min())
        assert minimum > 0.97, minimum

    @pytest.mark.parametrize("protocol", [dataclasses.replace(A, top=1), B])
    @pytest.mark.parametrize("cells", [1, 2])
    def test_a_shifted_scene_shifts_the_labels(self, protocol, cells):
        scene = self.scene()
        features = torch.stack([scene.roll(n * cells, 1) for n in range(4)])
        mask = torch.zeros(192, 256, dtype=torch.uint8)
        mask[48:112, 64:128] = 1
        soft = propagate(features, first_labels(mask, 1, (192, 256), (12, 16), "nearest"), protocol)
        for n in range(4):
            # Cells that were rolled in at the left may be beyond the radius.
            new, old = soft[n, :, n * cells :], soft[0, :, : 16 - n * cells]
            assert torch.equal(new.argmax(2), old.argmax(2))

    def far_voter(self):
        """A cell whose only similar cell is far away in the first frame."""
        features = torch.zeros(2, 4, 12, 2)
        features[..., 0] = 1
        features[0, 0, 11] = features[1, 0, 0] = torch.tensor([0.0, 1])
        labels = torch.zeros(4, 12, 2)
        labels[..., 0] = 1
        labels[0, 11] = torch.tensor([0.0, 1])
        return features, labels

    def test_the_first_frame_is_not_restricted_in_a_and_is_in_b(self):
        features, labels = self.far_voter()
        free = propagate(features, labels, dataclasses.replace(A, top=1, radius=3))
        near = propagate(features, labels, dataclasses.replace(B, top=1, radius=3))
        assert free[1, 0, 0].tolist() == [0, 1]
        assert near[1, 0, 0].tolist() == [1, 0]

    def test_the_window_is_a_disk_in_a_and_a_square_in_b(self):
        features = torch.zeros(2, 5, 5, 2)
        features[..., 0] = 1
        features[0, 0, 0] = features[1, 2, 2] = torch.tensor([0.0, 1])
        labels = torch.zeros(5, 5, 2)
        labels[..., 0] = 1
        labels[0, 0] = torch.tensor([0.0, 1])
        square = dataclasses.replace(B, top=1, radius=2)
        assert propagate(features, labels, square)[1, 2, 2].tolist() == [0, 1]
        assert propagate(features, labels, dataclasses.replace(square, window="disk"))[1, 2, 2].tolist() == [1, 0]

    def test_one_hot_features_preserve_the_labels(self):
        features = torch.eye(24).reshape(1, 4, 6, 24).expand(5, -1, -1, -1)
        labels = torch.rand(4, 6, 3)
        soft = propagate(features, labels, dataclasses.replace(A, top=1))
        torch.testing.assert_close(soft, labels.expand(5, -1, -1, -1))


def test_memory_does_not_grow_with_the_video():
    protocol = dataclasses.replace(A, context=4)
    result = 20 * 30 * 2 * 4
    peaks = []
    for T in (8, 24):
        x, labels = clip(T, 20, 30, 64)
        peaks.append(peak_memory(lambda x=x, labels=labels: propagate(x, labels, protocol), x.device))
    assert peaks[1] - peaks[0] < 1.5 * 16 * result
    ring = 5 * 600 * (64 + 2) * 4
    assert peaks[0] < 2 * ring + 64 * 2**20


@pytest.mark.parametrize(
    ("protocol", "size", "expected"),
    [
        (A, (480, 854), (480, 880)),
        (B, (480, 854), (480, 832)),
        (B, (854, 480), (832, 480)),
        (PROTOCOLS["jhmdb"]["A"], (240, 320), (320, 320)),
        (PROTOCOLS["vip"]["A"], (720, 1280), (448, 880)),
        (PROTOCOLS["vip"]["A"], (1280, 720), (880, 448)),
        (dataclasses.replace(A, size="native"), (37, 53), (37, 53)),
    ],
)
def test_input_sizes(protocol, size, expected):
    assert protocol.input_size(*size) == expected


def test_presets_and_changes():
    assert (A.context, A.radius, A.top, A.temperature, A.restrict_first) == (20, 20, 7, 0.7, False)
    assert (B.context, B.radius, B.top, B.temperature, B.restrict_first) == (7, 12, 5, 0.1, True)
    rsp = make_protocol("davis", "B-rsp")
    assert (rsp.context, rsp.radius, rsp.top) == (30, 30, 7)
    assert PROTOCOLS["vip"]["A"].top == 10
    changed = make_protocol("davis", "A", ["radius=5", "rows=15", "stand_in=false", "size=short 320"])
    assert (changed.radius, changed.stand_in, changed.size) == (5.0, False, "short 320")
    assert changed.reach(30) == 10 and A.reach(60) == 20 and Protocol(radius=0).reach(3) == math.inf
    assert "A with radius=5.0" in changed.describe() and "within 10 cells" in changed.describe(30)


@pytest.mark.parametrize(
    ("data", "name", "changes", "message"),
    [
        ("davis", "C", [], "for davis must be one of A, B, B-rsp"),
        ("jhmdb", "B", [], "for jhmdb must be one of A"),
        ("davis", "A", ["speed=3"], "--set must be NAME=VALUE"),
        ("davis", "A", ["top"], "--set must be NAME=VALUE"),
        ("davis", "A", ["top=many"], "top must be a whole number"),
        ("davis", "A", ["radius=wide"], "radius must be a number"),
        ("davis", "A", ["radius=inf"], "must be finite"),
        ("davis", "A", ["stand_in=1"], "true or false"),
        ("davis", "A", ["temperature=0"], "temperature above 0"),
        ("davis", "A", ["size=big"], "size must be"),
        ("davis", "A", ["window=hexagon"], "disk or square"),
        ("davis", "A", ["multiple=32"], "has no effect"),
        ("davis", "A", ["radius=0", "window=square"], "has no effect"),
        ("jhmdb", "A", ["labels=nearest"], "has no effect"),
    ],
)
def test_invalid_protocols(data, name, changes, message):
    with pytest.raises(ValueError, match=message):
        make_protocol(data, name, changes)


def test_labels_to_the_grid_and_back():
    mask = torch.zeros(32, 48, dtype=torch.uint8)
    mask[:, 20:] = 1
    soft = first_labels(mask, 1, (32, 48), (2, 3))
    hard = first_labels(mask, 1, (32, 48), (2, 3), "nearest")
    # Bilinear interpolates the two central pixels of a cell, nearest takes one.
    assert soft[0, :, 1].tolist() == hard[0, :, 1].tolist() == [0, 1, 1]
    mask[:, 7] = 1
    assert first_labels(mask, 1, (32, 48), (2, 3))[0, 0].tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="254"):
        first_labels(mask, 300, (32, 48), (2, 3))
    # A weak label wins only if its map is stretched.
    maps = torch.tensor([[[[1.0, 0.0], [0.6, 0.4]]]])
    assert to_masks(maps, (1, 2))[0].tolist() == [[0, 0]]
    assert to_masks(maps, (1, 2), rescale=True)[0].tolist() == [[0, 1]]
    flat = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    assert to_masks(flat, (1, 2), rescale=True)[0].tolist() == [[0, 0]]


@pytest.mark.parametrize("size", [(12, 20), (9, 7), (3, 4), (1, 1)])
@pytest.mark.parametrize("rescale", [False, True])
def test_masks_are_the_largest_of_interpolated_maps(size, rescale):
    torch.manual_seed(0)
    soft = torch.rand(3, 4, 5, 6)
    maps = torch.nn.functional.interpolate(soft.movedim(3, 1), size, mode="bilinear", align_corners=False)
    if rescale and size != (1, 1):
        low, high = maps.flatten(2).aminmax(dim=2, keepdim=True)
        maps = ((maps.flatten(2) - low) / (high - low)).unflatten(2, size)
    if rescale and size == (1, 1):
        maps = torch.zeros_like(maps)
    assert torch.equal(to_masks(soft, size, rescale=rescale).long(), maps.argmax(1))
    half = soft.to(torch.bfloat16)
    assert torch.equal(to_masks(half, size, rescale=rescale), to_masks(half.float(), size, rescale=rescale))
