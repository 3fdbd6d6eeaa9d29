"""Replies stored in a file, and which of them a later run reuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fewtokens.llm.replies import ask_all


class Session:
    """Answers with the size of the file; raises an error if it is empty."""

    def ask(self, video, question, max_new_tokens=128):
        size = video.stat().st_size
        if not size:
            raise ValueError("empty")
        return SimpleNamespace(text=f" {size}", tokens=size)


def test_a_later_run_reuses_replies_about_unchanged_files(tmp_path):
    good, bad, out = tmp_path / "good.mp4", tmp_path / "bad.mp4", tmp_path / "r.jsonl"
    good.write_bytes(b"abc")
    bad.write_bytes(b"")
    questions = [("1", good, "?"), ("2", bad, "?")]
    first = ask_all(Session(), questions, out=out)
    assert [(reply.text, reply.error) for reply in first] == [("3", None), ("", "empty")]
    bad.write_bytes(b"ab")  # repaired, so it is asked about again; the other is not
    with out.open("a", encoding="utf-8") as file:
        file.write('{"id": "3", "te')
    second = ask_all(SimpleNamespace(ask=lambda video, *_: Session().ask(bad, "?")), questions, out=out)
    assert [(reply.text, reply.error) for reply in second] == [("3", None), ("2", None)]
    good.write_bytes(b"abcd")
    with pytest.raises(ValueError, match=r"good\.mp4, which has changed since"):
        ask_all(Session(), questions, out=out)
