"""The server of `fewtokens page`: clips, uploads, jobs, files, and which requests it refuses."""

from __future__ import annotations

import io
import os
import re
import shlex
import socket
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewtokens import Tokens
from fewtokens.page.clips import clean_name
from fewtokens.page.guard import host_name, is_loopback
from fewtokens.page.jobs import Busy, Jobs
from fewtokens.video import read, synthetic, write
from tests.cli.test_command import COMMAND, error_line, quick
from tests.page.conftest import FRAMES, HTML, MAX_BYTES, SIZE, WORK, Client


def uploads(content) -> list[str]:
    return sorted(path.name for path in content.clips.uploads.iterdir())


@pytest.fixture
def clip(tmp_path) -> bytes:
    return write(tmp_path / "a.mp4", synthetic("static", frames=8, size=(48, 64)).frames, 8).read_bytes()


class TestClips:
    def test_the_state_lists_clips_of_the_folder_only(self, client, folder):
        outside = folder.parent / "secret.mp4"
        outside.write_bytes(b"x")
        (folder / "link.mp4").symlink_to(outside)
        state = client("GET", "/api/state").value
        listed = [clip["name"] for clip in state["clips"] if not clip["upload"]]
        assert listed == sorted([HTML, "pan.mp4", "static.mp4"])
        assert state["encoders"].keys() == {"patches", "tiny"}
        # A ViT gives attention and has blocks.
        assert {"attention_topk", "tome_in_encoder"} <= set(state["encoders"]["tiny"])
        assert state["encoders"]["patches"][0] == "perceiver(keep=4)"
        assert "tome_in_encoder" not in state["encoders"]["patches"]

    @pytest.mark.parametrize("name", ["folder/../secret.mp4", "../secret.mp4", "/etc/passwd", "folder/link.mp4", ""])
    def test_a_name_in_a_request_is_never_a_path(self, client, name):
        reply = client("POST", "/api/jobs", WORK | {"clip": name})
        assert (reply.status, reply.value) == (400, {"error": "this clip does not exist any more; choose another"})

    @pytest.mark.parametrize(
        ("name", "cleaned"),
        [
            ("a.mp4", "a.mp4"),
            ("../../etc/cron.d/a.mp4", "a.mp4"),
            ("C:\\Users\\me\\a b.MOV", "a b.MOV"),
            ("...mp4.mp4", "mp4.mp4"),
            ("a\x00\n\x1b[31m.mp4", "a___[31m.mp4"),
            ("a\u202e4pm.exe.mp4", "a_4pm.exe.mp4"),
            (HTML, "_img src=x onerror=alert(1)_.mp4"),
            ("con.mp4", "_con.mp4"),
            ("ü" * 400 + ".mp4", "ü" * 60 + ".mp4"),
            ("e\u0301.mp4", "é.mp4"),
        ],
    )
    def test_names_are_safe_on_every_system(self, name, cleaned):
        assert clean_name(name) == cleaned

    @pytest.mark.parametrize("name", ["a.exe", "", ".mp4", "..", "a.mp4/", "clip"])
    def test_names_of_other_files_are_refused(self, name):
        with pytest.raises(ValueError, match="the name must end in"):
            clean_name(name)


class TestUploads:
    def test_an_upload_is_listed_first_and_can_be_compared(self, client, content, clip):
        reply = client.upload("../../mine.mp4", clip)
        assert reply.value == {"id": "upload/mine.mp4"}
        assert client.upload("mine.mp4", clip).value == {"id": "upload/mine-2.mp4"}
        state = client("GET", "/api/state").value
        assert state["clips"][0] == {"id": "upload/mine-2.mp4", "name": "mine-2.mp4", "upload": True}
        job = client.run(clip="upload/mine.mp4")
        assert job["result"]["clip"] == "mine.mp4" and "'mine.mp4'" in job["result"]["python"]
        assert str(content.clips.uploads) not in str(job)

    def test_the_oldest_uploads_are_removed(self, client, content, clip):
        for _ in range(10):
            assert client.upload("many.mp4", clip).status == 200
        assert len(uploads(content)) == 8 and "mine.mp4" not in uploads(content)

    def test_ten_gigabytes_are_refused_before_they_are_sent(self, client, content):
        before = uploads(content)
        host, port = client.host.split(":")
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(f"PUT /api/clips?name=big.mp4 HTTP/1.1\r\nHost: {client.host}\r\n".encode())
            raw.sendall(b"Content-Length: 10000000000\r\n\r\n")
            text = ""
            while "}" not in text and (part := raw.recv(65536)):
                text += part.decode()
        assert text.startswith("HTTP/1.1 413")
        assert "big.mp4 is larger than 0.3 MB; put it into the folder of the page" in text
        assert uploads(content) == before

    def test_an_upload_of_unknown_size_is_stopped_at_the_limit(self, client, content):
        before = uploads(content)
        host, port = client.host.split(":")
        sent = 0
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(f"PUT /api/clips?name=big.mp4 HTTP/1.1\r\nHost: {client.host}\r\n".encode())
            raw.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
            try:
                while sent < 100 * MAX_BYTES:  # far above what buffers hold
                    raw.sendall(b"10000\r\n" + b"\0" * 65536 + b"\r\n")
                    sent += 65536
                text = raw.recv(65536).decode()
            except (ConnectionError, OSError):
                text = ""
        assert text == "" or text.startswith("HTTP/1.1 413")
        assert client("GET", "/api/state").status == 200
        assert uploads(content) == before

    def test_an_upload_that_breaks_off_leaves_nothing(self, client, content, clip):
        before = uploads(content)
        host, port = client.host.split(":")
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(f"PUT /api/clips?name=half.mp4 HTTP/1.1\r\nHost: {client.host}\r\n".encode())
            raw.sendall(f"Content-Length: {len(clip)}\r\n\r\n".encode() + clip[: len(clip) // 2])
        while client.upload("next.mp4", clip).status != 200:  # until the server has seen the end
            pass
        assert set(uploads(content)) - set(before) <= {"next.mp4"}

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("empty.mp4", b"", "is not a video that this page accepts"),
            ("text.mp4", b"hello " * 100, "is not a video that this page accepts"),
            ("list.ts", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "is not a video"),
            ("list.mp4", b"ffconcat version 1.0\nfile pan.mp4\n", "is not a video that this page accepts"),
            ("bad.png", b"\x89PNG\r\n\x1a\n broken", "bad.png"),
            ("a.exe", b"MZ", "a.exe: the name must end in"),
        ],
    )
    def test_what_is_no_clip_is_one_line_and_leaves_nothing(self, client, content, name, text, message):
        before = uploads(content)
        reply = client.upload(name, text)
        assert reply.status == 400 and message in reply.value["error"] and "\n" not in reply.value["error"]
        assert str(content.clips.uploads) not in reply.value["error"]
        assert uploads(content) == before

    def test_a_long_video_is_refused(self, client, content, tmp_path):
        path = write(tmp_path / "long.mp4", torch.zeros(30, 3, 32, 32, dtype=torch.uint8), 1)
        before = uploads(content)
        assert (
            client.upload("long.mp4", path.read_bytes())
            .value["error"]
            .startswith("long.mp4 lasts 30 s, more than 20 s")
        )
        assert uploads(content) == before

    def test_a_full_disk_is_one_line(self, client, content, clip, monkeypatch):
        def full(*_: object) -> None:
            raise OSError(28, os.strerror(28))

        before = uploads(content)
        monkeypatch.setattr("fewtokens.page.clips.os.replace", full)
        reply = client.upload("full.mp4", clip)
        assert (reply.status, reply.value) == (507, {"error": "cannot write: No space left on device"})
        assert uploads(content) == before


@pytest.fixture(scope="module")
def result(client) -> dict:
    return client.run()["result"]


class TestComparison:
    def test_numbers_are_those_of_compare(self, result, folder):
        from fewtokens.core.registry import build
        from fewtokens.encoders import Patches
        from fewtokens.evaluation.compare import compare

        video = read(folder / "pan.mp4", frames=FRAMES, size=SIZE)
        encoder = Patches(8)
        tokens, _ = encoder(video.frames[None], video.times)
        rows = list(compare(tokens, build("tome", keep=0.25) + build("uniform", keep=0.25), decode=encoder.decode))
        numbers = {entry["key"]: entry for entry in result["numbers"]}
        for name in ("tokens", "retention", "cosine", "relative_error", "psnr_db"):
            assert numbers[name]["values"] == pytest.approx([row.numbers()[name] for row in rows], rel=1e-5), name
        assert numbers["psnr_db"]["best"] == int(rows[1].psnr > rows[0].psnr)
        assert result["sides"][0]["spec"] == "tome(keep=0.25)" and result["sides"][0]["tokens"] == rows[0].count

    def test_pictures_are_those_of_show(self, client, result, folder):
        from fewtokens import show, tokenize

        video = read(folder / "pan.mp4", frames=FRAMES, size=SIZE)
        drawn = show.overlay(video.frames, tokenize(folder / "pan.mp4", "tome(keep=0.25)", frames=FRAMES, size=SIZE,
                                                    encoder=_patches()))  # fmt: skip
        for side, view, expected in (("frame", "frame", video.frames), ("left", "tokens", drawn)):
            content = client("GET", f"/api/comparisons/{result['id']}/{side}/{view}/2").body
            image = torch.from_numpy(np.array(Image.open(io.BytesIO(content))))
            error = (image.float() - expected[2].permute(1, 2, 0).float()).abs().mean()
            assert error < 12, (side, view, error)  # JPEG

    def test_views_follow_from_encoder_and_method(self, client, result):
        assert list(result["sides"][0]["views"]) == ["tokens", "reconstruction", "error"]
        tiny = client.run(encoder="tiny", left="perceiver(keep=4)", right="tome_in_encoder")
        left, right = tiny["result"]["sides"]
        assert "weights" in left["views"] and "weights" not in right["views"]
        assert "attention" in right["views"] and "cannot decode" in right["views"]["reconstruction"]
        base = f"/api/comparisons/{tiny['result']['id']}"
        for view in left["views"]:
            reply = client("GET", f"{base}/left/{view}/1?token=3")
            assert reply.status == 200 and reply.headers["content-type"] == "image/jpeg"
        assert client("GET", f"{base}/left/weights/1?token=4").status == 400
        assert client("GET", f"{base}/right/weights/1").status == 400

    @pytest.mark.parametrize(
        "path", ["left/tokens/99", "left/tokens/-1", "up/tokens/0", "left/x/0", "files/secret", "left/tokens/x"]
    )
    def test_unknown_pictures_and_files_are_one_line(self, client, result, path):
        reply = client("GET", f"/api/comparisons/{result['id']}/{path}")
        assert reply.status in (400, 422) and reply.value["error"]

    def test_files_and_the_commands_that_made_them(self, client, result, folder, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("fewtokens.encoders.load.Patches", lambda **options: _patches())
        made = {}
        for name in ("left.safetensors", "right.safetensors", "comparison.png", "comparison.mp4", "comparison.html"):
            reply = client("GET", f"/api/comparisons/{result['id']}/files/{name}")
            assert reply.status == 200 and f"pan-{name}" in reply.headers["content-disposition"]
            made[name] = tmp_path / f"page-{name}"
            made[name].write_bytes(reply.body)
        assert len(read(made["comparison.mp4"])) == FRAMES
        assert b"<!doctype html>" in made["comparison.html"].read_bytes()
        for line in result["command"].splitlines():
            quick(*shlex.split(line)[1:])
        _check(made, tmp_path)
        for name in ("left.safetensors", "right.safetensors", "comparison.png"):
            (tmp_path / name).unlink()
        exec(result["python"], {})
        _check(made, tmp_path)

    def test_hostile_names_of_clips_stay_text(self, client, folder, tmp_path, monkeypatch):
        job = client.run(clip=f"folder/{HTML}")
        assert shlex.split(job["result"]["command"].splitlines()[0])[2] == str(folder / HTML)
        reply = client("GET", f"/api/comparisons/{job['result']['id']}/files/comparison.html")
        assert b"<img src=x" not in reply.body and "\n" not in reply.headers["content-disposition"]

    def test_only_three_comparisons_stay_in_memory(self, client, content):
        first = client.run()["result"]["id"]
        assert client("GET", f"/api/comparisons/{first}/files/comparison.png").status == 200
        for keep in (0.1, 0.2, 0.3):
            client.run(keep=keep)
        reply = client("GET", f"/api/comparisons/{first}/left/tokens/0")
        assert reply.value == {"error": "this comparison is no longer in memory; compare again"}
        assert not (content.scratch / first).exists()


def _patches():
    from fewtokens.encoders import Patches

    return Patches(8)


def _check(made: dict[str, Path], folder: Path) -> None:
    """The files in the folder are those of the page."""
    for name in ("left.safetensors", "right.safetensors"):
        page, own = Tokens.load(made[name]), Tokens.load(folder / name)
        assert torch.equal(page.features, own.features) and torch.equal(page.assignment, own.assignment)
        assert page.meta["spec"] == own.meta["spec"] and page.meta["reading"] == own.meta["reading"]
    assert made["comparison.png"].read_bytes() == (folder / "comparison.png").read_bytes()


class TestJobs:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"encoder": "/etc"}, "this encoder is not offered"),
            ({"left": "visual_words(checkpoint='/etc/passwd')"}, "this method is not offered"),
            ({"keep": 0}, "keep: Input should be greater than 0"),
            ({"keep": "x"}, "keep: Input should be a valid number"),
            ({"question": "  "}, "the question is empty"),
            ({"question": "x" * 3000}, "question: String should have at most 2000 characters"),
        ],
    )
    def test_invalid_requests_are_one_line(self, client, change, message):
        reply = client("POST", "/api/jobs", WORK | change)
        assert reply.status in (400, 422) and reply.value["error"].startswith(message)

    def test_a_budget_that_a_method_cannot_reach_fails_with_its_name(self, client, content, monkeypatch):
        def refuse(*_: object, **__: object) -> None:
            raise ValueError("too few tokens\nfor this")

        monkeypatch.setattr("fewtokens.page.workbench.Pipeline", refuse)
        job = client.run()
        assert job["state"] == "failed" and job["error"] == "tome: too few tokens for this"

    def test_an_unexpected_error_does_not_reach_the_browser(self, client, monkeypatch, capfd):
        monkeypatch.setattr("fewtokens.page.workbench.read", lambda *_, **__: 1 / 0)
        job = client.run(clip="folder/static.mp4")
        assert job["state"] == "failed" and job["error"].startswith("internal error (ZeroDivisionError)")
        assert client("GET", "/api/state").status == 200
        capfd.readouterr()

    def test_one_job_at_a_time_which_can_be_canceled(self):
        jobs, entered, go = Jobs(), threading.Event(), threading.Event()

        def work(job):
            job.report("waiting", 1, 2)
            entered.set()
            go.wait()
            job.report("never")

        job = jobs.start(work)
        entered.wait()
        with pytest.raises(Busy, match="another job is running"):
            jobs.start(work)
        assert (job.view()["step"], job.view()["done"], job.view()["total"]) == ("waiting", 1, 2)
        job.cancel()
        go.set()
        while job.state == "working":
            pass
        assert job.state == "canceled" and job.step == "waiting"
        with pytest.raises(ValueError, match="no such job"):
            jobs.get("other")

    def test_a_comparison_is_canceled_while_it_encodes(self, client, content, monkeypatch):
        entered, go = threading.Event(), threading.Event()
        encode = content.bench.encoders["tiny"].forward

        def wait(*words, **named):
            entered.set()
            go.wait()
            return encode(*words, **named)

        monkeypatch.setattr(content.bench.encoders["tiny"], "forward", wait)
        monkeypatch.setattr(content.bench, "_encoded", None)
        work = WORK | {"encoder": "tiny"}
        job = client("POST", "/api/jobs", work).value
        entered.wait()
        assert client("POST", "/api/jobs", work).status == 409
        assert client("GET", f"/api/jobs/{job['id']}").value["step"] == "encoding"
        client("DELETE", f"/api/jobs/{job['id']}")
        go.set()
        while (view := client("GET", f"/api/jobs/{job['id']}").value)["state"] == "working":
            pass
        assert view["state"] == "canceled" and content.bench.encoders["tiny"].progress is None

    def test_questions_are_answered_with_the_tokens_of_both_methods(self, client):
        job = client.run(left="kmeans", right="uniform", question="what happens?")
        assert job["state"] == "done", job
        left, right = job["result"]["answers"]
        assert left["spec"] == "kmeans(keep=0.25)" and right["spec"] == "uniform(keep=0.25)"
        assert left["tokens"] == right["tokens"] == left["cells"] // 4 and job["texts"] == [left["text"], right["text"]]


class TestGuard:
    @pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", ""])
    def test_other_hosts_are_refused(self, client, host):
        for path in ("/", "/api/state"):
            assert client("GET", path, host=host).status == 403

    @pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:99", "LOCALHOST", "127.0.0.2:7788"])
    def test_names_of_loopback_are_served(self, client, host):
        assert client("GET", "/api/state", host=host).status == 200

    def test_other_sites_can_change_nothing(self, client):
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
            assert client("POST", "/api/jobs", WORK, origin=origin).status == 403
            assert client("PUT", "/api/clips?name=a.mp4", b"x", origin=origin).status == 403
        assert client("GET", "/api/state", sec_fetch_site="cross-site").status == 403
        assert client("GET", "/api/state", sec_fetch_site="same-origin").status == 200

    def test_large_bodies_are_refused_unread(self, client):
        assert client("POST", "/api/jobs", b" " * 70_000).status == 413

    def test_the_page_can_load_nothing_from_elsewhere(self, client):
        reply = client("GET", "/")
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "http" not in policy
        assert b"http://" not in reply.body and b"https://" not in reply.body and b"{{" not in reply.body
        assert client("GET", "/api/state").headers["cache-control"] == "no-store"
        for path in ("/docs", "/redoc", "/openapi.json"):
            assert client("GET", path).status == 404

    def test_a_token_is_required_if_there_is_one(self, content):
        from fewtokens.page.app import Server, bind, create_app

        with bind("127.0.0.1", 0) as listener, Server(create_app(content, "s3cret"), listener).in_thread() as address:
            client = Client(address)
            for path in ("/", "/?token=wrong", "/api/state", "/api/state?token=s3cret"):
                assert client("GET", path).status == 401
            reply = client("GET", "/?token=s3cret")
            assert reply.status == 303 and reply.headers["location"] == "/"
            cookie = reply.headers["set-cookie"]
            assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
            pair = cookie.split(";")[0]
            assert client("GET", "/api/state", cookie=pair, host="any.example").status == 200
            assert client("GET", "/", cookie=f"{pair[:-1]}x").status == 401
            # Cookies of other programs on this machine, also invalid ones, and that of another page.
            others = f'a={{"x": 1}}; fewtokens_0={pair.partition("=")[2][::-1]}'
            assert client("GET", "/", cookie=f"{others}; {pair}").status == 200
            assert client("GET", "/", cookie=others).status == 401
        other = create_app(content, "another")
        assert not cookie.startswith(other.cookie)

    def test_the_name_that_the_user_gave_is_served(self, content):
        from fewtokens.page.app import Server, bind, create_app

        with (
            bind("127.0.0.1", 0) as listener,
            Server(create_app(content, None, "mine"), listener).in_thread() as address,
        ):
            client = Client(address)
            assert client("GET", "/", host="Mine:80").status == client("GET", "/", host="localhost").status == 200
            assert client("GET", "/", host="mine.example").status == 403

    def test_hosts_and_addresses(self):
        assert [host_name(host) for host in ("a:1", "[::1]:80", "[::1]", "A")] == ["a", "[::1]", "[::1]", "a"]
        assert is_loopback("127.3.0.1") and is_loopback("::1") and not is_loopback("0.0.0.0")
        assert not is_loopback("localhost") and not is_loopback("")


class TestWorkbench:
    def test_selectors_of_frames_are_refused_at_the_start(self, bench):
        from fewtokens.page.workbench import Workbench

        with pytest.raises(ValueError, match="uniform_frames selects frames, but the page compares"):
            Workbench(bench.encoders, ["uniform_frames(keep=0.5) | tome"])


class TestCommand:
    def test_errors_are_one_line(self, folder, client):
        port = client.host.split(":")[1]
        for words, message in (
            ((folder / "pan.mp4",), "is a file; give the folder that contains it"),
            ((folder / "none",), "no such file or folder"),
            ((folder, "--port", port), f"cannot listen on 127.0.0.1 port {port}"),
            ((folder, "--host", "203.0.113.1", "--port", 0), "cannot listen on 203.0.113.1"),
            ((folder, "--with", "nothing", "--port", 0), "nothing"),
            ((folder, "--encoder", "./none", "--port", 0), "no such folder: ./none"),
            ((folder, "--with", "fastv", "--port", 0), "fastv"),
        ):
            assert message in error_line(quick("page", *words, code=2))

    @pytest.mark.parametrize(("host", "token"), [("127.0.0.1", False), ("0.0.0.0", True)])
    def test_the_address_has_a_token_beyond_loopback(self, folder, monkeypatch, host, token):
        from fewtokens.page import app

        seen = []
        monkeypatch.setattr(app.Server, "serve_forever", lambda self: seen.append(self.config.app))
        done = quick("page", folder, "--host", host, "--port", 0)
        assert (seen[0].token is not None) == token and ("?token=" in done.stdout) == token

    def test_a_signal_ends_it_and_removes_uploads(self, folder, clip, tmp_path):
        words = [COMMAND, "page", folder, "--port", "0", "--frames", "2"]
        environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
            line = run.stdout.readline()
            client = Client(re.search(r"http://[\d.:]+", line)[0])
            assert client.upload("a.mp4", clip).status == 200
            assert list(tmp_path.glob("fewtokens-page-*/uploads/a.mp4"))
            run.terminate()
            assert (run.wait(), "Traceback" in run.stderr.read()) == (0, False)
        assert not list(tmp_path.glob("fewtokens-page-*"))

    def test_uploads_are_removed_at_the_end(self, bench, folder):
        from fewtokens.page.app import open_page

        with open_page(bench, folder, max_bytes=1, max_seconds=1) as page:
            (page.clips.uploads / "a.mp4").write_bytes(b"x")
            root = page.clips.uploads.parent
        assert not root.exists()
