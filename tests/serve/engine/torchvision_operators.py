"""Copied into the environment of vLLM, where a .pth file imports it at each start of Python.

The torchvision of the index is built for CUDA. Next to a torch for CPUs its library does not load, and its import fails
because these operators do not exist; nothing here calls them.
"""

from contextlib import suppress

with suppress(Exception):
    import torch

    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
