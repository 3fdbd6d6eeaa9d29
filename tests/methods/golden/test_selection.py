"""VidCom2, DyCoke, VisionZip and max-min selection against slow, obviously right versions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.clustering.centerclip import CenterClip, k_medoids
from fewtokens.methods.merging.frame_fusion import FrameFusion
from fewtokens.methods.merging.visionzip import VisionZip
from fewtokens.methods.pooling.dynamic_pool import DynamicPool
from fewtokens.methods.pruning.dycoke import DyCoke
from fewtokens.methods.pruning.hourglass import Hourglass
from fewtokens.methods.pruning.max_min import MaxMin
from fewtokens.methods.pruning.vidcom2 import VidCom2
from tests.helpers.clips import clip, cues
from tests.methods.golden import naive


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))


class TestVidCom2:
    @pytest.mark.parametrize("keep", [1, 5, 12, 30, 77, 120])
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_against_loops(self, keep, seed):
        tokens = clip(4, 5, 6, 16, 1, seed=seed)
        out = VidCom2(keep)(tokens)
        naive.same_tokens(out, naive.vidcom2(tokens.features[0].double().numpy().reshape(4, 5, 6, 16), keep))

    def test_a_frame_that_stands_out_keeps_more(self):
        generator = torch.Generator().manual_seed(0)
        x = 1 + 0.3 * torch.randn(1, 1, 4, 4, 16, generator=generator).repeat(1, 6, 1, 1, 1)
        x[:, 3] = torch.randn(1, 4, 4, 16, generator=generator)
        out = VidCom2(0.25)(Tokens.from_cells(x))
        per_frame = torch.bincount(out.frame[0], minlength=6)
        assert int(per_frame[3]) > int(per_frame[0])
        assert int(per_frame.sum()) == 24

    def test_counts(self):
        grid = Grid(32, 14, 14)
        assert VidCom2(0.25).planned_count(grid) == int(32 * 196 * 0.25)
        assert VidCom2(0.001).planned_count(grid) == 32


class TestDyCoke:
    def test_the_papers_count(self):
        """T=32, n=196, k=0.7 leaves 3098 tokens, 49.4 %."""
        assert DyCoke(0.7).planned_count(Grid(32, 14, 14)) == 3098
        assert DyCoke(0.7, last_group="pruned").planned_count(Grid(32, 14, 14)) == 3098 - 196 + 58

    @pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 7, 8, 11])
    @pytest.mark.parametrize("last_group", ["whole", "pruned"])
    def test_against_loops(self, T, last_group):
        tokens = clip(T, 3, 4, 8, 1)
        x = tokens.features[0].double().numpy().reshape(T, 12, 8)
        kept = np.ones((T, 12), bool)

        def prune(t: int, earlier: int) -> None:
            order = sorted(range(12), key=lambda n: cosine(x[t, n], x[earlier, n]))
            kept[t] = [n in order[:3] for n in range(12)]

        for i in range(0, T - 1, 2):
            prune(i + 1, i)
        for i in range(0, T, 4):
            if i + 2 < T and (last_group == "pruned" or i < T - 4):
                prune(i + 2, i)
        out = DyCoke(0.7, last_group=last_group)(tokens)
        assert torch.equal(out.assignment[0] >= 0, torch.from_numpy(kept.reshape(-1)))

    def test_no_frame_is_lost(self):
        out = DyCoke(1.0)(clip(7, 3, 4, 8, 1))
        assert set(out.frame[0].tolist()) == {0, 4, 6}


class TestVisionZip:
    @pytest.mark.parametrize("keep", [4, 13, 22, 40])
    @pytest.mark.parametrize("normalise", [True, False])
    def test_against_loops(self, keep, normalise):
        tokens = clip(3, 4, 5, 16, 1)
        given = cues(tokens)
        x = tokens.features[0].double().numpy()
        attention, keys = given["attention"][0].numpy(), given["keys"][0].double().numpy()
        rows = []
        for t in range(3):
            budget = (t + 1) * keep // 3 - t * keep // 3
            few = min(int(budget * 0.3), budget - 1)
            cells = list(range(20 * t, 20 * t + 20))
            dominant = sorted(sorted(cells, key=lambda n: -attention[n])[: budget - few])
            rest = [n for n in cells if n not in dominant]
            targets = rest[:: max(1, len(rest) // few)][:few] if few else []
            members = {n: [] for n in targets}
            for n in rest:
                if targets and n not in targets:
                    members[max(targets, key=lambda m: cosine(keys[n], keys[m]))].append(n)
            for n in sorted(dominant + targets):
                group = members.get(n, [])
                if normalise:
                    rows.append(x[[n, *group]].mean(0))
                else:
                    rows.append(x[n] + (x[group].mean(0) if group else 0))
        out = VisionZip(keep, contextual=0.3, normalize=normalise)(
            tokens, attention=given["attention"], keys=given["keys"]
        )
        np.testing.assert_allclose(out.features[0].numpy(), np.stack(rows), rtol=1e-4, atol=1e-5)

    def test_merged_rows_lie_within_their_members(self):
        """Convexity, which the published sum does not have."""
        tokens = clip(1, 6, 6, 16, 1)
        given = {name: cues(tokens)[name] for name in ("attention", "keys")}
        out = VisionZip(6, contextual=0.5)(tokens, **given)
        low, high = tokens.features.amin(1), tokens.features.amax(1)
        assert bool((out.features >= low - 1e-5).all())
        assert bool((out.features <= high + 1e-5).all())
        published = VisionZip(6, contextual=0.5, normalize=False)(tokens, **given)
        assert float(published.features.norm()) > float(out.features.norm())


class TestMaxMin:
    @pytest.mark.parametrize("keep", [1, 2, 9, 40])
    def test_against_loops(self, keep):
        tokens = clip(2, 4, 5, 8, 1)
        x = torch.nn.functional.normalize(tokens.features[0].double(), dim=1).numpy()
        mean = x.mean(0)
        kept = [min(range(40), key=lambda n: cosine(x[n], mean))]
        while len(kept) < keep:
            rest = [n for n in range(40) if n not in kept]
            kept.append(min(rest, key=lambda n: max(cosine(x[n], x[m]) for m in kept)))
        out = MaxMin(keep)(tokens)
        assert (out.assignment[0] >= 0).nonzero().flatten().tolist() == sorted(kept)


class TestHourglass:
    @pytest.mark.parametrize("seed", range(4))
    def test_against_loops(self, seed):
        """k=2 with the frame itself among them: the density is that of the one nearest other frame."""
        tokens = clip(8, 2, 3, 6, 1, seed=seed)
        frames = tokens.features[0].double().numpy().reshape(8, 6, 6).mean(1)
        distance = np.linalg.norm(frames[:, None] - frames[None], axis=-1) / np.sqrt(6)
        density = np.exp(-np.sort(distance**2, 1)[:, :2].mean(1))
        score = []
        for i in range(8):
            denser = [
                distance[i, j] for j in range(8) if density[j] > density[i] or (density[j] == density[i] and j < i)
            ]
            score.append(density[i] * (min(denser) if denser else distance.max()))
        expected = sorted(np.argsort(-np.array(score), kind="stable")[:3].tolist())
        out = Hourglass(18)(tokens)
        assert sorted(set(out.frame[0].tolist())) == expected
        assert out.N == 18

    def test_recovery(self):
        tokens = clip(6, 2, 2, 8, 1)
        out = Hourglass(0.5)(tokens)
        back = out.unmerge()
        kept = sorted(set(out.frame[0].tolist()))
        full = tokens.features.reshape(1, 6, 2, 2, 8)
        for t in range(6):
            nearest = min(kept, key=lambda k: (abs(k - t), k))
            torch.testing.assert_close(back[0, t], full[0, nearest])


def test_dynamic_pool():
    """T=32 gives 64 tokens a frame, T=200 gives 9; a frame that divides evenly is average pooling."""
    assert DynamicPool().planned_count(Grid(32, 24, 24)) == 32 * 64
    assert DynamicPool().planned_count(Grid(200, 24, 24)) == 200 * 9
    assert DynamicPool().planned_count(Grid(1, 24, 24)) == 144
    x = torch.randn(1, 2, 6, 6, 3)
    out = DynamicPool(18)(Tokens.from_cells(x))
    pooled = torch.nn.functional.avg_pool2d(x[0].permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2).reshape(1, -1, 3)
    torch.testing.assert_close(out.features, pooled)


@pytest.mark.parametrize("similarity", [-1.0, 0.3, 0.6, 0.99])
def test_frame_fusion_against_loops(similarity):
    tokens = clip(7, 3, 4, 8, 1)
    x = tokens.features[0].double().numpy().reshape(7, 12, 8)
    chains = []
    for place in range(12):
        for t in range(7):
            if t and cosine(x[t, place], x[t - 1, place]) >= similarity:
                chains[-1].append((t, place))
            else:
                chains.append([(t, place)])
    out = FrameFusion(similarity)(tokens)
    found = {
        frozenset(np.flatnonzero(out.assignment[0].numpy() == m).tolist()): out.features[0, m].double().numpy()
        for m in range(int(out.count[0]))
    }
    assert len(found) == len(chains)
    for chain in chains:
        np.testing.assert_allclose(
            found[frozenset(t * 12 + p for t, p in chain)], np.mean([x[c] for c in chain], 0), rtol=1e-5, atol=1e-6
        )


def test_frame_fusion_at_a_budget():
    tokens = clip(7, 3, 4, 8, 2)
    assert FrameFusion(keep=30)(tokens).count.tolist() == [30, 30]
    assert FrameFusion(keep=3)(tokens).count.tolist() == [12, 12]


class TestCenterClip:
    def plain(self, x: np.ndarray, k: int) -> list[int]:
        """The medoid of each row, by loops."""
        n = len(x)
        d = np.linalg.norm(x[:, None] - x[None], axis=-1)
        medoids = [int(np.argmax(np.linalg.norm(x, axis=1)))]
        while len(medoids) < k:
            rest = [i for i in range(n) if i not in medoids]
            medoids.append(max(rest, key=lambda i: min(d[i, j] for j in medoids)))
        while True:
            label = [medoids.index(i) if i in medoids else int(np.argmin([d[i, j] for j in medoids])) for i in range(n)]
            moved = []
            for c in range(k):
                members = [i for i in range(n) if label[i] == c]
                moved.append(min(members, key=lambda i: sum(d[i, j] for j in members)))
            if moved == medoids:
                return [medoids[c] for c in label]
            medoids = moved

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("k", [1, 3, 9, 30])
    def test_against_loops(self, seed, k):
        x = torch.randn(1, 30, 5, generator=torch.Generator().manual_seed(seed))
        found = k_medoids(x, torch.ones(1, 30, dtype=torch.bool), torch.tensor([k]), 100)[0].tolist()
        assert found == self.plain(x[0].double().numpy(), k)

    def test_segments_are_apart(self):
        out = CenterClip(0.1, frames=2)(clip(6, 4, 5, 8, 1))
        assert out.N == 12
        for m in range(12):
            frames = (out.assignment[0] == m).nonzero().flatten() // 20
            assert len(set((frames // 2).tolist())) == 1
        # A medoid is one of its members, unchanged.
        tokens = clip(6, 4, 5, 8, 1)
        torch.testing.assert_close(out.features, tokens.features.gather(1, out.cell[..., None].expand(-1, -1, 8)))
