"""How much of what a robot must see is in frozen features: a small policy cloned on them from demonstrations.

Features of demonstrations are made once; then batch normalisation and an MLP learn the expert's actions by mean squared
error. The score is the best of the evaluations during training, in mean over seeds, as in R3M (arXiv 2203.12601), whose
protocol Token Bottleneck uses, and CortexBench (arXiv 2303.18240); see `cloning_protocol`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.data.demonstrations import Demonstration
from fewtokens.evaluation.cloning_protocol import Cloning
from fewtokens.evaluation.rollouts import Eye, Rollout, fuse, roll_out, with_history
from fewtokens.evaluation.simulate import Environment


class Policy(nn.Module):
    """Inputs [B,D] to actions [B,A]: batch normalisation without more ado, then linear layers.

    The last layer begins at a hundredth of what is drawn, as in the reference codes.

    Args:
        width: D. actions: A.
        hidden: widths between. activation: "tanh" or "relu".
    """

    def __init__(self, width: int, actions: int, *, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        widths = (width, *hidden, actions)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.activation = {"tanh": torch.tanh, "relu": torch.relu}[activation]
        with torch.no_grad():
            for parameter in self.layers[-1].parameters():
                parameter.mul_(0.01)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def features_of(
    eye: Eye, demonstrations: Sequence[Demonstration], progress: Callable[[int, int], None] | None = None
) -> list[Tensor]:
    """Features float32 [T,C] of each demonstration.

    Args:
        progress: called with (frames done, in all).
    """
    total, done = sum(map(len, demonstrations)), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return [eye(one.images, advance) for one in demonstrations]


def inputs_of(
    features: Sequence[Tensor], demonstrations: Sequence[Demonstration], protocol: Cloning
) -> tuple[Tensor, Tensor]:
    """What a policy sees [n,D] and what the expert did [n,A], over all steps of all demonstrations.

    Raises:
        ValueError: fewer states than `protocol.proprio`.
    """
    rows, actions = [], []
    for seen, one in zip(features, demonstrations, strict=True):
        if one.observations.shape[1] < protocol.proprio:
            raise ValueError(
                f"the demonstrations have {one.observations.shape[1]} states, {protocol.proprio} are wanted (proprio)"
            )
        fused = fuse(with_history(seen, protocol.history), protocol.fusion)
        rows.append(torch.cat([fused, one.observations[:, : protocol.proprio]], 1))
        actions.append(one.actions)
    return torch.cat(rows), torch.cat(actions)


@dataclass
class Evaluation:
    """What one look at the policy said.

    Attributes:
        step: of training.
        loss: mean squared error on the demonstrations, the policy in evaluation mode.
        score: success in %, return, or held-out mean squared error; None where nothing was held out or rolled out.
    """

    step: int
    loss: float
    score: float | None


@dataclass
class Clone:
    """A trained policy.

    Attributes:
        policy: as it was at the best evaluation.
        evaluations: one after the other.
        best: the best score; the lowest of errors, the highest of others.
        rollouts: of the best evaluation.
    """

    policy: Policy
    evaluations: list[Evaluation]
    best: float | None
    rollouts: list[Rollout] = field(default_factory=list)


def clone(
    x: Tensor,
    actions: Tensor,
    protocol: Cloning,
    *,
    seed: int = 0,
    held_out: tuple[Tensor, Tensor] | None = None,
    environments: Sequence[Environment] = (),
    eye: Eye | None = None,
    film: int = 0,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> Clone:
    """Trains a policy and evaluates it now and then.

    Args:
        x, actions: from `inputs_of`.
        protocol: of the cloning.
        seed: of the policy, of the batches, and of the episodes (the same ones at each evaluation).
        held_out: inputs and actions on which the error is the score; or
        environments: equal ones in which it acts, side by side; with the eye that it sees by.
        film: episodes whose frames are kept.
        device: of the policy.
        progress: called with (steps done, in all, numbers): loss, best; or, in an evaluation, episode.

    Raises:
        ValueError: fewer than two samples, or nothing to evaluate on where the protocol rolls out.
    """
    if len(x) < 2:
        raise ValueError(f"{len(x)} steps of demonstrations are too few to clone; at least 2 are needed")
    if held_out is not None and environments:
        raise ValueError("a policy is scored by rollouts or on what was held out, not by both")
    assert not environments or eye is not None
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = Policy(x.shape[1], actions.shape[1], hidden=protocol.hidden, activation=protocol.activation)
    policy.to(device)
    x, actions = x.to(device), actions.to(device)
    optimizer = torch.optim.Adam(policy.parameters(), lr=protocol.lr)
    stops = set(_stops(len(x), protocol))
    total = max(stops)
    evaluations: list[Evaluation] = []
    best: float | None = None
    kept, filmed = {name: value.clone() for name, value in policy.state_dict().items()}, list[Rollout]()
    for step, index in enumerate(_batches(len(x), protocol, generator), 1):
        policy.train()
        index = index.to(device)
        with torch.enable_grad():
            loss = F.mse_loss(policy(x[index]), actions[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in stops:
            policy.eval()
            score, rollouts = None, list[Rollout]()
            if held_out is not None:
                score = error(policy, held_out[0].to(device), held_out[1].to(device))
            elif environments and eye is not None and protocol.rollouts:
                rollouts = roll_out(
                    policy, eye, environments, episode_seeds(seed, protocol.rollouts), protocol, film,
                    None if progress is None else partial(_episode, progress, step, total),
                )  # fmt: skip
                score = mean_score(rollouts, protocol.criterion)
            evaluations.append(Evaluation(step, error(policy, x, actions), score))
            if score is None or best is None or (score < best if held_out is not None else score > best):
                best, filmed = score, rollouts
                kept = {name: value.clone() for name, value in policy.state_dict().items()}
        if progress is not None:
            numbers = {"loss": float(loss.detach())} if step % 50 == 0 or step in stops else {}
            progress(step, total, numbers | ({} if best is None else {"best": best}))
    policy.load_state_dict(kept)
    return Clone(policy.eval(), evaluations, best, filmed)


@torch.no_grad()
def error(policy: Policy, x: Tensor, actions: Tensor) -> float:
    """Mean squared error of a policy in evaluation mode."""
    assert not policy.training
    parts = zip(x.split(4096), actions.split(4096), strict=True)
    return sum(float(F.mse_loss(policy(a), b, reduction="sum")) for a, b in parts) / actions.numel()


def mean_score(rollouts: Sequence[Rollout], criterion: str) -> float:
    """Share of episodes in which the task was done, in %; or the mean return."""
    if criterion == "return":
        return sum(one.total for one in rollouts) / len(rollouts)
    return 100 * sum(one.ever if criterion == "any" else one.last for one in rollouts) / len(rollouts)


def episode_seeds(seed: int, count: int) -> list[int]:
    """Of the episodes of a run; none is that of a demonstration, which count from 0."""
    return [100_000 * (seed + 1) + number for number in range(count)]


# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def interval(scores: Sequence[float]) -> tuple[float, float | None]:
    """Mean over seeds, and half the width of its 95 % confidence interval (Student's t); None for a single seed."""
    values = torch.tensor(scores, dtype=torch.float64)
    if len(values) < 2:
        return float(values.mean()), None
    quantile = _T[len(values) - 2] if len(values) - 2 < len(_T) else 1.96 + 2.5 / (len(values) - 1)
    return float(values.mean()), float(quantile * values.std() / len(values) ** 0.5)


def _episode(
    progress: Callable[[int, int, dict[str, float]], None], step: int, total: int, done: int, in_all: int
) -> None:
    progress(step, total, {"episode": done})


def _batches(count: int, protocol: Cloning, generator: torch.Generator) -> Iterator[Tensor]:
    """Numbers of the samples of each step."""
    for _ in range(protocol.steps):
        yield torch.randint(count, (protocol.batch,), generator=generator)
    for _ in range(protocol.epochs):
        # A last batch of one sample has no variance to be normalised by.
        yield from (part for part in torch.randperm(count, generator=generator).split(protocol.batch) if len(part) > 1)


def _stops(count: int, protocol: Cloning) -> list[int]:
    """Steps after which the policy is evaluated."""
    each = 1 if protocol.steps else count // protocol.batch + (count % protocol.batch > 1)
    length = protocol.steps or protocol.epochs
    return [each * n for n in (*range(protocol.every, length, protocol.every), length)]
