"""LangDC: a small language model captions each clip, and its hidden states are the tokens: rich clips get more."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.plan import split_blocks
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_dim, separable_maps
from fewtokens.methods.ops.resample import (
    Attention,
    PositionEmbedding,
    check_counts,
    feed_forward,
    key_mask,
    masked_features,
    split_heads,
    to_float32,
)

# The word that ends a caption.
END = 0

Cache = list[tuple[Tensor, Tensor]]


class LangDc(Resampler):
    """Reduces each clip of `frames` frames to side x side means and one token for each word of its caption.

    LangDC (arXiv 2509.00969), a language-aware dynamic token compressor. A small causal language model reads the cells
    of a clip and writes a caption by greedy decoding, up to a word that ends it. Its last hidden states, not the words,
    are projected to soft tokens: the state from which a word was chosen is the token of that word. So the number of
    tokens follows what there is to say about the clip. `caption_loss` trains it on captions; the loss of a language
    model that reads the tokens reaches all parameters through the hidden states, but not the choice of words, and so
    not the length of a caption.

    Differences from the paper: the language model is a Transformer of the width of the features with its own
    words, trained from the start (a pretrained one of 0.5 billion parameters in the paper); the cells of a clip see
    one another, words see the cells and earlier words; and the pooled tokens (4 x 4 of a video encoder and 6 x 6 of an
    image encoder there) are adaptive averages, also over the frames of the clip, without a projection.

    Attribution: a mean is attributed to its cells, a soft token equally to all cells of its clip. The tokens of a clip
    are in this order: means in raster order, then soft tokens in the order of the caption.

    Args:
        most: maximum number of words of a caption, at least 1. Default: 32.
        frames: number of frames of a clip. Default: 4, as in the paper.
        side: rows and columns of means of a clip, at most those of the grid. Default: 4.
        vocabulary: number of words; word 0 ends a caption.
        num_layers: number of layers of the language model.
        heads: maximum number of attention heads; the largest number up to this that divides `dim` is used.
        dim: channels of the features.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    full_grid = True
    paper = "LangDC, arXiv 2509.00969"
    license = "written from the paper's summary; the reference code was not used"
    cost = (
        "per layer and clip of n cells: (n + L*L/2)*(12*C*C + n*C) MACs for a caption of L words; L*L/2*V*C for words"
    )

    def __init__(
        self,
        most: int = 32,
        *,
        frames: int = 4,
        side: int = 4,
        vocabulary: int = 1024,
        num_layers: int = 4,
        heads: int = 8,
        dim: int = 384,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        check_counts(most=most, frames=frames, side=side, num_layers=num_layers, heads=heads)
        if vocabulary < 2:
            raise ValueError(f"vocabulary must be at least 2, one word and the end of a caption, got {vocabulary}")
        self.most, self.frames, self.side, self.vocabulary = most, frames, side, vocabulary
        self.num_layers, self.heads, self.dim, self.checkpoint = num_layers, heads, dim, checkpoint
        self.places, self.seen = PositionEmbedding(dim), nn.LayerNorm(dim)
        # Also the weights of the last layer, which predicts a word.
        self.words = nn.Parameter(0.02 * torch.randn(vocabulary, dim))
        self.start, self.order = nn.Parameter(0.02 * torch.randn(dim)), nn.Parameter(0.02 * torch.randn(most + 1, dim))
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(num_layers))
        self.norm, self.out = nn.LayerNorm(dim), nn.Linear(dim, dim)
        load_weights(self, checkpoint)

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        check_dim(self.name, tokens.C, self.dim)
        B, (T, H, W) = tokens.B, tokens.grid.shape
        frames = min(self.frames, T)
        x, mask, cache = self._read(tokens)
        with torch.no_grad():
            captions = self._write(cache, mask)
        soft = self.out(self._states(captions, cache, mask))
        rows, columns = (F.adaptive_avg_pool1d(torch.eye(n).to(x), min(self.side, n)).T for n in (H, W))
        share = mask.to(x.dtype) / mask.sum(1, keepdim=True).clamp(min=1)  # each cell's in the mean of its clip
        pools = separable_maps(rows, columns).repeat(1, frames) * H * W * share[:, None]
        is_word = captions != END
        maps = torch.cat([pools, is_word[..., None] * share[:, None]], 1)
        features = torch.cat([pools @ x, soft], 1)
        kept = F.pad(is_word, (pools.shape[1], 0), value=True)
        clips = torch.tensor([-(-grid.T // frames) for grid in tokens.grid.videos(B)], device=x.device)
        return Resampled(
            features.reshape(B, -1, self.dim), maps.unflatten(0, (B, -1)), clips * maps.shape[1], kept.reshape(B, -1)
        )

    def captions(self, tokens: Tokens) -> Tensor:
        """Writes a caption of each clip.

        Returns:
            int64 [B,G,L], words of the captions of G clips, `END` after the last one; L is at most `most`.
        """
        _, mask, cache = self._read(tokens)
        with torch.no_grad():
            return self._write(cache, mask).unflatten(0, (tokens.B, -1))

    def caption_loss(self, tokens: Tokens, captions: Tensor) -> Tensor:
        """The cross-entropy of captions: the mean over their words and their ends.

        Args:
            tokens: [B,N,C], one token for each cell, of G clips.
            captions: int64 [B,G,L], words in 1..vocabulary-1, then `END`; L is at most `most`.

        Raises:
            ValueError: `captions` have another shape, or are too long.
        """
        _, mask, cache = self._read(tokens)
        clips = len(mask) // tokens.B
        if captions.ndim != 3 or captions.shape[:2] != (tokens.B, clips) or captions.shape[2] > self.most:
            raise ValueError(
                f"captions must be [{tokens.B},{clips},L] with L of at most {self.most}, got {list(captions.shape)}"
            )
        targets = F.pad(captions.flatten(0, 1), (0, 1), value=END)
        end = targets == END
        ended = end.cumsum(1) > end.long()  # after the first end
        logits = self._logits(self._states(targets, cache, mask))
        return F.cross_entropy(logits.flatten(0, 1), targets.masked_fill(ended, -100).flatten())

    def _read(self, tokens: Tokens) -> tuple[Tensor, Tensor, Cache]:
        """Reads the clips: their features [B*G,n,C], which cells are real, bool [B*G,n], and the keys and values."""
        frames = min(self.frames, tokens.grid.T)
        size = frames * tokens.grid.cells_per_frame
        positions = tokens.positions.clone()
        positions[..., 0] %= frames
        x = masked_features(tokens, self.words.dtype)
        embedded = self.seen(x) + self.places(tokens.replace(positions=positions))
        x, h, mask = (split_blocks(values, size).flatten(0, 1) for values in (x, embedded, tokens.mask))
        cache: Cache = []
        for layer in self.layers:
            h, keys_and_values = layer(h, key_mask(mask))
            cache.append(keys_and_values)
        return x, mask, cache

    def _write(self, cache: Cache, mask: Tensor) -> Tensor:
        """The most likely next word, again and again: int64 [K,L], `END` after the last word of each clip."""
        captions = torch.full((len(mask), 0), END, device=mask.device)
        ended = torch.zeros_like(mask[:, :1])
        while captions.shape[1] < self.most and not bool(ended.all()):
            # The last entry is a placeholder for the word that is predicted.
            states = self._states(F.pad(captions, (0, 1), value=END), cache, mask)
            word = self._logits(states[:, -1:]).argmax(2).masked_fill(ended, END)
            captions, ended = torch.cat([captions, word], 1), ended | (word == END)
        return captions

    def _states(self, captions: Tensor, cache: Cache, mask: Tensor) -> Tensor:
        """The last hidden states [K,L,C] from which each word of captions [K,L] is predicted."""
        L = captions.shape[1]
        earlier = torch.cat([self.start.expand(len(mask), 1, -1), F.embedding(captions[:, :-1], self.words)], 1)
        h = earlier + self.order[:L]
        causal = torch.ones(L, L, dtype=torch.bool, device=mask.device).tril().expand(len(mask), 1, -1, -1)
        visible = torch.cat([key_mask(mask).expand(-1, -1, L, -1), causal], 3)
        for layer, of_clip in zip(self.layers, cache, strict=True):
            h, _ = layer(h, visible, of_clip)
        return self.norm(h)

    def _logits(self, states: Tensor) -> Tensor:
        return to_float32(states) @ to_float32(self.words).T


class Layer(nn.Module):
    """A pre-norm layer of the language model."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), feed_forward(dim)

    def forward(
        self, x: Tensor, visible: Tensor, before: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Maps rows [K,L,C] to [K,L,C].

        Args:
            visible: bool, the keys that each row sees, broadcast to [K,heads,L,S].
            before: keys and values [K,heads,n,d] of earlier rows.

        Returns:
            The rows, and their keys and values with the earlier ones.
        """
        y, attention = self.norm1(x), self.attention
        q, k, v = (
            split_heads(layer(y), attention.heads) for layer in (attention.query, attention.key, attention.value)
        )
        if before is not None:
            k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
        mixed = F.scaled_dot_product_attention(q, k, v, visible)
        x = x + attention.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x)), (k, v)
