"""VisionZip against loops."""

from __future__ import annotations

import numpy as np
import pytest

from fewtokens.methods.merging.visionzip import VisionZip
from tests.helpers.clips import clip, cues
from tests.helpers.naive import cosine


class TestVisionZip:
    @pytest.mark.parametrize("keep", [4, 13, 22, 40])
    @pytest.mark.parametrize("normalize", [True, False])
    def test_against_loops(self, keep, normalize):
        tokens = clip(3, 4, 5, 16, 1)
        inputs = cues(tokens)
        x = tokens.features[0].double().numpy()
        attention, keys = inputs["attention"][0].numpy(), inputs["keys"][0].double().numpy()
        rows = []
        for t in range(3):
            budget = (t + 1) * keep // 3 - t * keep // 3
            num_contextual = min(int(budget * 0.3), budget - 1)
            cells = list(range(20 * t, 20 * t + 20))
            dominant = sorted(sorted(cells, key=lambda n: -attention[n])[: budget - num_contextual])
            rest = [n for n in cells if n not in dominant]
            targets = rest[:: max(1, len(rest) // num_contextual)][:num_contextual] if num_contextual else []
            members = {n: [] for n in targets}
            for n in rest:
                if targets and n not in targets:
                    members[max(targets, key=lambda m: cosine(keys[n], keys[m]))].append(n)
            for n in sorted(dominant + targets):
                group = members.get(n, [])
                if normalize:
                    rows.append(x[[n, *group]].mean(0))
                else:
                    rows.append(x[n] + (x[group].mean(0) if group else 0))
        out = VisionZip(keep, contextual=0.3, normalize=normalize)(
            tokens, attention=inputs["attention"], keys=inputs["keys"]
        )
        np.testing.assert_allclose(out.features[0].numpy(), np.stack(rows), rtol=1e-4, atol=1e-5)

    def test_merged_rows_are_within_the_range_of_their_members(self):
        """Convexity, which the published sum violates."""
        tokens = clip(1, 6, 6, 16, 1)
        inputs = {name: cues(tokens)[name] for name in ("attention", "keys")}
        out = VisionZip(6, contextual=0.5)(tokens, **inputs)
        low, high = tokens.features.amin(1), tokens.features.amax(1)
        assert bool((out.features >= low - 1e-5).all())
        assert bool((out.features <= high + 1e-5).all())
        published = VisionZip(6, contextual=0.5, normalize=False)(tokens, **inputs)
        assert float(published.features.norm()) > float(out.features.norm())
