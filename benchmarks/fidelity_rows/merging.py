"""Methods that merge by similarity inside or after an encoder: ToMe and its relatives."""

from __future__ import annotations

from pathlib import Path

from fewtokens.reduce.bipartite import bipartite_plan
from fidelity_rows import Agreement, Features, Row, load, same_rows


def tome(peers: Path, features: Features) -> Agreement:
    """One step of matching and merging by features, r of half the tokens."""
    tokens = features.tokens()
    r = tokens.N // 4
    code = load(peers / "ToMe" / "tome" / "merge.py")
    merge, _ = code.bipartite_soft_matching(tokens.features, r)
    theirs, _ = code.merge_wavg(merge, tokens.features)
    ours = tokens.apply(bipartite_plan(tokens.features, r, tokens)).features
    return Agreement(*same_rows(ours[0], theirs[0]))


ROWS = [Row("tome", "facebookresearch/ToMe", "af95e4b", "one step, [6272,384], r = a quarter", tome)]
