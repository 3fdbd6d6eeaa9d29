"""Methods that merge within frames or segments: STTM, PruneVid, HoliTom, FastVID, LLaVA-Scissor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from fewtokens.core import registry
from fewtokens.core.tokens import Tokens
from fidelity_rows import same_rows
from fidelity_rows.over_time import holitom_reference
from fidelity_rows.pruned import fastvid_reference, prunevid_reference, scissor_reference, sttm_reference
from peer_rows import Pair, Row, Workload


def _pair(spec: str, theirs: Callable[[], Tensor], tokens: Tokens, **cues: Tensor) -> Pair:
    (method,) = registry.build(spec)
    return Pair(lambda: method(tokens, **cues), theirs, lambda ours, theirs: same_rows(ours.features[0], theirs)[0])


def sttm(side: int, peers: Path, work: Workload) -> Pair:
    tokens = work.tokens(side)
    return _pair("sttm", sttm_reference(peers, tokens), tokens)


def prunevid(peers: Path, work: Workload) -> Pair:
    tokens = work.tokens()
    return _pair("prunevid", prunevid_reference(peers, tokens), tokens)


def holitom(peers: Path, work: Workload) -> Pair:
    """Ours at the number of tokens that the published code keeps, which rounds in each window and frame."""
    tokens, attention = work.tokens(), work.cue("attention")
    theirs = holitom_reference(peers, tokens, attention)
    return _pair(f"holitom({len(theirs())})", theirs, tokens, attention=attention)


def fastvid(peers: Path, work: Workload) -> Pair:
    tokens, attention, frame_global = work.tokens(), work.cue("attention"), work.cue("frame_global")
    theirs = fastvid_reference(peers, tokens, attention, frame_global)
    return _pair("fastvid(0.25)", theirs, tokens, attention=attention, frame_global=frame_global)


def scissor(peers: Path, work: Workload) -> Pair:
    tokens = work.tokens()
    return _pair("scissor(0.9)", scissor_reference(peers, tokens), tokens)


_CHAINS = "the published code stops label propagation before all connected nodes share a label"

ROWS = [
    Row("sttm", "0.85 / 0.6, 14x14", "HYUNJS/STTM@00736c7", partial(sttm, 14), unequal=_CHAINS),
    Row("sttm", "0.85 / 0.6, 8x8", "HYUNJS/STTM@00736c7", partial(sttm, 8), unequal=_CHAINS),
    Row("prunevid", "published settings, noise off", "Visual-AI/PruneVid@b12600c", prunevid),
    Row(
        "holitom",
        "a quarter",
        "cokeshao/HoliTom@e9b2972",
        holitom,
        unequal="ours keeps the exact count, the published code rounds in each window and frame",
    ),
    Row(
        "fastvid",
        "a quarter, noise off",
        "LunarShen/FastVID@a40a109",
        fastvid,
        unequal="the published code loses tokens to rounding, ours keeps the exact count",
    ),
    Row(
        "scissor",
        "tau = 0.9",
        "HumanMLLM/LLaVA-Scissor@b63354c",
        scissor,
        unequal="beyond about 3,400 tokens the published code compares a sample of the nodes",
    ),
]
