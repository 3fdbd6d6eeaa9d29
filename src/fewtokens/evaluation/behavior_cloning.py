"""Behavior cloning: how much of what a robot must see is in frozen features. A small policy learns from demonstrations.

The features of the demonstrations are computed once; batch normalization and an MLP then learn the expert's actions by
mean squared error. The score is the best of the evaluations during training, averaged over seeds, as in R3M (arXiv
2203.12601), whose protocol Token Bottleneck uses, and CortexBench (arXiv 2303.18240); see `cloning_protocol`.
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
from fewtokens.evaluation.rollouts import FrameEncoder, Rollout, fuse, roll_out, stack_history
from fewtokens.evaluation.simulate import Environment


class Policy(nn.Module):
    """Maps inputs [B,D] to actions [B,A]: batch normalization, then linear layers.

    The last layer is initialized to a hundredth of PyTorch's default, as in the reference implementations.

    Args:
        dim: D. actions: A.
        hidden: widths of the hidden layers. activation: "tanh" or "relu".
    """

    def __init__(self, dim: int, actions: int, *, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        dims = (dim, *hidden, actions)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))
        self.activation = {"tanh": torch.tanh, "relu": torch.relu}[activation]
        with torch.no_grad():
            for parameter in self.layers[-1].parameters():
                parameter.mul_(0.01)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def encode_demonstrations(
    frame_encoder: FrameEncoder,
    demonstrations: Sequence[Demonstration],
    progress: Callable[[int, int], None] | None = None,
) -> list[Tensor]:
    """Computes features float32 [T,C] of each demonstration.

    Args:
        progress: called with (frames done, total).
    """
    total, done = sum(map(len, demonstrations)), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return [frame_encoder(demonstration.images, advance) for demonstration in demonstrations]


def policy_inputs(
    features: Sequence[Tensor], demonstrations: Sequence[Demonstration], protocol: Cloning
) -> tuple[Tensor, Tensor]:
    """Returns the inputs of a policy [n,D] and the expert's actions [n,A] at all steps of all demonstrations.

    Raises:
        ValueError: the demonstrations have fewer than `protocol.proprio` states.
    """
    rows, actions = [], []
    for frames, demonstration in zip(features, demonstrations, strict=True):
        states = demonstration.observations.shape[1]
        if states < protocol.proprio:
            raise ValueError(f"proprio is {protocol.proprio}, but the demonstrations have {states} states")
        fused = fuse(stack_history(frames, protocol.history), protocol.fusion)
        rows.append(torch.cat([fused, demonstration.observations[:, : protocol.proprio]], 1))
        actions.append(demonstration.actions)
    return torch.cat(rows), torch.cat(actions)


@dataclass
class Evaluation:
    """The result of evaluating the policy once during training.

    Attributes:
        step: training step.
        loss: mean squared error on the demonstrations, with the policy in evaluation mode.
        score: success rate in %, return, or held-out mean squared error; None without held-out data and rollouts.
    """

    step: int
    loss: float
    score: float | None


@dataclass
class Clone:
    """A trained policy.

    Attributes:
        policy: the policy at its best evaluation.
        evaluations: all evaluations in order.
        best: the best score: the lowest for errors, the highest otherwise.
        rollouts: the episodes of the best evaluation.
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
    frame_encoder: FrameEncoder | None = None,
    film: int = 0,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> Clone:
    """Trains a policy and evaluates it at regular intervals.

    Args:
        x, actions: the result of `policy_inputs`.
        protocol: settings of training and evaluation.
        seed: random seed of the policy, the batches and the episodes (the same episodes at each evaluation).
        held_out: inputs and actions; the error on them is the score. Excludes `environments`.
        environments: identical environments in which the policy acts, one episode in each at a time.
        frame_encoder: computes the features of rendered frames; required with `environments`.
        film: the number of episodes whose frames are kept.
        device: device of the policy.
        progress: called with (steps done, total, values); the values are the loss, the best score and, during an
            evaluation, the episode.

    Raises:
        ValueError: fewer than two samples, or both `held_out` and `environments`.
    """
    if len(x) < 2:
        raise ValueError(f"cloning needs at least 2 steps of demonstrations, got {len(x)}")
    if held_out is not None and environments:
        raise ValueError("a policy is scored by rollouts or on held-out demonstrations, not both")
    assert not environments or frame_encoder is not None
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = Policy(x.shape[1], actions.shape[1], hidden=protocol.hidden, activation=protocol.activation)
    policy.to(device)
    x, actions = x.to(device), actions.to(device)
    optimizer = torch.optim.Adam(policy.parameters(), lr=protocol.lr, fused=x.device.type in ("cpu", "cuda"))
    evaluation_steps = set(_evaluation_steps(len(x), protocol))
    total = max(evaluation_steps)
    evaluations: list[Evaluation] = []
    best: float | None = None
    best_state = {name: value.clone() for name, value in policy.state_dict().items()}
    best_rollouts = list[Rollout]()
    for step, index in enumerate(_batches(len(x), protocol, generator), 1):
        policy.train()
        index = index.to(device)
        with torch.enable_grad():
            loss = F.mse_loss(policy(x[index]), actions[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in evaluation_steps:
            policy.eval()
            score, rollouts = None, list[Rollout]()
            if held_out is not None:
                score = mean_squared_error(policy, held_out[0].to(device), held_out[1].to(device))
            elif environments and frame_encoder is not None and protocol.rollouts:
                rollouts = roll_out(
                    policy, frame_encoder, environments, episode_seeds(seed, protocol.rollouts), protocol, film,
                    None if progress is None else partial(_report_episode, progress, step, total),
                )  # fmt: skip
                score = mean_score(rollouts, protocol.criterion)
            evaluations.append(Evaluation(step, mean_squared_error(policy, x, actions), score))
            if score is None or best is None or (score < best if held_out is not None else score > best):
                best, best_rollouts = score, rollouts
                best_state = {name: value.clone() for name, value in policy.state_dict().items()}
        if progress is not None:
            values = {"loss": float(loss.detach())} if step % 50 == 0 or step in evaluation_steps else {}
            progress(step, total, values | ({} if best is None else {"best": best}))
    policy.load_state_dict(best_state)
    return Clone(policy.eval(), evaluations, best, best_rollouts)


@torch.no_grad()
def mean_squared_error(policy: Policy, x: Tensor, actions: Tensor) -> float:
    """Mean squared error of a policy, which must be in evaluation mode."""
    assert not policy.training
    parts = zip(x.split(4096), actions.split(4096), strict=True)
    return sum(float(F.mse_loss(policy(a), b, reduction="sum")) for a, b in parts) / actions.numel()


def mean_score(rollouts: Sequence[Rollout], criterion: str) -> float:
    """Success rate in %, or the mean return if `criterion` is "return"."""
    if criterion == "return":
        return sum(rollout.total_reward for rollout in rollouts) / len(rollouts)
    successes = sum(rollout.any_success if criterion == "any" else rollout.final_success for rollout in rollouts)
    return 100 * successes / len(rollouts)


def episode_seeds(seed: int, count: int) -> list[int]:
    """Seeds of the episodes of a run; they differ from those of demonstrations, which count from 0."""
    return [100_000 * (seed + 1) + number for number in range(count)]


# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def confidence_interval(scores: Sequence[float]) -> tuple[float, float | None]:
    """Mean over seeds, and half the width of its 95 % confidence interval (Student's t); None for a single seed."""
    values = torch.tensor(scores, dtype=torch.float64)
    if len(values) < 2:
        return float(values.mean()), None
    quantile = _T[len(values) - 2] if len(values) - 2 < len(_T) else 1.96 + 2.5 / (len(values) - 1)
    return float(values.mean()), float(quantile * values.std() / len(values) ** 0.5)


def _report_episode(
    progress: Callable[[int, int, dict[str, float]], None], step: int, total: int, episode: int, episodes: int
) -> None:
    progress(step, total, {"episode": episode})


def _batches(count: int, protocol: Cloning, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of the samples of each step."""
    for _ in range(protocol.steps):
        yield torch.randint(count, (protocol.batch,), generator=generator)
    for _ in range(protocol.epochs):
        # Batch normalization has no variance in a last batch of one sample.
        yield from (part for part in torch.randperm(count, generator=generator).split(protocol.batch) if len(part) > 1)


def _evaluation_steps(count: int, protocol: Cloning) -> list[int]:
    """Steps after which the policy is evaluated."""
    steps_per_unit = 1 if protocol.steps else count // protocol.batch + (count % protocol.batch > 1)
    units = protocol.steps or protocol.epochs
    return [steps_per_unit * n for n in (*range(protocol.every, units, protocol.every), units)]
