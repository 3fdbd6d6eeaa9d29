"""The questions about a script in words, and a small language model that answers them from the slots of a memory.

    questions = pose(script, 20, generator)
    reads = Reads.from_tokens(memory.read(state))
    answers = reader.answer(reads, *collate(questions, vocabulary))

Scripts must share their codes (`with_codes`), so that each has a name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens
from fewtokens.evaluation.longvideo.questions import TOLERANCE, WINDOW
from fewtokens.evaluation.longvideo.script import Script

KINDS = ("far", "near", "order", "first", "last", "back", "needle")
PAD, END, TIME = "<pad>", "<end>", "<time>"
TEXTS = {
    "at": f"what was shown at {TIME}",
    "order": "which came first , {} or {}",
    "first": "when first {}",
    "last": "when last {}",
    "back": f"twice {{}} after {TIME}",
    "needle": "when was {}",
}
# The longest answer: minute, second and end.
LONGEST = 3
# The factor of the random queries and keys that attention starts with.
SHARPNESS = 3.0
# The periods of the sines and cosines of a second; among them a minute and an hour, in which answers are written.
PERIODS = (7200, 3600, 1800, 900, 450, 240, 120, 60, 30, 15, 7.5, 4)


def orthonormal_codes(number: int, dim: int = 64, seed: int = 0) -> Tensor:
    """Returns orthogonal codes of length 1, float32 [number,dim], number <= dim."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0][:number].contiguous()


def with_codes(script: Script, codes: Tensor) -> Script:
    """Returns the script with the first of these codes [n,C] for its scenes, and the following for its needles."""
    return replace(script, codes=codes[: len(script.codes)])


def rename(features: Tensor, codes: Tensor, names: Tensor) -> Tensor:
    """Returns features [...,C] in which code i is replaced by code names[i].

    For orthonormal codes this is a rotation, so that a memory of the script with these names holds the same slots.
    """
    parts = features @ codes.T
    return features + parts @ (codes[names] - codes)


@dataclass(frozen=True)
class Question:
    """A question in words with its answer.

    Attributes:
        kind: one of `KINDS`.
        words: the question; the second `TIME` stands for is `second`.
        second: 0 for a question without a time.
        answer: one word, or minute and second.
        target: the second that is the answer to "when", otherwise None.
    """

    kind: str
    words: tuple[str, ...]
    second: float
    answer: tuple[str, ...]
    target: float | None = None

    def is_right(self, answer: Sequence[str]) -> bool:
        """Whether the words of an answer are right: equal, or a time within `TOLERANCE`."""
        if self.target is None:
            return tuple(answer) == self.answer
        second = read_time(answer)
        return second is not None and abs(second - self.target) <= TOLERANCE


def write_time(second: int) -> tuple[str, str]:
    """Returns the words of a time: ("2min", "5s") for 125."""
    return f"{second // 60}min", f"{second % 60}s"


def read_time(words: Sequence[str]) -> int | None:
    """Returns the second that words mean; None if they are no time."""
    found = re.fullmatch(r"(\d+)min (\d+)s", " ".join(words))
    return None if found is None else 60 * int(found[1]) + int(found[2])


def read_number(word: str) -> float | None:
    """Returns the second that a word of a time means, of a minute its middle; None for other words."""
    if not word[0].isdigit():
        return None
    return 60.0 * int(word[:-3]) + 30 if word.endswith("min") else float(word[:-1])


class Vocabulary:
    """The words of all questions and answers.

    Args:
        names: number of codes.
        minutes: maximum length of a video.

    Attributes:
        words: in the order of their ids; that of `PAD` is 0.
    """

    def __init__(self, names: int = 40, minutes: int = 60) -> None:
        texts = dict.fromkeys(word for text in TEXTS.values() for word in text.split() if word != "{}")
        numbers = [f"{minute}min" for minute in range(minutes)] + [f"{second}s" for second in range(60)]
        self.words = list(dict.fromkeys([PAD, END, *texts, "yes", "no", *map(name_of, range(names)), *numbers]))
        self.ids = {word: index for index, word in enumerate(self.words)}

    def encode(self, words: Sequence[str]) -> list[int]:
        return [self.ids[word] for word in words]


def name_of(code: int) -> str:
    return f"place{code}"


def pose(
    script: Script, number: int, generator: torch.Generator, *, names: Tensor | None = None
) -> dict[str, list[Question]]:
    """Returns up to `number` random questions of each kind; none of a kind without a certain answer.

    The questions are those of `fewtokens.evaluation.longvideo.questions.ask`; "needle" asks when it was.

    Args:
        script: what happened.
        number: of each kind.
        generator: of random numbers.
        names: int64 [n], the number in the name of each code. Default: that of the code.
    """
    label = [name_of(code) for code in (range(len(script.codes)) if names is None else names.tolist())]
    ends, end = script.ends, script.seconds
    result: dict[str, list[Question]] = {kind: [] for kind in KINDS}

    def words(text: str, *codes: int) -> tuple[str, ...]:
        return tuple(TEXTS[text].format(*(label[code] for code in codes)).split())

    def draw(stop: int) -> int:
        return int(torch.randint(stop, (1,), generator=generator))

    for kind, low, high in (("far", 0, max(1, end // 2)), ("near", max(0, end - 60), end)):
        second = torch.randint(low, high, (number,), generator=generator)
        second = second[~torch.isin(second, script.needles)]
        for when, code in zip(second.tolist(), script.code(second).tolist(), strict=True):
            result[kind].append(Question(kind, words("at"), when, (label[code],)))
    present = script.scenes.unique().tolist()
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for begin, stop, code in zip(script.starts.tolist(), ends.tolist(), script.scenes.tolist(), strict=True):
        first.setdefault(code, begin)
        last[code] = stop - 1
    for _ in range(number):
        if len(present) > 1:
            pair = [present[index] for index in torch.randperm(len(present), generator=generator)[:2].tolist()]
            answer = label[min(pair, key=first.__getitem__)]
            result["order"].append(Question("order", words("order", *pair), 0, (answer,)))
        for kind, facts in (("first", first), ("last", last)):
            code = present[draw(len(present))]
            result[kind].append(Question(kind, words(kind, code), 0, write_time(facts[code]), facts[code]))
        if len(script.needles):
            index = draw(len(script.needles))
            when = int(script.needles[index])
            code = script.num_scenes + index
            result["needle"].append(Question("needle", words("needle", code), 0, write_time(when), when))
    asked: dict[bool, list[Question]] = {False: [], True: []}
    for _ in range(20 * number if end > WINDOW else 0):
        start = draw(end - WINDOW)
        codes = script.scenes[(ends > start) & (script.starts < start + WINDOW)]
        code = int(codes[draw(len(codes))])
        twice = int((codes == code).sum()) > 1
        if len(asked[twice]) < (number + 1) // 2:
            asked[twice].append(Question("back", words("back", code), start, ("yes" if twice else "no",)))
    balanced = min(map(len, asked.values()))
    result["back"] = [question for part in asked.values() for question in part[:balanced]]
    return result


@dataclass(frozen=True, eq=False)
class Reads:
    """What memories returned for B videos.

    Attributes:
        features: float32 [B,N,C].
        seconds: float32 [B,N,3], mean, first and last second of the slot of each token.
        mask: bool [B,N].
    """

    features: Tensor
    seconds: Tensor
    mask: Tensor

    __repr__ = shape_repr

    @staticmethod
    def from_tokens(tokens: Tokens) -> Reads:
        """The tokens that `Memory.read` returned, with the seconds of their slots."""
        slot = tokens.positions[..., 0].long()
        longest = max(len(spans) for spans in tokens.meta["spans"])
        assert tokens.grid.times is not None
        spans = torch.zeros(tokens.B, longest, 3)
        spans[..., 0] = tokens.grid.times.expand(tokens.B, -1)[:, :longest]
        for b, part in enumerate(tokens.meta["spans"]):
            spans[b, : len(part), 1:] = torch.tensor(part, dtype=torch.float32).reshape(-1, 2)
        seconds = spans.gather(1, slot.clamp(max=longest - 1)[..., None].expand(-1, -1, 3))
        return Reads(tokens.features.float(), seconds, tokens.mask)

    def __getitem__(self, index: Any) -> Reads:
        return Reads(self.features[index], self.seconds[index], self.mask[index])

    @staticmethod
    def concatenate(parts: Sequence[Reads]) -> Reads:
        """Reads of any number of tokens as one batch, padded."""
        longest = max(part.mask.shape[1] for part in parts)

        def join(values: Sequence[Tensor]) -> Tensor:
            return torch.cat([F.pad(v, (0, 0) * (v.ndim - 2) + (0, longest - v.shape[1])) for v in values])

        return Reads(
            join([part.features for part in parts]),
            join([part.seconds for part in parts]),
            join([part.mask for part in parts]),
        )


def collate(questions: Sequence[Sequence[Question]], vocabulary: Vocabulary) -> tuple[Tensor, Tensor, Tensor]:
    """Encodes questions about B videos with their answers.

    Returns:
        ids: int64 [B,Q,L]; each row is a question, its answer and an end, then padding.
        seconds: float32 [B,Q].
        begin: int64 [B,Q], the column of the first word of the answer; 0 for rows of padding.
    """
    rows = [[vocabulary.encode([*q.words, *q.answer, END]) for q in part] for part in questions]
    number, length = max(map(len, rows)), max(len(row) for part in rows for row in part)
    ids = torch.zeros(len(rows), number, length, dtype=torch.long)
    seconds, begin = torch.zeros(len(rows), number), torch.zeros(len(rows), number, dtype=torch.long)
    for b, part in enumerate(rows):
        for n, row in enumerate(part):
            ids[b, n, : len(row)] = torch.tensor(row)
            seconds[b, n], begin[b, n] = questions[b][n].second, len(questions[b][n].words)
    return ids, seconds, begin


class SlotReader(nn.Module):
    """A causal language model that reads slots, and answers many questions about them at once.

    A slot is one token: a linear map of its features, plus those of sines and cosines of its mean, first and last
    second. A time in a question is embedded as the mean second of a slot. All slots have the position 0, because their
    order is in their times; the words of a question follow at 1, 2, ... A question attends to the slots and itself, so
    that no answer depends on another question.

    Args:
        llm: a causal language model of transformers with as many words as the vocabulary.
        vocabulary: its words.
        dim: channels of the slots.
    """

    def __init__(self, llm: Any, vocabulary: Vocabulary, dim: int = 64) -> None:
        super().__init__()
        self.llm, self.vocabulary = llm, vocabulary
        hidden, number = llm.config.hidden_size, 2 * len(PERIODS)
        self.projector = nn.Linear(dim, hidden)
        self.span, self.moment = nn.Linear(2 * number, hidden), nn.Linear(number, hidden)

    @torch.no_grad()
    def align(self, codes: Tensor, generator: torch.Generator) -> None:
        """Initializes embeddings so that codes are close to their names, and seconds to the words of their time.

        The projectors of vision and language models are aligned by a first stage of training; here both sides are
        known. Queries and keys of a layer start as the same map, so that a question attends to slots with its names and
        times, and outputs as the transposed values, so that it copies them (similar to mimetic initialization, arXiv
        2305.09828).

        Args:
            codes: float32 [n,C], orthonormal.
            generator: of random numbers.

        Raises:
            ValueError: the language model has too few channels.
        """
        words, count, number = self.llm.get_input_embeddings().weight, len(codes), self.moment.in_features
        hidden = words.shape[1]
        if count + 3 * number >= hidden:
            raise ValueError(f"{count} codes require more than {count + 3 * number} channels, got {hidden}")
        basis = number**0.5 * torch.linalg.qr(torch.randn(hidden, hidden, generator=generator))[0]
        names, moment, span, rest = basis.split([count, number, 2 * number, hidden - count - 3 * number], 1)
        words.copy_(torch.randn(words.shape, generator=generator) * (number / hidden) ** 0.5)
        words[self.vocabulary.encode([name_of(code) for code in range(count)])] = names.T
        slow = torch.tensor(PERIODS).repeat(2) > 60
        for word, index in self.vocabulary.ids.items():
            if (second := read_number(word)) is not None:
                wave = waves(torch.tensor(second)) * (slow if word.endswith("min") else ~slow)
                words[index] = moment @ (wave / wave.norm())
        self.llm.get_output_embeddings().weight.copy_(words / 6)
        self.projector.weight.copy_(names @ codes)
        for layer, weight in ((self.moment, moment), (self.span, span)):
            layer.weight.copy_(weight / (number / 2) ** 0.5)  # the length of the waves of a second
            layer.bias.zero_()
        # Words have one side, slots the other; queries are mirrored, so that words attend to slots, not to themselves.
        side = rest[:, 0]
        words -= side
        self.projector.bias.copy_(side)
        for layer in self.llm.base_model.layers:
            attention = layer.self_attn
            keys = attention.k_proj.weight.mul_(SHARPNESS)
            attention.q_proj.weight.copy_(keys - 2 * torch.outer(keys @ side, side) / number)
            attention.o_proj.weight.copy_(attention.v_proj.weight.T)

    def embed_slots(self, reads: Reads) -> Tensor:
        """Returns the slots as inputs of the language model, [B,N,D]."""
        mean, ends = waves(reads.seconds[..., 0]), waves(reads.seconds[..., 1:]).flatten(2)
        return self.projector(reads.features) + self.moment(mean) + self.span(ends)

    def embed_words(self, ids: Tensor, seconds: Tensor) -> Tensor:
        """Returns the words of questions [B,Q,L] as inputs of the language model, [B,Q,L,D]."""
        timed = (ids == self.vocabulary.ids[TIME])[..., None]
        return self.llm.get_input_embeddings()(ids) + timed * self.moment(waves(seconds))[:, :, None]

    def forward(self, reads: Reads, ids: Tensor, seconds: Tensor) -> Tensor:
        """Returns the hidden states of the words of questions [B,Q,L], [B,Q,L,D]."""
        B, N = reads.mask.shape
        Q, L = ids.shape[1:]
        embedded = torch.cat([self.embed_slots(reads), self.embed_words(ids, seconds).flatten(1, 2)], 1)
        group = torch.arange(1, Q + 1).repeat_interleave(L)
        group = F.pad(group, (N, 0))
        order = torch.arange(N + Q * L)
        seen = (order[:, None] >= order) & ((group == 0) | (group[:, None] == group))
        real = torch.cat([reads.mask, reads.mask.new_ones(B, Q * L)], 1)
        # A slot of padding attends to itself, as a softmax over nothing is undefined.
        seen = (seen & real[:, None]) | torch.eye(N + Q * L, dtype=torch.bool)
        bias = torch.zeros(B, 1, N + Q * L, N + Q * L).masked_fill(~seen[:, None], torch.finfo(torch.float32).min)
        positions = F.pad(torch.arange(1, L + 1).repeat(Q), (N, 0)).expand(B, -1)
        output = self.llm.base_model(
            inputs_embeds=embedded, attention_mask=bias, position_ids=positions, use_cache=False
        )
        return output.last_hidden_state[:, N:].unflatten(1, (Q, L))

    def loss(self, reads: Reads, ids: Tensor, seconds: Tensor, begin: Tensor) -> Tensor:
        """The mean cross-entropy of the words of all answers and their ends."""
        hidden = self(reads, ids[..., :-1], seconds)
        column = torch.arange(1, ids.shape[2])
        learned = (column >= begin[..., None]) & (begin[..., None] > 0) & (ids[..., 1:] != 0)
        return F.cross_entropy(self.llm.get_output_embeddings()(hidden[learned]), ids[..., 1:][learned])

    @torch.inference_mode()
    def answer(self, reads: Reads, ids: Tensor, seconds: Tensor, begin: Tensor) -> list[list[list[str]]]:
        """Answers questions about B videos by greedy decoding; the answers in `ids` are not read.

        Returns:
            The words of each answer, up to the end or the `LONGEST`.
        """
        ids = F.pad(ids, (0, LONGEST))
        ids = ids.masked_fill(torch.arange(ids.shape[2]) >= begin[..., None], 0)
        for step in range(LONGEST):
            hidden = self(reads, ids, seconds)
            at = (begin + step - 1).clamp(min=0)[..., None]
            state = hidden.gather(2, at[..., None].expand(-1, -1, -1, hidden.shape[3]))[:, :, 0]
            best = self.llm.get_output_embeddings()(state).argmax(2)
            ids.scatter_(2, at + 1, best[..., None])
        words = self.vocabulary.words
        answers: list[list[list[str]]] = []
        for part, starts in zip(ids.tolist(), begin.tolist(), strict=True):
            answers.append([])
            for row, start in zip(part, starts, strict=True):
                text = [words[index] for index in row[start : start + LONGEST]] if start else []
                answers[-1].append(text[: text.index(END)] if END in text else text)
        return answers


def waves(seconds: Tensor) -> Tensor:
    """Sines and cosines of seconds [...], [...,2*len(PERIODS)]."""
    angles = seconds[..., None] * (2 * torch.pi / seconds.new_tensor(PERIODS))
    return torch.cat([angles.sin(), angles.cos()], -1)
