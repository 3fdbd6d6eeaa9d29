"""The relevance of frames by a video language model: the probability that it answers "yes".

model, processor = load("Qwen/Qwen2.5-VL-3B-Instruct")
video = fewtokens.read("film.mp4", select="sevila", question="Who opens it?", scorer=ModelScorer(model, processor))
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.selection import chunks
from fewtokens.llm.attach import check_free
from fewtokens.llm.interface import unwrap
from fewtokens.llm.prompts import Processor
from fewtokens.selection import Scorer
from fewtokens.video import Video
from fewtokens.video.footage import SmallFrames

# Of the localizer of SeViLA.
PROMPT = (
    "Question: {question} Does the information within the frame provide the necessary details to accurately answer the "
    "given question?"
)


class ModelScorer(Scorer):
    """Scores the probability of "yes" against "no" as the first token of the answer to a prompt about one frame.

    The localizer of SeViLA (arXiv 2305.06988), with any video language model. Each frame is the only one of a video in
    its own prompt, at second 0; nothing is generated. The score is in 0..1: the sigmoid of log sum exp z("yes") - log
    sum exp z("no"), over the logits z of yes, Yes and both after a space, as far as each is one token. SeViLA ranks
    frames by the logit of "yes" alone, which is not comparable between frames; it was trained on the default prompt,
    other models were not.

    Args:
        model, processor: as `fewtokens.llm.load` returns them.
        prompt: the text of a prompt, in which {question} stands for the question. Default: as published.
        size: short side of a frame in pixels, before the preprocessing of the model.
        batch: number of frames in one forward pass.

    Raises:
        ValueError: an argument is invalid, or the tokenizer has no token for yes or for no.
    """

    needs_question = True
    compares_features = False
    _numbers = count()

    def __init__(
        self, model: Any, processor: Processor, *, prompt: str = PROMPT, size: int = 224, batch: int = 8
    ) -> None:
        if "{question}" not in prompt:
            raise ValueError(f"prompt must contain {{question}}, got {prompt!r}")
        if size < 1 or batch < 1:
            raise ValueError(f"size and batch must be at least 1, got {size} and {batch}")
        self.model, self.processor = unwrap(model), processor
        self.prompt, self.size, self.batch = prompt, size, batch
        self.yes, self.no = (answer_ids(processor.tokenizer, word) for word in ("yes", "no"))
        # Weights may change between two scorers of the same model.
        self.id = f"model {next(self._numbers)}"

    def score(self, thumbnails: SmallFrames, question: str | None, features: Tensor | None) -> Tensor:
        assert question is not None
        check_free(self.model)
        text = self.prompt.replace("{question}", question)
        parts = [frames for chunk in chunks(thumbnails) for frames in chunk.split(self.batch)]
        return torch.cat([yes_probability(self.first_logits(part, text), self.yes, self.no) for part in parts])

    @torch.inference_mode()
    def first_logits(self, frames: Tensor, text: str) -> Tensor:
        """Returns the logits of the first token of the answers, float32 [n,V] on the CPU.

        Args:
            frames: uint8 [n,3,h,w], each in its own prompt.
            text: the text of the prompts.
        """
        # All prompts have the same length, so that none is padded.
        inputs = frame_prompts(self.model, self.processor, frames, [text] * len(frames))
        return self.model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float().cpu()


def frame_prompts(model: Any, processor: Processor, frames: Tensor, texts: Sequence[str]) -> dict[str, Any]:
    """Returns the inputs of a model for prompts about one frame each, which is the only one of a video, at second 0.

    Args:
        model, processor: as `fewtokens.llm.load` returns them.
        frames: uint8 [n,3,h,w].
        texts: n texts.
    """
    start = torch.zeros(1, dtype=torch.float64)
    return processor(model, [Video(frame[None], start) for frame in frames], list(texts))


def yes_probability(logits: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Returns the probability of one set of tokens against another, float32 [n].

    Args:
        logits: float [n,V].
        yes, no: int64, ids of tokens, at least one each.
    """
    return (logits[:, yes].logsumexp(1) - logits[:, no].logsumexp(1)).sigmoid()


def answer_ids(tokenizer: Any, word: str) -> Tensor:
    """Returns the ids of a word, capitalized or not, with or without a space before it; those that are one token.

    Raises:
        ValueError: there are none.
    """
    texts = [space + each for space in ("", " ") for each in (word, word.capitalize())]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    whole = {each[0] for each in ids if len(each) == 1} - {tokenizer.unk_token_id}
    if not whole:
        raise ValueError(f"the tokenizer has no token for {word!r}, so the model cannot score frames; use clip:FOLDER")
    return torch.tensor(sorted(whole))
