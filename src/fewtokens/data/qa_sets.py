"""Public sets of questions on videos, as their users download them, with the prompts that they are asked with.

    nextqa           test.csv or val.csv (map_vid_vidorID.json where the folders of VidOR are kept), or MC/*.parquet;
                     videos in NExTVideo/
    activitynetqa    test_q.json with test_a.json, or Generation/*.parquet; videos v_NAME.mp4 in all_test/
    longvideobench   lvb_val.json, lvb_test_wo_gt.json (no answers), or *.parquet; videos/, subtitles/
    videomme         videomme/*.parquet, or the same rows as test.json or test.jsonl; data/, subtitle/
    mvbench          json/TASK.json; video/, whole videos with seconds or the released segments

Replies are scored in `fewtokens.evaluation.qa_sets`.
"""

from __future__ import annotations

import re
import string
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewtokens.core.files import read_json as read_json_file
from fewtokens.core.files import read_text
from fewtokens.data.qa_files import Row, find, list_files, missing_line, read, read_json, read_rows

NAMES = ("nextqa", "activitynetqa", "longvideobench", "videomme", "mvbench")
DIRECTLY = "Answer with the option's letter from the given choices directly."

# Task of MVBench -> folder of whole videos, whether a question means a part of them, folder of lmms-eval's segments.
_MVBENCH = {
    "action_antonym": ("ssv2_video", False, "ssv2_video_mp4"),
    "action_count": ("perception/videos", False, None),
    "action_localization": ("sta/sta_video", True, "sta/sta_video_segment"),
    "action_prediction": ("star/Charades_v1_480", True, "star/Charades_segment"),
    "action_sequence": ("star/Charades_v1_480", True, "star/Charades_segment"),
    "character_order": ("perception/videos", False, None),
    "counterfactual_inference": ("clevrer/video_validation", False, None),
    "egocentric_navigation": ("vlnqa", False, None),
    "episodic_reasoning": ("tvqa/frames_fps3_hq", True, "tvqa/video_fps3_hq_segment"),
    "fine_grained_action": ("Moments_in_Time_Raw/videos", False, None),
    "fine_grained_pose": ("nturgbd", False, "nturgbd_convert"),
    "moving_attribute": ("clevrer/video_validation", False, None),
    "moving_count": ("clevrer/video_validation", False, None),
    "moving_direction": ("clevrer/video_validation", False, None),
    "object_existence": ("clevrer/video_validation", False, None),
    "object_interaction": ("star/Charades_v1_480", True, "star/Charades_segment"),
    "object_shuffle": ("perception/videos", False, None),
    "scene_transition": ("scene_qa/video", False, None),
    "state_change": ("perception/videos", False, None),
    "unexpected_action": ("FunQA_test/test", False, None),
}


@dataclass(frozen=True)
class Question:
    """One question on one video.

    Attributes:
        id: unlike all others of its set.
        video: the file, or a folder of frames.
        question: as published, without choices or instructions.
        choices: texts without their letters; empty where the answer is open.
        answer: text of the right one; "" where it is not published.
        letter: of the right choice; None where the answer is open or not published.
        kind: type of question by which the set is reported, and `group` of durations ("short", "600"), or "".
        start, end: seconds of the part of the video that is meant; None is the whole.
        subtitles: file beside the video, or None; `read_subtitles` reads it.
        subtitles_start: second of the subtitles at which the video begins.
        duration: seconds of the video where the set says it.
    """

    id: str
    video: Path
    question: str
    choices: tuple[str, ...] = ()
    answer: str = ""
    letter: str | None = None
    kind: str = ""
    group: str = ""
    start: float | None = None
    end: float | None = None
    subtitles: Path | None = None
    subtitles_start: float = 0.0
    duration: float | None = None


@dataclass(frozen=True)
class Conversation:
    """One item of LLaVA-Video-178K: turns are (question, reply), without the mark of the video."""

    id: str
    video: Path
    turns: tuple[tuple[str, str], ...]


def load(name: str, folder: str | Path, split: str | None = None) -> list[Question]:
    """The questions of a set.

    Questions whose video is not there are left out, with one warning that says how many and names the first.

    Args:
        name: one of `NAMES`.
        folder: where the set was downloaded to.
        split: "test" (where not said), "val" or "train"; LongVideoBench has "val" (where not said) and "test", MVBench
            the names of its tasks (all that are there, where not said).

    Raises:
        ValueError: no such set, split, folder or annotations; a broken line, by file and number; a video outside of
            the folder; no video at all.
    """
    folder = Path(folder)
    if name not in NAMES:
        raise ValueError(f"the set must be one of {', '.join(NAMES)}, got {name!r}")
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give the one that {name} was downloaded to")
    if split is not None and not re.fullmatch(r"\w[\w-]*", split):
        raise ValueError(f"a split is named by one word, such as test or val, got {split!r}")
    missing: list[str] = []
    found = list(_READERS[name](folder, split, missing))
    if not found:
        raise ValueError(f"{folder}: {missing_line(missing) if missing else f'no question of {name} found'}")
    if missing:
        warnings.warn(f"{folder}: {missing_line(missing)}; their questions are left out", stacklevel=2)
    return found


def prompt(question: Question, name: str, subtitles: str = "") -> str:
    """A question in the wording that its set is published with.

    Of lmms-eval for all but Video-MME, whose own wording changes with subtitles. NExT-QA's last line is the usual one
    of the other sets: lmms-eval's task file for it, as far as read, has none.

    Args:
        name: one of `NAMES`.
        subtitles: text to put in front; Video-MME only.

    Raises:
        ValueError: no such set, or subtitles where its prompt has no place for them.
    """
    if name not in NAMES:
        raise ValueError(f"the set must be one of {', '.join(NAMES)}, got {name!r}")
    if subtitles and name != "videomme":
        raise ValueError(f"the prompt of {name} has no place for subtitles; only videomme's has")
    options = "\n".join(
        f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, question.choices, strict=False)
    )
    asked = question.question
    if name == "activitynetqa":
        return f"{asked}? Answer the question using a single word or phrase."
    if name == "longvideobench":
        return f"{asked}\n{options}\n{DIRECTLY}\n"
    if name == "mvbench":
        return f"Question:{asked}\nOption:\n{options}\n{DIRECTLY}"
    if name == "videomme":
        before = f"This video's subtitles are listed below:\n{subtitles}\n" if subtitles else ""
        return (
            f"{before}Select the best answer to the following multiple-choice question based on the video"
            f"{' and the subtitles' if subtitles else ''}. Respond with only the letter (A, B, C, or D) of the correct "
            f"option.\n{asked}\n{options}\nThe best answer is:"
        )
    return f"{asked}\n{options}\n{DIRECTLY}"


def read_subtitles(question: Question) -> list[tuple[float, float, str]]:
    """(start, end, text) in seconds of the video, those within it only; empty where there are none.

    Raises:
        ValueError: a file that is neither SubRip nor a list of LongVideoBench.
    """
    path = question.subtitles
    if path is None:
        return []
    said: list[tuple[float, float, str]] = []
    if path.suffix.lower() == ".srt":
        said = list(_subrip(path))
    else:
        for row in read_json(path):
            if "timestamp" in row.said:
                start, end = row.get("timestamp", tuple[float, float | str | None])
                # The last line of a track has no end.
                last = question.subtitles_start + (question.duration or start - question.subtitles_start)
                said.append((float(start), float(end) if isinstance(end, int | float) else last, row.text("text")))
            else:
                said.append((_clock(row.text("start"), path), _clock(row.text("end"), path), row.text("line")))
    moved = [(a - question.subtitles_start, b - question.subtitles_start, text) for a, b, text in said]
    longest = question.duration or float("inf")
    return [(a, b, text) for a, b, text in moved if b >= 0 and a <= longest and text]


def _subrip(path: Path) -> Iterator[tuple[float, float, str]]:
    """Blocks of a line "START --> END" and the lines of text below it, up to an empty one."""
    times: tuple[float, float] | None = None
    text: list[str] = []
    for line in [*read_text(path).splitlines(), ""]:
        start, arrow, end = line.partition("-->")
        if arrow and start.split() and end.split():
            if times is not None:
                yield *times, " ".join(" ".join(text).split())
            times, text = (_clock(start.split()[-1], path), _clock(end.split()[0], path)), []
        elif line.strip():
            text.append(re.sub(r"<[^<>]*>", "", line))
        elif times is not None:
            yield *times, " ".join(" ".join(text).split())
            times = None


def conversations(path: str | Path, folder: str | Path | None = None) -> Iterator[Conversation]:
    """The items of a .json or .jsonl of LLaVA-Video-178K, in its order.

    Those whose video is not there are left out, with one warning at the end.

    Args:
        folder: where the videos lie; the folder of `path` where not said.

    Raises:
        ValueError: a broken line, by file and number; a video outside of the folder; no video at all.
    """
    path = Path(path)
    folder = path.parent if folder is None else Path(folder)
    missing: list[str] = []
    some = False
    for row in read_json(path):
        turns = row.get("conversations")
        wrong = f"{row.where}: conversations must be objects from human and gpt in turn, each with a value"
        if not isinstance(turns, list) or len(turns) < 2 or len(turns) % 2:
            raise ValueError(wrong)
        texts = []
        for number, turn in enumerate(turns):
            who = ("human", "gpt")[number % 2]
            if not isinstance(turn, dict) or turn.get("from") != who or not isinstance(turn.get("value"), str):
                raise ValueError(wrong)
            texts.append(
                re.sub(r"<(?:image|video)>\n?", "", turn["value"]).strip() if who == "human" else turn["value"]
            )
        video = find(folder, ("",), row.text("video"), row.where, missing)
        if video is not None:
            some = True
            yield Conversation(
                row.text_or_none("id") or row.where, video, tuple(zip(texts[::2], texts[1::2], strict=True))
            )
    if missing:
        if not some:
            raise ValueError(f"{folder}: {missing_line(missing)}; say where they are")
        warnings.warn(f"{folder}: {missing_line(missing)}; their conversations are left out", stacklevel=2)


def _right(choices: Sequence[str], number: int) -> tuple[str, str]:
    """Text and letter of a choice.

    Raises:
        ValueError: more choices than letters.
    """
    if len(choices) > len(string.ascii_uppercase):
        raise ValueError(f"a question with {len(choices)} choices; there are letters for 26")
    return choices[number], string.ascii_uppercase[number]


def _nextqa(folder: Path, split: str | None, missing: list[str]) -> Iterator[Question]:
    split = split or "test"
    vidor: dict[str, Any] = {}
    for table in (folder / "map_vid_vidorID.json", folder / "dataset/nextqa/map_vid_vidorID.json"):
        if table.exists():
            vidor = read_json_file(table, dict[str, str | int])
    files = (f"{split}.csv", f"dataset/nextqa/{split}.csv", f"MC/{split}*.parquet")
    for row in read_rows(folder, "nextqa", split, files):
        name = row.text("video")
        choices = tuple(row.text(f"a{n}") for n in range(5))
        answer, letter = _right(choices, row.chosen("answer", choices))
        names = (str(vidor[name]), name) if name in vidor else (name,)
        video = find(folder, ("NExTVideo", "NExTVideo/NExTVideo", "videos", ""), names, row.where, missing)
        if video is not None:
            number, kind = f"{name}_{row.text('qid')}", row.text("type")
            yield Question(number, video, row.text("question"), choices, answer, letter, kind)


def _activitynetqa(folder: Path, split: str | None, missing: list[str]) -> Iterator[Question]:
    split = split or "test"
    asked = [f"{place}{split}_q.json" for place in ("", "dataset/", "annotations/")]
    answers: dict[str, Row] = {}
    for path in list_files(folder, "activitynetqa", split, (*asked, f"Generation/{split}*.parquet")):
        if path.suffix == ".json":
            answers |= {row.text("question_id"): row for row in read_json(path.with_name(f"{split}_a.json"))}
        for row in read(path):
            number = row.text("question_id")
            answer = answers.get(number, row)
            name = row.text("video_name").removeprefix("v_")
            names = (f"v_{name}", name)
            video = find(folder, ("all_test", "videos", ""), names, row.where, missing)
            if video is not None:
                kind = answer.text_or_none("type")
                yield Question(number, video, row.text("question"), answer=answer.text("answer"), kind=kind)


def _longvideobench(folder: Path, split: str | None, missing: list[str]) -> Iterator[Question]:
    split = {None: "val", "validation": "val"}.get(split, split)
    files = {
        "val": ("lvb_val.json", "validation*.parquet", "*/validation*.parquet"),
        "test": ("lvb_test_wo_gt.json", "test*.parquet", "*/test*.parquet"),
    }
    if split not in files:
        raise ValueError(f"longvideobench has the splits val and test, got {split!r}")
    for row in read_rows(folder, "longvideobench", str(split), files[str(split)]):
        if row.said.get("option0") is None:
            choices = row.texts("candidates")
        else:
            options = (row.text(f"option{n}") for n in range(5) if row.said.get(f"option{n}") is not None)
            choices = tuple(text for text in options if text != "N/A")
        hidden = split == "test" and row.number("correct_choice") in (None, -1)
        answer, letter = ("", None) if hidden else _right(choices, row.chosen("correct_choice", choices))
        video = find(folder, ("videos",), row.text("video_path"), row.where, missing)
        if video is not None:
            beside = row.text_or_none("subtitle_path")
            subtitles = find(folder, ("subtitles",), beside, row.where, []) if beside else None
            yield Question(
                row.text("id"),
                video,
                row.text("question"),
                choices,
                answer,
                letter,
                kind=row.text("question_category"),
                group=row.text_or_none("duration_group"),
                subtitles=subtitles,
                subtitles_start=row.number("starting_timestamp_for_subtitles") or 0.0,
                duration=row.number("duration"),
            )


def _videomme(folder: Path, split: str | None, missing: list[str]) -> Iterator[Question]:
    split = split or "test"
    files = [f"{place}{split}*{end}" for end in (".json", ".jsonl", ".parquet") for place in ("", "videomme/")]
    for row in read_rows(folder, "videomme", split, files):
        choices = tuple(re.sub(r"^[A-Z][.)]\s*", "", text) for text in row.texts("options"))
        letter = row.text("answer").upper()
        if len(letter) != 1 or letter not in string.ascii_uppercase[: len(choices)]:
            raise ValueError(f"{row.where}: 'answer' must be one of {len(choices)} letters, got {letter!r:.40}")
        name = row.text("videoID")
        video = find(folder, ("data", "video", "videos"), name, row.where, missing)
        if video is not None:
            subtitles = find(folder, ("subtitle",), f"{name}.srt", row.where, [])
            answer = choices[string.ascii_uppercase.index(letter)]
            yield Question(
                row.text("question_id"),
                video,
                row.text("question"),
                choices,
                answer,
                letter,
                kind=row.text("task_type"),
                group=row.text("duration"),
                subtitles=subtitles,
            )


def _mvbench(folder: Path, split: str | None, missing: list[str]) -> Iterator[Question]:
    if split is not None and split not in _MVBENCH:
        raise ValueError(f"mvbench has the tasks {', '.join(_MVBENCH)}, got {split!r}")
    for path in list_files(folder, "mvbench", split or "any task", [f"json/{split or '*'}.json"]):
        if path.stem not in _MVBENCH:
            continue
        whole, part, segments = _MVBENCH[path.stem]
        for number, row in enumerate(read(path)):
            choices = row.texts("candidates")
            if (answer := row.text("answer")) not in choices:
                raise ValueError(f"{row.where}: the answer {answer!r:.80} is none of the candidates")
            name = row.text("video")
            cut = find(folder, _places(segments), name, row.where, []) if segments else None
            video = cut or find(folder, _places(whole), name, row.where, missing)
            if video is not None:
                # A segment is the part already.
                start, end = (row.number("start"), row.number("end")) if part and cut is None else (None, None)
                answer, letter = _right(choices, choices.index(answer))
                asked, kind = row.text("question"), path.stem
                yield Question(f"{kind}_{number}", video, asked, choices, answer, letter, kind, start=start, end=end)


def _places(folder: str | None) -> tuple[str, ...]:
    return (f"video/{folder}", f"videos/{folder}", str(folder), f"video/data0613/{folder}", f"data0613/{folder}")


def _clock(text: str, path: Path) -> float:
    """Seconds of "00:01:02,500" or "00:01:02.500"."""
    if match := re.fullmatch(r"(?:(\d{1,6}):)?(\d{1,6}):(\d{1,6}(?:[.,]\d{1,9})?)", text):
        return 3600 * int(match[1] or 0) + 60 * int(match[2]) + float(match[3].replace(",", "."))
    raise ValueError(f"{path}: a time must be like 00:01:02.5, got {text!r:.40}")


_READERS: dict[str, Callable[[Path, str | None, list[str]], Iterator[Question]]] = {
    "nextqa": _nextqa,
    "activitynetqa": _activitynetqa,
    "longvideobench": _longvideobench,
    "videomme": _videomme,
    "mvbench": _mvbench,
}
