"""Two encoders in a composed model, as in VideoGPT+: images frame by frame, and videos in segments of frames."""

# The fixtures `parts` and `conversations` are imported.
# ruff: noqa: F811

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from fewtokens.cli import app
from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.llm.composed import ComposedVideoLLM, build_video_llm, load_video_llm
from fewtokens.networks.vit import VisionConfig, VisionTransformer
from fewtokens.train.settings import Settings
from fewtokens.train.video_llm import train_video_llm
from tests.llm.test_composed import QUESTIONS, Items, batch, conversations, parts  # noqa: F401
from tests.networks.test_vit import awake


@pytest.fixture(scope="module")
def clips_encoder(tmp_path_factory):
    """The folder of a tiny ViViT with tubelets of two frames and 8 x 8 pixels."""
    folder = tmp_path_factory.mktemp("vivit")
    torch.manual_seed(1)
    config = VisionConfig(
        dim=12, depth=1, num_heads=2, patch_size=8, image_size=(32, 32), tubelet_size=2, num_frames=4, num_classes=3
    )
    awake(VisionTransformer(config)).save_pretrained(folder)
    return folder


def build_two(parts, clips_encoder, spec: str = "spatial_pool(stride=2)", **options) -> ComposedVideoLLM:
    torch.manual_seed(0)
    model = build_video_llm(parts / "vit", parts / "llm", spec=spec, encoder2=clips_encoder, device="cpu", **options)
    return model.eval()


def test_counts_of_the_paper():
    """16 frames of 24 x 24 and of 16 x 16 patches, both averaged by 2 x 2."""
    (pool,) = registry.build("spatial_pool(stride=2)")
    assert pool.planned_count(Grid(16, 24, 24)) + pool.planned_count(Grid(16, 16, 16)) == 16 * 144 + 16 * 64 == 3328


def test_rows(parts, clips_encoder):
    """Image tokens of all frames, then video tokens, each averaged by 2 x 2 after its own projector."""
    model = build_two(parts, clips_encoder)
    inputs = batch(model, frames=8)
    frames = inputs["pixel_values_videos"]
    short = model.compress(inputs)
    assert [tokens.grid.shape for tokens in short.tokens] == [(8, 4, 4), (4, 4, 4)] * 3
    assert [tokens.N for tokens in short.tokens] == [8 * 4, 4 * 4] * 3
    images = model.projector(model.video_encoder(frames)[0].features)
    # Segments of four frames are two tubelets each, in one call of the network for each segment.
    segments = [model.encoder2(frames[:, start : start + 4])[0].features for start in (0, 4)]
    videos = model.projector2(torch.cat(segments, 1))
    pooled = [
        torch.nn.functional.avg_pool2d(rows.reshape(-1, 4, 4, 24).permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2)
        for rows in (images, videos)
    ]
    expected = torch.cat([rows.reshape(3, -1, 24) for rows in pooled], 1)
    rows = model.embed(short.inputs)["inputs_embeds"]
    for b in range(3):
        torch.testing.assert_close(rows[b, short.layout.visual[b]], expected[b], rtol=1e-5, atol=1e-6)


def test_a_segment_depends_on_its_frames_only(parts, clips_encoder):
    model = build_two(parts, clips_encoder, "")
    frames = batch(model, frames=8)["pixel_values_videos"]
    with torch.no_grad():
        cells = model.segment_cells(frames)[0].reshape(3, 4, 16, 12)
        for t in range(8):
            changed = frames.clone()
            changed[:, t] = 255 - changed[:, t]
            other = model.segment_cells(changed)[0].reshape(3, 4, 16, 12)
            # All tubelets of its segment change, since the network attends over the segment.
            differs = (cells - other).abs().amax((0, 2, 3)) > 1e-6
            assert differs.tolist() == [t < 4, t < 4, t >= 4, t >= 4]


def test_the_last_frame_fills_the_last_segment(parts, clips_encoder):
    model = build_two(parts, clips_encoder, "")
    frames, times = batch(model, frames=5)["pixel_values_videos"], torch.arange(5.0)
    filled = torch.cat([frames, frames[:, -1:].expand(-1, 3, -1, -1, -1)], 1)
    cells, grid = model.segment_cells(frames, times)
    assert torch.equal(cells, model.segment_cells(filled)[0])
    assert (grid.shape, grid.times.tolist()) == ((4, 4, 4), [0, 2, 4, 4])
    whole = build_two(parts, clips_encoder, "", segment=6)
    assert whole.segment_cells(frames)[1].shape == (3, 4, 4)


def test_budgets_are_shared(parts, clips_encoder):
    model = build_two(parts, clips_encoder, "uniform(keep=12)")
    assert [tokens.N for tokens in model.compress(batch(model, frames=8)).tokens] == [8, 4] * 3  # 128 and 64 cells
    model = build_two(parts, clips_encoder, "uniform(keep=0.25)")
    assert [tokens.N for tokens in model.compress(batch(model, frames=8)).tokens] == [32, 16] * 3


@pytest.mark.parametrize("frames", [2, 4])
def test_a_batch_equals_its_prompts(parts, clips_encoder, frames):
    model = build_two(parts, clips_encoder)
    videos = batch(model, frames=frames)["pixel_values_videos"]
    inputs = model.encode_questions(QUESTIONS) | {"pixel_values_videos": videos}
    with torch.no_grad():
        together = model(**inputs).logits[:, -1]
        alone = [model(**{name: v[b : b + 1] for name, v in inputs.items()}).logits[:, -1] for b in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_training_and_saving(parts, clips_encoder, tmp_path):
    model = build_two(parts, clips_encoder)
    start = {name: value.clone() for name, value in model.named_parameters()}
    settings = Settings(steps=4, batch=3, lr=0.01, warmup=0, weight_decay=0, workers=0, rates={"encoder": 0.0})
    report = train_video_llm(model, Items(model), settings, tmp_path, device="cpu")
    assert report.steps == 4
    for part in ("encoder2", "projector", "projector2"):
        moved = [not torch.equal(v, start[n]) for n, v in model.named_parameters() if n.startswith(f"{part}.")]
        assert any(moved), part
    loaded = load_video_llm(tmp_path / "model", device="cpu")
    assert loaded.segment == 4
    inputs = batch(model)
    assert torch.equal(loaded(**inputs).logits, model.eval()(**inputs).logits)


def test_errors(parts, clips_encoder, tmp_path):
    with pytest.raises(ValueError, match="streams read the tokens of one encoder"):
        build_two(parts, clips_encoder, streams="slow_fast")
    with pytest.raises(ValueError, match="dtd needs pixels, which composed models with two encoders cannot"):
        build_two(parts, clips_encoder, "dtd(mode='pixel')")
    with pytest.raises(ValueError, match="segments of 3 frames cannot be divided"):
        model = build_two(parts, clips_encoder, segment=3)
        model.compress(batch(model, frames=6))
    with pytest.raises(ValueError, match="at least 1 frame"):
        build_two(parts, clips_encoder, segment=0)
    torch.manual_seed(0)
    config = VisionConfig(dim=12, depth=1, num_heads=2, patch_size=8, image_size=(32, 32), learner="tokenlearner", at=0)
    VisionTransformer(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has a learner, so that its last tokens form no grid"):
        build_two(parts, tmp_path)
    with pytest.raises(ValueError, match="cannot be trained in a video language model"):
        build_two(parts, "patches")
    model = build_two(parts, clips_encoder)
    with pytest.raises(ValueError, match="requires the frames"):
        cells, grid = model.cells(batch(model)["pixel_values_videos"])
        ids = {name: v for name, v in batch(model).items() if name != "pixel_values_videos"}
        model(**ids, video_cells=cells, video_grid=grid)


def test_the_command(parts, clips_encoder, conversations, tmp_path):
    words = ("train", "video-llm", "--data", conversations / "train.jsonl", "--encoder", parts / "vit", "--llm",
             parts / "llm", "--frames", 4, "--size", 32, "--set", "workers=0", "--device", "cpu", "--batch", 3,
             "--set", "steps=2", "--with", "spatial_pool(stride=2)", "--out", tmp_path / "run")  # fmt: skip

    def run(*args):
        return CliRunner().invoke(app, [str(arg) for arg in args])

    done = run(*words, "--encoder2", clips_encoder)
    assert done.exit_code == 0, done.output
    answer = run("ask", conversations / "0.mp4", QUESTIONS[0], "--model", tmp_path / "run" / "model", "--json",
                 "--device", "cpu", "--with", "spatial_pool(stride=2)")  # fmt: skip
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["answers"][0]["visual_tokens"] == 4 * 4 + 2 * 4
    for other, message in (
        (("--segment", 2), "no effect without --encoder2"),
        (("--encoder2", "none/"), "none"),
        ((), "encoder2"),
    ):
        refused = run(*words, *other)
        assert refused.exit_code == 2 and message in " ".join(refused.output.split()), refused.output
        assert "Traceback" not in refused.output
