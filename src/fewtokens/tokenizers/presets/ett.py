"""ETT: a tokenizer that is tuned with a language model, which reads the vectors of its codebook."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.preset import Preset


class CaptionStage(nn.Module):
    """Caption loss of a language model that reads codebook vectors, whose gradient reaches the encoder.

    ETT (arXiv 2505.10562): L = CE(caption | MLP(z + sg(e_k - z))), next to the losses of the tokenizer. In the first of
    its three stages only the MLP is trained, in the second the tokenizer too.

        stage = CaptionStage(tokenizer.encoder.dim, language_model)
        step = tokenizer(frames)
        loss = stage.loss(step.tokens, captions) + weight * (reconstruction + sum(step.losses.values()))

    Args:
        dim: number of channels of a token.
        language_model: a causal language model of transformers: it accepts `inputs_embeds`, returns `logits`, and has
            `get_input_embeddings`.
    """

    def __init__(self, dim: int, language_model: nn.Module) -> None:
        super().__init__()
        self.language_model = language_model
        self.words = language_model.get_input_embeddings()  # type: ignore[operator]
        width = self.words.weight.shape[1]
        self.project = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))

    def loss(self, tokens: Tokens, captions: Tensor) -> Tensor:
        """Returns the mean cross-entropy of captions after the tokens of each video.

        Args:
            tokens: the result of a training step, with features that have a gradient.
            captions: int64 [B,L], ids of words; -100 for padding at the end.

        Raises:
            ValueError: another number of captions, or of tokens of each video.
        """
        if len(captions) != tokens.B:
            raise ValueError(f"captions must be [B,L] with B={tokens.B}, got {list(captions.shape)}")
        if not bool(tokens.mask.all()):
            raise ValueError("the caption loss requires the same number of tokens of each video")
        seen = torch.cat([self.project(tokens.features), self.words(captions[:, :-1].clamp(min=0))], 1)
        logits = self.language_model(inputs_embeds=seen).logits[:, tokens.N - 1 :]
        return F.cross_entropy(logits.flatten(0, 1).float(), captions.flatten(), ignore_index=-100)


PRESET = Preset(
    spec=(
        "conv_down(256, widths=(128, 128, 256, 256, 512), blocks=4) "
        "| vq(131072, code_dim=256, cosine=False) > conv_up(widths=(512, 256, 256, 128, 128), blocks=5)"
    ),
    clip=(1, 256, 256),
    tiny=(
        "conv_down(32, widths=(16, 16, 32, 32), blocks=1) | vq(256, code_dim=32, cosine=False) "
        "> conv_up(stride=(1, 8, 8), widths=(32, 32, 16, 16), blocks=1)"
    ),
    tiny_clip=(1, 32, 32),
    recipe={"pixel": "l2"},
    paper="End-to-End Vision Tokenizer Tuning (ETT), arXiv 2505.10562",
    license="no code found",
    tokens=256,
    differs=(
        "ETT is a stage of training for any tokenizer with a codebook, `CaptionStage`; the preset is one to begin "
        "with: a convolutional network with the published codebook of 131072 x 256, as the base of the paper. Its "
        "codebook follows moving means; in the paper's base the gradient reaches all entries. The weight of the "
        "tokenizer's losses, 0.25, is not confirmed."
    ),
)
