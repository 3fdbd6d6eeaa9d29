"""J and F against the official numbers, and propagation against a slow version and by its laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewtokens.evaluate.davis import (
    boundary,
    boundary_f,
    dilate,
    jaccard,
    mean_numbers,
    read_masks,
    score,
    sequences,
    tolerance,
)
from fewtokens.evaluate.propagation import Protocol, propagate, soft_labels, to_masks
from tests.data import data_path

# J, F, recall and decay of J of OSVOS; J and F of the first mask held still. By the official code.
ORACLE = {
    "blackswan": (0.9430, 0.9741, 1.0, 0.0014, 0.5450, 0.3340),
    "car-roundabout": (0.8895, 0.8269, 1.0, 0.1368, 0.7308, 0.4403),
    "car-shadow": (0.9284, 0.9174, 1.0, 0.1103, 0.4077, 0.2523),
    "breakdance": (0.7272, 0.7560, 0.9512, 0.1410, 0.2159, 0.1883),
    "dog": (0.7108, 0.6911, 0.7241, 0.1482, 0.3271, 0.1827),
    "drift-straight": (0.6655, 0.7068, 0.7292, 0.6199, 0.0598, 0.0971),
}


@pytest.mark.parametrize("name", ["car-shadow", "drift-straight"])
def test_the_official_numbers(name):
    assert_oracle(name)


def assert_oracle(name):
    root = data_path("davis2016", "DAVIS")
    (files,) = [one for one in sequences(root) if one.name == name]
    truth = read_masks(files.masks)
    osvos = read_masks(sorted(data_path("osvos", name).glob("*.png")))
    expected = ORACLE[name]
    found = mean_numbers(score(osvos, truth))
    still = mean_numbers(score(truth[:1].expand_as(truth), truth))
    ours = (found["J"], found["F"], found["J recall"], found["J decay"], still["J"], still["F"])
    assert ours == pytest.approx(expected, abs=1e-4)


def slow_boundary(mask):
    """Pixel by pixel, as the official code defines it."""
    H, W = mask.shape
    out = np.zeros_like(mask)
    for y in range(H):
        for x in range(W):
            right = mask[y, x + 1] if x + 1 < W else mask[y, x]
            below = mask[y + 1, x] if y + 1 < H else mask[y, x]
            beside = mask[y + 1, x + 1] if y + 1 < H and x + 1 < W else mask[y, x]
            out[y, x] = (mask[y, x] ^ right) | (mask[y, x] ^ below) | (mask[y, x] ^ beside)
    return out


def blobs(T=3, H=20, W=26, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.avg_pool2d(torch.rand(T, H + 4, W + 4, generator=g), 5, 1) > 0.52


def test_boundary_and_disk_against_loops():
    masks = blobs()
    for mask, edge, wide in zip(masks, boundary(masks), dilate(masks, 3), strict=True):
        assert (edge.numpy() == slow_boundary(mask.numpy())).all()
        ys, xs = np.nonzero(mask.numpy())
        for y in range(mask.shape[0]):
            for x in range(mask.shape[1]):
                assert bool(wide[y, x]) == bool((((ys - y) ** 2 + (xs - x) ** 2) <= 9).any())


def test_tolerance():
    assert (tolerance(480, 854), tolerance(480, 880)) == (8, 9)


def test_empty_masks():
    nothing, something = torch.zeros(1, 40, 50, dtype=torch.bool), torch.zeros(1, 40, 50, dtype=torch.bool)
    something[:, 10:20, 10:20] = True
    assert jaccard(nothing, nothing).item() == boundary_f(nothing, nothing).item() == 1
    for a, b in ((nothing, something), (something, nothing)):
        assert jaccard(a, b).item() == boundary_f(a, b).item() == 0
    assert boundary_f(something, something).item() == 1


def test_several_objects_are_scored_apart():
    truth = torch.zeros(4, 30, 30, dtype=torch.uint8)
    truth[:, 2:10, 2:10], truth[:, 15:25, 15:25] = 1, 2
    predicted = truth.clone()
    predicted[1:, 15:25, 15:25] = 0
    first, second = score(predicted, truth)
    assert first.numbers()["J&F"] == 1
    assert second.numbers()["J"] == second.numbers()["F"] == 0
    assert mean_numbers([first, second])["J&F"] == 0.5
    with pytest.raises(ValueError, match="takes three"):
        score(truth[:2], truth[:2])


def test_reading_masks(tmp_path):
    from PIL import Image

    root = tmp_path / "DAVIS"
    for part, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        folder = root / part / "480p" / "one"
        folder.mkdir(parents=True)
        for n in range(2):
            picture = Image.fromarray(np.full((4, 6), 255 * n, dtype=np.uint8))
            picture.save(folder / f"{n:05}.{suffix}")
    (files,) = sequences(root)
    masks = read_masks(files.masks)
    assert masks.shape == (2, 4, 6)
    assert masks.unique().tolist() == [0, 1]
    (root / "Annotations" / "480p" / "one" / "00001.png").unlink()
    with pytest.raises(ValueError, match="1 masks for 2 pictures"):
        sequences(root)
    with pytest.raises(ValueError, match="no DAVIS folder"):
        sequences(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match="one channel"):
        read_masks([tmp_path / "colour.png"])


def slow_propagate(x, labels, protocol):
    """Protocol A cell by cell."""
    T, h, w, _ = x.shape
    unit = x / np.linalg.norm(x, axis=3, keepdims=True)
    places = [(i, j) for i in range(h) for j in range(w)]
    radius = protocol.radius * h / protocol.rows
    soft = [labels.reshape(h * w, -1)]
    for t in range(1, T):
        now = []
        for y, column in places:
            voters = []
            context = [max(0, s) for s in range(t - protocol.context, t)]
            for number, s in enumerate([0, *context]):
                for place, (i, j) in enumerate(places):
                    if number == 0 or math.hypot(i - y, j - column) < radius:
                        voters.append((-float(unit[t, y, column] @ unit[s, i, j]), number, place, s))
            voters.sort()
            best = voters[: protocol.top]
            weight = np.exp(np.array([-v[0] for v in best]) / protocol.temperature)
            weight /= weight.sum()
            now.append(sum(p * soft[s][place] for p, (_, _, place, s) in zip(weight, best, strict=True)))
        soft.append(np.stack(now))
    return np.stack(soft).reshape(T, h, w, -1)


@pytest.mark.parametrize(("context", "radius"), [(2, 12.0), (20, 8.0), (3, 100.0)])
def test_propagation_against_loops(context, radius):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, 5, 6, generator=g)
    labels = torch.rand(4, 5, 2, generator=g)
    protocol = Protocol(context=context, radius=radius, top=4)
    expected = slow_propagate(x.double().numpy(), labels.double().numpy(), protocol)
    np.testing.assert_allclose(propagate(x, labels, protocol).numpy(), expected, atol=1e-4)


class TestPropagation:
    def scene(self, h=12, w=16):
        """Every place has a feature of its own."""
        return torch.randn(h, w, 64, generator=torch.Generator().manual_seed(0))

    def test_a_still_scene_gives_the_mask_back(self):
        mask = torch.zeros(120, 160, dtype=torch.uint8)
        mask[30:70, 40:120] = 1
        features = self.scene().expand(6, -1, -1, -1)
        soft = propagate(features, soft_labels(mask, 1, (120, 160), (12, 16)), Protocol(top=1))
        found = to_masks(soft, (120, 160))
        assert float(jaccard(found == 1, (mask == 1).expand(6, -1, -1))[1:-1].min()) > 0.97

    def test_a_shifted_scene_shifts_the_mask(self):
        scene = self.scene()
        features = torch.stack([scene.roll(n, 1) for n in range(4)])
        mask = torch.zeros(120, 160, dtype=torch.uint8)
        mask[30:70, 40:80] = 1
        soft = propagate(features, soft_labels(mask, 1, (120, 160), (12, 16)), Protocol(top=1))
        for n in range(4):
            moved = torch.zeros_like(mask)
            moved[30:70, 40 + 10 * n : 80 + 10 * n] = 1
            assert float(jaccard(to_masks(soft, (120, 160))[n : n + 1] == 1, (moved == 1)[None])) > 0.95

    def test_the_first_frame_is_not_restricted_and_others_are(self):
        features = torch.zeros(3, 4, 12, 2)
        features[..., 0] = 1
        features[0, 0, 11] = features[1, 0, 0] = features[2, 0, 11] = torch.tensor([0.0, 1])
        labels = torch.zeros(4, 12, 2)
        labels[..., 0] = 1
        labels[0, 11] = torch.tensor([0.0, 1])
        soft = propagate(features, labels, Protocol(top=1, radius=3, rows=4))
        assert soft[1, 0, 0].tolist() == [0, 1]
