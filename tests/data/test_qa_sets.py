"""Small copies of all published layouts of video question answering, valid and invalid."""

from __future__ import annotations

import contextlib
import csv
import json
import time
from pathlib import Path

import pytest

from fewtokens.data.qa_sets import NAMES, Question, format_prompt, load_questions, read_conversations, read_subtitles
from fewtokens.evaluation.qa_sets import accuracy, find_letter, is_correct

HEAD = ["video", "frame_count", "width", "height", "question", "answer", "qid", "type", "a0", "a1", "a2", "a3", "a4"]
NEXT = ["4010069381", "369", "640", "480", "how do the two man play the instrument", "0", "6", "CH"]
NEXT += ["roll the handle", "tap their feet", "strum the string", "hit with sticks", "pat with hand"]


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")


def write_json(file: Path, contents: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(contents))
    return file


def nextqa(folder: Path, *rows: list[str], split: str = "test") -> Path:
    with (folder / f"{split}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEAD, *(rows or (NEXT,))])
    return folder


def activitynetqa(folder: Path, *names: str) -> Path:
    write_json(
        folder / "test_q.json",
        [{"video_name": n, "question": "is the man wearing a hat", "question_id": f"v_{n}_1"} for n in names],
    )
    write_json(folder / "test_a.json", [{"answer": "no", "type": 3, "question_id": f"v_{n}_1"} for n in names])
    return folder


LONG = {
    "video_id": "86CxyhFV9MI",
    "question": "Which subtitles appear with the tree?",
    "question_wo_referring_query": "Which subtitles appear?",
    "candidates": ["promisc has come to an end", "run for a while", "a tree"],
    "correct_choice": 1,
    "position": [854],
    "topic_category": "NP-News-Programs",
    "question_category": "T3E",
    "level": "L2-Relation",
    "id": "86CxyhFV9MI_0",
    "video_path": "86CxyhFV9MI.mp4",
    "subtitle_path": "86CxyhFV9MI_en.json",
    "duration_group": 600,
    "starting_timestamp_for_subtitles": 10,
    "duration": 190.16,
    "view_count": 1,
}
MME = {
    "video_id": "001",
    "duration": "short",
    "domain": "Knowledge",
    "sub_category": "Humanity & History",
    "url": "https://www.youtube.com/watch?v=fFjv93ACGo8",
    "videoID": "fFjv93ACGo8",
    "question_id": "001-1",
    "task_type": "Counting Problem",
    "question": "Which ball is not on the tree?",
    "options": ["A. Apples.", "B. Candles.", "C. Berries.", "D. None of them."],
    "answer": "C",
}
MV = {
    "video": "ZS9XR.mp4",
    "question": "What happened after the person took the food?",
    "candidates": ["Ate the medicine.", "Tidied up the blanket.", "Put down the cup."],
    "answer": "Ate the medicine.",
    "start": 11.1,
    "end": 21.0,
}


def test_nextqa(tmp_path):
    nextqa(tmp_path)
    touch(tmp_path / "NExTVideo" / "4010069381.mp4")
    (question,) = load_questions("nextqa", tmp_path)
    assert question == Question(
        "4010069381_6", tmp_path / "NExTVideo" / "4010069381.mp4", NEXT[4], tuple(NEXT[8:]), NEXT[8], "A", "CH"
    )
    assert format_prompt(question, "nextqa") == (
        "how do the two man play the instrument\nA. roll the handle\nB. tap their feet\nC. strum the string\n"
        "D. hit with sticks\nE. pat with hand\nAnswer with the option's letter from the given choices directly."
    )


def test_nextqa_in_the_folders_of_vidor(tmp_path):
    nextqa(tmp_path, split="val")
    write_json(tmp_path / "map_vid_vidorID.json", {"4010069381": "1106/4010069381"})
    touch(tmp_path / "NExTVideo" / "1106" / "4010069381.mp4")
    assert load_questions("nextqa", tmp_path, "val")[0].video == tmp_path / "NExTVideo" / "1106" / "4010069381.mp4"


def test_activitynetqa(tmp_path):
    activitynetqa(tmp_path, "1QIUV7WYKXg", "v_two")
    touch(tmp_path / "all_test" / "v_1QIUV7WYKXg.mkv", tmp_path / "all_test" / "v_two.mp4")
    first, second = load_questions("activitynetqa", tmp_path)
    assert first.video.name == "v_1QIUV7WYKXg.mkv" and second.video.name == "v_two.mp4"
    assert (first.choices, first.answer, first.letter, first.kind) == ((), "no", None, "3")
    assert format_prompt(first, "activitynetqa") == (
        "is the man wearing a hat? Answer the question using a single word or phrase."
    )


def test_longvideobench(tmp_path):
    write_json(tmp_path / "lvb_val.json", [LONG])
    touch(tmp_path / "videos" / "86CxyhFV9MI.mp4")
    track = [
        {"start": "00:00:01.000", "end": "00:00:02.000", "line": "before the video"},
        {"start": "00:00:12.500", "end": "00:00:13.000", "line": "hello"},
        {"timestamp": [15.0, None], "text": "the end"},
    ]
    write_json(tmp_path / "subtitles" / "86CxyhFV9MI_en.json", track)
    (question,) = load_questions("longvideobench", tmp_path)
    assert (question.letter, question.answer, question.kind, question.group) == ("B", "run for a while", "T3E", "600")
    assert read_subtitles(question) == [(2.5, 3.0, "hello"), (5.0, 190.16, "the end")]
    assert format_prompt(question, "longvideobench") == (
        "Which subtitles appear with the tree?\nA. promisc has come to an end\nB. run for a while\nC. a tree\n"
        "Answer with the option's letter from the given choices directly.\n"
    )


def test_hidden_answers_of_longvideobench(tmp_path):
    write_json(tmp_path / "lvb_test_wo_gt.json", [{k: v for k, v in LONG.items() if k != "correct_choice"}])
    touch(tmp_path / "videos" / "86CxyhFV9MI.mp4")
    (question,) = load_questions("longvideobench", tmp_path, "test")
    assert (question.answer, question.letter) == ("", None)
    with pytest.raises(ValueError, match="'86CxyhFV9MI_0': its answer is not published"):
        is_correct(question, "A")


@pytest.mark.parametrize("end", ["json", "jsonl"])
def test_videomme(tmp_path, end):
    write_json(tmp_path / f"test.{end}", [MME] if end == "json" else MME)
    touch(tmp_path / "data" / "fFjv93ACGo8.mp4")
    srt = '1\n00:00:00,500 --> 00:00:02,000\n<font color="white" size=".72c">merry\nChristmas</font>\n'
    (tmp_path / "subtitle").mkdir()
    (tmp_path / "subtitle" / "fFjv93ACGo8.srt").write_text(srt)
    (question,) = load_questions("videomme", tmp_path)
    assert (question.choices[2], question.answer, question.letter) == ("Berries.", "Berries.", "C")
    assert (question.kind, question.group) == ("Counting Problem", "short")
    assert read_subtitles(question) == [(0.5, 2.0, "merry Christmas")]
    body = "Which ball is not on the tree?\nA. Apples.\nB. Candles.\nC. Berries.\nD. None of them.\nThe best answer is:"
    assert format_prompt(question, "videomme") == (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\n" + body
    )
    assert format_prompt(question, "videomme", "merry Christmas") == (
        "This video's subtitles are listed below:\nmerry Christmas\nSelect the best answer to the following "
        "multiple-choice question based on the video and the subtitles. Respond with only the letter (A, B, C, or D) "
        "of the correct option.\n" + body
    )


def test_mvbench(tmp_path):
    write_json(tmp_path / "json" / "action_sequence.json", [MV])
    write_json(tmp_path / "json" / "action_antonym.json", [{**MV, "video": "1.webm"}])
    touch(tmp_path / "video/star/Charades_v1_480/ZS9XR.mp4", tmp_path / "video/ssv2_video_mp4/1.mp4")
    antonym, sequence = load_questions("mvbench", tmp_path)
    assert (antonym.id, antonym.start, antonym.video.name) == ("action_antonym_0", None, "1.mp4")
    assert (sequence.start, sequence.end, sequence.letter, sequence.kind) == (11.1, 21.0, "A", "action_sequence")
    assert load_questions("mvbench", tmp_path, "action_sequence") == [sequence]
    assert format_prompt(sequence, "mvbench") == (
        "Question:What happened after the person took the food?\nOption:\nA. Ate the medicine.\n"
        "B. Tidied up the blanket.\nC. Put down the cup.\n"
        "Answer with the option's letter from the given choices directly."
    )
    # A segment contains only the relevant part.
    touch(tmp_path / "video/star/Charades_segment/ZS9XR.mp4")
    assert load_questions("mvbench", tmp_path, "action_sequence")[0].start is None
    with pytest.raises(ValueError, match="the task of mvbench must be one of action_antonym"):
        load_questions("mvbench", tmp_path, "juggling")


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "videomme").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist([MME]), tmp_path / "videomme" / "test-00000-of-00001.parquet")
    touch(tmp_path / "data" / "fFjv93ACGo8.mp4")
    assert load_questions("videomme", tmp_path)[0].letter == "C"


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    touch(tmp_path / "MC" / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"parquet: requires pyarrow; pip install pyarrow, or convert the rows"):
        load_questions("nextqa", tmp_path)


@pytest.mark.parametrize("name", ["../x.mp4", "/etc/passwd", "a/../../x.mp4", "..\\x.mp4"])
def test_videos_outside_the_folder_are_refused(tmp_path, name):
    write_json(tmp_path / "set" / "lvb_val.json", [{**LONG, "video_path": name}])
    touch(tmp_path / "x.mp4")
    with pytest.raises(ValueError, match=r"lvb_val.json, entry 1: the file '.*' is outside"):
        load_questions("longvideobench", tmp_path / "set")
    with pytest.raises(ValueError, match=r"talk.json, entry 1: the file '.*' is outside"):
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Nothing."}]
        list(
            read_conversations(
                write_json(tmp_path / "set" / "talk.json", [{"id": "1", "video": name, "conversations": turns}])
            )
        )


def test_links_outside_the_folder_are_refused(tmp_path):
    write_json(tmp_path / "set" / "lvb_val.json", [LONG])
    touch(tmp_path / "x.mp4")
    (tmp_path / "set" / "videos").mkdir()
    (tmp_path / "set" / "videos" / "86CxyhFV9MI.mp4").symlink_to(tmp_path / "x.mp4")
    with pytest.raises(ValueError, match="is outside"):
        load_questions("longvideobench", tmp_path / "set")
    # The folder of the videos itself may be a link, for example to another disk.
    touch(tmp_path / "disk" / "86CxyhFV9MI.mp4")
    (tmp_path / "set" / "videos" / "86CxyhFV9MI.mp4").unlink()
    (tmp_path / "set" / "videos").rmdir()
    (tmp_path / "set" / "videos").symlink_to(tmp_path / "disk")
    assert len(load_questions("longvideobench", tmp_path / "set")) == 1


def test_missing_videos_are_reported_once(tmp_path):
    activitynetqa(tmp_path, *"abcde")
    with pytest.raises(ValueError, match=r"5 videos are missing: v_a, v_b, v_c \.\.\.$"):
        load_questions("activitynetqa", tmp_path)
    touch(tmp_path / "all_test" / "v_b.mp4")
    with pytest.warns(UserWarning, match=r"4 videos are missing: v_a, v_c, v_d \.\.\.; their") as warnings_:
        assert len(load_questions("activitynetqa", tmp_path)) == 1
    assert len(warnings_) == 1


def broken(folder: Path, name: str) -> str:
    """Writes an invalid dataset; returns the expected error."""
    touch(folder / "videos" / "4010069381.mp4", folder / "videos" / "86CxyhFV9MI.mp4", folder / "data/fFjv93ACGo8.mp4")
    if name == "short line":
        nextqa(folder, NEXT, NEXT[:-1])
        return r"test.csv, line 3: the number of cells differs"
    if name == "answer":
        nextqa(folder, [*NEXT[:5], "5", *NEXT[6:]])
        return r"test.csv, line 2: 'answer' must be 0 to 4, got '5'"
    if name == "column":
        (folder / "test.csv").write_text("video,question\n1,what\n")
        return r"test.csv, line 2: 'a0' is missing"
    if name == "json":
        (folder / "lvb_val.json").write_text('[\n{"id": 1},\n{"id" 2}]')
        return r"lvb_val.json: invalid JSON .*line 3 column"
    if name == "key":
        write_json(folder / "lvb_val.json", [LONG, {"id": "2"}])
        return r"lvb_val.json, entry 2: 'candidates' is missing"
    if name == "jsonl":
        (folder / "test.jsonl").write_text(json.dumps(MME) + "\n\nnot json\n")
        return r"test.jsonl, line 3: invalid JSON"
    write_json(folder / "test.json", [{**MME, "answer": "E"}])
    return r"test.json, entry 1: 'answer' must be one of 4 letters, got 'E'"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("short line", "nextqa"),
        ("answer", "nextqa"),
        ("column", "nextqa"),
        ("json", "longvideobench"),
        ("key", "longvideobench"),
        ("jsonl", "videomme"),
        ("letter", "videomme"),
    ],
)
def test_errors_name_the_line(tmp_path, name, kind):
    with pytest.raises(ValueError, match=broken(tmp_path, name)):
        load_questions(kind, tmp_path)


def test_missing_datasets_and_folders(tmp_path):
    with pytest.raises(ValueError, match="the dataset must be one of nextqa"):
        load_questions("tvqa", tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        load_questions("nextqa", tmp_path / "nowhere")
    for name in NAMES:
        with pytest.raises(ValueError, match=f"no annotations of {name} for .*; expected "):
            load_questions(name, tmp_path)
    with pytest.raises(ValueError, match="does not include subtitles"):
        format_prompt(Question("1", tmp_path, "what"), "nextqa", "hello")


@pytest.mark.parametrize("end", ["json", "jsonl"])
def test_conversations(tmp_path, end):
    turns = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Which color?"},
        {"from": "gpt", "value": "Gray."},
    ]
    items = [
        {"id": "1-2", "conversations": turns, "data_source": "0_30_s_nextqa", "video": "NextQA/1.mp4"},
        {"id": "2-2", "conversations": turns, "data_source": "0_30_s_nextqa", "video": "NextQA/2.mp4"},
    ]
    path = tmp_path / f"talk.{end}"
    path.write_text(json.dumps(items) if end == "json" else "".join(json.dumps(item) + "\n" for item in items))
    with pytest.raises(ValueError, match=r"2 videos are missing: NextQA/1\.mp4, NextQA/2\.mp4; set the folder"):
        list(read_conversations(path))
    touch(tmp_path / "NextQA" / "1.mp4")
    with pytest.warns(UserWarning, match=r"1 video is missing: NextQA/2\.mp4"):
        (conversation,) = read_conversations(path)
    assert conversation.turns == (("What is it?", "A cat."), ("Which color?", "Gray."))
    assert conversation.video == tmp_path / "NextQA" / "1.mp4"
    write_json(
        path, [{**items[0], "conversations": turns[:3]}] if end == "json" else {**items[0], "conversations": turns[1:]}
    )
    with pytest.raises(ValueError, match=rf"talk.{end}, \w+ 1: conversations must be objects from human and gpt"):
        list(read_conversations(path))


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("(C)", "C"),
        ("(C) on the mat", "C"),
        ("D. a dog", "D"),
        ("D: a dog", "D"),
        ("A", "A"),
        ("A\nbecause of the tail", "A"),
        ("The best answer is B.", "B"),
        ("The answer is: (B)", "B"),
        ("Answer: **C**", "C"),
        ("The correct option is A because of the tail", "A"),
        ("It is clearly B", "B"),
        ("I think (D) fits best", "D"),
        ("on the mat", "C"),
        ("On the mat!", "C"),
        ("A man walks in", None),
        ("The answer is a mat", None),
        ("either B or C", None),
        ("(B) or (C)", None),
        ("E", None),
        ("", None),
        ("no idea", None),
    ],
)
def test_letters(reply, letter):
    assert find_letter(reply, ("a cat", "under the table", "on the mat", "a dog")) == letter


def test_scores(tmp_path):
    multiple_choice = Question("1", tmp_path, "what", ("x", "y"), "y", "B", "CH", "short")
    open_ended = Question("2", tmp_path, "what", (), "a red car", kind="4")
    assert is_correct(open_ended, "Red car.") and not is_correct(open_ended, "a red car and a bus")
    assert not any(is_correct(multiple_choice, "no idea") for _ in range(20))
    assert accuracy([multiple_choice, multiple_choice, open_ended], ["B", "who knows", "the red car"]) == {
        "all": pytest.approx(2 / 3),
        "CH": 0.5,
        "short": 0.5,
        "4": 1.0,
    }
    with pytest.raises(ValueError, match="1 replies to 2 questions"):
        accuracy([multiple_choice, open_ended], ["B"])


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_from_spreadsheets(tmp_path, mark, separator):
    text = mark + "\r\n".join(separator.join(row) for row in (HEAD, NEXT)) + "\r\n"
    (tmp_path / "test.csv").write_text(text, newline="")
    touch(tmp_path / "videos" / f"{NEXT[0]}.mp4")
    assert len(load_questions("nextqa", tmp_path)) == 1
    (tmp_path / "test.csv").write_bytes(text.encode("utf-16"))
    with pytest.raises(ValueError, match=r"test.csv: UTF-16, not UTF-8 text"):
        load_questions("nextqa", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": {"a": 1}}, "'question' must be a string or a whole number or a finite number"),
        ({"question": True}, "'question' must be"),
        ({"candidates": "abc"}, "'candidates' must be a list of texts"),
        ({"candidates": [1, 2]}, "'candidates' must be a list of texts"),
        ({"candidates": ["x"] * 40}, "a question must have at most 26 choices, got 40"),
        ({"correct_choice": float("nan")}, "'correct_choice' must be a number"),
        ({"correct_choice": float("inf")}, "'correct_choice' must be a number"),
        ({"correct_choice": "1e999"}, "'correct_choice' must be a number"),
        ({"correct_choice": [1]}, "'correct_choice' must be a number"),
        ({"correct_choice": True}, "'correct_choice' must be a number"),
        ({"correct_choice": 10**400}, "'correct_choice' must be a number"),
        ({"video_path": ["a"]}, "'video_path' must be"),
        ({"video_path": "."}, "is outside"),
        ({"video_path": "a\0b"}, "is outside"),
        ({"subtitle_path": {}}, "'subtitle_path' must be"),
        ({"subtitle_path": "../x.srt"}, "is outside"),
        ({"duration": "long"}, "'duration' must be a number"),
        ({"duration_group": [[]]}, "'duration_group' must be"),
    ],
)
def test_values_of_other_types(tmp_path, change, message):
    touch(tmp_path / "videos" / LONG["video_path"])
    write_json(tmp_path / "lvb_val.json", [LONG])
    assert len(load_questions("longvideobench", tmp_path)) == 1
    write_json(tmp_path / "lvb_val.json", [LONG | change])
    with pytest.raises(ValueError, match=message) as error:
        load_questions("longvideobench", tmp_path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_too_long_names_count_as_missing(tmp_path):
    write_json(tmp_path / "lvb_val.json", [LONG | {"video_path": "x" * 5000}, LONG])
    touch(tmp_path / "videos" / LONG["video_path"])
    with pytest.warns(UserWarning, match="1 video is missing: x{80}; "):
        assert len(load_questions("longvideobench", tmp_path)) == 1


@pytest.mark.parametrize("split", ["/etc", "../x", "a/b", "*", "", "a b"])
def test_a_split_must_be_one_word(tmp_path, split):
    with pytest.raises(ValueError, match="split must be one word"):
        load_questions("nextqa", tmp_path, split)


def test_windows_paths(tmp_path):
    touch(tmp_path / "videos" / "a" / "v.mp4")
    write_json(tmp_path / "lvb_val.json", [LONG | {"video_path": "a\\v.mp4"}])
    assert load_questions("longvideobench", tmp_path)[0].video == tmp_path / "videos" / "a" / "v.mp4"


def test_hostile_and_unusual_subtitles(tmp_path):
    path = tmp_path / "s.srt"
    question = Question("1", tmp_path, "what", subtitles=path)
    begin = time.process_time()
    for text in ("x" * 60_000, "<" * 60_000, "\n " * 60_000, "a " * 60_000, "-->" * 20_000, "1:2 --> " * 10_000):
        path.write_text(f"{text}\n\n1\n00:00:01,500 --> 00:00:02,500\nhello\n<i>you</i>\n")
        with contextlib.suppress(ValueError):
            assert read_subtitles(question)[-1] == (1.5, 2.5, "hello you")
    assert time.process_time() - begin < 5
    path.write_text("\ufeff1\n00:00:01,500 --> 00:00:02,500 position:50%\na\n\n2\n00:00:03.000 --> 00:00:04\nb\n")
    assert read_subtitles(question) == [(1.5, 2.5, "a"), (3.0, 4.0, "b")]
    path.write_text(f"1\n{'9' * 5000}:00 --> 00:02\na\n")
    with pytest.raises(ValueError, match="a time must have the form"):
        read_subtitles(question)
    from_json = Question(
        "1", tmp_path, "what", subtitles=write_json(tmp_path / "s.json", [{"timestamp": ["a", 2], "text": "x"}])
    )
    for value in (["a", 2], [1], 3, {"a": 1}, [True, 2]):
        write_json(tmp_path / "s.json", [{"timestamp": value, "text": "x"}])
        with pytest.raises(ValueError, match=r"s.json, entry 1: 'timestamp'.* must be"):
            read_subtitles(from_json)


def test_damaged_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "videomme" / "test-0.parquet"
    path.parent.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist([MME]), path)
    intact = path.read_bytes()
    for content in (b"", b"PAR1", intact[:-9], intact[:40] + b"\xff" * 40 + intact[80:], intact[:-60] + b"\0" * 60):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"test-0.parquet: cannot be read as parquet") as error:
            load_questions("videomme", tmp_path)
        assert "\n" not in str(error.value)


def test_long_replies_are_parsed_fast():
    choices = ["a dog", "a cat", "a mat", "a bird"]
    begin = time.process_time()
    for text in (
        "A" + "\n" * 50_000 + "or B",
        "answer" + " " * 50_000 + "x",
        "A " * 25_000,
        "(" * 50_000,
        "answer " * 9000,
    ):
        find_letter(text, choices)
    assert find_letter("The answer  is:\n\n  (B)", choices) == "B"
    assert time.process_time() - begin < 3
