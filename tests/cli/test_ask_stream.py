"""`fewtokens ask --stream` with a tiny model: questions in time, scene changes, snapshots, streams that break off."""

from __future__ import annotations

import json
import signal
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from fewtokens import stream
from fewtokens.cli import app
from fewtokens.llm import StreamSession, load
from fewtokens.video import VideoError, live, synthetic, write
from tests.llm.saved import save

FIRST, SECOND = "what happens", "how many people are there"
MEMORY = "moviechat(cap=3, short=2, slots=1)"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save("llava_onevision", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def camera(tmp_path_factory) -> Path:
    """16 s at 2 fps; the picture changes after 8 s."""
    first = synthetic("static", frames=1, size=(64, 96)).frames.expand(16, -1, -1, -1)
    second = synthetic("shapes", frames=1, size=(64, 96), seed=3).frames.expand(16, -1, -1, -1)
    return write(tmp_path_factory.mktemp("cameras") / "camera.mkv", torch.cat([first, second]), 2)


def ask(model: Path, *words: object, code: int = 0, typed: str = "", spec: str = MEMORY) -> Result:
    words = ("ask", *words, "--model", model, "--device", "cpu", "--max-new-tokens", 3, "--with", spec)
    done = CliRunner().invoke(app, list(map(str, words)), input=typed)
    assert done.exit_code == code, (done.output, done.exception)
    assert "Traceback" not in done.output
    return done


def answers(done: Result) -> dict[str, Any]:
    return json.loads(done.stdout)


def test_each_question_is_answered_at_its_second(model, camera, tmp_path):
    (tmp_path / "questions.txt").write_text(f"10\t{SECOND}\n4.5 {FIRST}\n\n{FIRST}\n")
    words = ("--stream", camera, "--questions", tmp_path / "questions.txt")
    found = answers(ask(model, *words, "--json"))
    rows = found["answers"]
    assert [(row["due"], row["second"], row["question"]) for row in rows] == [
        (4.5, 4.0, FIRST), (10.0, 10.0, SECOND), (None, 15.0, FIRST),
    ]  # fmt: skip
    assert found["complete"] and found["open"] == found["scenes"] == [] and found["frames"] == 16
    assert {row["state_bytes"] for row in rows} == {found["state_bytes"]}
    assert [row["cells"] for row in rows] == [5 * 16, 11 * 16, 16 * 16]
    # Equal to runs that end there.
    for row in rows:
        session = StreamSession(*load(str(model), "cpu"), MEMORY)
        for video in stream(camera, fps=1, chunk=7):
            keep = video.times <= row["second"]
            session.push(video.frames[keep], video.times[keep])
        assert session.ask(row["question"], 3).text == row["answer"]
    printed = ask(model, *words).stdout
    assert f"4.0 s: {FIRST}\n" in printed and f"10.0 s: {SECOND}\n" in printed and rows[-1]["answer"] in printed


def test_a_memory_in_the_cache_for_a_stream_and_for_a_file(model, camera, tmp_path):
    spec, state = "videoscan_cache(cap=5)", tmp_path / "state.safetensors"
    found = answers(ask(model, "--stream", camera, FIRST, "--snapshot", state, "--json", spec=spec))
    assert found["answers"][0]["visual_tokens"] == 5 and found["complete"]
    again = answers(ask(model, "--stream", camera, FIRST, "--resume", state, "--json", spec=spec))
    assert again["frames"] == 32 and again["state_bytes"] == found["state_bytes"]
    whole = answers(ask(model, camera, FIRST, "--frames", 8, "--json", spec=spec))
    (row,) = whole["answers"]
    assert row["visual_tokens"] == 5 and row["cells"] == 8 * 16
    done = ask(model, camera, FIRST, spec="videoscan_cache | fastv(layer=1)", code=2)
    assert "use a Session or a StreamSession" in " ".join(done.output.split())


def test_questions_from_the_terminal(model, camera):
    found = answers(ask(model, "--stream", camera, "--json", typed=f"{FIRST}\n\n{SECOND}\n"))
    assert [row["question"] for row in found["answers"]] == [FIRST, SECOND] and found["frames"] == 16
    assert "no question" in ask(model, "--stream", camera, code=2).stderr
    done = ask(model, "--stream", camera, "--json", typed=f"what is <image>\n{FIRST}\n")
    assert [row["question"] for row in answers(done)["answers"]] == [FIRST] and "a special token" in done.stderr


def test_ctrl_c_ends_the_stream(model, camera, tmp_path, monkeypatch):
    def frames(*args: Any) -> Any:
        yield from list(stream(camera, fps=1, chunk=1))[:4]
        raise KeyboardInterrupt

    monkeypatch.setattr("fewtokens.cli.ask.frames_of", frames)
    state = tmp_path / "state.safetensors"
    done = ask(model, "--stream", camera, FIRST, "--json", "--snapshot", state)
    found = answers(done)
    assert found["second"] == 3 and not found["complete"] and len(found["answers"]) == 1 and state.is_file()
    assert "the stream ends: stopped; the last frame is at 3.0 s" in done.stderr


def test_a_scene_change_answers_the_last_question_again(model, camera, tmp_path):
    (tmp_path / "questions.txt").write_text(f"2 {FIRST}\n")
    words = ("--stream", camera, "--fps", 2, "--questions", tmp_path / "questions.txt", "--trigger", 0.1)
    found = answers(ask(model, *words, "--json"))
    assert found["scenes"] == [8.0]
    assert [(row["second"], row["scene_change"]) for row in found["answers"]] == [(2.0, False), (8.0, True)]
    assert "8.0 s (the scene changes): what happens" in ask(model, *words).stdout


def test_a_snapshot_continues_the_stream(model, camera, tmp_path):
    frames = [video.frames[0] for video in stream(camera, fps=1, chunk=1)]
    for name, part in (("all", frames), ("a", frames[:7]), ("b", frames[7:])):
        (tmp_path / name).mkdir()
        for number, frame in enumerate(part):
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{number:03}.png")
    step = float(next(stream(tmp_path / "all", chunk=2)).times[1])
    state, options = tmp_path / "state.safetensors", ("--fps", 1 / step, "--json")
    whole = answers(ask(model, "--stream", tmp_path / "all", FIRST, *options))
    ask(model, "--stream", tmp_path / "a", FIRST, *options, "--snapshot", state)
    rest = answers(ask(model, "--stream", tmp_path / "b", FIRST, *options, "--resume", state, "--snapshot", state))
    assert rest["frames"] == whole["frames"] == 16
    assert rest["second"] == pytest.approx(whole["second"])
    assert rest["answers"][0]["answer"] == whole["answers"][0]["answer"]
    late = ask(model, "--stream", tmp_path / "b", "--resume", state, "--questions", write_line(tmp_path), code=2)
    assert "a question is due at 0 s, but the stream is resumed at" in late.stderr
    other = ("--stream", tmp_path / "b", FIRST, "--resume", state, "--trigger", 0.1)
    assert "is of a session with no trigger, not with a trigger" in ask(model, *other, code=2).stderr


def write_line(folder: Path) -> Path:
    (folder / "late.txt").write_text("0 what happens\n")
    return folder / "late.txt"


def test_a_stream_that_breaks_off(model, camera, tmp_path):
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(camera.read_bytes()[: camera.stat().st_size * 3 // 4])
    (tmp_path / "questions.txt").write_text(f"3 {FIRST}\n15 {SECOND}\n")
    words = ("--stream", cut, "--questions", tmp_path / "questions.txt")
    done = ask(model, *words, "--json", code=2)
    found = answers(done)
    assert not found["complete"] and 3 <= found["second"] < 15
    assert [row["due"] for row in found["answers"]] == [3.0] and found["open"] == [{"due": 15.0, "question": SECOND}]
    assert "is cut short; the last frame is at" in done.stderr and f"not answered: 15 s {SECOND}" in done.stderr
    # A stream that ends early is complete, but the question stays open.
    (tmp_path / "questions.txt").write_text(f"99 {FIRST}\n")
    done = ask(model, "--stream", camera, "--questions", tmp_path / "questions.txt", code=2)
    assert f"not answered: 99 s {FIRST}" in done.stderr


def test_a_url_and_a_device(model, camera, monkeypatch):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(camera.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/{camera.name}"
        found = list(live(url, fps=1))
        expected = list(stream(camera, fps=2, chunk=2))
        assert len(found) == 16
        for one, two in zip(found, expected, strict=True):
            assert torch.equal(one.frames[0], two.frames[0]) and float(one.times[0]) == float(two.times[0])
        row = answers(ask(model, "--stream", url, FIRST, "--json"))
        assert row["frames"] == 16 and row["complete"]
        missing = ask(model, "--stream", f"{url}.missing", FIRST, code=2).stderr
        assert "cannot be opened as a stream" in missing
    finally:
        server.shutdown()
    with pytest.raises(VideoError, match="cannot be opened as a stream"):
        next(live("/dev/null"))
    assert "cannot be opened" in ask(model, "--stream", "/dev/null", FIRST, code=2).stderr


def test_errors(model, camera, tmp_path):
    words = ["ask", "--stream", camera, FIRST, "--model", model, "--device", "cpu", "--with", "kmeans(keep=5)"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 2 and "a stream requires a memory" in done.stderr
    (tmp_path / "state.safetensors").write_bytes(b"nothing")
    words = ("--stream", camera, FIRST, "--resume", tmp_path / "state.safetensors")
    assert "state.safetensors" in ask(model, *words, code=2).stderr
    assert "--compare has no effect" in ask(model, "--stream", camera, FIRST, "--compare", code=2).stderr


def test_ctrl_c_during_a_frame_ends_the_stream_after_it(model, camera, tmp_path, monkeypatch):
    """The state of the frame is whole, the final question is asked, and the snapshot is written."""
    push, count = StreamSession.push, []

    def interrupted(self, *words):
        count.append(1)
        if len(count) == 5:
            signal.raise_signal(signal.SIGINT)
        return push(self, *words)

    monkeypatch.setattr(StreamSession, "push", interrupted)
    state = tmp_path / "state.safetensors"
    found = answers(ask(model, "--stream", camera, FIRST, "--snapshot", state, "--json"))
    assert found["frames"] == 5 and not found["complete"] and len(found["answers"]) == 1
    assert state.exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
