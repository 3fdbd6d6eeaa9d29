"""TokenLearner and its alternatives, trained on small data: photographs, synthetic videos, and a frozen encoder.

    python benchmarks/tokenlearner_small.py images videos frozen report

Cost on 2 cores: images and videos about 40 minutes each with --threads 1 (in parallel, one core each), frozen 6;
`report` makes the plots and tables from the results of the others in results/tokenlearner_small/. Interrupted parts
resume. Expected (results/tokenlearner_small.md): with 8 learned tokens from the middle layer on, networks reach or
exceed the accuracy of the full ones at 0.57 to 0.62 of the operations. Of the alternatives, one dense layer over the
positions is best here, because the hands are in the middle of the images; TokenFuser helps much on images and not at
all on the moving digits; pool + MLP does not learn. The three seeds differ by up to 30 points, so smaller differences
are not significant.

images  ../shared/data/sign_digits ($FEWTOKENS_DATA): 2,062 photographs of ten hand signs, a fixed split with 80 % for
        training, 48 px, patches of 6 (64 tokens); a ViT with 8 blocks and 64 channels, with and without learners.
videos  moving digits, 40 classes (digit and direction), generated on the fly; 24 px, 8 frames,
        tubelets of 4x4x2 (144 tokens); ViViT with 4 blocks and 64 channels.
frozen  features of dinov2-small at 112 px, with different heads before a linear classifier.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fewtokens.data import ClipData, MovingDigits, Sample, Transform, View, collate, read_listing
from fewtokens.encoders import load_encoder
from fewtokens.evaluation.classify import evaluator
from fewtokens.evaluation.probes import few_shot, linear_probe
from fewtokens.methods.learned.tokenlearner import TokenLearner
from fewtokens.networks.vit import VisionConfig, VisionTransformer
from fewtokens.profiling.memory import activation_bytes
from fewtokens.profiling.operations import count_operations, count_parameters
from fewtokens.show import method_styles
from fewtokens.show.plots import save_plot
from fewtokens.train.loop import fit
from fewtokens.train.objectives import Classification
from fewtokens.train.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))
from common import RESULTS, time_side_by_side, write

DATA = Path(os.environ.get("FEWTOKENS_DATA", Path(__file__).parents[2] / "shared" / "data"))
PARTS = RESULTS / "tokenlearner_small"
RUNS = Path(tempfile.gettempdir()) / "tokenlearner_small"
SEEDS = (0, 1, 2)

IMAGE = {"dim": 64, "depth": 8, "num_heads": 4, "patch_size": 6, "image_size": (48, 48), "num_classes": 10}
IMAGES: dict[str, dict[str, Any]] = {
    "ViT": {},
    "8 tokens at 1/2": {"learner": "tokenlearner('8/frame')", "at": 4},
    "4 tokens at 1/2": {"learner": "tokenlearner('4/frame')", "at": 4},
    "8 tokens at 3/4": {"learner": "tokenlearner('8/frame')", "at": 6},
    "4 tokens at 3/4": {"learner": "tokenlearner('4/frame')", "at": 6},
    "8 tokens at 1/2, mean pooling": {"learner": "tokenlearner('8/frame', pool='mean')", "at": 4},
    "8 tokens at 1/2, version 1.1": {"learner": "tokenlearner('8/frame', version='1.1')", "at": 4},
    "8 tokens at 1/2 + fuser": {"learner": "tokenlearner('8/frame')", "at": 4, "fuser": "fuser"},
    "8 tokens at 1/2 + unpool": {"learner": "tokenlearner('8/frame')", "at": 4, "fuser": "unpool"},
    "8 tokens at 1/2 + reproject": {"learner": "tokenlearner('8/frame')", "at": 4, "fuser": "reproject"},
    "grid split 8 at 1/2": {"learner": "grid_split('8/frame')", "at": 4},
    "spatial pool 3x3 (9) at 1/2": {"learner": "spatial_pool(3)", "at": 4},
    "dense tokens 8 at 1/2": {"learner": "dense_tokens('8/frame')", "at": 4},
    "pool + MLP 8 at 1/2": {"learner": "pool_mlp('8/frame')", "at": 4},
}
CLIP = {
    "dim": 64, "depth": 4, "num_heads": 4, "patch_size": 4, "tubelet_size": 2, "num_frames": 8, "image_size": (24, 24),
    "num_classes": 40,
}  # fmt: skip
VIDEOS: dict[str, dict[str, Any]] = {
    "ViViT, joint": {},
    "8 tokens per frame at 1/2": {"learner": "tokenlearner('8/frame')", "at": 2},
    "4 tokens per frame at 1/2": {"learner": "tokenlearner('4/frame')", "at": 2},
    "8 tokens per frame at 1/2, version 1.1": {"learner": "tokenlearner('8/frame', version='1.1')", "at": 2},
    "8 tokens per frame at 1/2 + fuser": {"learner": "tokenlearner('8/frame')", "at": 2, "fuser": "fuser"},
    "factorized encoder": {"attention": "factorized_encoder", "depth": 3, "temporal_depth": 1},
    "factorized self-attention": {"attention": "factorized_self"},
    "factorized dot product": {"attention": "factorized_dot"},
    "grid split 8 at 1/2": {"learner": "grid_split('8/frame')", "at": 2},
}
LOOP = {"optimizer": "adamw", "weight_decay": 0.05, "warmup": 0.1, "workers": 0, "log_every": 50, "eval_every": 0}


class InMemory(Dataset[Sample]):
    """A small data set in one uint8 tensor [n,3,H,W], with a random shift and brightness for each item."""

    def __init__(self, pixels: Tensor, labels: Tensor, seed: int, *, training: bool) -> None:
        self.pixels, self.labels, self.seed, self.training = pixels, labels, seed, training
        self.view = View()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image = self.pixels[index].float() / 255
        size = 48
        top = left = (image.shape[-1] - size) // 2
        if self.training:
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + 10_007 * epoch + index)
            top, left = torch.randint(image.shape[-1] - size + 1, (2,), generator=generator).tolist()
            image = (image * (0.8 + 0.4 * torch.rand((), generator=generator))).clamp(0, 1)
        clip = image[:, top : top + size, left : left + size]
        return Sample(clip[None, None], self.labels[index], index)


def load_images(side: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Pixels and labels of the training and test set of the fixed split."""
    listing = read_listing(DATA / "sign_digits" / "Dataset")
    sets = []
    for part in listing.split(0.2, seed=0):
        data = ClipData(part, Transform(size=side), training=False)
        batch = collate([data[n] for n in range(len(data))])
        sets.append(((batch["clips"][:, 0, 0] * 255).round().byte(), batch["targets"]))
    return sets[0], sets[1]


def train_one(part: str, name: str, seed: int, make: Any, data: Any, test: Any, settings: Settings) -> None:
    """Trains one network, unless its result exists."""
    slug = f"{part}-{name}-{seed}".replace("/", "_").replace(" ", "_")
    path = PARTS / f"{slug}.json"
    if path.exists():
        return
    torch.manual_seed(seed)
    model = make()
    start = time.perf_counter()
    report = fit(
        model, Classification(label_smoothing=0.1), data, settings, RUNS / slug, collate=collate,
        evaluate=evaluator(test, batch=256), device="cpu",
    )  # fmt: skip
    PARTS.mkdir(parents=True, exist_ok=True)
    result = {
        "part": part, "name": name, "seed": seed, "top1": report.scores["top1"],
        "train_seconds": time.perf_counter() - start, "last": report.metrics[-2],
    }  # fmt: skip
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{part:7s} {name:40s} seed {seed}  top-1 {report.scores['top1']:.1f}  {result['train_seconds']:.0f} s",
        flush=True,
    )


def images(seeds: tuple[int, ...], epochs: float) -> None:
    (x, y), (x_test, y_test) = load_images(54)
    for seed in seeds:
        for name, changes in IMAGES.items():
            settings = Settings(**LOOP, epochs=epochs, batch=64, lr=2e-3, seed=seed)
            config = VisionConfig(**(IMAGE | changes))
            train_one(
                "images", name, seed, lambda config=config: VisionTransformer(config),
                InMemory(x, y, seed, training=True), InMemory(x_test, y_test, seed, training=False), settings,
            )  # fmt: skip


def videos(seeds: tuple[int, ...], steps: int) -> None:
    for seed in seeds:
        for name, changes in VIDEOS.items():
            settings = Settings(**LOOP, steps=steps, batch=64, lr=2e-3, seed=seed)
            config = VisionConfig(**(CLIP | changes))
            train_one(
                "videos", name, seed, lambda config=config: VisionTransformer(config),
                MovingDigits(4000, seed=seed), MovingDigits(1000, seed=12345), settings,
            )  # fmt: skip


class Head(nn.Module):
    """The layers between frozen features [B,H,W,C] and the logits."""

    def __init__(self, kind: str, dim: int, classes: int) -> None:
        super().__init__()
        self.kind = kind
        self.learner = TokenLearner(int(kind.split()[1]), dim=dim) if kind.startswith("tokenlearner") else None
        if kind == "attention":
            self.query = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
            self.norm = nn.LayerNorm(dim)
            self.attention = nn.MultiheadAttention(dim, 6, batch_first=True)
        self.norm_last = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def features(self, x: Tensor) -> Tensor:
        if self.learner is not None:
            return self.norm_last(self.learner.learn(x)[0]).mean(1)
        rows = x.flatten(1, 2)
        if self.kind == "attention":
            rows = self.norm(rows)
            return self.norm_last(self.attention(self.query.expand(len(x), -1, -1), rows, rows)[0][:, 0])
        return self.norm_last(rows.mean(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Features(Dataset[dict[str, Tensor]]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        return {"clips": self.x[key[1]].float(), "targets": self.y[key[1]]}


def frozen(seeds: tuple[int, ...]) -> None:
    encoder = load_encoder(str(DATA / "weights" / "dinov2-small"), batch=64, device="cpu")
    sets = []
    for pixels, labels in load_images(112):
        with torch.inference_mode():
            parts = [
                encoder(part[:, None])[0].features.reshape(len(part), 8, 8, -1).half() for part in pixels.split(128)
            ]
        sets.append((torch.cat(parts).clone(), labels))
    (x, y), (x_test, y_test) = sets
    rows = []
    for kind in ("mean", "attention", "tokenlearner 8", "tokenlearner 4"):
        for seed in seeds:
            torch.manual_seed(seed)
            head = Head(kind, x.shape[-1], 10)
            settings = Settings(**LOOP, epochs=15, batch=64, lr=1e-3, seed=seed)
            fit(
                head, Classification(), Features(x, y), settings, RUNS / f"{kind}-{seed}",
                device="cpu", resume=False,
                collate=lambda rows: {name: torch.stack([row[name] for row in rows]) for name in rows[0]},
            )  # fmt: skip
            head.eval()
            with torch.no_grad():
                features = [torch.cat([head.features(p.float()) for p in part.split(256)]) for part in (x, x_test)]
                top1 = float((head.head(features[1]).argmax(1) == y_test).double().mean())
            probe, _ = linear_probe(features[0], y, features[1], y_test)
            shots = few_shot(features[0], y, features[1], y_test, seed=seed)
            rows.append(
                {"head": kind, "seed": seed, "trained": 100 * top1, "linear": 100 * probe, "5-shot": 100 * shots}
            )
            print(rows[-1], flush=True)
    mean = x.float().mean((1, 2)), x_test.float().mean((1, 2))
    for seed in seeds:
        probe, _ = linear_probe(mean[0], y, mean[1], y_test)
        shots = few_shot(mean[0], y, mean[1], y_test, seed=seed)
        rows.append(
            {"head": "(untrained mean)", "seed": seed, "trained": None, "linear": 100 * probe, "5-shot": 100 * shots}
        )
    PARTS.mkdir(parents=True, exist_ok=True)
    (PARTS / "frozen.json").write_text(json.dumps(rows, indent=1) + "\n")


def measure(part: str, variants: dict[str, dict[str, Any]], base: dict[str, Any], batch: int) -> list[dict[str, Any]]:
    """Accuracy of each seed, operations, throughput and memory of each variant."""
    scores_of: dict[str, list[float]] = {name: [] for name in variants}
    for file in PARTS.glob(f"{part}-*.json"):
        result = json.loads(file.read_text())
        name = result["name"].replace("factorised", "factorized").replace("a frame", "per frame")
        if name in scores_of:
            scores_of[name].append(result["top1"])
    networks = {name: VisionTransformer(VisionConfig(**(base | changes))).eval() for name, changes in variants.items()}
    frames = base.get("num_frames", 1)
    clip = torch.rand(batch, frames, 3, *base["image_size"])
    with torch.inference_mode():
        times = time_side_by_side({name: lambda n=network: n(clip) for name, network in networks.items()}, 9)
    rows = []
    for name, network in networks.items():
        one = clip[:1]
        scores = scores_of[name]
        rows.append(
            {
                "network": name,
                "top-1 %": round(statistics.mean(scores), 1) if scores else None,
                "seeds": " ".join(f"{score:.1f}" for score in sorted(scores)),
                "GFLOPs": round(count_operations(network, one).giga("paper"), 4),
                f"{'clips' if frames > 1 else 'images'}/s": round(1000 * batch / times[name]["median"]),
                "ms (min..max)": f"{times[name]['median']:.1f} ({times[name]['min']:.1f}..{times[name]['max']:.1f})",
                "activations, MiB": round(activation_bytes(network, one) / 2**20, 2),
                "parameters": count_parameters(network),
            }
        )
    return rows


def plot(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    styles = method_styles(row["network"] for row in rows)
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), sharey=True, layout="constrained")
    for axis, (label, value) in zip(
        axes,
        (
            ("GFLOPs per sample", lambda r: r["GFLOPs"]),
            ("time per batch (ms)", lambda r: float(r["ms (min..max)"].split()[0])),
        ),
        strict=True,
    ):
        for row in (r for r in rows if r["top-1 %"] is not None):
            scores = [float(s) for s in row["seeds"].split()]
            style = styles[row["network"]] | {"linestyle": "", "markersize": 7}
            x = value(row)
            axis.plot([x, x], [min(scores), max(scores)], color=style["color"], lw=1.2)
            axis.plot(x, row["top-1 %"], label=row["network"], **style)
        axis.set(xlabel=label)
        axis.xaxis.set_major_locator(plt.MaxNLocator(6))
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="top-1 accuracy (%)")
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    caption = (
        "Networks with and without a TokenLearner, trained from scratch. Marker: mean over the seeds; line: range."
    )
    save_plot(figure, path, title=f"Accuracy and cost: {title}", caption=caption)
    plt.close(figure)


def report() -> None:
    tables: dict[str, list[dict[str, Any]]] = {}
    image_names = []
    for part, title, variants, base, batch in (
        ("images", "Sign digits, 10 classes", IMAGES, IMAGE, 64),
        ("videos", "Moving digits, 40 classes", VIDEOS, CLIP, 32),
    ):
        rows = measure(part, variants, base, batch)
        tables[title] = rows
        image_names.append(f"tokenlearner_small_{part}.png")
        plot(rows, title, RESULTS / image_names[-1])
    if (PARTS / "frozen.json").exists():
        rows = json.loads((PARTS / "frozen.json").read_text())
        summary = []
        for head in dict.fromkeys(row["head"] for row in rows):
            line: dict[str, Any] = {"head on frozen dinov2-small": head}
            for name in ("trained", "linear", "5-shot"):
                values = [row[name] for row in rows if row["head"] == head and row[name] is not None]
                line[f"{name} top-1 %"] = (
                    f"{statistics.mean(values):.1f} ({min(values):.1f}..{max(values):.1f})" if values else None
                )
            summary.append(line)
        tables["Frozen dinov2-small at 112 px, sign digits"] = summary
    write(
        "tokenlearner_small",
        "TokenLearner and its alternatives, trained on 2 cores",
        "python benchmarks/tokenlearner_small.py images videos frozen report",
        tables,
        "top-1 is the mean over three seeds (initialization and data order), listed in the next column; the split is "
        "fixed. GFLOPs by the paper's convention, for one image or clip. Times are for one batch (64 images, 32 clips) "
        "in float32; the networks alternate. Activations: memory that a forward pass saves for the backward pass.",
        image_names,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=["images", "videos", "frozen", "report"], help="parts to run")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS, help="seeds (default: 0 1 2)")
    parser.add_argument("--epochs", type=float, default=20, help="epochs of images (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="steps of videos (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for part in arguments.parts:
        if part == "images":
            images(tuple(arguments.seeds), arguments.epochs)
        elif part == "videos":
            videos(tuple(arguments.seeds), arguments.steps)
        elif part == "frozen":
            frozen(tuple(arguments.seeds))
        else:
            report()
