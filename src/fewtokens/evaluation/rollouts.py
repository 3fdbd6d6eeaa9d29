"""Episodes of a policy that acts on the features of a frozen encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.encoder import Encoder
from fewtokens.core.shapes import shape_repr
from fewtokens.evaluation.cloning_protocol import FEATURES, Cloning
from fewtokens.evaluation.simulate import Environment


class FrameEncoder:
    """Computes features of frames with a frozen encoder.

    Args:
        encoder: an encoder of `load_encoder`, which sets its device and dtype; None for the feature "none".
        protocol: specifies size and feature.
        batch: frames per pass.
        size: side of rendered frames, that of the demonstrations. Defaults to `protocol.render`.
    """

    def __init__(self, encoder: Encoder | None, protocol: Cloning, *, batch: int = 32, size: int | None = None) -> None:
        if (encoder is None) != (protocol.feature == "none"):
            raise ValueError("feature none does not accept an encoder, all other features require one")
        self.encoder, self.protocol, self.batch = encoder, protocol, batch
        self.size = size or protocol.render

    @property
    def blind(self) -> bool:
        """Whether frames are ignored."""
        return self.encoder is None

    @torch.no_grad()
    def __call__(self, images: Tensor, progress: Callable[[int], None] | None = None) -> Tensor:
        """Returns features float32 [n,C] on the CPU of frames uint8 [n,H,W,3]; C is 0 for the feature "none".

        Raises:
            ValueError: the encoder does not provide this feature.
        """
        if self.encoder is None:
            return torch.zeros(len(images), 0)
        features = []
        for part in images.split(self.batch):
            # Each frame is a separate video, so that no encoder mixes frames.
            tokens, _ = self.encoder(self._fit(part)[:, None])
            features.append(self._feature(tokens).float().cpu())
            if progress is not None:
                progress(len(part))
        return torch.cat(features)

    def _fit(self, images: Tensor) -> Tensor:
        """Frames float in 0..1 [n,3,crop,crop]: short side resized to `render`, then cropped at the center."""
        x = images.permute(0, 3, 1, 2).float() / 255
        short = min(x.shape[-2:])
        if short != self.protocol.render:
            size = [round(side * self.protocol.render / short) for side in x.shape[-2:]]
            x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
        top, left = ((side - self.protocol.crop) // 2 for side in x.shape[-2:])
        return x[..., top : top + self.protocol.crop, left : left + self.protocol.crop]

    def _feature(self, tokens: Any) -> Tensor:
        kind = self.protocol.feature
        if kind in ("class", "prefix"):
            if tokens.prefix is None or not tokens.prefix.shape[1]:
                raise ValueError(f"this encoder has no class token; use feature {' or '.join(FEATURES[2:4])}")
            return tokens.prefix[:, 0] if kind == "class" else tokens.prefix.flatten(1)
        if kind == "mean":
            weight = (tokens.sizes * tokens.mask)[..., None]
            return (tokens.features.float() * weight).sum(1) / weight.sum(1)
        return tokens.features.flatten(1)


@dataclass
class Rollout:
    """One episode.

    Attributes:
        seed: random seed of the initial state.
        steps: length of the episode.
        total_reward: sum of the rewards.
        any_success, final_success: whether the task was done in any step, and in the last step.
        frames: uint8 [H,W,3] of each step, if the episode was filmed.
    """

    seed: int
    steps: int = 0
    total_reward: float = 0.0
    any_success: bool = False
    final_success: bool = False
    frames: list[Tensor] = field(default_factory=list)

    __repr__ = shape_repr


def stack_history(features: Tensor, history: int) -> Tensor:
    """Stacks the last `history` features at each step, oldest first: [T,C] to [T,history,C].

    In the early steps the first feature is repeated.
    """
    index = torch.arange(len(features))[:, None] - torch.arange(history - 1, -1, -1)
    return features[index.clamp(min=0)]


def fuse(features: Tensor, fusion: str) -> Tensor:
    """Combines the features of h frames [...,h,C], oldest first, into one vector.

    Args:
        fusion: "flare" (the default of protocols): the h-1 differences of consecutive features, then the last feature,
            h*C values, as in CortexBench's code. "flare_full": all h features, then the differences, (2h-1)*C values,
            as in the text of FLARE (arXiv 2101.01857). "concat": the features, h*C values.
    """
    differences = features[..., 1:, :] - features[..., :-1, :]
    parts = {
        "flare": (differences, features[..., -1:, :]),
        "flare_full": (features, differences),
        "concat": (features,),
    }[fusion]
    return torch.cat(parts, -2).flatten(-2)


@torch.no_grad()
def roll_out(
    policy: nn.Module,
    frame_encoder: FrameEncoder,
    environments: Sequence[Environment],
    seeds: Sequence[int],
    protocol: Cloning,
    film: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Rollout]:
    """Runs a policy for one episode per seed.

    Args:
        policy: maps inputs [n,D] to actions [n,A]; must be in evaluation mode.
        frame_encoder: computes the features of rendered frames.
        environments: identical environments; as many episodes run side by side, and their frames are encoded in one
            pass.
        seeds: random seeds of the initial states.
        protocol: specifies history, fusion, proprio and criterion. With the criterion "any" an episode ends at its
            first success, otherwise at the horizon.
        film: the number of episodes whose frames are kept.
        progress: called with (episodes done, total).
    """
    assert not policy.training, "batch statistics of a rollout would leak into its actions"
    device = next(policy.parameters()).device
    rollouts: list[Rollout] = []
    for start in range(0, len(seeds), len(environments)):
        batch = [Rollout(seed) for seed in seeds[start : start + len(environments)]]
        running = list(range(len(batch)))
        for number in running:
            environments[number].reset(batch[number].seed)
        histories: list[Tensor] = [torch.empty(0)] * len(batch)
        while running:
            frames = {
                number: torch.from_numpy(environments[number].render(frame_encoder.size))
                for number in running
                if not frame_encoder.blind or start + number < film
            }
            if frame_encoder.blind:
                features = torch.zeros(len(running), 0)
            else:
                features = frame_encoder(torch.stack([frames[number] for number in running]))
            rows = []
            for number, feature in zip(running, features, strict=True):
                history = histories[number] if batch[number].steps else feature.expand(protocol.history, -1)
                histories[number] = torch.cat([history[1:], feature[None]])
                state = torch.from_numpy(environments[number].state[: protocol.proprio])
                rows.append(torch.cat([fuse(histories[number], protocol.fusion), state]))
            actions = policy(torch.stack(rows).to(device)).float().cpu().numpy()
            for number, action in zip(list(running), actions, strict=True):
                rollout, environment = batch[number], environments[number]
                if start + number < film:
                    rollout.frames.append(frames[number])
                rollout.total_reward += environment.step(action)
                rollout.steps += 1
                rollout.final_success = environment.success
                rollout.any_success |= rollout.final_success
                if rollout.steps >= environment.horizon or (rollout.any_success and protocol.criterion == "any"):
                    running.remove(number)
        rollouts += batch
        if progress is not None:
            progress(len(rollouts), len(seeds))
    return rollouts


def filmstrip(rollouts: Sequence[Rollout], columns: int = 4) -> Tensor:
    """Tiles the filmed episodes into one video, uint8 [T,3,H,W]; shorter episodes hold their last frame.

    At the end of an episode its border turns green if the task is done, otherwise red.

    Raises:
        ValueError: no episode was filmed.
    """
    rollouts = [rollout for rollout in rollouts if rollout.frames]
    if not rollouts:
        raise ValueError("no episode was filmed")
    length = max(len(rollout.frames) for rollout in rollouts)
    tiles = []
    for rollout in rollouts:
        steps = len(rollout.frames)
        video = torch.stack([*rollout.frames, *[rollout.frames[-1]] * (length - steps)])
        border = max(2, video.shape[1] // 40)
        color = torch.tensor([46, 160, 67] if rollout.final_success else [200, 50, 50], dtype=torch.uint8)
        final_frames = video[steps - 1 :]
        final_frames[:, :border] = final_frames[:, -border:] = color
        final_frames[:, :, :border] = final_frames[:, :, -border:] = color
        tiles.append(video)
    columns = min(columns, len(tiles))
    tiles += [torch.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [torch.cat(tiles[n : n + columns], 2) for n in range(0, len(tiles), columns)]
    return torch.cat(rows, 1).permute(0, 3, 1, 2)
