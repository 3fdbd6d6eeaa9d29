"""Episodes of a policy that sees by a frozen encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.encoder import Encoder
from fewtokens.core.shapes import by_shape
from fewtokens.evaluation.cloning_protocol import FEATURES, Cloning
from fewtokens.evaluation.simulate import Environment


class Eye:
    """Frames to features, by a frozen encoder.

    Args:
        encoder: of `load_encoder`, which says where and how finely it computes; None where the feature is "none".
        protocol: says size and feature.
        batch: frames in one pass.
        size: side to which frames are rendered, that of the demonstrations; `protocol.render` where None.
    """

    def __init__(self, encoder: Encoder | None, protocol: Cloning, *, batch: int = 32, size: int | None = None) -> None:
        if (encoder is None) != (protocol.feature == "none"):
            raise ValueError("feature none goes without an encoder, any other with one")
        self.encoder, self.protocol, self.batch = encoder, protocol, batch
        self.size = size or protocol.render

    @property
    def blind(self) -> bool:
        """Whether frames are not looked at."""
        return self.encoder is None

    @torch.no_grad()
    def __call__(self, images: Tensor, progress: Callable[[int], None] | None = None) -> Tensor:
        """Features float32 [n,C] on the CPU of frames uint8 [n,H,W,3]; C is 0 for the feature "none".

        Raises:
            ValueError: the encoder has no such feature.
        """
        if self.encoder is None:
            return torch.zeros(len(images), 0)
        made = []
        for part in images.split(self.batch):
            # Each frame is a video of its own, so that no encoder mixes them.
            tokens, _ = self.encoder(self._fit(part)[:, None])
            made.append(self._feature(tokens).float().cpu())
            if progress is not None:
                progress(len(part))
        return torch.cat(made)

    def _fit(self, images: Tensor) -> Tensor:
        """Frames float in 0..1 [n,3,crop,crop]: short side to `render`, the middle cut out."""
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
                raise ValueError(f"this encoder gives no class token; take the feature {' or '.join(FEATURES[2:4])}")
            return tokens.prefix[:, 0] if kind == "class" else tokens.prefix.flatten(1)
        if kind == "mean":
            weight = (tokens.sizes * tokens.mask)[..., None]
            return (tokens.features.float() * weight).sum(1) / weight.sum(1)
        return tokens.features.flatten(1)


@dataclass
class Rollout:
    """One episode.

    Attributes:
        seed: of its beginning.
        steps: it took.
        total: sum of its rewards.
        ever, last: whether the task was done in any step, and in the last.
        frames: uint8 [H,W,3] of each step, where it was filmed.
    """

    seed: int
    steps: int = 0
    total: float = 0.0
    ever: bool = False
    last: bool = False
    frames: list[Tensor] = field(default_factory=list)

    __repr__ = by_shape


def with_history(features: Tensor, history: int) -> Tensor:
    """The last `history` features at each step, oldest first: [T,C] to [T,history,C]; the first one stands in early."""
    back = torch.arange(len(features))[:, None] - torch.arange(history - 1, -1, -1)
    return features[back.clamp(min=0)]


def fuse(features: Tensor, fusion: str) -> Tensor:
    """Features of some frames [...,h,C], oldest first, as one vector.

    "flare", the default, is what CortexBench's code has: the h-1 differences of neighbors, then the last feature, h*C
    numbers. "flare_full" is the text of FLARE (arXiv 2101.01857): all h features, then the differences, (2h-1)*C.
    "concat": the features, h*C.
    """
    change = features[..., 1:, :] - features[..., :-1, :]
    parts = {
        "flare": (change, features[..., -1:, :]),
        "flare_full": (features, change),
        "concat": (features,),
    }[fusion]
    return torch.cat(parts, -2).flatten(-2)


@torch.no_grad()
def roll_out(
    policy: nn.Module,
    eye: Eye,
    environments: Sequence[Environment],
    seeds: Sequence[int],
    protocol: Cloning,
    film: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Rollout]:
    """Lets a policy act, one episode for each seed.

    Args:
        policy: inputs [n,D] to actions [n,A], in evaluation mode.
        eye: by which it sees.
        environments: equal ones; so many episodes go on side by side, encoded in one pass.
        seeds: of the beginnings.
        protocol: history, fusion, proprio. An episode ends with its success where "any" step counts, else at the
            horizon.
        film: of so many episodes the frames are kept.
        progress: called with (episodes done, in all).
    """
    assert not policy.training, "batch statistics of a rollout would leak into its actions"
    device = next(policy.parameters()).device
    done: list[Rollout] = []
    for start in range(0, len(seeds), len(environments)):
        wave = [Rollout(seed) for seed in seeds[start : start + len(environments)]]
        running = list(range(len(wave)))
        for number in running:
            environments[number].reset(wave[number].seed)
        past: list[Tensor] = [torch.empty(0)] * len(wave)
        while running:
            frames = {
                number: torch.from_numpy(environments[number].render(eye.size))
                for number in running
                if not eye.blind or start + number < film
            }
            if eye.blind:
                seen = torch.zeros(len(running), 0)
            else:
                seen = eye(torch.stack([frames[number] for number in running]))
            rows = []
            for number, feature in zip(running, seen, strict=True):
                known = past[number] if wave[number].steps else feature.expand(protocol.history, -1)
                past[number] = torch.cat([known[1:], feature[None]])
                state = torch.from_numpy(environments[number].state[: protocol.proprio])
                rows.append(torch.cat([fuse(past[number], protocol.fusion), state]))
            acts = policy(torch.stack(rows).to(device)).float().cpu().numpy()
            for number, action in zip(list(running), acts, strict=True):
                one, environment = wave[number], environments[number]
                if start + number < film:
                    one.frames.append(frames[number])
                one.total += environment.step(action)
                one.steps += 1
                one.last = environment.success
                one.ever |= one.last
                if one.steps >= environment.horizon or (one.ever and protocol.criterion == "any"):
                    running.remove(number)
        done += wave
        if progress is not None:
            progress(len(done), len(seeds))
    return done


def filmstrip(rollouts: Sequence[Rollout], columns: int = 4) -> Tensor:
    """Filmed episodes side by side, uint8 [T,3,H,W]; those that end early stay on their last frame.

    At the end of an episode its edge turns green where the task is done, else red.

    Raises:
        ValueError: none was filmed.
    """
    filmed = [one for one in rollouts if one.frames]
    if not filmed:
        raise ValueError("no episode was filmed")
    length = max(len(one.frames) for one in filmed)
    tiles = []
    for one in filmed:
        video = torch.stack([*one.frames, *[one.frames[-1]] * (length - len(one.frames))])
        edge = max(2, video.shape[1] // 40)
        colour = torch.tensor([46, 160, 67] if one.last else [200, 50, 50], dtype=torch.uint8)
        over = video[len(one.frames) - 1 :]
        over[:, :edge] = over[:, -edge:] = colour
        over[:, :, :edge] = over[:, :, -edge:] = colour
        tiles.append(video)
    columns = min(columns, len(tiles))
    tiles += [torch.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [torch.cat(tiles[n : n + columns], 2) for n in range(0, len(tiles), columns)]
    return torch.cat(rows, 1).permute(0, 3, 1, 2)
