"""Quality of frozen features: 5-shot least squares, linear probe, nearest neighbors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.data import ClipData
from fewtokens.evaluation.items import apply_to_items

# Default regularization of the 5-shot protocol, as in big_vision.
LAMBDA = 2.0**10


def extract_features(
    features: Callable[[Tensor], Tensor],
    data: ClipData,
    *,
    device: torch.device | str = "cpu",
    batch: int = 64,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor, list[str]]:
    """Computes the features of every item, averaged over its views.

    Args:
        features: maps clips [B,T,3,H,W] in 0..1 to [B,C].
        data: test data.
        device: device on which `features` receives clips.
        batch: views per pass. workers: number of reading processes.
        progress: called with (items done, total).

    Returns:
        features [n,C] float32, targets [n], and an error message for each skipped item.
    """
    values, targets, broken = apply_to_items(
        features, data, device=device, batch=batch, workers=workers, progress=progress
    )
    return values.mean(1), targets, broken


def few_shot(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    *,
    shots: int = 5,
    penalty: float = LAMBDA,
    seed: int | None = None,
) -> float:
    """Accuracy of least squares on the first `shots` examples of each class.

    The protocol of ViT and TokenLearner (arXiv 2010.11929, 2106.11297): features standardized by the mean and standard
    deviation of these examples, an additional constant feature of 100, targets of -1 and 1,
    W = (X'X + penalty I)^-1 X'Y; the class with the largest output is predicted.

    Args:
        x, y: training features [n,C] and classes [n].
        x_test, y_test: test features and classes.
        shots: number of examples per class.
        penalty: regularization. 2**10 in big_vision; the released code of ViT selects it from a list.
        seed: random seed to sample the examples with; None for the first examples of each class.

    Raises:
        ValueError: a class has fewer than `shots` examples.
    """
    classes = int(y.max()) + 1
    shot_indices = []
    for c in range(classes):
        members = (y == c).nonzero().squeeze(1)
        if len(members) < shots:
            raise ValueError(f"shots must be at most {len(members)}, the number of examples of class {c}, got {shots}")
        if seed is not None:
            members = members[torch.randperm(len(members), generator=torch.Generator().manual_seed(seed + 7919 * c))]
        shot_indices.append(members[:shots])
    index = torch.cat(shot_indices)
    support = x[index].double()
    mean, deviation = support.mean(0), support.std(0, unbiased=False) + 1e-5

    def standardize(rows: Tensor) -> Tensor:
        rows = (rows.double() - mean) / deviation
        return torch.cat([rows, torch.full((len(rows), 1), 100.0, dtype=torch.float64)], 1)

    weights = _least_squares(standardize(support), 2.0 * F.one_hot(y[index], classes).double() - 1, penalty)
    predicted = (standardize(x_test) @ weights).argmax(1)
    return float((predicted == y_test).double().mean())


def _least_squares(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Computes (X'X + penalty I)^-1 X'Y by solving the smaller of two equivalent systems."""
    n, dim = x.shape
    if n < dim:
        return x.T @ torch.linalg.solve(x @ x.T + penalty * torch.eye(n, dtype=x.dtype), y)
    return torch.linalg.solve(x.T @ x + penalty * torch.eye(dim, dtype=x.dtype), x.T @ y)


def linear_probe(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    *,
    penalties: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    seed: int = 0,
) -> tuple[float, float]:
    """Accuracy of multinomial logistic regression on standardized features, trained by L-BFGS to convergence.

    Args:
        x, y: training features [n,C] and classes [n].
        x_test, y_test: test features and classes.
        penalties: L2 penalties to choose from. The best on a held-out fifth of the training items is used to train on
            all of them.
        seed: random seed that selects this fifth.

    Returns:
        accuracy and the penalty used.
    """
    classes = int(y.max()) + 1
    mean, deviation = x.mean(0), x.std(0, unbiased=False) + 1e-6
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    held_out, rest = order[: len(x) // 5], order[len(x) // 5 :]

    def score(model: nn.Linear, rows: Tensor, labels: Tensor) -> float:
        return float((model(rows).argmax(1) == labels).double().mean())

    best = penalties[0]
    if len(penalties) > 1 and len(held_out):
        scores = [score(_fit_logistic(x[rest], y[rest], classes, p), x[held_out], y[held_out]) for p in penalties]
        best = penalties[max(range(len(scores)), key=lambda n: scores[n])]
    return score(_fit_logistic(x, y, classes, best), x_test, y_test), best


def _fit_logistic(x: Tensor, y: Tensor, classes: int, penalty: float) -> nn.Linear:
    model = nn.Linear(x.shape[1], classes)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    solver = torch.optim.LBFGS(model.parameters(), max_iter=200, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(model(x), y) + 0.5 * penalty * model.weight.square().sum() / len(x)
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return model.requires_grad_(False)


def nearest_neighbors(
    x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, *, k: int = 20, temperature: float = 0.07
) -> float:
    """Accuracy of the weighted vote of the k nearest neighbors by cosine (arXiv 1805.01978, section 3.4).

    Args:
        x, y: training features [n,C] and classes [n].
        x_test, y_test: test features and classes.
        k: number of neighbors, at most n.
        temperature: a neighbor of similarity s votes with weight exp(s / temperature).
    """
    classes = int(y.max()) + 1
    x, x_test = F.normalize(x.float(), dim=1), F.normalize(x_test.float(), dim=1)
    hits = 0
    for rows, labels in zip(x_test.split(1024), y_test.split(1024), strict=True):
        similarity, index = (rows @ x.T).topk(min(k, len(x)), dim=1)
        votes = F.one_hot(y[index], classes).float() * (similarity / temperature).softmax(1)[..., None]
        hits += int((votes.sum(1).argmax(1) == labels).sum())
    return hits / len(x_test)
