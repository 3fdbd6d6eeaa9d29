"""How good frozen features are: 5-shot least squares, a linear probe, nearest neighbors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.data import ClipData
from fewtokens.evaluation.items import over_items

# The regularisation of the 5-shot protocol that is tried, if none is said (big_vision fixes 2**10).
LAMBDA = 2.0**10


def features_of(
    features: Callable[[Tensor], Tensor],
    data: ClipData,
    *,
    device: torch.device | str = "cpu",
    batch: int = 64,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor, list[str]]:
    """Features of every item, the mean of its views: [n,C] float32, targets [n], and what is wrong with the others.

    Args:
        features: clips [B,T,3,H,W] in 0..1 to [B,C].
        data: of a test.
        device: where clips are given to `features`.
        batch: views in one pass. workers: processes that read.
        progress: called with (items done, in all).
    """
    values, targets, broken = over_items(features, data, device=device, batch=batch, workers=workers, progress=progress)
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

    The protocol of ViT and TokenLearner (arXiv 2010.11929, 2106.11297): features standardised by the mean and
    deviation of the chosen examples, a constant feature of 100 beside them, targets of -1 and 1,
    W = (X'X + penalty I)^-1 X'Y, the largest wins.

    Args:
        x, y: [n,C] and [n]; x_test, y_test likewise.
        shots: examples of each class, the first ones, or drawn with the seed where one is given.
        penalty: lambda. Fixed at 2**10 in big_vision; the released code of ViT picks one of a list.
        seed: draws the examples instead.

    Raises:
        ValueError: a class with fewer examples.
    """
    classes = int(y.max()) + 1
    chosen = []
    for c in range(classes):
        members = (y == c).nonzero().squeeze(1)
        if len(members) < shots:
            raise ValueError(f"class {c} has {len(members)} examples, {shots} are needed")
        if seed is not None:
            members = members[torch.randperm(len(members), generator=torch.Generator().manual_seed(seed + 7919 * c))]
        chosen.append(members[:shots])
    index = torch.cat(chosen)
    support = x[index].double()
    mean, deviation = support.mean(0), support.std(0, unbiased=False) + 1e-5

    def standard(rows: Tensor) -> Tensor:
        rows = (rows.double() - mean) / deviation
        return torch.cat([rows, torch.full((len(rows), 1), 100.0, dtype=torch.float64)], 1)

    weights = _least_squares(standard(support), 2.0 * F.one_hot(y[index], classes).double() - 1, penalty)
    predicted = (standard(x_test) @ weights).argmax(1)
    return float((predicted == y_test).double().mean())


def _least_squares(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """(X'X + penalty I)^-1 X'Y, through the smaller of the two systems that give it."""
    n, width = x.shape
    if n < width:
        return x.T @ torch.linalg.solve(x @ x.T + penalty * torch.eye(n, dtype=x.dtype), y)
    return torch.linalg.solve(x.T @ x + penalty * torch.eye(width, dtype=x.dtype), x.T @ y)


def linear_probe(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    *,
    penalties: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    seed: int = 0,
) -> tuple[float, float]:
    """Accuracy of multinomial logistic regression on standardised features, by L-BFGS to convergence.

    Args:
        x, y: [n,C] and [n]; x_test, y_test likewise.
        penalties: L2 weights tried on a fifth of the training items held back; the best one is fitted on all.
        seed: of that fifth.

    Returns:
        accuracy, and the penalty that was chosen.
    """
    classes = int(y.max()) + 1
    mean, deviation = x.mean(0), x.std(0, unbiased=False) + 1e-6
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    held, rest = order[: len(x) // 5], order[len(x) // 5 :]

    def score(model: nn.Linear, rows: Tensor, wanted: Tensor) -> float:
        return float((model(rows).argmax(1) == wanted).double().mean())

    best = penalties[0]
    if len(penalties) > 1 and len(held):
        found = [score(_logistic(x[rest], y[rest], classes, p), x[held], y[held]) for p in penalties]
        best = penalties[max(range(len(found)), key=lambda n: found[n])]
    return score(_logistic(x, y, classes, best), x_test, y_test), best


def _logistic(x: Tensor, y: Tensor, classes: int, penalty: float) -> nn.Linear:
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


def nearest_neighbours(
    x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, *, k: int = 20, temperature: float = 0.07
) -> float:
    """Accuracy of the weighted vote of the k nearest by cosine (arXiv 1805.01978, section 3.4), in blocks.

    Args:
        x, y: [n,C] and [n]; x_test, y_test likewise.
        k: neighbors, at most all there are.
        temperature: a neighbour of similarity s votes with exp(s / temperature).
    """
    classes = int(y.max()) + 1
    x, x_test = F.normalize(x.float(), dim=1), F.normalize(x_test.float(), dim=1)
    hits = 0
    for rows, wanted in zip(x_test.split(1024), y_test.split(1024), strict=True):
        similar, index = (rows @ x.T).topk(min(k, len(x)), dim=1)
        votes = F.one_hot(y[index], classes).float() * (similar / temperature).softmax(1)[..., None]
        hits += int((votes.sum(1).argmax(1) == wanted).sum())
    return hits / len(x_test)
