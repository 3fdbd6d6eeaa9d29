"""Number of operations of a network, in named conventions.

Operations are counted while the network runs, from its actual calls (on meta tensors if possible), not from a formula
per model.

Conventions, in units of 1e9 operations per sample:

    macs         multiply-accumulates of matrix products and convolutions, as torch.utils.flop_counter counts
                 them (its FLOPs halved)
    paper        TokenLearner's image and ViViT tables (arXiv 2106.11297): (2 * MACs + elementwise) / 2, where a
                 convolution at a padded border counts only the taps on pixels, and exp, tanh, rsqrt count
                 as 0: half of XLA's count without optimization
    paper_video  its tables of video modules (12 and 13): 2 * MACs, including taps on padding, and 6 per attention
                 logit; 6 in total per entry of vector attention; no other elementwise operations
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

CONVENTIONS = ("macs", "paper", "paper_video")


@dataclass
class Count:
    """Operations of one run, summed over its samples.

    Attributes:
        macs: multiply-accumulates, without those in `border`.
        border: multiply-accumulates of convolutions with the zeros of their padding.
        elementwise: single additions, multiplications, divisions, comparisons.
        logits: attention logits of heads with more than one channel.
        entries: attention logits of heads with one channel (vector attention).
        entry_macs: the part of `macs` in vector attention.
        unknown: names of operations that were not counted.
    """

    macs: int = 0
    border: int = 0
    elementwise: int = 0
    logits: int = 0
    entries: int = 0
    entry_macs: int = 0
    unknown: tuple[str, ...] = ()

    def giga(self, convention: str) -> float:
        """Returns operations / 1e9 in a convention of this module."""
        if convention == "macs":
            return (self.macs + self.border) / 1e9
        if convention == "paper":
            return (2 * self.macs + self.elementwise) / 2e9
        if convention == "paper_video":
            return (2 * (self.macs + self.border - self.entry_macs) + 6 * (self.logits + self.entries)) / 1e9
        raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, got {convention!r}")


def count_operations(run: Callable[..., Any], *inputs: Tensor) -> Count:
    """Counts the operations of `run(*inputs)`, without gradients.

    Args:
        run: a network or function.
        inputs: tensors on any device; "meta" needs no memory and almost no time.
    """
    counter = _Counter()
    # In inference mode the dispatcher does not decompose a linear layer, so its products would not be counted.
    with torch.inference_mode(False), torch.no_grad(), counter, _Attention(counter):
        run(*inputs)
    total = counter.total
    total.unknown = tuple(sorted(counter.unknown))
    return total


def count_torch_macs(run: Callable[..., Any], *inputs: Tensor) -> float:
    """Returns MACs / 1e9 as counted by `torch.utils.flop_counter`, as an independent check."""
    counter = FlopCounterMode(display=False)
    # The counter does not know the fused attention of the CPU; the math backend computes two matrix products.
    with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
        run(*inputs)
    return counter.get_total_flops() / 2e9


class _Attention(TorchFunctionMode):
    """Counts attention as one operation, independent of the kernels of the device."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        query, key, value = given["query"], given["key"], given["value"]
        rows = query.shape[:-1].numel()
        logits = rows * key.shape[-2]
        d = query.shape[-1]
        total = self.counter.total
        macs = logits * (d + value.shape[-1])
        total.macs += macs
        # Softmax (maximum, difference, sum, quotient), and scaling of the queries.
        scaled = 0 if (kwargs or {}).get("scale") == 1.0 else query.numel()
        total.elementwise += 4 * logits - rows + scaled
        if d == 1:
            total.entries += logits
            total.entry_macs += macs
            # With one channel a logit is one multiplication, without an addition.
            total.elementwise -= logits
        else:
            total.logits += logits
        with self.counter.paused():
            # The output shape does not depend on groups or masks.
            return query.new_empty(*query.shape[:-1], value.shape[-1]) if query.is_meta else func(*args, **kwargs or {})


class _Counter(TorchDispatchMode):
    """Sums the operations that reach the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.total = Count()
        self.unknown: set[str] = set()
        self._paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self._paused:
            self._add(func, args, out)
        return out

    def _add(self, func: Any, args: Any, out: Any) -> None:
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::").rstrip("_")
        result = out[0] if isinstance(out, tuple | list) else out
        total = self.total
        if not isinstance(result, Tensor):
            return
        if name in _PRODUCTS:
            bias = name in ("addmm", "baddbmm")
            left = args[1] if bias else args[0]
            total.macs += result.numel() * left.shape[-1]
            total.elementwise += result.numel() if bias else 0
        elif name in ("convolution", "_convolution"):
            self._convolution(args, result)
        elif name in _EACH:
            if result.is_floating_point():
                total.elementwise += _EACH[name] * result.numel()
        elif name in _REDUCTIONS:
            source = args[0]
            if source.is_floating_point():
                total.elementwise += source.numel() - (0 if name == "mean" else result.numel())
        elif name == "native_layer_norm":
            rows = math.prod(args[0].shape) // math.prod(args[1])
            total.elementwise += 7 * args[0].numel() + 4 * rows
        elif name in ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"):
            total.elementwise += 4 * result.numel()
        elif name == "_softmax":
            total.elementwise += 4 * result.numel() - result.numel() // result.shape[args[1]]
        elif name in (
            "avg_pool2d",
            "avg_pool3d",
            "_adaptive_avg_pool2d",
            "upsample_bilinear2d",
            "upsample_trilinear3d",
        ):
            total.elementwise += max(args[0].numel(), result.numel())
        elif name not in _FREE:
            self.unknown.add(name)

    def _convolution(self, args: Any, out: Tensor) -> None:
        x, weight, bias, stride, padding, dilation, transposed = args[:7]
        if transposed:
            self.unknown.add("transposed convolution")
            return
        nominal = out.numel() * weight[0].numel()
        # Taps on pixels, per axis.
        real = len(x) * len(weight) * weight.shape[1]
        for axis in range(weight.ndim - 2):
            length, side, wide = x.shape[2 + axis], weight.shape[2 + axis], out.shape[2 + axis]
            step, pad, gap = (list(v) * 3 for v in (stride, padding, dilation))
            starts = range(-pad[axis], -pad[axis] + wide * step[axis], step[axis])
            real *= sum(sum(0 <= start + tap * gap[axis] < length for tap in range(side)) for start in starts)
        self.total.macs += real
        self.total.border += nominal - real
        self.total.elementwise += out.numel() if bias is not None else 0


_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
# Operations per output value; exp, tanh, sqrt and similar ones are 0, because XLA counts them separately.
_EACH = {
    "add": 1, "sub": 1, "mul": 1, "div": 1, "rsub": 1, "neg": 1, "maximum": 1, "minimum": 1, "clamp": 2, "where": 1,
    "relu": 1, "threshold": 1, "clamp_min": 1, "sigmoid": 3, "silu": 4, "gelu": 8, "pow": 1, "abs": 1, "lerp": 3,
    "addcmul": 2, "native_dropout": 2, "bernoulli": 0, "exp": 0, "tanh": 0, "sqrt": 0, "rsqrt": 0, "log": 0, "sin": 0,
    "cos": 0, "erf": 0, "reciprocal": 1, "square": 1, "hardtanh": 2, "softplus": 3,
}  # fmt: skip
_REDUCTIONS = {"sum", "mean", "amax", "amin", "max", "min"}
# Operations that only move or create values.
_FREE = set(
    """
    view _unsafe_view reshape permute transpose t expand clone cat stack slice select unsqueeze squeeze split
    split_with_sizes chunk unbind _to_copy copy detach alias empty empty_like new_empty zeros zeros_like new_zeros
    ones new_ones full full_like new_full arange eye constant_pad_nd gather index index_select scatter scatter_add
    masked_fill eq ne lt gt le ge logical_and logical_or logical_not bitwise_and bitwise_not lift_fresh lift
    empty_strided as_strided fill zero argsort sort topk cumsum argmax repeat flip roll embedding to _reshape_alias
    unfold scalar_tensor _local_scalar_dense any all floor round randn rand resize set view_as_real isfinite
    _nested_tensor_from_mask empty_permuted new_empty_strided diagonal tril triu index_put item
    """.split()  # noqa: SIM905
)


def count_parameters(model: nn.Module) -> int:
    """Returns the number of parameters of a network."""
    return sum(parameter.numel() for parameter in model.parameters())
