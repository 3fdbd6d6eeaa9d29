"""Public video question-answering datasets in their downloaded layouts, with their published prompts.

    nextqa           test.csv or val.csv (with map_vid_vidorID.json if the videos are in the folders of VidOR), or
                     MC/*.parquet; videos in NExTVideo/
    activitynetqa    test_q.json with test_a.json, or Generation/*.parquet; videos v_NAME.mp4 in all_test/
    longvideobench   lvb_val.json, lvb_test_wo_gt.json (no answers), or *.parquet; videos/, subtitles/
    videomme         videomme/*.parquet, or the same rows as test.json or test.jsonl; data/, subtitle/
    mvbench          json/TASK.json; video/, full videos with time ranges, or the released segments

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
from fewtokens.data.qa_files import Row, describe_missing, find, list_files, read, read_json, read_rows

NAMES = ("nextqa", "activitynetqa", "longvideobench", "videomme", "mvbench")
ANSWER_DIRECTLY = "Answer with the option's letter from the given choices directly."

# Frames per second of videos that are folders of images.
_MVBENCH_RATES = {"episodic_reasoning": 3}
# MVBench task -> folder of the full videos, whether questions are about a part of them, folder of lmms-eval's segments.
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
    """One question about one video.

    Attributes:
        id: unique within the dataset.
        video: the file, or a folder of frames.
        question: as published, without choices or instructions.
        choices: texts without their letters; empty for open answers.
        answer: text of the correct answer; "" if it is not published.
        letter: letter of the correct choice; None if the answer is open or not published.
        kind: type of the question, by which the dataset reports scores, or "".
        group: group of durations ("short", "600"), by which the dataset reports scores, or "".
        start, end: the part of the video that the question is about, in seconds; None for no limit.
        subtitles: the subtitle file, or None; `read_subtitles` reads it.
        subtitles_start: the time in the subtitles at which the video starts, in seconds.
        duration: duration of the video in seconds, if the dataset specifies it.
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
    """One item of LLaVA-Video-178K; turns are (question, reply) without the video placeholder."""

    id: str
    video: Path
    turns: tuple[tuple[str, str], ...]


def load_questions(name: str, folder: str | Path, split: str | None = None) -> list[Question]:
    """Loads the questions of a dataset.

    Questions whose video is missing are skipped, with one warning that reports their number and the first names.

    Args:
        name: one of `NAMES`.
        folder: the folder of the downloaded dataset.
        split: "test" (default), "val" or "train"; for LongVideoBench "val" (default) or "test"; for MVBench the name
            of a task (default: all tasks in the folder).

    Raises:
        ValueError: the dataset, split, folder or annotations do not exist; a line is invalid (the message names file
            and line); a video is outside the folder; or all videos are missing.
    """
    folder = Path(folder)
    if name not in NAMES:
        raise ValueError(f"the dataset must be one of {', '.join(NAMES)}, got {name!r}")
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; pass the folder that {name} was downloaded to")
    if split is not None and not re.fullmatch(r"\w[\w-]*", split):
        raise ValueError(f"split must be one word, such as test or val, got {split!r}")
    missing: list[str] = []
    questions = list(_READERS[name](folder, split, missing))
    if not questions:
        raise ValueError(f"{folder}: {describe_missing(missing) if missing else f'no question of {name} found'}")
    if missing:
        warnings.warn(f"{folder}: {describe_missing(missing)}; their questions are skipped", stacklevel=2)
    return questions


def format_prompt(question: Question, name: str, subtitles: str = "") -> str:
    """Formats a question as the prompt of its dataset.

    The wording is that of lmms-eval, except for Video-MME, which publishes its own with and without subtitles. The
    last line of NExT-QA is that of the other datasets, because the task file of lmms-eval was not found to have one.

    Args:
        question: the question.
        name: one of `NAMES`.
        subtitles: text that precedes the question; Video-MME only.

    Raises:
        ValueError: there is no such dataset, or its prompt does not include subtitles.
    """
    if name not in NAMES:
        raise ValueError(f"the dataset must be one of {', '.join(NAMES)}, got {name!r}")
    if subtitles and name != "videomme":
        raise ValueError(f"the prompt of {name} does not include subtitles; only that of videomme does")
    options = "\n".join(
        f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, question.choices, strict=False)
    )
    text = question.question
    if name == "activitynetqa":
        return f"{text}? Answer the question using a single word or phrase."
    if name == "longvideobench":
        return f"{text}\n{options}\n{ANSWER_DIRECTLY}\n"
    if name == "mvbench":
        return f"Question:{text}\nOption:\n{options}\n{ANSWER_DIRECTLY}"
    if name == "videomme":
        prefix = f"This video's subtitles are listed below:\n{subtitles}\n" if subtitles else ""
        return (
            f"{prefix}Select the best answer to the following multiple-choice question based on the video"
            f"{' and the subtitles' if subtitles else ''}. Respond with only the letter (A, B, C, or D) of the correct "
            f"option.\n{text}\n{options}\nThe best answer is:"
        )
    return f"{text}\n{options}\n{ANSWER_DIRECTLY}"


def read_subtitles(question: Question) -> list[tuple[float, float, str]]:
    """Reads the subtitles within the video as (start, end, text), in seconds of the video; empty if there are none.

    Raises:
        ValueError: the file is neither SubRip nor in the format of LongVideoBench.
    """
    path = question.subtitles
    if path is None:
        return []
    subtitles: list[tuple[float, float, str]] = []
    if path.suffix.lower() == ".srt":
        subtitles = list(_read_subrip(path))
    else:
        for row in read_json(path):
            if "timestamp" in row.values:
                start, end = row.get("timestamp", tuple[float, float | str | None])
                # The last line of a track has no end.
                last = question.subtitles_start + (question.duration or start - question.subtitles_start)
                end = float(end) if isinstance(end, int | float) else last
                subtitles.append((float(start), end, row.text("text")))
            else:
                start, end = _parse_time(row.text("start"), path), _parse_time(row.text("end"), path)
                subtitles.append((start, end, row.text("line")))
    shifted = [(a - question.subtitles_start, b - question.subtitles_start, text) for a, b, text in subtitles]
    duration = question.duration or float("inf")
    return [(a, b, text) for a, b, text in shifted if b >= 0 and a <= duration and text]


def _read_subrip(path: Path) -> Iterator[tuple[float, float, str]]:
    """Yields blocks of a line "START --> END" and the lines of text below it, up to an empty line."""
    times: tuple[float, float] | None = None
    text: list[str] = []
    for line in [*read_text(path).splitlines(), ""]:
        start, arrow, end = line.partition("-->")
        if arrow and start.split() and end.split():
            if times is not None:
                yield *times, " ".join(" ".join(text).split())
            times, text = (_parse_time(start.split()[-1], path), _parse_time(end.split()[0], path)), []
        elif line.strip():
            text.append(re.sub(r"<[^<>]*>", "", line))
        elif times is not None:
            yield *times, " ".join(" ".join(text).split())
            times = None


def read_conversations(path: str | Path, folder: str | Path | None = None) -> Iterator[Conversation]:
    """Yields the items of a .json or .jsonl of LLaVA-Video-178K, in their order.

    Items whose video is missing are skipped, with one warning at the end.

    Args:
        path: the file.
        folder: the folder of the videos. Default: the folder of `path`.

    Raises:
        ValueError: a line is invalid (the message names file and line), a video is outside the folder, or all videos
            are missing.
    """
    path = Path(path)
    folder = path.parent if folder is None else Path(folder)
    missing: list[str] = []
    empty = True
    for row in read_json(path):
        turns = row.get("conversations")
        message = f"{row.where}: conversations must be objects from human and gpt in turn, each with a value"
        if not isinstance(turns, list) or len(turns) < 2 or len(turns) % 2:
            raise ValueError(message)
        texts = []
        for n, turn in enumerate(turns):
            role = ("human", "gpt")[n % 2]
            if not isinstance(turn, dict) or turn.get("from") != role or not isinstance(turn.get("value"), str):
                raise ValueError(message)
            texts.append(
                re.sub(r"<(?:image|video)>\n?", "", turn["value"]).strip() if role == "human" else turn["value"]
            )
        video = find(folder, ("",), row.text("video"), row.where, missing)
        if video is not None:
            empty = False
            yield Conversation(
                row.optional_text("id") or row.where, video, tuple(zip(texts[::2], texts[1::2], strict=True))
            )
    if missing:
        if empty:
            raise ValueError(f"{folder}: {describe_missing(missing)}; set the folder of the videos")
        warnings.warn(f"{folder}: {describe_missing(missing)}; their conversations are skipped", stacklevel=2)


def _text_and_letter(choices: Sequence[str], index: int) -> tuple[str, str]:
    """The text and the letter of a choice.

    Raises:
        ValueError: there are more choices than letters.
    """
    if len(choices) > len(string.ascii_uppercase):
        raise ValueError(f"a question must have at most 26 choices, got {len(choices)}")
    return choices[index], string.ascii_uppercase[index]


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
        answer, letter = _text_and_letter(choices, row.choice_index("answer", choices))
        names = (str(vidor[name]), name) if name in vidor else (name,)
        video = find(folder, ("NExTVideo", "NExTVideo/NExTVideo", "videos", ""), names, row.where, missing)
        if video is not None:
            question_id, kind = f"{name}_{row.text('qid')}", row.text("type")
            yield Question(question_id, video, row.text("question"), choices, answer, letter, kind)


def _activitynetqa(folder: Path, split: str | None, missing: list[str]) -> Iterator[Question]:
    split = split or "test"
    questions = [f"{prefix}{split}_q.json" for prefix in ("", "dataset/", "annotations/")]
    answers: dict[str, Row] = {}
    for path in list_files(folder, "activitynetqa", split, (*questions, f"Generation/{split}*.parquet")):
        if path.suffix == ".json":
            answers |= {row.text("question_id"): row for row in read_json(path.with_name(f"{split}_a.json"))}
        for row in read(path):
            question_id = row.text("question_id")
            answer = answers.get(question_id, row)
            name = row.text("video_name").removeprefix("v_")
            names = (f"v_{name}", name)
            video = find(folder, ("all_test", "videos", ""), names, row.where, missing)
            if video is not None:
                kind = answer.optional_text("type")
                yield Question(question_id, video, row.text("question"), answer=answer.text("answer"), kind=kind)


def _longvideobench(folder: Path, split: str | None, missing: list[str]) -> Iterator[Question]:
    split = {None: "val", "validation": "val"}.get(split, split)
    files = {
        "val": ("lvb_val.json", "validation*.parquet", "*/validation*.parquet"),
        "test": ("lvb_test_wo_gt.json", "test*.parquet", "*/test*.parquet"),
    }
    if split not in files:
        raise ValueError(f"the split of longvideobench must be val or test, got {split!r}")
    for row in read_rows(folder, "longvideobench", str(split), files[str(split)]):
        if row.values.get("option0") is None:
            choices = row.texts("candidates")
        else:
            options = (row.text(f"option{n}") for n in range(5) if row.values.get(f"option{n}") is not None)
            choices = tuple(text for text in options if text != "N/A")
        hidden = split == "test" and row.number("correct_choice") in (None, -1)
        answer, letter = (
            ("", None) if hidden else _text_and_letter(choices, row.choice_index("correct_choice", choices))
        )
        video = find(folder, ("videos",), row.text("video_path"), row.where, missing)
        if video is not None:
            name = row.optional_text("subtitle_path")
            subtitles = find(folder, ("subtitles",), name, row.where, []) if name else None
            yield Question(
                row.text("id"),
                video,
                row.text("question"),
                choices,
                answer,
                letter,
                kind=row.text("question_category"),
                group=row.optional_text("duration_group"),
                subtitles=subtitles,
                subtitles_start=row.number("starting_timestamp_for_subtitles") or 0.0,
                duration=row.number("duration"),
            )


def _videomme(folder: Path, split: str | None, missing: list[str]) -> Iterator[Question]:
    split = split or "test"
    files = [f"{prefix}{split}*{end}" for end in (".json", ".jsonl", ".parquet") for prefix in ("", "videomme/")]
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
        raise ValueError(f"the task of mvbench must be one of {', '.join(_MVBENCH)}, got {split!r}")
    for path in list_files(folder, "mvbench", split or "any task", [f"json/{split or '*'}.json"]):
        if path.stem not in _MVBENCH:
            continue
        full, has_range, segments = _MVBENCH[path.stem]
        for number, row in enumerate(read(path)):
            choices = row.texts("candidates")
            if (answer := row.text("answer")) not in choices:
                raise ValueError(f"{row.where}: the answer {answer!r:.80} is not among the candidates")
            name = row.text("video")
            segment = find(folder, _mvbench_folders(segments), name, row.where, []) if segments else None
            video = segment or find(folder, _mvbench_folders(full), name, row.where, missing)
            if video is not None:
                # A segment contains only the relevant part.
                start, end = (row.number("start"), row.number("end")) if has_range and segment is None else (None, None)
                if path.stem in _MVBENCH_RATES and video.is_dir():
                    # Folders of images are read at 25 frames per second.
                    rate = _MVBENCH_RATES[path.stem] / 25
                    start, end = (None if second is None else second * rate for second in (start, end))
                answer, letter = _text_and_letter(choices, choices.index(answer))
                text, kind = row.text("question"), path.stem
                yield Question(f"{kind}_{number}", video, text, choices, answer, letter, kind, start=start, end=end)


def _mvbench_folders(folder: str | None) -> tuple[str, ...]:
    return (f"video/{folder}", f"videos/{folder}", str(folder), f"video/data0613/{folder}", f"data0613/{folder}")


def _parse_time(text: str, path: Path) -> float:
    """Parses "00:01:02,500" or "00:01:02.500" to seconds."""
    if match := re.fullmatch(r"(?:(\d{1,6}):)?(\d{1,6}):(\d{1,6}(?:[.,]\d{1,9})?)", text):
        return 3600 * int(match[1] or 0) + 60 * int(match[2]) + float(match[3].replace(",", "."))
    raise ValueError(f"{path}: a time must have the form 00:01:02.5, got {text!r:.40}")


_READERS: dict[str, Callable[[Path, str | None, list[str]], Iterator[Question]]] = {
    "nextqa": _nextqa,
    "activitynetqa": _activitynetqa,
    "longvideobench": _longvideobench,
    "videomme": _videomme,
    "mvbench": _mvbench,
}
