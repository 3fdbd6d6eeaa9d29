"""What each method promises beside the laws that hold for all.

A method in none of these sets is held to what its plan says: means by size conserve the mass of what is kept; anything
else that it keeps comes out bit for bit as it went in.
"""

from __future__ import annotations

# Every cell that goes in ends in some token.
PARTITION = {
    "centerclip", "downsample", "dpc_knn", "dynamic_pool", "frame_fusion", "grt", "kmeans", "length_embedding", "lftr",
    "mean_pool", "merge_windows", "merge_windows_in_encoder", "metok", "rlt", "scissor", "storm", "sttm", "tempme",
    "testa", "token_dynamics", "tome", "tome_in_encoder", "tome_video", "vid_tldr",
}  # fmt: skip
# The sum of sizes * features stays the same.
CONSERVES = {
    "downsample", "dpc_knn", "dynamic_pool", "frame_fusion", "kmeans", "lftr", "mean_pool", "merge_windows",
    "merge_windows_in_encoder", "metok", "tempme", "testa", "tome", "tome_in_encoder", "tome_video",
}  # fmt: skip
# Drops some tokens and averages others.
DROPS_AND_MERGES = {"fastvid", "holitom", "prunevid", "visionzip", "visual_words"}
# Sizes are an importance and no longer count cells.
SIZES_ARE_IMPORTANCE = {"vid_tldr"}
# Works on square frames of a size that its parameters fix.
SQUARE = {"vqtoken"}
# At a budget of everything it still changes the features: it mixes them, or pools frames to squares.
NEVER_THE_IDENTITY = {"dynamic_pool", "storm"}
# Comes out in another order than that of time: frames that asked, which may look at any cluster.
UNORDERED = {"vqtoken"}
# Streams into a memory of constant size, which does not say which cells of earlier chunks it holds.
CONSTANT_MEMORY = {"token_turing"}
