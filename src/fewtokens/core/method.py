"""The base classes of methods.

Most methods extend `Reducer`, which decides a `Plan` that `Tokens.apply` carries out, or `Resampler`, which computes
new features and their attribution. `Quantizer` assigns codes, and `fewtokens.core.memory.Memory` summarizes an endless
stream. Any other method of tokens extends `Method` and overrides `forward`; one that selects frames extends
`FrameSelector` (`fewtokens.core.selection`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

from fewtokens.core import files
from fewtokens.core.attention_rule import AttentionRule
from fewtokens.core.batch import concatenate
from fewtokens.core.budget import Budget, Unit
from fewtokens.core.grid import Grid
from fewtokens.core.plan import Plan
from fewtokens.core.shapes import shape_repr
from fewtokens.core.spec import Spec
from fewtokens.core.tokens import Tokens

STAGES = {
    "frames": "selects the frames to read, before full decoding",
    "pixels": "on raw patches, before the encoder",
    "encoder": "between the attention and the MLP of each encoder block",
    "tokens": "on the features that the encoder returns",
    "llm": "inside the layers of a language model",
}

# Inputs that a method may need in addition to the tokens; N is the number of its input tokens.
CUES = {
    "pixels": "[B,N,P,D] pixels of each cell in 0..1: P sub-frames, D = rows*columns*3 values, channel last",
    "keys": "[B,N,D] attention keys, averaged over heads, before rotary positions",
    "attention": "[B,N] attention that each patch receives, averaged over heads and queries (see AttentionRule)",
    "sharpness": "[B,N] sum over keys of A log A of each patch's attention A, averaged over heads, without sizes",
    "shift": "[B,N] norm of the residual that the last MLP added to each token",
    "frame_global": "[B,T,D] one vector per frame",
    "text": "[B,L,D] embeddings of the question: all text tokens before the answer, without padding",
}


class Method(Spec, nn.Module):
    """The base class of methods that map tokens to fewer tokens.

    A subclass usually extends `Reducer` or `Resampler`. Its constructor arguments are plain values, stored under their
    own names, so that the spec string can be derived from the signature (see `Spec`).

    Class attributes:
        stage: where the method acts, a key of `STAGES`.
        learned: whether it has trainable parameters.
        optional_cues: names of the cues that it uses if they are given, keys of `CUES`.
        full_grid: whether it requires one token per cell, and so must come before methods that drop or merge tokens.
            If True, calls with any other tokens raise a `ValueError`.
        paper: citation, in one line; "none" if there is no paper.
        license: license of the authors' code, in one line; "none needed" if no code was published.
        cost: computational cost, in one line.
        published_attention: the attention that the method's published code reads in the tower of a language model.

    Attributes:
        budget: the number of tokens to keep; None if a threshold or the grid determines it.
        keep: the `keep` argument that specifies `budget`, or None.
        attention_rule: the attention that it reads there, if not the published one.
        needs: names of the cues that `forward` requires as keyword arguments, keys of `CUES`.
        decides_from_pixels: whether its plan depends on the cue "pixels" only, so that it can be made before encoding.
        causal: whether the tokens of a frame are independent of later frames, so that `step` can process a video in
            chunks with the same result.
        untrained: whether the parameters are random, because no checkpoint is given.
    """

    stage: ClassVar[str] = "tokens"
    learned: ClassVar[bool] = False
    optional_cues: ClassVar[tuple[str, ...]] = ()
    full_grid: ClassVar[bool] = False
    paper: ClassVar[str] = ""
    license: ClassVar[str] = ""
    cost: ClassVar[str] = ""
    published_attention: ClassVar[AttentionRule] = AttentionRule()

    budget: Budget | None
    keep: Any  # float | int | str, or None if another argument replaces it
    attention_rule: AttentionRule

    def __init__(self) -> None:
        super().__init__()
        self.budget = None
        self.attention_rule = self.published_attention

    def set_budget(
        self,
        keep: float | int | str | None,
        *,
        default: float | int | str | None = None,
        units: tuple[Unit, ...] = (),
        **instead: Any,
    ) -> None:
        """Sets `budget` and `keep` from the arguments of the constructor.

        Args:
            keep: the budget, or None if not given.
            default: the budget if no argument is given.
            units: accepted units. Default: all but pruning rates; a method of the stage "encoder", which processes one
                frame at a time, does not accept a count per video.
            instead: alternatives to `keep` by name, None if not given.

        Raises:
            ConflictingArguments: more than one argument is given.
            ValueError: `keep` is invalid, see `Budget.parse`.
            TypeError: `super().__init__()` has not been called.
        """
        self.check_initialized()
        if not units:
            units = ("fraction", "per frame") if self.stage == "encoder" else ("fraction", "count", "per frame")
        self.budget = Budget.choose(self.name, keep, default=default, units=units, **instead)
        self.keep = None if self.budget is None else self.budget.keep

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the cues that `forward` requires as keyword arguments, keys of `CUES`."""
        return ()

    @property
    def decides_from_pixels(self) -> bool:
        """Whether its plan depends on the cue "pixels" only, so that it can be made before encoding."""
        return self.stage == "pixels" and set(self.needs) == {"pixels"}

    @property
    def causal(self) -> bool:
        """Whether the tokens of a frame are independent of later frames, so that `step` can process chunks."""
        return False

    @property
    def untrained(self) -> bool:
        """Whether the parameters are random because no checkpoint is given, so that the output is meaningless."""
        return self.learned and not self.arguments.get("checkpoint")

    def __call__(self, tokens: Tokens, **cues: Any) -> Tokens:
        self._check_inputs(tokens, cues)
        with self._precision(tokens):
            return super().__call__(tokens, **cues)

    def _precision(self, tokens: Tokens) -> AbstractContextManager[Any]:
        """Autocast is for networks: in bfloat16, a method without parameters would decide differently."""
        kind = tokens.device.type
        if self.learned or not torch.is_autocast_enabled(kind):
            return nullcontext()
        return torch.autocast(kind, enabled=False)

    def check_initialized(self) -> None:
        """Checks that the constructor called `super().__init__()`.

        Raises:
            TypeError: it did not.
        """
        if "_parameters" not in self.__dict__:
            raise TypeError(f"{type(self).__name__}.__init__ must first call super().__init__()")

    def _check_inputs(self, tokens: Tokens, cues: dict[str, Any]) -> None:
        """Checks that all cues are given, and that there is one token per cell if the method requires it."""
        self.check_initialized()
        missing = [name for name in self.needs if cues.get(name) is None]
        if missing:
            raise ValueError(
                f"{self.name} requires the cue {' and '.join(missing)}: "
                + "; ".join(f"{name} is {CUES[name]}" for name in missing)
            )
        if self.full_grid:
            tokens.require_full_grid(self.name)

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        """Reduces the tokens.

        Args:
            tokens: the input tokens.
            cues: the cues named in `needs`, by name.
        """
        raise TypeError(f"{type(self).__name__} must extend Reducer or Resampler, or override forward")

    def decide(self, tokens: Tokens, **cues: Any) -> Plan:
        """Returns the method's decision as a plan, which can be applied to any tensor with one row per token.

        Args:
            tokens: the input tokens.
            cues: the cues named in `needs`, by name.

        Raises:
            ValueError: the method computes new features, or a cue is missing.
        """
        return Plan.from_assignment(tokens, self(tokens, **cues))

    def min_count(self, grid: Grid) -> int:
        """Returns the minimum number of tokens for one video of this grid, regardless of the budget.

        A method that cannot keep fewer, such as one that always keeps a full frame, overrides it. `planned_count`,
        `counts` and `max_slots` are then at least this number; a smaller budget does not raise or warn.
        """
        return 1

    def planned_count(self, grid: Grid) -> int | None:
        """Returns the number of tokens for one video of this grid, or None if it depends on the video."""
        if self.budget is None:
            return None
        if self.stage == "encoder":
            # Encoders process one frame at a time, so the budget applies to each frame.
            return grid.T * max(self.min_count(grid.frame), self.budget.count(grid.frame))
        return max(self.min_count(grid), self.budget.count(grid))

    def counts(self, tokens: Tokens) -> Tensor:
        """Returns the number of tokens of each video of a batch, int64 [B], at most its number of input tokens.

        The result is on the device of the tokens; no tensor is copied to the CPU.
        """
        return torch.tensor(self.planned_counts(tokens), device=tokens.device).minimum(tokens.count)

    def planned_counts(self, tokens: Tokens) -> list[int]:
        """Returns `planned_count` of each video of a batch (0 for None), without reading tensors.

        Raises:
            TypeError: the constructor stored `keep` without calling `set_budget`.
        """
        if self.budget is None and getattr(self, "keep", None) is not None:
            raise TypeError(f"{type(self).__name__}.__init__ must call self.set_budget(keep)")
        return [self.planned_count(grid) or 0 for grid in tokens.grid.videos(tokens.B)]

    def max_slots(self, tokens: Tokens) -> int:
        """Returns an int of at least every value of `counts`: the `num_slots` of a plan that keeps `counts` tokens.

        It is computed from the grid, since reading `counts` would synchronize a GPU.
        """
        return min(tokens.N, max(self.planned_counts(tokens)))

    def step(self, tokens: Tokens, state: Any = None, **cues: Any) -> tuple[Tokens, Any]:
        """Processes the next frames of a video.

        Args:
            tokens: the tokens of these frames, one per cell.
            state: the state that the previous call returned, or None at the start. Its size is bounded.
            cues: the cues of these tokens, by name.

        Returns:
            Tokens on the grid of these frames, and the new state. `join` combines the tokens of all calls.

        Raises:
            ValueError: the method is not causal.
        """
        raise ValueError(f"{self.spec} is not causal and cannot be streamed")

    def join(self, chunks: Sequence[Tokens]) -> Tokens:
        """Combines the outputs of `step` into the result for the full video."""
        return concatenate(chunks)


class Reducer(Method):
    """A method that drops or merges tokens according to a `Plan`.

    A subclass overrides `plan(tokens, **cues)`, which is called without gradients. Gradients flow through the features
    in `Tokens.apply`.

        from fewtokens.core.method import Reducer
        from fewtokens.core.plan import Plan

        class Norm(Reducer):
            def __init__(self, keep=0.1):
                super().__init__()
                self.set_budget(keep)

            def plan(self, tokens, **cues):
                scores = tokens.features.float().norm(dim=-1)
                return Plan.top(scores, self.counts(tokens), tokens, num_slots=self.max_slots(tokens))
    """

    if TYPE_CHECKING:
        plan: Callable[..., Plan]
    else:

        def plan(self, tokens: Tokens, **cues: Any) -> Plan:
            """Decides which tokens to drop or merge; overridden by the method."""
            raise TypeError(f"{type(self).__name__} must override plan")

    @final
    def decide(self, tokens: Tokens, **cues: Any) -> Plan:
        self._check_inputs(tokens, cues)
        with torch.no_grad(), self._precision(tokens):
            return self.plan(tokens, **cues)

    @final  # type: ignore[misc]
    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        with torch.no_grad():
            plan = self.plan(tokens, **cues)  # not `decide`: `__call__` has checked the inputs
        return tokens.apply(plan)


@dataclass(frozen=True, eq=False)
class Resampled:
    """The result of `Resampler.resample`: M new tokens for each video.

    Attributes:
        features: [B,M,C], new features in any float dtype; None if they are the sums weighted by `attribution`.
        attribution: [B,M,N], weight of each input token in each new token; or [B,G,m,n] in blocks of whole frames, see
            `Plan.weights`.
        count: int64 [B], number of real tokens among the M.
        kept: bool [B,M], which of these to keep, if blocks have different numbers of tokens; the others must have no
            weight. None for all.
    """

    features: Tensor | None
    attribution: Tensor
    count: Tensor
    kept: Tensor | None = None

    __repr__ = shape_repr

    @property
    def plan(self) -> Plan:
        """The soft plan that moves the input tokens by `attribution`."""
        return Plan(self.count, math.prod(self.attribution.shape[1:-1]), weights=self.attribution)

    def apply_to(self, tokens: Tokens) -> Tokens:
        """Returns the new tokens, in the dtype of the input tokens [B,N,C]."""
        if self.features is None:
            reduced = tokens.apply(self.plan)
        else:
            # The sums of the features are not needed.
            reduced = tokens.replace(features=tokens.features[..., :0]).apply(self.plan)
            features = self.features.to(tokens.features.dtype).masked_fill(~reduced.mask[..., None], 0)
            reduced = reduced.replace(features=features)
        return reduced if self.kept is None else reduced.apply(Plan.keep(self.kept & reduced.mask))


class Resampler(Method):
    """A method that computes new features, with the attribution of each to the input tokens.

    A subclass overrides `resample(tokens, **cues)`, which returns a `Resampled`.
    """

    if TYPE_CHECKING:
        resample: Callable[..., Resampled]
    else:

        def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
            """Computes the new tokens; overridden by the method."""
            raise TypeError(f"{type(self).__name__} must override resample")

    def planned_count(self, grid: Grid) -> int | None:
        # There may be more new tokens than cells.
        return None if self.budget is None else max(self.min_count(grid), int(self.budget.amount(grid) + 1e-6))

    @final
    def decide(self, tokens: Tokens, **cues: Any) -> Plan:
        raise ValueError(f"{self.name} computes new features, so it has no plan (see Tokens.attribution)")

    @final  # type: ignore[misc]
    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        return self.resample(tokens, **cues).apply_to(tokens)


class Quantized(NamedTuple):
    """The result of `Quantizer.quantize`.

    Attributes:
        features: [B,N,C], quantized features, with a gradient to the input features.
        codes: int64 [B,N,Q], codes of each token; -1 for no code.
        losses: scalar training losses by name, to be summed.
    """

    features: Tensor
    codes: Tensor
    losses: dict[str, Tensor]

    def __repr__(self) -> str:
        return shape_repr(self)


class Quantizer(Method):
    """A method that replaces the features of each token with quantized ones and adds Q codes; it keeps all tokens.

    A code of -1 is no code: that of a level that was dropped, or of a scale that has fewer codes than the frame has
    cells. It costs no bits, and `lookup` adds nothing for it; the output projection applies to the sum of the others.

    A subclass overrides `codebook_sizes`, `quantize` and `lookup`. If it has `full_grid = True`, the last two also get
    the grid, as their last argument.
    """

    @property
    @abstractmethod
    def codebook_sizes(self) -> tuple[int, ...]:
        """The number of values of each of the Q codes."""

    if TYPE_CHECKING:
        # With or without a grid; no signature covers both.
        quantize: Callable[..., Quantized]
        lookup: Callable[..., Tensor]
    else:

        @abstractmethod
        def quantize(self, features: Tensor, mask: Tensor | None = None, grid: Grid | None = None) -> Quantized:
            """Quantizes features [B,N,C].

            Args:
                features: [B,N,C].
                mask: bool [B,N], False for padding, which must affect neither losses nor codebooks. None for no
                    padding.
                grid: the grid of the tokens; only for a method with `full_grid = True`, others do not have this
                    argument.
            """

        @abstractmethod
        def lookup(self, codes: Tensor, grid: Grid | None = None) -> Tensor:
            """Returns the features [B,N,C] of codes, int64 [B,N,Q]; bit-identical to those of `quantize`."""

    @property
    def bits(self) -> float:
        """The number of bits per token that has all codes: the sum of log2 of the codebook sizes."""
        return float(self._code_bits.sum())

    def planned_bits(self, grid: Grid, tokens: int) -> float:
        """Returns the number of bits of the codes of one video of this grid with a number of tokens."""
        return tokens * self.bits

    def count_bits(self, tokens: Tokens) -> Tensor:
        """Returns the number of bits of the codes of each video, float64 [B].

        Each code of a real token takes log2 of the size of its codebook, and -1 takes none.

        Args:
            tokens: tokens with codes of this method; later methods may have dropped some.

        Raises:
            ValueError: the tokens have no codes, or another number of codes per token.
        """
        sizes = self.codebook_sizes
        num_codes = 0 if tokens.codes is None else tokens.codes.shape[2]
        if num_codes != len(sizes):
            raise ValueError(f"{self.name} has {len(sizes)} codes per token, these tokens have {num_codes}")
        return count_bits(tokens, sizes)

    def restore(self, tokens: Tokens) -> Tokens:
        """Returns the tokens with the features of their codes, bit-identical to those of `forward`.

        Args:
            tokens: tokens with codes of this method, such as those of a file. Their features are ignored, except for
                the dtype.

        Raises:
            ValueError: the tokens have no codes; or the method works on full grids, and tokens were dropped.
        """
        if tokens.codes is None:
            raise ValueError(f"{self.name} cannot restore the features of tokens without codes")
        if self.full_grid:
            tokens.require_full_grid(self.name)
        features = self.lookup(tokens.codes, *self._grids(tokens)).to(tokens.features.dtype)
        return tokens.replace(features=features.masked_fill(~tokens.mask[..., None], 0))

    def codes_by_book(self, tokens: Tokens) -> tuple[Tensor, tuple[int, ...]]:
        """Separates codes by codebook, to measure how each is used.

        The default is the codes themselves; a quantizer in which tokens use different codebooks overrides it.

        Args:
            tokens: tokens with codes of this method.

        Returns:
            Codes [B,N,K], -1 where a token does not use a codebook, and the sizes of the K codebooks.
        """
        assert tokens.codes is not None
        return tokens.codes, tuple(self.codebook_sizes)

    @property
    def _code_bits(self) -> Tensor:
        return torch.tensor(self.codebook_sizes, dtype=torch.float64).log2()

    def _grids(self, tokens: Tokens) -> tuple[Grid, ...]:
        """The last arguments of `quantize` and `lookup`."""
        return (tokens.grid,) if self.full_grid else ()

    @final  # type: ignore[misc]
    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        features, codes, losses = self.quantize(tokens.features, tokens.mask, *self._grids(tokens))
        padding = ~tokens.mask[..., None]
        return tokens.replace(
            features=features.to(tokens.features.dtype).masked_fill(padding, 0),
            codes=codes.masked_fill(padding, 0),
            aux={**tokens.aux, **{f"{self.name}.{name}": loss for name, loss in losses.items()}},
        )

    @final
    def decide(self, tokens: Tokens, **cues: Any) -> Plan:
        return Plan.identity(tokens)

    def planned_count(self, grid: Grid) -> int:
        return grid.cells

    @property
    def causal(self) -> bool:
        return True

    @final
    def step(self, tokens: Tokens, state: Any = None, **cues: Any) -> tuple[Tokens, Any]:
        return (self(tokens, **cues), None) if self.causal else super().step(tokens, state, **cues)


def count_bits(tokens: Tokens, sizes: Sequence[int]) -> Tensor:
    """Returns the number of bits of the codes of each video, float64 [B]: log2 of `sizes`, and none for the code -1.

    Args:
        tokens: tokens with Q codes.
        sizes: the number of values of each of the Q codes.
    """
    assert tokens.codes is not None
    used = (tokens.codes >= 0) & tokens.mask[..., None]
    return (used.sum(1) * torch.tensor(sizes, dtype=torch.float64, device=tokens.device).log2()).sum(1)


_follow: ContextVar[bool] = ContextVar("_follow", default=False)


@contextmanager
def weights_follow() -> Iterator[None]:
    """Builds methods without reading the files of their argument `checkpoint`, as all their parameters are loaded next.

    A saved pipeline, tokenizer or model has the parameters of its methods, so the files that they were built from, and
    that its spec names, may be gone.
    """
    token = _follow.set(True)
    try:
        yield
    finally:
        _follow.reset(token)


def load_weights(method: Any, path: str | None, released: Callable[[str], None] | None = None) -> None:
    """Loads a method's parameters from a file written by `save_weights`.

    Args:
        method: the method, a module; its `same_weights` are the names of others that have the same parameters.
        path: the file; None leaves the parameters unchanged. Not read within `weights_follow`.
        released: loads a file that `save_weights` did not write, such as one that the authors released.

    Raises:
        ValueError: the file does not exist, is corrupt, is of another method, or its shapes differ.
    """
    if path is None or _follow.get():
        return
    if released is not None and not _is_saved_method(path):
        released(path)
        return
    tensors, header = files.load(path, "method")
    if header.get("method") not in (method.name, *getattr(method, "same_weights", ())):
        raise ValueError(
            f"{path}: contains the weights of {files.one_line(header.get('method'))}, not of {method.name}"
        )
    try:
        method.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path}: does not fit {method.name} ({' '.join(str(error).split())[:300]})") from None


def _is_saved_method(path: str) -> bool:
    try:
        files.load_header(path, "method")
    except ValueError:
        return False
    return True


def save_weights(method: Any, path: str | Path) -> Path:
    """Writes a method's parameters to a safetensors file, for its argument `checkpoint`."""
    return files.save(path, "method", method.state_dict(), {"method": method.name})
