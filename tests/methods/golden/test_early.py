"""Methods before and inside an encoder, against loops and worked examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewtokens.core import files
from fewtokens.core.grid import Grid
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.encoders import VitEncoder
from fewtokens.encoders.vit import ViT, ViTConfig
from fewtokens.methods.learned.length_embedding import LengthEmbedding
from fewtokens.methods.merging.vid_tldr import VidTldr, saliency
from fewtokens.methods.merging.visual_words import CLIP_MEAN, CLIP_STD, VisualWords, fit_words, load_words, save_words
from fewtokens.methods.pruning.grt import Grt
from fewtokens.methods.pruning.representation_shift_in_encoder import RepresentationShiftInEncoder
from fewtokens.methods.pruning.rlt import Rlt
from tests.helpers.clips import clip, cues, run
from tests.methods.golden import naive
from tests.methods.golden.test_temporal import pixel_clip


class TestGrt:
    @pytest.mark.parametrize("measure", ["l2", "rms", "ssim"])
    @pytest.mark.parametrize("tau", [0.0, 0.3, 0.9])
    def test_against_a_double_loop(self, measure, tau):
        tokens, pixels = pixel_clip(P=1)
        p = pixels[0, :, 0].double().numpy().reshape(5, 12, 4, 3)
        kept, holder = [], {}
        for t in range(5):
            for place in range(12):
                a, b = p[t - 1, place], p[t, place]
                if measure == "ssim":
                    by_channel = []
                    for c in range(3):
                        x, y = a[:, c], b[:, c]
                        light = (2 * x.mean() * y.mean() + 0.01**2) / (x.mean() ** 2 + y.mean() ** 2 + 0.01**2)
                        both = ((x - x.mean()) * (y - y.mean())).mean()
                        by_channel.append(light * (2 * both + 0.03**2) / (x.var() + y.var() + 0.03**2))
                    change = 1 - np.mean(by_channel)
                else:
                    change = np.sqrt(((2 * (a - b)) ** 2).sum()) / (1 if measure == "l2" else math.sqrt(12))
                if t == 0 or change > tau + 1e-9:
                    holder[place] = len(kept)
                    kept.append(t * 12 + place)
        out = Grt(max(tau, 1e-6) if tau == 0 else tau, measure=measure)(tokens, pixels=pixels)
        assert out.cell[0].tolist() == kept
        assert out.sizes.sum() == 60

    def test_the_encoder_sees_fewer(self):
        """The released code hands on the embedding before, and the sequence is as long as ever."""
        tokens, pixels = pixel_clip(P=1)
        assert Grt(keep=0.3)(tokens, pixels=pixels).N == 18


def test_rlt_adds_the_embedding_of_a_runs_length():
    torch.manual_seed(0)
    tokens, pixels = pixel_clip()
    method = LengthEmbedding(3, dim=8).eval()
    plain = Rlt(0.1)(tokens, pixels=pixels)
    out = Pipeline([Rlt(0.1), method])(tokens, pixels=pixels)
    row = plain.sizes[0].long().clamp(max=3) - 1
    torch.testing.assert_close(out.features[0], plain.features[0] + method.lengths[row])
    out.features.sum().backward()
    assert bool((method.lengths.grad != 0).any())
    with pytest.raises(ValueError, match=r"length_embedding.* cannot be streamed"):
        Pipeline([Rlt(0.1), method]).step(tokens, None, pixels=pixels)


def as_clip(pixels):
    """Pixels [B,N,P,D] of channels last in 0..1 as CLIP's processor normalizes them, float64 [B,N,P*D]."""
    mean, std = (torch.tensor(value, dtype=torch.float64) for value in (CLIP_MEAN, CLIP_STD))
    return ((pixels.double().unflatten(3, (-1, 3)) - mean) / std).flatten(2)


class TestVisualWords:
    def test_the_most_varied_patches_of_each_frame(self):
        tokens = clip(T=3, H=4, W=4, B=1)
        pixels = cues(tokens)["pixels"]
        out = run(VisualWords(0.5), tokens)
        variance = as_clip(pixels)[0].var(1, correction=0).numpy().reshape(3, 16)
        expected = [t * 16 + int(i) for t in range(3) for i in sorted(np.argsort(-variance[t], kind="stable")[:8])]
        assert out.cell[0].tolist() == expected

    @pytest.mark.parametrize("distance", [0.0, 0.05, 0.2, 2.0])
    def test_words_against_loops(self, distance, tmp_path):
        tokens = clip(T=3, H=4, W=5, B=1)
        pixels = as_clip(cues(tokens)["pixels"])
        words = torch.randn(7, pixels.shape[2], generator=torch.Generator().manual_seed(1))
        words[:3] = pixels[0, [1, 8, 30]]
        path = save_words(words, tmp_path / "words.safetensors")
        out = run(VisualWords(words=str(path), distance=distance), tokens)
        table = naive.unit(words.double().numpy())
        groups: dict[tuple[int, int], list[naive.Token]] = {}
        for cell, patch in enumerate(pixels[0].numpy()):
            like = table @ naive.unit(patch)
            alone = like.max() < 1 - distance - 1e-7
            # A patch alone has a number that no word has.
            key = (cell // 20, -1 - cell if alone else int(like.argmax()))
            groups.setdefault(key, []).append((tokens.features[0, cell].double().numpy(), [cell]))
        naive.same_tokens(out, [naive.mean_of(group) for group in groups.values()])

    def test_lonely_patches_do_not_meet_words(self, tmp_path):
        """In the reference code their numbers begin at the values of a patch, which a larger vocabulary has too."""
        tokens = clip(T=1, H=4, W=5, B=1)
        words = torch.rand(500, 24, generator=torch.Generator().manual_seed(0))
        path = save_words(words, tmp_path / "words.safetensors")
        out = run(VisualWords(words=str(path), distance=0.0), tokens)
        assert out.N == 20

    def test_batch_and_budget(self, tmp_path):
        words = fit_words([cues(clip(B=1, seed=s))["pixels"][0].flatten(1) for s in range(3)], 12)
        path = str(save_words(words, tmp_path / "words.safetensors", patch=2))
        torch.testing.assert_close(load_words(path), words)
        tokens = clip(B=2)
        both = run(VisualWords(words=path), tokens)
        for b in range(2):
            assert torch.equal(both[b].assignment, run(VisualWords(words=path), tokens[b]).assignment)
        assert run(VisualWords(0.1, words=path), tokens).count.tolist() == [12, 12]

    def test_mistakes(self, tmp_path):
        with pytest.raises(ValueError, match="too few"):
            fit_words([torch.rand(3, 6)], 12)
        with pytest.raises(ValueError, match="distance is for"):
            VisualWords(distance=0.1)
        files.save(tmp_path / "other.safetensors", "words", {"a": torch.ones(2)}, {})
        with pytest.raises(ValueError, match="no vocabulary"):
            VisualWords(words=str(tmp_path / "other.safetensors"))
        files.save(tmp_path / "raw.safetensors", "words", {"words": torch.ones(2, 24)}, {})
        with pytest.raises(ValueError, match="raw pixels"):
            load_words(tmp_path / "raw.safetensors")
        path = save_words(torch.rand(4, 7), tmp_path / "seven.safetensors")
        with pytest.raises(ValueError, match="7 values, these patches 24"):
            run(VisualWords(words=str(path)), clip())


class TestVidTldr:
    def test_saliency(self):
        rows = torch.tensor([[0.25] * 4, [0.97, 0.01, 0.01, 0.01], [0.4, 0.4, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1]])
        sharpness = torch.xlogy(rows, rows).sum(1)[None]
        assert saliency(sharpness, torch.ones(1, 4, dtype=torch.bool)).tolist() == [[0, 1, 0, 0]]

    def test_equal_rows_and_zero_probabilities_are_finite(self):
        """Equal rows divide 0 by 0 in the reference code, and a zero has no logarithm."""
        for row in ([0.25] * 4, [1.0, 0, 0, 0]):
            sharpness = torch.xlogy(torch.tensor(row), torch.tensor(row)).sum().expand(1, 4)
            assert saliency(sharpness, torch.ones(1, 4, dtype=torch.bool)).tolist() == [[1, 1, 1, 1]]

    def test_what_merges_counts_by_its_saliency(self):
        x = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.2, 0.9], [-1, 0.1], [0.3, -1]])
        tokens = Tokens.from_cells(x.reshape(1, 1, 1, 6, 2))
        sharp = torch.tensor([[-1.0, -2, 0, -2, -2, -2]])  # of the sources 0 and 2 the second is the sharper one
        out = VidTldr(r=[2])(tokens, sharpness=sharp, layer=0, depth=1)
        score = saliency(sharp, tokens.mask)[0]
        assert 0 < score[0] < score[2] == 1
        first = (score[0] * x[0] + x[1]) / (score[0] + 1)
        second = (x[2] + x[3]) / 2
        torch.testing.assert_close(out.features[0], torch.stack([x[4], first, second, x[5]]))
        torch.testing.assert_close(out.sizes[0], torch.stack([score[2], 1 + score[0], 2 * score[2], score[2]]))

    def test_the_papers_schedule(self):
        """UMT-B: 2352 tokens, 600, 200 and 100 go."""
        tokens = Tokens.from_cells(torch.randn(1, 1, 1, 2352, 4))
        method, counts = VidTldr(r=(600, 200, 100)), []
        for layer in range(4):
            tokens = method(tokens, sharpness=tokens.features[..., 0], layer=layer, depth=12)
            counts.append(tokens.N)
        assert counts == [1752, 1552, 1452, 1452]


@pytest.fixture
def vit():
    torch.manual_seed(0)
    made = ViT(ViTConfig(dim=32, depth=4, num_heads=4, patch_size=4, image_size=(24, 24), num_registers=1)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


class TestCuesOfTheWalk:
    @pytest.fixture(autouse=True)
    def without_gradient(self):
        with torch.no_grad():
            yield

    def embedded(self, vit) -> Tokens:
        frames = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))
        return Tokens.from_cells(vit.embed(frames).flatten(1, 2), Grid(1, 6, 6))

    def test_shift_is_what_the_last_mlp_added(self, vit):
        tokens = self.embedded(vit)
        _, cues = vit.walk(tokens, (), ("shift",))
        x = torch.cat([vit.prefix(3), tokens.features], 1)
        for block in vit.blocks:
            before = block.first(x, None, "none")[0]
            x = block.second(before)
        torch.testing.assert_close(cues["shift"], (x - before)[:, 2:].norm(dim=2))

    @pytest.mark.parametrize(("layers", "layer"), [(1, 2), (3, 1)])
    def test_representation_shift_drops_what_moved_least(self, vit, layers, layer):
        """By the MLP of the block before."""
        seen = []

        class Spy(RepresentationShiftInEncoder):
            def plan(self, tokens, *, shift, layer=0, depth=1):
                plan = super().plan(tokens, shift=shift, layer=layer, depth=depth)
                seen.append((layer, shift, plan))
                return plan

        tokens = self.embedded(vit)
        vit.walk(tokens, [Spy(0.5, layers=layers)])
        x = torch.cat([vit.prefix(3), tokens.features], 1)
        for block in vit.blocks[:layer]:
            middle = block.first(x, None, "none")[0]
            x = block.second(middle)
        expected = (x - middle)[:, 2:].norm(dim=2)
        at, shift, plan = next(entry for entry in seen if entry[2].num_slots < 36)
        assert at == layer
        torch.testing.assert_close(shift, expected)
        kept = expected[0].argsort(descending=True)[: plan.num_slots].sort().values
        assert plan.representative[0].tolist() == kept.tolist()

    def test_sharpness_is_of_the_plain_attention(self, vit):
        seen = []

        class Spy(VidTldr):
            def plan(self, tokens, **given):
                seen.append((tokens, given["sharpness"]))
                return Plan.identity(tokens)

        tokens = self.embedded(vit)
        vit.walk(tokens, [Spy(0.5)])
        x = torch.cat([vit.prefix(3), tokens.features], 1)
        q, k, _ = vit.blocks[0].attention.project(vit.blocks[0].norm1(x))
        a = (q @ k.transpose(2, 3) * 8**-0.5).softmax(-1).mean(1)
        torch.testing.assert_close(seen[0][1], (a * a.log()).sum(-1)[:, 2:])

    @pytest.mark.parametrize(
        "spec",
        [
            "vid_tldr(0.2)",
            "vid_tldr(0.2, by='shift')",
            "representation_shift_in_encoder(0.2)",
            "merge_windows_in_encoder(0.25, window=3)",
            "grt(keep=0.4) | representation_shift_in_encoder(0.2)",
            "visual_words(0.5) | vid_tldr(0.1)",
        ],
    )
    def test_on_frames(self, vit, spec):
        frames = torch.rand(2, 5, 3, 24, 24, generator=torch.Generator().manual_seed(2))
        frames[:, 1:, :, :12] = frames[:, :1, :, :12]
        pipeline = Pipeline(spec, VitEncoder(vit))
        out = pipeline(frames).check()
        assert bool(out.features.isfinite().all())
        assert out.N < 180
        alone = pipeline(frames[1:])
        torch.testing.assert_close(out[1].features, alone.features, rtol=1e-4, atol=1e-4)
        if "|" not in spec:
            assert out.count.tolist() == [pipeline.planned_count(out.grid)] * 2
        by_two = Pipeline(spec, VitEncoder(vit, batch=2))(frames)
        torch.testing.assert_close(out.features, by_two.features, rtol=1e-4, atol=1e-4)
