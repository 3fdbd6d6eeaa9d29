"""Properties of individual methods, in addition to the laws of all methods.

A method in none of these sets must follow its plan: means weighted by size conserve the mass of kept tokens, and any
other kept token is bitwise unchanged.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable

from fewtokens.core.method import CUES, STAGES, Method

# Every input cell is assigned to a token.
PARTITION = {
    "attention_vq", "bsq", "centerclip", "downsample", "dpc_knn", "dual_vq", "dynamic_pool", "frame_fusion",
    "frozen_vq", "fsq", "gaussian", "grt", "hierarchical_fsq", "kmeans", "length_embedding", "lfq", "lftr", "mean_pool",
    "merge_windows", "merge_windows_in_encoder", "metok", "multi_scale_vq", "pixelprune", "position_vq",
    "product_vq", "residual_vq", "rlt", "scissor", "stochastic_vq", "storm", "sttm", "tempme", "testa",
    "token_dynamics", "tome", "tome_in_encoder", "tome_video", "vid_tldr", "vq", "grouped_residual_vq",
    "bottleneck", "geometry_vq", "stream_vq",
}  # fmt: skip
# The sum of sizes * features is conserved.
CONSERVES = {
    "downsample", "dpc_knn", "dynamic_pool", "frame_fusion", "kmeans", "lftr", "mean_pool", "merge_windows",
    "merge_windows_in_encoder", "metok", "tempme", "testa", "tome", "tome_in_encoder", "tome_video",
}  # fmt: skip
# Drop some tokens and average others.
DROPS_AND_MERGES = {"fastvid", "holitom", "prumerge", "prunevid", "visionzip", "visual_words"}
# Sizes are importance weights, not numbers of cells.
SIZES_ARE_IMPORTANCE = {"vid_tldr"}
# Accept only square frames of a size that is fixed by the parameters.
SQUARE = {"vqtoken"}
# Change the features even with a budget of all tokens: they mix features or pool frames to squares.
NEVER_THE_IDENTITY = {"dynamic_pool", "storm"}
# The output is not ordered by time: each output token belongs to a frame, but may attend to any cluster; queries keep
# their order.
UNORDERED = {"learned_queries", "vqtoken"}
# Stream into a memory of constant size, which does not record the cells of earlier chunks.
CONSTANT_MEMORY = {"token_turing"}
# A code or number of tokens that changes by rounding changes what follows: the codes of finer scales, the other slots.
ROUNDING_CASCADES = {"hierarchical_fsq", "multi_scale_vq", "langdc"}


def check_metadata(method: Method, build: Callable[[str], Method]) -> None:
    """Asserts that a method is described, and that its arguments are plain values with defaults."""
    assert method.stage in STAGES
    assert set(method.needs) <= set(CUES)
    assert method.paper
    assert method.license
    assert method.cost
    assert inspect.getdoc(type(method)) != inspect.getdoc(Method)
    parameters = inspect.signature(type(method)).parameters.values()
    assert "Args:" in inspect.getdoc(type(method)) or not parameters
    assert len(parameters) <= 8
    assert all(p.default is not inspect.Parameter.empty for p in parameters)
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in list(parameters)[1:])
    assert all(ast.literal_eval(repr(value)) == value for value in method.arguments.values())
    assert build(method.spec).spec == method.spec
