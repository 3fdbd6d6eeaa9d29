"""Token Dynamics: reference values by loops, properties of its attentions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import save_weights
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.clustering.kmeans import KMeans
from fewtokens.methods.learned.token_dynamics import TokenDynamics
from fewtokens.methods.ops.cross_dynamics import (
    CrossDynamics,
    PaperAttention,
    occupancy,
    statistics,
)
from tests.helpers import naive
from tests.helpers.clips import clip
from tests.helpers.dynamics import make_vqtoken, square_clip
from tests.helpers.planted import same_partition


def make_token_dynamics(keep: int | None = 5, **options) -> TokenDynamics:
    torch.manual_seed(1)
    method = TokenDynamics(keep, dim=24, **options).eval()
    for module in method.modules():
        if isinstance(module, CrossDynamics):
            nn.init.constant_(module.gate, 0.7)
    return method


@pytest.mark.parametrize(("seed", "labels"), [(0, [0, 1, 2, 0, 2, 2, 3, 3]), (7, [0, 1, 2, 2, 3, 4, 1, 1])])
def test_eight_labels_of_a_seed(seed, labels):
    tokens, x = naive.video(seed=3)
    out = TokenDynamics(6, dim=12, seed=seed)(tokens)
    assert same_partition(out.assignment[0], torch.tensor(naive.kmeans(x, 6, seed)))
    assert same_partition(out.assignment[0, :8], torch.tensor(labels))


class TestTokenDynamics:
    def test_the_centroids_are_unchanged_at_initialization(self):
        tokens = clip()
        out, base = TokenDynamics(7, dim=24)(tokens), KMeans(7)(tokens)
        assert torch.equal(out.features, base.features)
        assert torch.equal(out.assignment, base.assignment)

    def test_golden_attention_by_loops(self):
        method, tokens = make_token_dynamics(), clip(B=1)
        out, base = method(tokens), KMeans(5)(tokens)
        module = method.attention
        x = module.norm(base.features)[0].detach()
        description = module.describe(module.norm_map(torch.cat([occupancy(base), statistics(base)], 2)))[0].detach()
        q, k, v = (
            (layer.weight @ y.T).T.detach()
            for layer, y in ((module.query, x), (module.key, x), (module.value, description))
        )
        d = 24 // module.heads
        expected = torch.zeros(5, 24)
        for h in range(module.heads):
            part = slice(h * d, (h + 1) * d)
            for i in range(5):
                scores = torch.tensor([float(q[i, part] @ k[j, part]) / math.sqrt(d) for j in range(5)])
                expected[i, part] = sum(w * v[j, part] for j, w in enumerate(scores.softmax(0)))
        expected = base.features[0] + 0.7 * (module.out.weight.detach() @ expected.T).T
        torch.testing.assert_close(out.features[0], expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("module", [CrossDynamics, PaperAttention])
    def test_renumbering_the_clusters_permutes_the_rows(self, module):
        torch.manual_seed(0)
        attention = module(24).eval()
        if module is CrossDynamics:
            nn.init.constant_(attention.gate, 1.0)
        base = KMeans(6)(clip())
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        other = base.apply(Plan(base.count, 6, order.argsort().expand(2, -1), order.expand(2, -1)))
        with torch.no_grad():
            torch.testing.assert_close(attention(other.features, other), attention(base.features, base)[:, order])

    def test_shuffling_frames_changes_the_map_but_not_the_centroids(self):
        tokens = clip(T=6)
        order = torch.tensor([4, 1, 5, 0, 3, 2])
        shuffled = Tokens.from_cells(tokens.features.unflatten(1, (6, -1))[:, order].flatten(1, 2), tokens.grid)
        method = make_token_dynamics(6)
        # From the same centroids: k-means++ itself depends on the order of the tokens.
        label = method.decide(tokens).dest.unflatten(1, (6, -1))[:, order].flatten(1)
        first, second = tokens.apply(method.decide(tokens)), shuffled.apply(Plan.group(label, shuffled, 6))
        match = (first.features[:, :, None] - second.features[:, None]).norm(dim=3).argmin(2)
        torch.testing.assert_close(first.features, second.features.gather(1, match[..., None].expand(-1, -1, 24)))
        assert not torch.allclose(occupancy(first), occupancy(second).gather(1, match[..., None].expand(-1, -1, 392)))

    @pytest.mark.parametrize("mode", ["dynamics", "paper", "released"])
    def test_gradients_reach_every_parameter(self, mode):
        method, tokens = make_vqtoken() if mode == "released" else make_token_dynamics(mode=mode), square_clip()
        features = tokens.features.clone().requires_grad_()
        method(tokens.replace(features=features)).features.square().sum().backward()
        assert float(features.grad.abs().sum()) > 0
        for name, parameter in method.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
            assert float(parameter.grad.abs().sum()) > 0, name

    def test_adaptive_length(self):
        """A static video of one color takes the fewest tokens; varied content takes more."""
        torch.manual_seed(0)
        directions = torch.nn.functional.normalize(torch.randn(20, 24), dim=1)
        varied = directions[torch.arange(4 * 30) % 20] * 3 + 0.01 * torch.randn(120, 24)
        static = directions[:1].expand(120, -1) * 3
        tokens = Tokens.from_cells(torch.stack([static, varied]), Grid(4, 5, 6))
        method = TokenDynamics(dim=24, criterion="silhouette", between=(4, 24))
        assert method(tokens).count.tolist() == [4, 20]
        assert method.planned_count(tokens.grid) is None

    def test_save_and_load(self, tmp_path):
        method, tokens = make_token_dynamics(), clip()
        path = save_weights(method, tmp_path / "few.safetensors")
        again = TokenDynamics(5, dim=24, checkpoint=str(path))
        assert torch.equal(again(tokens).features, method(tokens).features)

    def test_invalid_arguments(self):
        for options, message in (
            ({"mode": "other"}, "mode must be"),
            ({"criterion": "luck"}, "criterion must be one of"),
            ({"keep": 5, "criterion": "elbow"}, "takes one of keep= and criterion="),
            ({"criterion": "elbow", "between": (5, 3)}, "k_min"),
        ):
            with pytest.raises(ValueError, match=message):
                TokenDynamics(**options)
        with pytest.raises(ValueError, match="set dim=24"):
            TokenDynamics(5, dim=32)(clip())
