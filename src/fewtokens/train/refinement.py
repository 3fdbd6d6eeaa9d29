"""Training a video language model by its own answers, in place of written ones.

    SelfRefinement   SeViLA: the model learns to say for a frame whether it suffices to answer a question
    TeacherReward    MARC: a model with few tokens is rewarded for right answers, more where one with all is right too

Both are objectives of `fewtokens.train.loop.fit` for any family of `fewtokens.llm.load`, on batches of `QuestionClips`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from fewtokens.data.qa_sets import Conversation
from fewtokens.evaluation.videoqa import normalize
from fewtokens.llm.chat import check_question
from fewtokens.llm.composed import ComposedVideoLLM
from fewtokens.llm.interface import unwrap
from fewtokens.llm.pixels import square_frames
from fewtokens.llm.prompts import Processor
from fewtokens.llm.relevance import PROMPT, answer_ids, frame_prompts
from fewtokens.train.video_llm import Reading
from fewtokens.video import Video, read


class QuestionClips(Dataset[dict[str, Any]]):
    """The first question of each conversation with its answer and video, indexed by (epoch, index) or index."""

    def __init__(self, items: Sequence[Conversation], reading: Reading, tokenizer: Any) -> None:
        self.items, self.reading, self.tokenizer = list(items), reading, tokenizer

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        item = self.items[key[1] if isinstance(key, tuple) else key]
        question, answer = item.turns[0]
        try:
            check_question(self.tokenizer, question)
            video = read(item.video, frames=self.reading.frames, size=self.reading.size)
        except (ValueError, OSError) as error:
            return {"broken": " ".join(str(error).split())}
        frames = square_frames(video.frames, self.reading.size, self.reading.frames)
        return {"frames": frames, "question": question, "answer": answer}


def collate_clips(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stacks the frames, uint8 [B,T,3,H,W], and lists questions and answers."""
    good = [sample for sample in samples if "broken" not in sample]
    batch: dict[str, Any] = {"broken": [sample["broken"] for sample in samples if "broken" in sample]}
    if good:
        batch["frames"] = torch.stack([sample["frames"] for sample in good])
        batch |= {name: [sample[name] for sample in good] for name in ("question", "answer")}
    return batch


class SelfRefinement:
    """Trains a localizer: whether a frame suffices is whether the answerer answers right from this frame alone.

    The self-refinement of SeViLA (arXiv 2305.06988). A few frames of each video are chosen at random. The answerer,
    which is not trained, answers the question about each of them alone; the trained model is asked the prompt of
    `ModelScorer`, and learns to answer "yes" for the frames with a right answer and "no" for the others. The loss is
    the cross-entropy between the tokens of yes and of no, which that scorer compares; SeViLA's is that of the word over
    the vocabulary. Answers are right if they equal the expected one, ignoring case and punctuation.

    Args:
        answerer: the model whose answers count, such as a copy of the one that is trained; it is frozen.
        processor: makes the prompts of both.
        frames: the number of frames per video, at most all of them.
        max_new_tokens: the maximum length of an answer.

    Raises:
        ValueError: the tokenizer has no token for yes or for no.
    """

    def __init__(self, answerer: Any, processor: Processor, *, frames: int = 4, max_new_tokens: int = 16) -> None:
        if frames < 1 or max_new_tokens < 1:
            raise ValueError(f"frames and max_new_tokens must be at least 1, got {frames} and {max_new_tokens}")
        self.answerer, self.processor = answerer.eval().requires_grad_(False), processor
        self.frames, self.max_new_tokens = frames, max_new_tokens
        self.yes, self.no = (answer_ids(processor.tokenizer, word) for word in ("yes", "no"))

    def labels(self, frames: Tensor, questions: Sequence[str], expected: Sequence[str]) -> Tensor:
        """Returns whether each frame, uint8 [n,3,H,W], alone leads to the expected answer, bool [n]."""
        inputs = frame_prompts(self.answerer, self.processor, frames, questions)
        answers = write_answers(self.answerer, self.processor, inputs, self.max_new_tokens)
        return torch.tensor(is_right(answers, expected))

    def __call__(
        self, model: nn.Module, batch: dict[str, Any], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        B, T = batch["frames"].shape[:2]
        count = min(self.frames, T)
        drawn = torch.stack([torch.randperm(T, generator=generator)[:count] for _ in range(B)])
        frames = batch["frames"].cpu()[torch.arange(B)[:, None], drawn].flatten(0, 1)
        questions, expected = ([text for text in batch[name] for _ in range(count)] for name in ("question", "answer"))
        right = self.labels(frames, questions, expected)
        prompts = [PROMPT.replace("{question}", question) for question in questions]
        inputs = frame_prompts(unwrap(model), self.processor, frames, prompts)
        logits = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float()
        score = logits[:, self.yes].logsumexp(1) - logits[:, self.no].logsumexp(1)
        target = right.to(score)
        loss = F.binary_cross_entropy_with_logits(score, target)
        agreement = ((score > 0) == right.to(score.device)).float().mean()
        return loss, {"right": target.mean(), "agreement": agreement.detach()}


@dataclass(frozen=True)
class TeacherReward:
    """Trains a model with few visual tokens by reinforcement: right answers count, more if the teacher is right too.

    The training of MARC (arXiv 2510.07915), C-GRPO, as far as its abstract tells: `group` answers to each question are
    sampled, and the reward of one is correct + bonus * [it and the teacher's answer are right], where the teacher sees
    all tokens. The advantage is the reward minus the mean of its group. GRPO also divides by the standard deviation,
    but all answers of a group share one teacher, so that the bonus would cancel; without the division, questions that
    the teacher can answer count more. Each sample serves one step, so that there is no ratio to clip; there is no
    penalty of the distance to the initial model. A question whose answers are all right or all wrong gives no gradient.

    Attributes:
        teacher: a model that sees all visual tokens; frozen.
        processor: makes the prompts of both.
        group: the number of answers to a question, at least 2.
        bonus: at least 0.
        temperature: of the sampled answers, above 0.
        max_new_tokens: the maximum length of an answer.
    """

    teacher: Any
    processor: Processor
    group: int = 8
    bonus: float = 0.5
    temperature: float = 1.0
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        if self.group < 2 or self.bonus < 0 or self.temperature <= 0 or self.max_new_tokens < 1:
            raise ValueError(
                "group must be at least 2, bonus at least 0, temperature above 0 and max_new_tokens at least 1, got "
                f"{self.group}, {self.bonus}, {self.temperature} and {self.max_new_tokens}"
            )
        self.teacher.eval().requires_grad_(False)

    def __call__(
        self, model: nn.Module, batch: dict[str, Any], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        clips = [clip_of(frames) for frames in batch["frames"].cpu()]
        prompts = self.processor(self.teacher, clips, batch["question"])
        taught = write_answers(self.teacher, self.processor, prompts, self.max_new_tokens)
        teacher = torch.tensor(is_right(taught, batch["answer"]))
        many = [clip for clip in clips for _ in range(self.group)]
        questions = [question for question in batch["question"] for _ in range(self.group)]
        student = unwrap(model)
        inputs = self.processor(student, many, questions)
        with evaluating(student):
            ids = new_ids(student, self.processor, inputs, self.max_new_tokens, self.temperature)
        answers = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        expected = [answer for answer in batch["answer"] for _ in range(self.group)]
        correct = torch.tensor(is_right(answers, expected)).unflatten(0, (-1, self.group))
        advantage = (r := rewards(correct, teacher, self.bonus)) - r.mean(1, keepdim=True)
        chances = log_chances(model, self.processor, inputs, ids, self.temperature)
        loss = -(advantage.flatten().to(chances) * chances).mean()
        numbers = {"reward": r.mean(), "right": correct.float().mean(), "teacher": teacher.float().mean()}
        return loss, numbers


def rewards(correct: Tensor, teacher: Tensor, bonus: float) -> Tensor:
    """Returns the reward of each answer, float32 [B,G].

    Args:
        correct: bool [B,G], which answers are right.
        teacher: bool [B], whether the teacher's is.
        bonus: what an answer gets in addition if both are.
    """
    return correct.float() + bonus * (correct & teacher[:, None]).float()


def is_right(answers: Sequence[str], expected: Sequence[str]) -> list[bool]:
    """Returns which answers equal the expected ones, ignoring case, punctuation and articles."""
    return [normalize(answer) == normalize(right) for answer, right in zip(answers, expected, strict=True)]


def clip_of(frames: Tensor) -> Video:
    """Returns frames uint8 [T,3,H,W] as a video with a frame per second."""
    return Video(frames, torch.arange(len(frames), dtype=torch.float64))


def write_answers(model: Any, processor: Processor, inputs: Any, max_new_tokens: int) -> list[str]:
    """Returns the answers to prompts, by greedy decoding."""
    return processor.tokenizer.batch_decode(new_ids(model, processor, inputs, max_new_tokens), skip_special_tokens=True)


@torch.no_grad()
def new_ids(
    model: Any, processor: Processor, inputs: Any, max_new_tokens: int, temperature: float | None = None
) -> Tensor:
    """Returns the ids that a model adds to prompts, int64 [n,L]: the most likely ones, or samples at a temperature."""
    if isinstance(model, ComposedVideoLLM):  # whose output begins with the shortened prompt
        inputs = model.compress(dict(inputs)).inputs
    sampled = temperature is not None
    settings = {"temperature": temperature, "top_k": 0 if sampled else None, "top_p": 1.0 if sampled else None}
    out = model.generate(
        **inputs, **settings, max_new_tokens=max_new_tokens, do_sample=sampled, num_beams=1,
        pad_token_id=_pad(processor.tokenizer),
    )  # fmt: skip
    return out[:, inputs["input_ids"].shape[1] :]


def log_chances(model: Any, processor: Processor, inputs: Any, ids: Tensor, temperature: float) -> Tensor:
    """Returns the mean log-probability of ids [n,L] that follow prompts, up to the first end of text, float32 [n]."""
    end = processor.tokenizer.eos_token_id
    ended = (ids == end).cumsum(1) if end is not None else torch.zeros_like(ids)
    counted = (ended - (ids == end).long() if end is not None else ended) == 0
    # What follows the end is not seen by what precedes it; masked there, it would move the columns of a prompt.
    mask = inputs["attention_mask"]
    longer = dict(inputs) | {
        "input_ids": torch.cat([inputs["input_ids"], ids], 1),
        "attention_mask": torch.cat([mask, torch.ones_like(ids).to(mask)], 1),
    }
    length = ids.shape[1]
    logits = model(**longer, use_cache=False, logits_to_keep=length + 1).logits[:, -length - 1 : -1].float()
    chances = (logits / temperature).log_softmax(2).gather(2, ids[..., None])[..., 0]
    return (chances * counted).sum(1) / counted.sum(1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model in eval mode, and back in the mode that it had."""
    mode = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(mode)


def _pad(tokenizer: Any) -> int | None:
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
