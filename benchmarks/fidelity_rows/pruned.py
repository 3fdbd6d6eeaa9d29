"""Methods that prune by frame or segment: EVS, VidCom2, FastVID, LLaVA-Scissor, STTM, PruneVid.

Three of the references are parts of a language model's forward pass. Those lines are read from the clone and executed
unchanged (`run_definitions`, `run_lines`), with the surrounding variables set to simple values. Noise that a reference
adds to break ties is set to zero, because ours breaks ties by position.
"""

from __future__ import annotations

import ast
import contextlib
import textwrap
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core import registry
from fewtokens.core.tokens import Tokens
from fidelity_rows import Agreement, Features, Row, importing, same_places, same_rows

_FRAMES, _SIDE = 32, 14


def run_definitions(path: Path, *names: str, **variables: Any) -> dict[str, Any]:
    """Runs only the functions and classes of these names from a published file; returns its namespace."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if getattr(node, "name", None) in names]
    if missing := set(names) - {node.name for node in nodes}:
        raise ValueError(f"{path} does not define {', '.join(sorted(missing))}")
    namespace = {"torch": torch, "F": F, **variables}
    exec(compile(ast.Module(nodes, []), str(path), "exec"), namespace)
    return namespace


def compile_lines(path: Path, first: str, last: str) -> types.CodeType:
    """The lines of a published file from the one that starts with `first` to the next that starts with `last`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    start = next(n for n, line in enumerate(lines) if line.strip().startswith(first))
    end = next(n for n in range(start, len(lines)) if lines[n].strip().startswith(last))
    return compile(textwrap.dedent("\n".join(lines[start : end + 1])), f"{path}:{start + 1}", "exec")


def run_lines(code: types.CodeType, **variables: Any) -> dict[str, Any]:
    """Runs published lines with these variables; returns their namespace."""
    namespace = {"torch": torch, "F": F, **variables}
    exec(code, namespace)
    return namespace


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Disables the noise on densities."""
    with patch("torch.rand", lambda *shape, **options: torch.zeros(*shape, **options)):
        yield


def ours(spec: str, tokens: Tokens, **cues: Tensor) -> Tokens:
    (method,) = registry.build(spec)
    return method(tokens, **cues)


def kept_cells(out: Tokens) -> Tensor:
    """The cells kept by a method that does not merge."""
    return (out.assignment[0] >= 0).nonzero().flatten()


def scale_channels(tokens: Tokens) -> Tokens:
    """Gives channels unequal variance: VidCom2 selects the half with the lowest, and standardized channels tie."""
    return tokens.replace(features=tokens.features * torch.linspace(0.5, 1.5, tokens.C))


def vllm(module: str, spec: str, q: float, peers: Path, tokens: Tokens) -> Agreement:
    with importing(peers / "vllm" / "vllm" / "multimodal" / "video_prune"):
        reference = __import__(module)
        mask = reference.compute_retention_mask(tokens.features[0], (_FRAMES, _SIDE, _SIDE), 1, q)
    return Agreement(same_places(kept_cells(ours(spec, tokens)), mask.nonzero().flatten()), 0.0)


def evs(peers: Path, features: Features) -> Agreement:
    """Compares the kept cells."""
    return vllm("evs", "evs(q=0.75)", 0.75, peers, features.tokens())


def vidcom2(peers: Path, features: Features) -> Agreement:
    """Compares the kept cells."""
    return vllm("vidcom2", "vidcom2(q=0.75)", 0.75, peers, scale_channels(features.tokens()))


def vidcom2_authors(peers: Path, features: Features) -> Agreement:
    """Compares the kept cells with the authors' code, in which the sum of the counts per frame depends on rounding."""
    tokens = scale_channels(features.tokens())
    with importing(peers / "VidCom2" / "token_compressor" / "vidcom2"):
        import vidcom2 as reference

        x = torch.cat([tokens.features[0], torch.arange(tokens.N)[:, None]], 1)  # the last channel is the position
        with patch.object(reference, "select_low_var_channels", _without_last(reference.select_low_var_channels)):
            out = reference.vidcom2_compression(x, "qwen2_vl", 0.25, frame_token_len=_SIDE**2)
    why = "the published code leaves the sum of the counts per frame to rounding; ours corrects it as vLLM does"
    return Agreement(same_places(kept_cells(ours("vidcom2(0.25)", tokens)), out[:, -1].long()), 0.0, why)


def _without_last(select: Any) -> Any:
    return lambda x: select(x[:, :-1])


def fastvid_reference(peers: Path, tokens: Tokens, attention: Tensor, frame_global: Tensor) -> Callable[[], Tensor]:
    """Runs the published code at its settings and a quarter of the tokens; returns the output rows [M,C]."""
    model = SimpleNamespace(
        video_start_idx=0,
        video_token_len=tokens.N,
        frame_num=tokens.grid.T,
        frame_attn_weights=attention[0],
        frame_global_features=frame_global[0],
        fastvid_retention_ratio=0.25,
        fastvid_DySeg_c=8,
        fastvid_DySeg_tau=0.9,
        fastvid_STPrune_d=0.4,
        fastvid_DTM_p=4,
        fastvid_DTM_beta=0.6,
    )
    path = peers / "FastVID/fastvid_llavaonevision/LLaVA-NeXT/llava/model/language_model/modeling_qwen2.py"
    code = compile_lines(path, "device_type = hidden_states.device", "keep_indexs = keep_indexs[sorted_indexs]")

    def run() -> Tensor:
        with without_noise():
            out = run_lines(code, self=model, hidden_states=tokens.features, seq_length=tokens.N)
        return out["hidden_states"][0]

    return run


def fastvid(peers: Path, features: Features) -> Agreement:
    """Compares the output rows, at the published settings and a quarter of the tokens."""
    tokens, attention = features.tokens(), features.cue("attention")
    frame_global = features.cue("frame_global")
    theirs = fastvid_reference(peers, tokens, attention, frame_global)()
    out = ours("fastvid(0.25)", tokens, attention=attention, frame_global=frame_global)
    return Agreement(
        *same_rows(out.features[0], theirs),
        "the published code loses tokens to rounding; ours fills up with the next tokens by attention, so that the "
        "count is exact",
    )


def scissor_reference(peers: Path, tokens: Tokens) -> Callable[[], Tensor]:
    """Runs the published code at tau = 0.9; returns the output rows [M,C]."""
    path = peers / "LLaVA-Scissor/llava/model/llava_arch_zip.py"
    parts = run_definitions(path, "UnionFind", "approximate_components", np=np, defaultdict=defaultdict)
    code = compile_lines(path, "frame_num = image_feat.shape[0]//ori_token_num", "image_feat = selected_tokens")

    def run() -> Tensor:
        np.random.seed(0)
        return run_lines(
            code,
            approximate_components=parts["approximate_components"],
            einops=SimpleNamespace(rearrange=lambda x, _, n, hw: x.unflatten(0, (n, hw))),
            image_feat=tokens.features[0],
            ori_token_num=_SIDE**2,
            tau=0.9,
            epsilon=0.05,
            self=SimpleNamespace(total_token_1=0, total_token_2=0, val_cnt=0),
            print=lambda *words: None,
        )["image_feat"]

    return run


def scissor(peers: Path, features: Features) -> Agreement:
    """Compares the output rows; sampling is exact up to about 3,400 tokens."""
    tokens = features.tokens()
    return Agreement(*same_rows(ours("scissor(0.9)", tokens).features[0], scissor_reference(peers, tokens)()))


def sttm_reference(peers: Path, tokens: Tokens) -> Callable[[], Tensor]:
    """Runs the published code at its settings; returns the output rows [M,C]."""
    with importing(peers / "STTM"):
        from token_merging_utils.quadtree_interface import get_quadtree_features
    x = tokens.features[0].unflatten(0, tokens.grid.shape).permute(0, 3, 1, 2)
    return lambda: get_quadtree_features(x, 0.85, 0.6, root_level=1)[0]


def sttm(side: int, peers: Path, features: Features) -> Agreement:
    tokens = features.tokens(side=side)
    theirs = sttm_reference(peers, tokens)()
    why = (
        "the published code stops label propagation before all connected nodes share a label; run to convergence, it "
        "is identical"
    )
    return Agreement(*same_rows(ours("sttm", tokens).features[0], theirs), why)


def sttm_14(peers: Path, features: Features) -> Agreement:
    """Compares the output rows, on the grid of LLaVA-OneVision."""
    return sttm(14, peers, features)


def sttm_13(peers: Path, features: Features) -> Agreement:
    """Compares the output rows, on the grid of LLaVA-Video."""
    return sttm(13, peers, features)


def sttm_8(peers: Path, features: Features) -> Agreement:
    """Compares the output rows, on a grid without strips."""
    return sttm(8, peers, features)


def prunevid_reference(peers: Path, tokens: Tokens) -> Callable[[], Tensor]:
    """Runs the published code at its settings; returns the output rows [M,C]."""
    parts = run_definitions(
        peers / "PruneVid/models/pllava/modeling_pllava.py",
        "index_points",
        "cluster_dpc_knn",
        "refine_clusters",
        "segment_lengths",
        "merge_frames_dynamic",
        "spatial_merge_tokens",
        "compute_cluster_vectors",
        einsum=torch.einsum,
    )
    config = SimpleNamespace(
        num_frames=tokens.grid.T, pooling_shape=tokens.grid.shape, temporal_segment_ratio=0.25, cluster_ratio=0.5
    )
    model = SimpleNamespace(config=config)
    for name in ("spatial_merge_tokens", "compute_cluster_vectors"):
        setattr(model, name, parts[name].__get__(model))

    def run() -> Tensor:
        with without_noise():
            return parts["merge_frames_dynamic"](model, tokens.features, threshold=0.8, k=7)[0][0]

    return run


def prunevid(peers: Path, features: Features) -> Agreement:
    """Compares the output rows, at the published settings."""
    tokens = features.tokens()
    return Agreement(*same_rows(ours("prunevid", tokens).features[0], prunevid_reference(peers, tokens)()))


ROWS = [
    Row("evs", "vllm-project/vllm", "d750efb", "q = 0.75, [6272,384]", evs),
    Row("vidcom2", "vllm-project/vllm", "0f17ee0", "q = 0.75, [6272,384], channels times 0.5..1.5", vidcom2),
    Row(
        "vidcom2",
        "xuyang-liu16/VidCom2",
        "944a17d",
        "keep = 0.25, [6272,384], channels times 0.5..1.5",
        vidcom2_authors,
    ),
    Row("fastvid", "LunarShen/FastVID", "a40a109", "keep = 0.25, [6272,384], noise off", fastvid),
    Row("scissor", "HumanMLLM/LLaVA-Scissor", "b63354c", "tau = 0.9, [6272,384]", scissor),
    Row("sttm", "HYUNJS/STTM", "00736c7", "0.85 / 0.6, 14x14, root level 1", sttm_14),
    Row("sttm", "HYUNJS/STTM", "00736c7", "0.85 / 0.6, 13x13, root level 1", sttm_13),
    Row("sttm", "HYUNJS/STTM", "00736c7", "0.85 / 0.6, 8x8, root level 1", sttm_8),
    Row("prunevid", "Visual-AI/PruneVid", "b12600c", "published settings, [6272,384], noise off", prunevid),
]
