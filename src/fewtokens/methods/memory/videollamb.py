"""VideoLLaMB: scenes found by SceneTilling, each read by a bridge with recurrent memory tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core.memory import Memory, MemoryState, Slots
from fewtokens.core.method import load_weights
from fewtokens.methods.ops.memory_rules import (
    adjacency_stats,
    average,
    check_question,
    halve,
    mean_key,
    merge_adjacent,
    merge_down,
)
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.resample import IdentityLayer, check_counts
from fewtokens.methods.ops.scene_tilling import SceneStream

# Memories of earlier scenes that the next one attends to.
_HISTORY = 16


class VideoLLaMB(Memory):
    """Reads each scene together with memory tokens of earlier scenes, and holds the frames that result.

    VideoLLaMB (arXiv 2409.01071). SceneTilling divides the stream into scenes. Up to `frames` frames of a scene and
    `memory` tokens go through transformer layers; the frames that result are held, and the memory tokens join a list.
    The memory of the next scene attends to this list by one layer of cross-attention. With `top`, `read` with the cue
    "text", [B,L,dim], returns only the frames of this number of scenes: those whose mean memory token has the highest
    cosine with the mean of the text.

    Differences from the published code: statistics of cuts are those of the stream so far; a cut is known only when the
    similarity rises again, and until then frames belong to the old scene; frames of a scene are at equal distances of a
    power of two instead of linearly spaced, because its length is unknown; the first memory is trained (theirs is
    zero); videos of a batch do not mix; the list holds 16 memories and the output `cap` frames, beyond which the most
    similar neighbors are averaged (theirs grow without bound); the selection by the question is ours. Averaged memories
    are one scene to it, and an averaged frame belongs to the scene of its mean second. Layers are pre-norm and start as
    the identity, so that without training the frames are unchanged.

    Args:
        cap: number of slots, each a frame of a scene. Default: 64.
        dim: channels of the features.
        frames: maximum number of frames of a scene. Default: 8.
        memory: number of memory tokens. Default: 32.
        top: number of scenes that a question selects; None (default) returns all.
        num_layers: number of layers. Default: 1.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
        on_jump: "error" (default), "shift" or "reset", what to do if time goes back; see `Memory`.
    """

    learned = True
    optional_cues = ("text",)
    separate = True
    spare = 1
    paper = "VideoLLaMB, arXiv 2409.01071"
    license = "written from the paper; reference code has no license file"
    cost = "per scene of F frames of P tokens: num_layers transformer layers over F*P + memory tokens"

    def __init__(
        self,
        cap: int = 64,
        *,
        dim: int = 384,
        frames: int = 8,
        memory: int = 32,
        top: int | None = None,
        num_layers: int = 1,
        checkpoint: str | None = None,
        on_jump: str = "error",
    ) -> None:
        super().__init__()
        self.set_memory(cap, on_jump)
        check_counts(frames=frames, memory=memory, top=1 if top is None else top)
        self.dim, self.frames, self.memory, self.top = dim, frames, memory, top
        self.num_layers, self.checkpoint = num_layers, checkpoint
        self.initial = nn.Parameter(torch.randn(memory, dim) / dim**0.5)
        self.layers = nn.ModuleList(IdentityLayer(dim) for _ in range(num_layers))
        self.recall = IdentityLayer(dim)
        load_weights(self, checkpoint)

    def new_stats(self, B: int, P: int, C: int, device: torch.device) -> dict[str, Tensor]:
        scene = Slots.empty((B, self.frames, P, C), torch.zeros(0, device=device))
        history = Slots.empty((B, _HISTORY, self.memory, C), torch.zeros(0, device=device))
        return adjacency_stats(B, self.cap, device) | {
            # The state of SceneTilling, the first frame of the scene, numbers of slots written.
            "numbers": torch.zeros(B, SceneStream.SIZE + 2, dtype=torch.float64, device=device),
            "previous": torch.zeros(B, C, device=device),
            "scene": scene.features,
            "scene_info": scene.info,
            "history": history.features,
            "history_info": history.info,
        }

    def write(self, frames: Slots, state: MemoryState, **cues: Any) -> None:
        check_dim(self.name, frames.features.shape[3], self.dim)
        stats, index = state.stats, state.frames
        *tilling, start, written = stats["numbers"][0].tolist()
        scenes = SceneStream(numbers=tilling)
        key = mean_key(frames.features.detach())[:, 0]
        cut = scenes.push(float((key * stats["previous"]).sum())) if index else None
        part = replace(state, slots=self._scene(state), seen=torch.tensor([index - int(start)]))
        halve(part, frames)
        stats["previous"], stats["scene"], stats["scene_info"] = key, part.slots.features, part.slots.info
        if cut is not None:
            seen, memory = self._read_scene(state)
            for slot in range(int(seen.mask.sum())):
                merge_adjacent(state, seen.span(slot, slot + 1), int(written) + slot)
            written += int(seen.mask.sum())
            history = self._history(state)
            count = int(history.mask.sum())
            span = torch.stack([frames.seconds[..., 0], seen.seconds[:, :1, 1], frames.seconds[..., 2]], 2)
            place = frames.place[:, :, :1].expand(-1, -1, self.memory, -1)
            new = Slots.create(memory[:, None], frames.mass, span, place)
            history = merge_down(Slots.concatenate([history.span(0, count), new]), _HISTORY, key=mean_key)
            free = Slots.empty((1, _HISTORY - history.count, *history.features.shape[2:]), stats["history"].detach())
            history = Slots.concatenate([history, free])
            stats["history"], stats["history_info"] = history.features, history.info
            stats["scene_info"] = torch.zeros_like(stats["scene_info"])
            start = index + 1
        stats["numbers"] = torch.tensor([[*scenes.numbers, start, written]], dtype=torch.float64).to(key.device)

    def held(self, state: MemoryState, **cues: Any) -> Slots:
        scene, memory = self._read_scene(state)
        slots, text = Slots.concatenate([state.slots, scene]), cues.get("text")
        if self.top is None or text is None:
            return slots
        check_question(self.name, text, len(slots.info), self.dim)
        history, current = self._history(state), average(scene)
        keys = mean_key(torch.cat([history.features, memory[:, None]], 1))
        scores = (keys * mean_key(text[:, None])).sum(2)
        real = torch.cat([history.mask, current.mask], 1)
        # An averaged slot belongs to the last scene that has begun at its mean second, also if that is over.
        begin = torch.cat([history.seconds, current.seconds], 1)[..., 1].masked_fill(~real, torch.inf)
        began = begin[:, None] <= slots.seconds[..., :1]
        scene_of = torch.where(began, begin[:, None], -torch.inf).argmax(2)  # [B,slots]
        scene_of = torch.where(began.any(2), scene_of, begin.argmin(1, keepdim=True))
        owns = torch.zeros_like(real).scatter_reduce(1, scene_of, slots.mask, "amax")
        scores = scores.masked_fill(~(real & owns), -torch.inf)
        top = scores.argsort(dim=1, descending=True, stable=True)[:, : self.top]
        chosen = torch.zeros_like(real).scatter(1, top, True) & scores.isfinite()
        kept = chosen.gather(1, scene_of) & slots.mask
        return Slots(slots.features, slots.info.masked_fill(~kept[..., None], 0))

    def _scene(self, state: MemoryState) -> Slots:
        return Slots(state.stats["scene"], state.stats["scene_info"])

    def _history(self, state: MemoryState) -> Slots:
        return Slots(state.stats["history"], state.stats["history_info"])

    def _read_scene(self, state: MemoryState) -> tuple[Slots, Tensor]:
        """The frames of the current scene after the layers, and its memory tokens [B,m,C]."""
        scene, history = self._scene(state), self._history(state)
        B, F, P, C = scene.features.shape
        dtype = self.initial.dtype
        count = history.mask.sum(1)
        last = history.features[torch.arange(B, device=count.device), (count - 1).clamp(min=0)].to(dtype)
        recalled = self.recall(
            last, history.features.flatten(1, 2).to(dtype), history.mask.repeat_interleave(self.memory, 1)
        )
        memory = torch.where((count > 0)[:, None, None], recalled, self.initial)
        x = torch.cat([memory, scene.features.flatten(1, 2).to(dtype)], 1)
        mask = nn.functional.pad(scene.mask.repeat_interleave(P, 1), (self.memory, 0), value=True)
        for layer in self.layers:
            x = layer(x, None, mask)
        features = x[:, self.memory :].reshape(B, F, P, C).to(state.slots.features.dtype)
        return Slots(features, scene.info), x[:, : self.memory]
