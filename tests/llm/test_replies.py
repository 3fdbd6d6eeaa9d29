"""Replies that are kept in a file, and what a later run may take from it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fewtokens.llm.replies import ask_all


class Session:
    """Answers with the size of the file, and refuses an empty one."""

    def ask(self, video, question, max_new_tokens=128):
        size = video.stat().st_size
        if not size:
            raise ValueError("empty")
        return SimpleNamespace(text=f" {size}", tokens=size)


def test_a_later_run_takes_good_replies_on_the_same_files(tmp_path):
    good, bad, out = tmp_path / "good.mp4", tmp_path / "bad.mp4", tmp_path / "r.jsonl"
    good.write_bytes(b"abc")
    bad.write_bytes(b"")
    asked = [("1", good, "?"), ("2", bad, "?")]
    first = ask_all(Session(), asked, out=out)
    assert [(reply.text, reply.error) for reply in first] == [("3", None), ("", "empty")]
    bad.write_bytes(b"ab")  # mended, so it is asked about again; the other is not
    with out.open("a", encoding="utf-8") as file:
        file.write('{"id": "3", "te')
    second = ask_all(SimpleNamespace(ask=lambda video, *_: Session().ask(bad, "?")), asked, out=out)
    assert [(reply.text, reply.error) for reply in second] == [("3", None), ("2", None)]
    good.write_bytes(b"abcd")
    with pytest.raises(ValueError, match=r"good\.mp4, which has changed since"):
        ask_all(Session(), asked, out=out)
