"""Visual words against loops and the published code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.core import files, registry
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.frames import patchify
from fewtokens.methods.merging.visual_words import CLIP_MEAN, CLIP_STD, VisualWords, fit_words, load_words, save_words
from tests.helpers import naive
from tests.helpers.clips import clip, cues, run_method


def normalize_for_clip(pixels):
    """Pixels [B,N,P,D] in 0..1, channel last, normalized by CLIP's processor, float64 [B,N,P*D]."""
    mean, std = (torch.tensor(value, dtype=torch.float64) for value in (CLIP_MEAN, CLIP_STD))
    return ((pixels.double().unflatten(3, (-1, 3)) - mean) / std).flatten(2)


class TestVisualWords:
    def test_patches_of_highest_variance_of_each_frame(self):
        tokens = clip(T=3, H=4, W=4, B=1)
        pixels = cues(tokens)["pixels"]
        out = run_method(VisualWords(0.5), tokens)
        variance = normalize_for_clip(pixels)[0].var(1, correction=0).numpy().reshape(3, 16)
        expected = [t * 16 + int(i) for t in range(3) for i in sorted(np.argsort(-variance[t], kind="stable")[:8])]
        assert out.cell[0].tolist() == expected

    @pytest.mark.parametrize("distance", [0.0, 0.05, 0.2, 2.0])
    def test_words_against_loops(self, distance, tmp_path):
        tokens = clip(T=3, H=4, W=5, B=1)
        pixels = normalize_for_clip(cues(tokens)["pixels"])
        words = torch.randn(7, pixels.shape[2], generator=torch.Generator().manual_seed(1))
        words[:3] = pixels[0, [1, 8, 30]]
        path = save_words(words, tmp_path / "words.safetensors")
        out = run_method(VisualWords(words=str(path), distance=distance), tokens)
        unit_words = naive.unit(words.double().numpy())
        groups: dict[tuple[int, int], list[naive.Token]] = {}
        for cell, patch in enumerate(pixels[0].numpy()):
            similarity = unit_words @ naive.unit(patch)
            unmatched = similarity.max() < 1 - distance - 1e-7
            # An unmatched patch has an id that no word has.
            key = (cell // 20, -1 - cell if unmatched else int(similarity.argmax()))
            groups.setdefault(key, []).append((tokens.features[0, cell].double().numpy(), [cell]))
        naive.assert_same_tokens(out, [naive.merge(group) for group in groups.values()])

    def test_unmatched_patches_do_not_collide_with_words(self, tmp_path):
        """In the reference code their ids start at the number of values of a patch, so they collide."""
        tokens = clip(T=1, H=4, W=5, B=1)
        words = torch.rand(500, 24, generator=torch.Generator().manual_seed(0))
        path = save_words(words, tmp_path / "words.safetensors")
        out = run_method(VisualWords(words=str(path), distance=0.0), tokens)
        assert out.N == 20

    def test_batch_and_budget(self, tmp_path):
        words = fit_words([cues(clip(B=1, seed=s))["pixels"][0].flatten(1) for s in range(3)], 12)
        path = str(save_words(words, tmp_path / "words.safetensors", patch=2))
        torch.testing.assert_close(load_words(path), words)
        tokens = clip(B=2)
        both = run_method(VisualWords(words=path), tokens)
        for b in range(2):
            assert torch.equal(both[b].assignment, run_method(VisualWords(words=path), tokens[b]).assignment)
        assert run_method(VisualWords(0.1, words=path), tokens).count.tolist() == [12, 12]

    def test_errors(self, tmp_path):
        with pytest.raises(ValueError, match="at least 12 patches"):
            fit_words([torch.rand(3, 6)], 12)
        with pytest.raises(ValueError, match="distance requires"):
            VisualWords(distance=0.1)
        files.save(tmp_path / "other.safetensors", "words", {"a": torch.ones(2)}, {})
        with pytest.raises(ValueError, match="no vocabulary"):
            VisualWords(words=str(tmp_path / "other.safetensors"))
        files.save(tmp_path / "raw.safetensors", "words", {"words": torch.ones(2, 24)}, {})
        with pytest.raises(ValueError, match="raw pixels"):
            load_words(tmp_path / "raw.safetensors")
        path = save_words(torch.rand(4, 7), tmp_path / "seven.safetensors")
        with pytest.raises(ValueError, match="7 values but patches have 24"):
            run_method(VisualWords(words=str(path)), clip())


def test_visual_words_without_a_vocabulary():
    """wearepal/visual-word-tokenizer d2d6759, top_k 6 of 16 patches of 2 x 2, on frames normalized as for CLIP."""
    x = (torch.sin(torch.arange(2 * 3 * 8 * 8, dtype=torch.float64) ** 1.5 * 0.37) + 1) / 2
    frames = x.float().reshape(1, 2, 3, 8, 8)
    cells = Tokens.from_cells(torch.zeros(1, 2, 4, 4, 1))
    out = registry.build("visual_words(12)")[0](cells, pixels=patchify(frames, 1, 2))
    # With raw pixels it would be [4, 5, 6, 10, 12, 13, 18, 19, 20, 25, 29, 30].
    assert out.cell[0].tolist() == [4, 6, 7, 10, 11, 12, 18, 20, 23, 25, 29, 30]
