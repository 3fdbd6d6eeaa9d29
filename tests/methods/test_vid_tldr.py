"""vid-TLDR against worked examples and the explicit attention of a ViT."""

from __future__ import annotations

import torch

from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.merging.vid_tldr import VidTldr, saliency
from tests.helpers.vits import embed_frames, small_vit


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

    def test_merged_tokens_are_weighted_by_saliency(self):
        x = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.2, 0.9], [-1, 0.1], [0.3, -1]])
        tokens = Tokens.from_cells(x.reshape(1, 1, 1, 6, 2))
        sharp = torch.tensor([[-1.0, -2, 0, -2, -2, -2]])  # of the merging tokens 0 and 2, token 2 is sharper
        out = VidTldr(r=[2])(tokens, sharpness=sharp, layer=0, depth=1)
        score = saliency(sharp, tokens.mask)[0]
        assert 0 < score[0] < score[2] == 1
        first = (score[0] * x[0] + x[1]) / (score[0] + 1)
        second = (x[2] + x[3]) / 2
        torch.testing.assert_close(out.features[0], torch.stack([x[4], first, second, x[5]]))
        torch.testing.assert_close(out.sizes[0], torch.stack([score[2], 1 + score[0], 2 * score[2], score[2]]))

    def test_the_schedule_of_the_paper(self):
        """UMT-B: of 2352 tokens, 600, 200 and 100 are removed."""
        tokens = Tokens.from_cells(torch.randn(1, 1, 1, 2352, 4))
        method, counts = VidTldr(r=(600, 200, 100)), []
        for layer in range(4):
            tokens = method(tokens, sharpness=tokens.features[..., 0], layer=layer, depth=12)
            counts.append(tokens.N)
        assert counts == [1752, 1552, 1452, 1452]


def test_sharpness_matches_explicit_attention():
    vit = small_vit()
    calls = []

    class Spy(VidTldr):
        def plan(self, tokens, **cues):
            calls.append((tokens, cues["sharpness"]))
            return Plan.identity(tokens)

    tokens = embed_frames(vit)
    vit.walk(tokens, [Spy(0.5)])
    x = torch.cat([vit.prefix(3), tokens.features], 1)
    q, k, _ = vit.blocks[0].attention.project(vit.blocks[0].norm1(x))
    a = (q @ k.transpose(2, 3) * 8**-0.5).softmax(-1).mean(1)
    torch.testing.assert_close(calls[0][1], (a * a.log()).sum(-1)[:, 2:])
