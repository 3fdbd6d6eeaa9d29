"""TokenLearner and TokenFuser next to the authors' code (flax, compiled by XLA) and two ports to PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.methods.learned.tokenlearner import TokenLearner
from fewtokens.networks.token_fuser import TokenFuser
from fidelity_rows import importing, load
from peer_rows import Pair, Row, Workload

SHAPES = ((32, 14, 14, 768), (8, 32, 32, 1024))
TOKENS = 8


def _inputs(shape: tuple[int, ...], device: torch.device, backward: bool) -> tuple[Tensor, Tensor]:
    """The grid [F,H,W,C] and the tokens [F,8,C] of a fuser."""
    generator = torch.Generator().manual_seed(0)
    sizes = shape, (shape[0], TOKENS, shape[3])
    grid, tokens = (torch.randn(size, generator=generator).to(device).requires_grad_(backward) for size in sizes)
    return grid, tokens


def _run(function: Callable[[], Tensor], *leaves: Tensor) -> Callable[[], Any]:
    """The function alone, or with its backward pass if the leaves require gradients."""

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        with torch.enable_grad():
            function().sum().backward()

    return step if leaves[0].requires_grad else lambda: function()


def _ours(part: str, grid: Tensor, tokens: Tensor) -> Callable[[], Any]:
    dim = grid.shape[-1]
    if part == "fuser":
        fuser = TokenFuser(TOKENS, dim=dim, gate="mlp").to(grid.device)
        leaves = (grid, tokens, *fuser.parameters())
        return _run(lambda: fuser(tokens[:, None], grid[:, None]), *leaves)
    learner = TokenLearner(f"{TOKENS}/frame", dim=dim, version=part).to(grid.device)
    return _run(lambda: learner.learn(grid)[0], grid, *learner.parameters())


def kashu(part: str, shape: tuple[int, ...], backward: bool, peers: Path, work: Workload) -> Pair:
    code = load(peers / "TokenLearner" / "model.py")
    grid, tokens = _inputs(shape, work.device, backward)
    modules: dict[str, Callable[[], nn.Module]] = {
        "1.0": lambda: code.TokenLearner(TOKENS, shape[3]),
        "1.1": lambda: code.TokenLearnerV11(TOKENS, shape[3]),
        "fuser": lambda: code.TokenFuser(TOKENS, shape[3]),
    }
    module = modules[part]().to(work.device)
    # Its layout: channels first for 1.0, one row per pixel otherwise.
    x = grid.detach().movedim(3, 1).contiguous() if part == "1.0" else grid.detach().flatten(1, 2)
    x.requires_grad_(backward)
    inputs = (tokens, x) if part == "fuser" else (x,)
    return Pair(_ours(part, grid, tokens), _run(lambda: module(*inputs), *inputs, *module.parameters()))


def rish(part: str, shape: tuple[int, ...], backward: bool, peers: Path, work: Workload) -> Pair:
    code = load(peers / "tokenlearner-pytorch" / "tokenlearner_pytorch" / "tokenlearner_pytorch.py")
    grid, tokens = _inputs(shape, work.device, backward)
    module = code.TokenFuser(*shape[1:], TOKENS) if part == "fuser" else code.TokenLearner(TOKENS)
    inputs = (tokens, grid) if part == "fuser" else (grid,)
    module.to(work.device)
    return Pair(_ours(part, grid, tokens), _run(lambda: module(*inputs), *inputs, *module.parameters()))


def scenic(part: str, shape: tuple[int, ...], backward: bool, peers: Path, work: Workload) -> Pair:
    import jax

    with importing(peers / "scenic", "clu", "tensorflow"):
        from scenic.projects.token_learner import model
    modules = {"1.0": model.TokenLearnerModule, "1.1": model.TokenLearnerModuleV11}
    grid, tokens = _inputs(shape, work.device, backward)
    x, y = (value.detach().cpu().numpy() for value in (grid, tokens))
    options = {} if part == "1.0" else {"deterministic": True}
    module = model.TokenFuser() if part == "fuser" else modules[part](TOKENS)
    inputs = (y, x) if part == "fuser" else (x,)
    parameters = module.init(jax.random.PRNGKey(0), *inputs, **options)

    def apply(parameters: Any, *inputs: Any) -> Any:
        return module.apply(parameters, *inputs, **options)

    def total(*arguments: Any) -> Any:
        return apply(*arguments).sum()

    run = jax.jit(jax.grad(total, argnums=tuple(range(1 + len(inputs)))) if backward else apply)
    placed = jax.device_put((parameters, *inputs))
    return Pair(_ours(part, grid, tokens), lambda: jax.block_until_ready(run(*placed)))


def _rows(reference: str, build: Any, parts: tuple[str, ...], **options: Any) -> list[Row]:
    names = {"1.0": "version 1.0", "1.1": "version 1.1", "fuser": "fuser"}
    return [
        Row(
            "tokenlearner",
            f"{names[part]}, [{shape[0]},{shape[1] * shape[2]},{shape[3]}], forward{' and backward' * backward}",
            reference,
            partial(build, part, shape, backward),
            frames=(0,),
            **options,
        )
        for part in parts
        for shape in SHAPES
        for backward in (False, True)
    ]


ROWS = [
    # XLA uses all cores, and its memory is not that of PyTorch.
    *_rows(
        "google-research/scenic@4a38d47", scenic, ("1.0", "1.1", "fuser"), devices=("cpu",), threads=(2,), memory=False
    ),
    *_rows("Kashu7100/TokenLearner@f4b7ee2", kashu, ("1.0", "1.1", "fuser"), threads=(2,)),
    *_rows("rish-16/tokenlearner-pytorch@2b4f107", rish, ("1.0", "fuser"), devices=("cpu",), threads=(2,)),
]
