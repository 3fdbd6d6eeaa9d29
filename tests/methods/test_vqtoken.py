"""VQToken: reference values by loops, the layout of the released checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.learned.vqtoken import VqToken
from fewtokens.methods.ops.cross_dynamics import (
    ReferenceAttention,
)
from fewtokens.methods.ops.token_base import fixed
from tests.helpers import naive
from tests.helpers.clips import clip
from tests.helpers.dynamics import make_vqtoken, square_clip


@pytest.mark.parametrize("seed", [0, 7])
def test_the_clusters_are_those_of_the_seed(seed):
    """Queries are rows of cluster indices, keys are cluster means, here from k-means written as loops."""
    tokens, x = naive.video(T=4, H=3, W=3, C=24, seed=3)
    method = make_vqtoken(4, seed=seed)
    labels = naive.kmeans(x, 4, seed)
    rows = naive.unit(x.reshape(36, 24))
    groups = [[(rows[cell], [cell]) for cell in range(36) if labels[cell] == k] for k in range(4)]
    clusters = naive.sort_by_position([naive.merge(group) for group in groups], (4, 3, 3))
    index = torch.tensor([next(k for k, (_, cells) in enumerate(clusters) if cell in cells) for cell in range(36)])
    means = torch.from_numpy(np.stack([mean for mean, _ in clusters])).float()
    with torch.no_grad():
        queries = method.attention.to_q_proj(index.reshape(4, 9).float())[None]
        expected = method.attention.transformer_decoder(queries, means[None])
        torch.testing.assert_close(method(tokens).features, expected, rtol=1e-4, atol=1e-5)


class TestReference:
    @pytest.mark.parametrize(("T", "keep"), [(4, 9), (4, 4), (7, 3), (1, 5), (5, 1)])
    def test_equals_a_standard_decoder_on_tiled_rows(self, T, keep):
        """max(T, K) rows, in the order of the frames; with repeat and slicing, one video at a time."""
        method, tokens = make_vqtoken(keep), square_clip(T)
        with torch.no_grad():
            out = method(tokens)
        assert out.count.tolist() == [max(T, keep)] * 2 == [method.planned_count(tokens.grid)] * 2
        out.check()
        unit = torch.nn.functional.normalize(tokens.features, dim=2)
        for b in range(2):
            label = fixed(tokens[b], torch.tensor([keep]), method.seed).dest[0]
            centroids = torch.stack([unit[b, label == k].mean(0) for k in range(keep)])
            rows = label.reshape(T, 9).float()
            longest = max(T, keep)
            rows = rows.repeat(longest // T + 1, 1)[:longest]
            memory = centroids.repeat(longest // keep + 1, 1)[:longest]
            with torch.no_grad():
                queries = method.attention.to_q_proj(rows)[None]
                expected = method.attention.transformer_decoder(queries, memory[None])
            torch.testing.assert_close(out.features[b], expected[0], rtol=1e-4, atol=1e-5)

    def test_the_released_layout(self, tmp_path):
        """20 tensors under model.cross_attention.*, 10.76 M parameters at 896 channels and 27 x 27 cells."""
        module = ReferenceAttention(896, 27)
        assert len(module.state_dict()) == 20
        assert sum(p.numel() for p in module.parameters()) == pytest.approx(10.76e6, rel=1e-3)
        source = make_vqtoken(4)
        tensors = {f"model.cross_attention.{name}": value for name, value in source.attention.state_dict().items()}
        path = str(tmp_path / "released.safetensors")
        save_file(tensors | {"model.image_newline": torch.zeros(24)}, path)
        again = VqToken(4, dim=24, side=3, checkpoint=path).eval()
        assert torch.equal(again(square_clip()).features, source(square_clip()).features)
        tensors.popitem()
        save_file(tensors, path)
        with pytest.raises(ValueError, match="no matching cross-attention"):
            VqToken(4, dim=24, side=3, checkpoint=path)
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            VqToken(4, dim=24, side=3, checkpoint=str(tmp_path / "none"))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_in_half_precision(self, dtype):
        tokens, method = square_clip().to(dtype), make_vqtoken(4)
        reference = method(tokens.to(torch.float32))
        out = method.to(dtype)(tokens).check()
        assert out.features.dtype == dtype
        torch.testing.assert_close(out.features.float(), reference.features, rtol=0.05, atol=0.05)

    def test_frames_of_another_size(self):
        with pytest.raises(ValueError, match="set side="):
            make_vqtoken(4, side=4)(square_clip())

    def test_a_batch_of_unequal_lengths(self):
        method = make_vqtoken(None, criterion="silhouette", between=(2, 6))
        padded = clip(6, 3, 3, lengths=[3, 6])
        with torch.no_grad():
            batch = method(padded)
            for b, length in enumerate((3, 6)):
                alone = Tokens.from_cells(padded.features[b : b + 1, : length * 9], Grid(length, 3, 3))
                torch.testing.assert_close(batch[b].features, method(alone).features, rtol=1e-4, atol=1e-5)
