"""Token Dynamics: golden values by loops, the laws of the three attentions, the released checkpoint's layout."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fewtokens.core.grid import Grid
from fewtokens.core.method import save_weights
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.clustering.kmeans import KMeans
from fewtokens.methods.learned.token_dynamics import TokenDynamics
from fewtokens.methods.learned.vqtoken import VqToken
from fewtokens.methods.ops.cross_dynamics import (
    CrossDynamics,
    PaperAttention,
    ReferenceAttention,
    occupancy,
    statistics,
)
from fewtokens.methods.ops.token_base import fixed
from tests.helpers.clips import clip


def trained(keep: int | None = 5, **options) -> TokenDynamics:
    torch.manual_seed(1)
    method = TokenDynamics(keep, dim=24, **options).eval()
    for module in method.modules():
        if isinstance(module, CrossDynamics):
            nn.init.constant_(module.gate, 0.7)
    return method


def released(keep: int | None = 5, *, side: int = 3, **options) -> VqToken:
    torch.manual_seed(1)
    return VqToken(keep, dim=24, side=side, **options).eval()


def square(T: int = 4, side: int = 3, B: int = 2) -> Tokens:
    return clip(T, side, side, B=B)


def adaptive_pool(own: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Averages of floor(i n / p) .. ceil((i+1) n / p) along each axis, by loops."""
    out = np.zeros(shape)
    for index in np.ndindex(*shape):
        part = own
        for axis, (i, p) in enumerate(zip(index, shape, strict=True)):
            n = own.shape[axis]
            part = part.take(range(i * n // p, math.ceil((i + 1) * n / p)), axis=axis)
        out[index] = part.mean()
    return out


class TestTheMap:
    def test_occupancy_is_adaptive_average_pooling(self):
        tokens = clip(T=5, H=4, W=9)
        base = KMeans(6)(tokens)
        found = occupancy(base)
        for b in range(2):
            cells = base.assignment[b].reshape(5, 4, 9).numpy()
            for k in range(6):
                np.testing.assert_allclose(found[b, k], adaptive_pool(cells == k, (8, 7, 7)).ravel(), atol=1e-6)

    def test_statistics_by_loops(self):
        tokens = clip(T=5, H=4, W=9)
        base = KMeans(6)(tokens)
        found = statistics(base)
        for b in range(2):
            for k in range(6):
                at = np.argwhere(base.assignment[b].reshape(5, 4, 9).numpy() == k)
                place = (at + 0.5) / (5, 4, 9)
                span = (at[:, 0].max() - at[:, 0].min() + 1) / 5
                wanted = [*place.mean(0), *place.std(0), math.log(len(at) / 180), span]
                np.testing.assert_allclose(found[b, k], wanted, atol=1e-5)

    def test_it_does_not_feel_padding(self):
        alone = KMeans(4)(clip(T=3, B=1))
        padded = clip(T=6, B=1, lengths=[3])
        source = torch.nn.functional.pad(alone.assignment, (0, 90), value=-1)
        base = alone.replace(assignment=source, grid=padded.grid)
        torch.testing.assert_close(occupancy(base), occupancy(alone))
        torch.testing.assert_close(statistics(base), statistics(alone))


class TestDynamics:
    def test_it_begins_as_the_plain_centres(self):
        tokens = clip()
        made, plain = TokenDynamics(7, dim=24)(tokens), KMeans(7)(tokens)
        assert torch.equal(made.features, plain.features)
        assert torch.equal(made.assignment, plain.assignment)

    def test_golden_attention_by_loops(self):
        method, tokens = trained(), clip(B=1)
        made, base = method(tokens), KMeans(5)(tokens)
        module = method.attention
        x = module.norm(base.features)[0].detach()
        told = module.describe(module.norm_map(torch.cat([occupancy(base), statistics(base)], 2)))[0].detach()
        q, k, v = (
            (layer.weight @ y.T).T.detach() for layer, y in ((module.query, x), (module.key, x), (module.value, told))
        )
        d = 24 // module.heads
        wanted = torch.zeros(5, 24)
        for h in range(module.heads):
            part = slice(h * d, (h + 1) * d)
            for i in range(5):
                scores = torch.tensor([float(q[i, part] @ k[j, part]) / math.sqrt(d) for j in range(5)])
                wanted[i, part] = sum(w * v[j, part] for j, w in enumerate(scores.softmax(0)))
        wanted = base.features[0] + 0.7 * (module.out.weight.detach() @ wanted.T).T
        torch.testing.assert_close(made.features[0], wanted, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("module", [CrossDynamics, PaperAttention])
    def test_numbering_the_clusters_otherwise_permutes_the_rows(self, module):
        torch.manual_seed(0)
        attention = module(24).eval()
        if module is CrossDynamics:
            nn.init.constant_(attention.gate, 1.0)
        base = KMeans(6)(clip())
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        other = base.apply(Plan(base.count, 6, order.argsort().expand(2, -1), order.expand(2, -1)))
        with torch.no_grad():
            torch.testing.assert_close(attention(other.features, other), attention(base.features, base)[:, order])

    def test_shuffled_frames_change_the_map_and_not_the_centres(self):
        tokens = clip(T=6)
        order = torch.tensor([4, 1, 5, 0, 3, 2])
        shuffled = Tokens.from_cells(tokens.features.unflatten(1, (6, -1))[:, order].flatten(1, 2), tokens.grid)
        method = trained(6)
        # From the same centres: k-means++ itself looks at the order of the tokens.
        label = method.decide(tokens).dest.unflatten(1, (6, -1))[:, order].flatten(1)
        one, two = tokens.apply(method.decide(tokens)), shuffled.apply(Plan.group(label, shuffled, 6))
        same = (one.features[:, :, None] - two.features[:, None]).norm(dim=3).argmin(2)
        torch.testing.assert_close(one.features, two.features.gather(1, same[..., None].expand(-1, -1, 24)))
        assert not torch.allclose(occupancy(one), occupancy(two).gather(1, same[..., None].expand(-1, -1, 392)))

    @pytest.mark.parametrize("mode", ["dynamics", "paper", "released"])
    def test_gradients_reach_everything(self, mode):
        method, tokens = released() if mode == "released" else trained(mode=mode), square()
        features = tokens.features.clone().requires_grad_()
        method(tokens.replace(features=features)).features.square().sum().backward()
        assert float(features.grad.abs().sum()) > 0
        for name, parameter in method.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
            assert float(parameter.grad.abs().sum()) > 0, name

    def test_adaptive_length(self):
        """A video that stands still and is one colour takes fewest; many different things take more."""
        torch.manual_seed(0)
        kinds = torch.nn.functional.normalize(torch.randn(20, 24), dim=1)
        varied = kinds[torch.arange(4 * 30) % 20] * 3 + 0.01 * torch.randn(120, 24)
        still = kinds[:1].expand(120, -1) * 3
        tokens = Tokens.from_cells(torch.stack([still, varied]), Grid(4, 5, 6))
        method = TokenDynamics(dim=24, criterion="silhouette", between=(4, 24))
        assert method(tokens).count.tolist() == [4, 20]
        assert method.planned_count(tokens.grid) is None

    def test_saved_and_read(self, tmp_path):
        method, tokens = trained(), clip()
        path = save_weights(method, tmp_path / "few.safetensors")
        again = TokenDynamics(5, dim=24, checkpoint=str(path))
        assert torch.equal(again(tokens).features, method(tokens).features)

    def test_wrong_arguments(self):
        for options, said in (
            ({"mode": "other"}, "mode must be"),
            ({"criterion": "luck"}, "chooses K by"),
            ({"keep": 5, "criterion": "elbow"}, "takes one of keep= and criterion="),
            ({"criterion": "elbow", "between": (5, 3)}, "k_min"),
        ):
            with pytest.raises(ValueError, match=said):
                TokenDynamics(**options)
        with pytest.raises(ValueError, match="say dim=24"):
            TokenDynamics(5, dim=32)(clip())


class TestReference:
    @pytest.mark.parametrize(("T", "keep"), [(4, 9), (4, 4), (7, 3), (1, 5), (5, 1)])
    def test_equals_a_stock_decoder_on_tiled_rows(self, T, keep):
        """max(T, K) rows, in the order of the frames; written with repeat and cut as one video at a time."""
        method, tokens = released(keep), square(T)
        with torch.no_grad():
            made = method(tokens)
        assert made.count.tolist() == [max(T, keep)] * 2 == [method.planned_count(tokens.grid)] * 2
        made.check()
        unit = torch.nn.functional.normalize(tokens.features, dim=2)
        for b in range(2):
            label = fixed(tokens[b], torch.tensor([keep]), method.seed).dest[0]
            centres = torch.stack([unit[b, label == k].mean(0) for k in range(keep)])
            rows = label.reshape(T, 9).float()
            longest = max(T, keep)
            rows = rows.repeat(longest // T + 1, 1)[:longest]
            memory = centres.repeat(longest // keep + 1, 1)[:longest]
            with torch.no_grad():
                asking = method.attention.to_q_proj(rows)[None]
                wanted = method.attention.transformer_decoder(asking, memory[None])
            torch.testing.assert_close(made.features[b], wanted[0], rtol=1e-4, atol=1e-5)

    def test_the_released_layout(self, tmp_path):
        """20 tensors under model.cross_attention.*, 10.76 M parameters at 896 channels and 27 x 27 cells."""
        module = ReferenceAttention(896, 27)
        assert len(module.state_dict()) == 20
        assert sum(p.numel() for p in module.parameters()) == pytest.approx(10.76e6, rel=1e-3)
        source = released(4)
        tensors = {f"model.cross_attention.{name}": value for name, value in source.attention.state_dict().items()}
        path = str(tmp_path / "released.safetensors")
        save_file(tensors | {"model.image_newline": torch.zeros(24)}, path)
        again = VqToken(4, dim=24, side=3, checkpoint=path).eval()
        assert torch.equal(again(square()).features, source(square()).features)
        tensors.popitem()
        save_file(tensors, path)
        with pytest.raises(ValueError, match="holds no cross-attention"):
            VqToken(4, dim=24, side=3, checkpoint=path)
        with pytest.raises(ValueError, match="not a safetensors file"):
            VqToken(4, dim=24, side=3, checkpoint=str(tmp_path / "none"))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_in_half_precision(self, dtype):
        tokens, method = square().to(dtype), released(4)
        whole = method(tokens.to(torch.float32))
        out = method.to(dtype)(tokens).check()
        assert out.features.dtype == dtype
        torch.testing.assert_close(out.features.float(), whole.features, rtol=0.05, atol=0.05)

    def test_frames_of_another_size(self):
        with pytest.raises(ValueError, match="say side="):
            released(4, side=4)(square())

    def test_a_batch_of_unequal_lengths(self):
        method = released(None, criterion="silhouette", between=(2, 6))
        padded = clip(6, 3, 3, lengths=[3, 6])
        with torch.no_grad():
            together = method(padded)
            for b, length in enumerate((3, 6)):
                alone = Tokens.from_cells(padded.features[b : b + 1, : length * 9], Grid(length, 3, 3))
                torch.testing.assert_close(together[b].features, method(alone).features, rtol=1e-4, atol=1e-5)
