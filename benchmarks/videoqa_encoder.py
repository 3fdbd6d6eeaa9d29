"""Trains the frozen encoder of `videoqa.py`: a small ViT that recognizes the objects of the synthetic clips.

    python benchmarks/videoqa_encoder.py WORK        # 35 minutes on 2 cores; resumes

A Dinov2 config with 0.83 M parameters (128 channels, 4 blocks, patches of 8 pixels, 64 x 64 images), randomly
initialized and trained to predict, for every 2 x 2 patches, the look (6 shapes, 10 digits), color and offset of the
object there. The labels come from the generator; only clips of the training split are used. It prints the accuracies on
other clips at the end and saves them with the weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from fewtokens.core import files
from fewtokens.data.questions import SceneConfig, clip_seed, make_question
from fewtokens.data.scenes import COLORS, DIGITS, SHAPES, render
from fewtokens.data.staging import build_scene
from fewtokens.encoders import VitEncoder, load_encoder
from fewtokens.train.loop import fit
from fewtokens.train.settings import Settings

LOOKS = (*SHAPES, *DIGITS)
CELLS, POOL, FRAMES = 4, 2, 8


class LabeledFrames(Dataset[dict[str, Tensor]]):
    """Some frames of a clip with labels for each of 4 x 4 cells: look, color (0 for none) and offset."""

    def __init__(self, split: str, items: int, first: int = 0) -> None:
        self.split, self.items, self.first, self.config = split, items, first, SceneConfig()

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        index += self.first + epoch * self.items
        question = make_question(self.split, index, self.config)
        rng = np.random.default_rng(clip_seed(self.split, index, self.config, 1))
        actors, background = build_scene(question, self.config, rng)
        frames = render(actors, background, self.config.frames, self.config.size, self.split)
        sampled = rng.permutation(self.config.frames)[:FRAMES]
        look = torch.zeros(len(sampled), CELLS, CELLS, dtype=torch.int64)
        color, offset = torch.zeros_like(look), torch.zeros(len(sampled), CELLS, CELLS, 2)
        for actor in actors:
            for n, t in enumerate(sampled):
                row, column = actor.path[t] * CELLS
                if actor.shown[t] and 0 <= row < CELLS and 0 <= column < CELLS:
                    cell = n, int(row), int(column)
                    look[cell], color[cell] = 1 + LOOKS.index(actor.look), 1 + list(COLORS).index(actor.color)
                    offset[cell] = torch.tensor([row % 1, column % 1])
        return {"frames": frames[sampled], "look": look, "color": color, "offset": offset}


class Recognizer(nn.Module):
    """The encoder with a linear head on every 2 x 2 patches."""

    def __init__(self, encoder: VitEncoder) -> None:
        super().__init__()
        self.encoder = encoder.vit
        object.__setattr__(self, "frames", encoder)  # not registered, so that its ViT has one name
        self.head = nn.Linear(encoder.dim * POOL**2, len(LOOKS) + 1 + len(COLORS) + 1 + 2)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.frames(frames)[0].features
        x = x.reshape(-1, CELLS, POOL, CELLS, POOL, x.shape[-1]).permute(0, 1, 3, 2, 4, 5).flatten(3)
        return self.head(x).split([len(LOOKS) + 1, len(COLORS) + 1, 2], -1)  # type: ignore[return-value]


def objective(
    model: Recognizer, batch: dict[str, Tensor], generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    look, color, offset = model(batch["frames"])
    labels = {name: batch[name].flatten(0, 1) for name in ("look", "color", "offset")}
    occupied = labels["look"] > 0
    loss = F.cross_entropy(look.movedim(-1, 1), labels["look"]) + F.cross_entropy(color.movedim(-1, 1), labels["color"])
    loss = loss + F.mse_loss(offset[occupied], labels["offset"][occupied])
    named = {
        "look": (look.argmax(-1) == labels["look"])[occupied].float().mean(),
        "color": (color.argmax(-1) == labels["color"])[occupied].float().mean(),
    }
    return loss, named


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def blank(folder: Path) -> Path:
    """Saves a Dinov2 with random weights in the format of transformers."""
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
    model = Recognizer(encoder)

    def print_progress(done: int, total: int, values: dict[str, float]) -> None:
        if done % 20 == 0:
            print(done, total, {name: round(value, 3) for name, value in values.items()}, flush=True)

    # Two cycles of the learning rate; the second continues from the weights of the first.
    for cycle, steps in enumerate((900, 2000)):
        settings = Settings(
            steps=steps, batch=24, lr=1.5e-3, weight_decay=0.02, workers=1, save_every=100, log_every=20, seed=cycle
        )
        data = LabeledFrames("train", 24 * steps, first=24 * 900 * cycle)
        fit(model, objective, data, settings, work / ("seer", "seer2")[cycle], collate=collate, progress=print_progress)
    model.eval()
    with torch.no_grad():
        batch = collate([LabeledFrames("val", 64)[n] for n in range(64)])
        _, scores = objective(model, batch, torch.Generator())
    print("val", {name: round(float(value), 3) for name, value in scores.items()})
    files.save(
        work / "encoder.safetensors", "videoqa_encoder", model.encoder.state_dict(),
        {name: float(value) for name, value in scores.items()},
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK", help="directory of the runs")
    main(parser.parse_args().work)
