"""A small ViT that sees what is in the made clips: the frozen encoder of `videoqa.py`.

    python benchmarks/videoqa_encoder.py WORK        # 35 minutes on 2 cores; goes on where it was stopped

A Dinov2 config of 0.83 M parameters (128 channels, 4 blocks, patches of 8 pixels of 64), drawn at random and taught for
every 2 x 2 patches what is there: the look (6 shapes, 10 digits), the colour, and where its middle lies. These labels
come from the generator, clips of the training split alone. Expected at the end: see the table in results.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from fewtokens.core import files
from fewtokens.data.questions import SceneConfig, key_of, make_question
from fewtokens.data.scenes import COLOURS, DIGITS, SHAPES, render
from fewtokens.data.staging import stage
from fewtokens.encoders import VitEncoder, load_encoder
from fewtokens.train.loop import fit
from fewtokens.train.settings import Settings

LOOKS = (*SHAPES, *DIGITS)
CELLS, POOL, FRAMES = 4, 2, 8


class LabelledFrames(Dataset[dict[str, Tensor]]):
    """Some frames of a clip, and what is in each of 4 x 4 places: look, colour (0 is nothing) and offset."""

    def __init__(self, split: str, items: int, first: int = 0) -> None:
        self.split, self.items, self.first, self.config = split, items, first, SceneConfig()

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        epoch, number = key if isinstance(key, tuple) else (0, key)
        number += self.first + epoch * self.items
        question = make_question(self.split, number, self.config)
        rng = np.random.default_rng(key_of(self.split, number, self.config, 1))
        actors, background = stage(question, self.config, rng)
        frames = render(actors, background, self.config.frames, self.config.size, self.split)
        chosen = rng.permutation(self.config.frames)[:FRAMES]
        look = torch.zeros(len(chosen), CELLS, CELLS, dtype=torch.int64)
        colour, offset = torch.zeros_like(look), torch.zeros(len(chosen), CELLS, CELLS, 2)
        for actor in actors:
            for n, t in enumerate(chosen):
                row, column = actor.path[t] * CELLS
                if actor.shown[t] and 0 <= row < CELLS and 0 <= column < CELLS:
                    at = n, int(row), int(column)
                    look[at], colour[at] = 1 + LOOKS.index(actor.look), 1 + list(COLOURS).index(actor.colour)
                    offset[at] = torch.tensor([row % 1, column % 1])
        return {"frames": frames[chosen], "look": look, "colour": colour, "offset": offset}


class Seer(nn.Module):
    """The encoder, and what is read off every 2 x 2 patches."""

    def __init__(self, encoder: VitEncoder) -> None:
        super().__init__()
        self.encoder = encoder.vit
        object.__setattr__(self, "frames", encoder)  # not registered, so that its ViT has one name
        self.head = nn.Linear(encoder.dim * POOL**2, len(LOOKS) + 1 + len(COLOURS) + 1 + 2)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.frames(frames)[0].features
        x = x.reshape(-1, CELLS, POOL, CELLS, POOL, x.shape[-1]).permute(0, 1, 3, 2, 4, 5).flatten(3)
        return self.head(x).split([len(LOOKS) + 1, len(COLOURS) + 1, 2], -1)  # type: ignore[return-value]


def objective(model: Seer, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    look, colour, offset = model(batch["frames"])
    wanted = {name: batch[name].flatten(0, 1) for name in ("look", "colour", "offset")}
    there = wanted["look"] > 0
    loss = F.cross_entropy(look.movedim(-1, 1), wanted["look"]) + F.cross_entropy(
        colour.movedim(-1, 1), wanted["colour"]
    )
    loss = loss + F.mse_loss(offset[there], wanted["offset"][there])
    named = {
        "look": (look.argmax(-1) == wanted["look"])[there].float().mean(),
        "colour": (colour.argmax(-1) == wanted["colour"])[there].float().mean(),
    }
    return loss, named


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def blank(folder: Path) -> Path:
    """A Dinov2 of random weights, as transformers saves it."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=4, patch_size=8, image_size=64, layerscale_value=0.1
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


def main(work: Path) -> None:
    encoder = load_encoder(blank(work / "blank"), batch=4096)
    assert isinstance(encoder, VitEncoder)
    model = Seer(encoder)

    def say(done: int, total: int, numbers: dict[str, float]) -> None:
        if done % 20 == 0:
            print(done, total, {name: round(value, 3) for name, value in numbers.items()}, flush=True)

    # Two falls of the learning rate, the second from where the first ended.
    for number, steps in enumerate((900, 2000)):
        settings = Settings(
            steps=steps, batch=24, lr=1.5e-3, weight_decay=0.02, workers=1, save_every=100, log_every=20, seed=number
        )
        data = LabelledFrames("train", 24 * steps, first=24 * 900 * number)
        fit(model, objective, data, settings, work / ("seer", "seer2")[number], collate=collate, progress=say)
    model.eval()
    with torch.no_grad():
        batch = collate([LabelledFrames("val", 64)[n] for n in range(64)])
        _, scores = objective(model, batch, torch.Generator())
    print("val", {name: round(float(value), 3) for name, value in scores.items()})
    files.save(
        work / "encoder.safetensors", "videoqa_encoder", model.encoder.state_dict(),
        {name: float(value) for name, value in scores.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
