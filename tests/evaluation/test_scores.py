"""Scores and probes against scikit-learn or reference calculations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fewtokens.data import ClipData, MovingDigits, Transform, View, collate, read_listing
from fewtokens.evaluation.classify import accuracy, average_precision, evaluator, mean_average_precision, predict
from fewtokens.evaluation.probes import few_shot, linear_probe, nearest_neighbors
from fewtokens.evaluation.qa_sets import find_letter
from fewtokens.evaluation.summary import rank
from fewtokens.train.objectives import Classification
from tests.data.test_listing import save_clip, save_image

metrics = pytest.importorskip("sklearn.metrics")


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_as_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(50, 6)).round(1)  # with ties
    targets = (rng.random((50, 6)) < 0.3).astype(float)
    targets[:, 5] = 0  # a class that never occurs is excluded
    expected = [metrics.average_precision_score(targets[:, c], scores[:, c]) for c in range(5)]
    precisions = [average_precision(torch.tensor(scores[:, c]), torch.tensor(targets[:, c])) for c in range(5)]
    assert precisions == pytest.approx(expected)
    mean = mean_average_precision(torch.tensor(scores), torch.tensor(targets))
    assert mean == pytest.approx(np.mean(expected))
    with pytest.raises(ValueError, match="requires a class with a positive"):
        mean_average_precision(torch.tensor(scores), torch.zeros(50, 6))


def test_top_k():
    scores = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(8, (100,), generator=torch.Generator().manual_seed(1))
    for k in (1, 3, 7):
        expected = metrics.top_k_accuracy_score(targets, scores, k=k, labels=range(8))
        assert accuracy(scores, targets, k) == pytest.approx(expected)
    broken = torch.full((100, 8), torch.nan)
    assert accuracy(broken, targets) == accuracy(broken, targets, 5) == 0
    assert accuracy(torch.zeros(100, 8), targets) == pytest.approx(1 / 8)
    assert accuracy(torch.zeros(100, 8), targets, 5) == pytest.approx(5 / 8)


class Brightness(nn.Module):
    """Two classes by the brightness of the clip."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        level = clips.flatten(1).mean(1) - 0.6
        return self.scale * torch.stack([-level, level], 1)


def test_views_are_averaged(tmp_path):
    save_clip(tmp_path / "a" / "x.mp4")
    save_image(tmp_path / "b" / "y.png", 200)
    listing = read_listing(tmp_path)
    model = Brightness()
    view = View(frames=2, clips=3, crops=2)
    data = ClipData(listing, Transform(16), view, training=False)
    for average in ("logits", "probabilities"):
        scores, targets, broken = predict(model, data, batch=4, average=average)
        assert broken == []
        assert targets.tolist() == [0, 1]
        logits = model(data[0].clip).detach()
        expected = logits.mean(0) if average == "logits" else logits.softmax(1).mean(0)
        torch.testing.assert_close(scores[0], expected)
    assert evaluator(data)(model) == {"top1": 100.0}
    with pytest.raises(ValueError, match="average"):
        predict(model, data, average="votes")


def test_broken_items_are_skipped(tmp_path):
    for n in range(3):
        save_image(tmp_path / "a" / f"{n}.png", 10)
        save_image(tmp_path / "b" / f"{n}.png", 200)
    (tmp_path / "a" / "1.png").write_bytes(b"broken")
    data = ClipData(read_listing(tmp_path), Transform(16), training=False)
    scores, _, broken = predict(Brightness(), data)
    assert len(scores) == 5
    assert len(broken) == 1
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(b"broken")
    with pytest.raises(ValueError, match="none of the 6 items"):
        predict(Brightness(), data)


def blobs(n: int, seed: int, spread: float = 0.7) -> tuple[torch.Tensor, torch.Tensor]:
    centers = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 4
    return centers[y] + spread * torch.randn(n, 10, generator=generator), y


class TestProbes:
    @pytest.mark.parametrize("shots", [1, 5, 20])
    def test_few_shot_is_ridge_regression(self, shots):
        """Against scikit-learn's ridge regression, with the constant feature as an additional column."""
        from sklearn.linear_model import Ridge

        (x, y), (x_test, y_test) = blobs(100, 1), blobs(400, 2)
        score = few_shot(x, y, x_test, y_test, shots=shots)
        index = np.concatenate([np.flatnonzero(y.numpy() == c)[:shots] for c in range(4)])
        support = x.double().numpy()[index]
        mean, deviation = support.mean(0), support.std(0) + 1e-5
        standardize = lambda a: np.c_[(a - mean) / deviation, np.full(len(a), 100.0)]  # noqa: E731
        ridge = Ridge(alpha=2.0**10, fit_intercept=False, solver="cholesky")
        ridge.fit(standardize(support), 2.0 * np.eye(4)[y.numpy()[index]] - 1)
        predicted = ridge.predict(standardize(x_test.double().numpy())).argmax(1)
        assert score == pytest.approx((predicted == y_test.numpy()).mean())

    def test_few_shot_samples_with_a_seed(self):
        (x, y), (x_test, y_test) = blobs(100, 1), blobs(400, 2)
        values = {few_shot(x, y, x_test, y_test, shots=2, seed=seed) for seed in range(5)}
        assert len(values) > 1
        with pytest.raises(ValueError, match="shots must be at most 25, the number of examples of class 0, got 26"):
            few_shot(x, y, x_test, y_test, shots=26)

    def test_linear_probe_as_scikit_learn(self):
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        (x, y), (x_test, y_test) = blobs(200, 1, 1.5), blobs(400, 2, 1.5)
        score, penalty = linear_probe(x, y, x_test, y_test, penalties=(1.0,))
        assert penalty == 1.0
        scaler = StandardScaler().fit(x.numpy())
        reference = LogisticRegression(C=1.0, max_iter=1000).fit(scaler.transform(x.numpy()), y.numpy())
        assert score == pytest.approx(reference.score(scaler.transform(x_test.numpy()), y_test.numpy()), abs=0.006)

    def test_nearest_neighbors_as_scikit_learn(self):
        from sklearn.neighbors import KNeighborsClassifier

        (x, y), (x_test, y_test) = blobs(200, 1, 1.5), blobs(400, 2, 1.5)
        for k in (1, 5, 20):
            reference = KNeighborsClassifier(
                k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
            ).fit(x.numpy(), y.numpy())
            expected = reference.score(x_test.numpy(), y_test.numpy())
            assert nearest_neighbors(x, y, x_test, y_test, k=k) == pytest.approx(expected)
        assert nearest_neighbors(x[:4], y[:4], x_test, y_test, k=100) > 0.3


class TestObjective:
    def batch(self) -> dict:
        data = MovingDigits(8, frames=2, size=16)
        return collate([data[n] for n in range(8)])

    def linear(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 16 * 16, 40))

    def test_cross_entropy(self):
        batch, model = self.batch(), self.linear()
        for smoothing in (0.0, 0.2):
            loss, statistics = Classification(label_smoothing=smoothing)(model, batch, torch.Generator())
            logits = model(batch["clips"][:, 0])
            expected = nn.functional.cross_entropy(logits, batch["targets"], label_smoothing=smoothing)
            torch.testing.assert_close(loss, expected)
            assert 0 <= float(statistics["accuracy"]) <= 1

    def test_sigmoid(self):
        batch, model = self.batch(), self.linear()
        loss, _ = Classification("sigmoid")(model, batch, torch.Generator())
        one_hot = nn.functional.one_hot(batch["targets"], 40).float()
        logits = model(batch["clips"][:, 0])
        expected = nn.functional.binary_cross_entropy_with_logits(logits, one_hot) * 40
        torch.testing.assert_close(loss, expected)
        several, _ = Classification("sigmoid")(model, batch | {"targets": one_hot}, torch.Generator())
        torch.testing.assert_close(several, loss)

    @pytest.mark.parametrize("augmentation", ["mixup", "cutmix"])
    def test_mixed_clips_have_mixed_targets(self, augmentation):
        """Clips have the brightness of their target, so inputs and targets must be mixed in the same proportion."""
        clips = torch.zeros(6, 1, 1, 3, 40, 40)
        targets = torch.tensor([0, 1, 0, 1, 0, 1])
        clips[targets == 1] = 1.0
        captured = {}

        class Watch(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                captured["level"] = x.flatten(1).mean(1)
                return torch.zeros(len(x), 2)

        objective = Classification(**{augmentation: 1.0})
        original = objective._soft
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            mixed, other, weight = objective._mix(clips[:, 0], generator)
            expected = original(targets, 2)
            expected = weight * expected + (1 - weight) * expected[other]
            Watch()(mixed)
            torch.testing.assert_close(captured["level"], expected[:, 1], atol=1e-5, rtol=0)
        assert objective._mix(clips[:1, 0], torch.Generator())[1] is None


def test_lines_of_fewer_clips_win_nothing():
    """A method that fails on a hard clip is not compared by its mean over the others."""
    lines = [
        {"keep": 0.1, "method": "a", "clips": 2, "cosine": 0.7, "total_ms": 1.0, "tokens": 4},
        {"keep": 0.1, "method": "b", "clips": 1, "cosine": 0.85, "total_ms": 1.0, "tokens": 4},
    ]
    first, second = rank(lines, "cosine")
    assert (first["method"], first["standing"], second["standing"]) == ("a", "best", "")


def test_the_text_of_a_choice_that_ends_with_a_letter():
    assert find_letter("Team B", ("Team B", "Team A")) == "A"
    assert find_letter("Vitamin C.", ("Vitamin C", "Vitamin D", "Vitamin B")) == "A"
    assert find_letter("B", ("Team B", "Team A")) == "B"
    assert find_letter("The answer is B.", ("Team B", "Team A")) == "B"
