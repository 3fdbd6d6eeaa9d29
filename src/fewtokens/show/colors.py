"""One color and marker for each method, the same in every plot and figure."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

# The baselines are gray and dashed.
_BASELINES = {
    "random": ("#1b1b1b", "o"),
    "uniform": ("#5a5a5a", "s"),
    "fewer_frames": ("#8a8a8a", "^"),
    "downsample": ("#6b7280", "D"),
    "mean_pool": ("#a3a3a3", "v"),
}
_COLORS = (
    "#2458a6", "#d1495b", "#2e8b57", "#e08e0b", "#7b3fa0", "#0a9396",
    "#b5179e", "#6a994e", "#8d5a3b", "#00b4d8", "#b8950b", "#3a0ca3",
)  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "<", ">", "H")
# One row of twelve colors for each marker. Append new methods at the end: the position is the look.
_METHODS = (
    "kmeans", "tome", "rlt", "evs", "dpc_knn", "token_dynamics",
    "sttm", "hourglass", "max_min", "frame_fusion", "scissor", "tempme",
    "prunevid", "vidcom2", "spatial_pool", "tome_video", "grid_split", "merge_windows",
    "tome_in_encoder", "merge_windows_in_encoder", "grt", "dtd", "lftr", "testa",
    "centerclip", "dynamic_pool", "metok", "dycoke", "representation_shift", "fastvid",
    "holitom", "visionzip", "vid_tldr", "visual_words", "representation_shift_in_encoder", "vqtoken",
    "perceiver", "tokenlearner", "qformer", "token_turing", "attentional_pool", "dense_tokens",
    "length_embedding", "linvt", "llama_vid", "pool_mlp", "ppllava", "storm",
    "fastv", "pyramid_drop", "dycoke_cache", "cls_attention", "framefusion_cascade", "holitom_inner",
    "sparsevlm", "attention_topk", "vispruner", "cdpruner", "dart", "pixelprune",
    "prumerge", "pvc", "vista_llama", "langdc", "fsq", "lfq", "bsq", "vq", "residual_vq", "product_vq",
    "multi_scale_vq", "gaussian", "tail_drop", "learned_queries", "deformable_queries", "stochastic_vq",
    "attention_vq", "frozen_vq", "position_vq", "dual_vq", "grouped_residual_vq", "bottleneck",
    "hierarchical_fsq", "stream_vq", "geometry_vq",
    "uniform_frames", "random_frames", "scene_changes", "keyframes", "max_min_frames", "aks",
    "f2c", "quota", "kffocus", "dcode", "timemarker", "intp", "videoitg", "sevila", "koala",
    "ring", "reservoir", "halving", "tome_cap", "kmeans_cap", "moviechat", "videoscan", "videollamb",
    "tdc", "videostreaming", "video_xl_pro", "vidcompress", "token_turing_memory", "ma_lmm", "lion_fs",
    "videollm_mod",
    "free_video_llm", "dcode_tokens", "b_vllm", "iva", "marc",
    "ring_cache", "videoscan_cache", "video_xl", "video_xl_2",
)  # fmt: skip
_SLOTS = len(_COLORS) * len(_MARKERS)


def method_color(name: str) -> str:
    """The color of a method as #rrggbb; a spec or a label such as "tome(keep=0.1)" has the color of its method."""
    return str(method_styles([name])[name]["color"])


def method_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How matplotlib draws each method: `color`, `marker`, `markersize`, `linestyle`, the same in every plot.

    Methods of this package have fixed styles, the baselines in grays and dashed. The style of any other name follows
    from a hash of the name; on a collision within `names` it takes the next free style. A label with arguments has the
    color of its method and hollow markers, a different one for each such label.
    """
    names = list(dict.fromkeys(names))
    taken = {_METHODS.index(name) for name in map(_base, names) if name in _METHODS}
    styles: dict[str, dict[str, Any]] = {}
    slots: dict[str, int] = {}
    variants: dict[str, int] = {}
    for label in sorted(names):
        name = _base(label)
        if name in _BASELINES:
            color, marker = _BASELINES[name]
            style: dict[str, Any] = {"color": color, "marker": marker, "markersize": 5, "linestyle": "--"}
        else:
            if name in _METHODS:
                slots[name] = _METHODS.index(name)
            elif name not in slots:
                start = zlib.crc32(name.encode()) % _SLOTS
                candidates = ((start + step) % _SLOTS for step in range(_SLOTS))
                slots[name] = next((slot for slot in candidates if slot not in taken), start)
                taken.add(slots[name])
            marker = _MARKERS[slots[name] // len(_COLORS)]
            style = {"color": _COLORS[slots[name] % len(_COLORS)], "marker": marker, "markersize": 4, "linestyle": "-"}
        if name != label:
            variant = variants[name] = variants.get(name, -1) + 1
            marker = _MARKERS[(_MARKERS.index(style["marker"]) + variant) % len(_MARKERS)]
            style |= {"marker": marker, "markerfacecolor": "white"}
        styles[label] = style
    return {label: styles[label] for label in names}


def _base(label: str) -> str:
    """The method's name in a label: the part before its arguments; results of older versions spelled the stage out."""
    name = label.partition("(")[0].strip()
    return f"{name}_in_encoder" if "stage='encoder'" in label else name
