"""Jobs: shards that are done once, whatever happens to the processes that do them."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from fewtokens import Tokens
from fewtokens.cli.options import EncoderOptions, MethodOptions, ReadOptions, RunOptions, SelectOptions
from fewtokens.cli.tokenize_job import TokenizeWork
from fewtokens.core.pipeline import Pipeline
from fewtokens.encoders.vit_encoder import VitEncoder
from fewtokens.jobs import FORMATS, Source, Store, export, find_files, find_sources, read_records, run_job
from fewtokens.jobs import formats as token_formats
from fewtokens.jobs import shard as one_shard
from fewtokens.jobs.engines import ENDS_PROCESS
from fewtokens.jobs.folder import keys_of
from fewtokens.jobs.shard import decode
from fewtokens.video import synthetic, write
from tests.helpers.command import run
from tests.helpers.vits import small_vit

WORDS = ("--size", "32", "--frames", "4", "--with", "tome(keep=0.3)", "--workers", "1")


def settings(work: TokenizeWork, format: str = "safetensors") -> dict:
    return {"format": format, **work.settings()}


WORK = TokenizeWork(
    MethodOptions("tome(keep=0.3)"), EncoderOptions(), RunOptions("cpu"), ReadOptions(frames=4, size=32),
    SelectOptions(), None,
)  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for number in range(5):
        write(folder / f"{number}.mp4", synthetic("shapes", frames=6, size=(32, 48), seed=number).frames, 6)
    (folder / "more").mkdir()
    write(folder / "more/0.mp4", synthetic("shapes", frames=6, size=(32, 48), seed=9).frames, 6)
    return folder


def job(clips: Path, out: Path, format: str = "safetensors", **options):
    return run_job(
        find_sources([str(clips)]), WORK, settings(WORK, format), str(out), **{"per_shard": 2, "workers": 1} | options
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in a folder except times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "manifest.parquet":
            content = path.read_bytes()
            if path.parent.name == "manifest":
                rows = [json.loads(line) for line in content.splitlines()]
                content = json.dumps([{k: v for k, v in row.items() if k != "seconds"} for row in rows]).encode()
            if path.suffix == ".safetensors":  # the order of the entries of its header is random
                size = 8 + int.from_bytes(content[:8], "little")
                content = repr(sorted(json.loads(content[8:size])["__metadata__"].items())).encode() + content[size:]
            found[str(path.relative_to(folder))] = content
    return found


def test_a_job_never_replaces_an_export(clips, tmp_path):
    job(clips, tmp_path / "job")
    export(tmp_path / "job", str(tmp_path / "out"), "shards")
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match="shards/ has files that are not of a job"):
        job(clips, tmp_path / "out", "shards")
    assert contents(tmp_path / "out") == before


def test_an_unfinished_job_is_exported_with_a_warning(clips, tmp_path):
    job(clips, tmp_path / "job")
    (tmp_path / "job/manifest/000002.jsonl").unlink()
    with pytest.warns(UserWarning, match="a job that has not finished; 1 shards are missing"):
        export(tmp_path / "job", str(tmp_path / "out"), "shards")


@pytest.mark.parametrize("format", ["safetensors", "shards"])
def test_the_file_of_a_killed_run_does_not_survive_a_failure(clips, tmp_path, monkeypatch, format):
    """A run is killed between the tokens and the manifest, and the video cannot be read any more."""
    folder = tmp_path / "clips"
    folder.mkdir()
    shutil.copy(clips / "0.mp4", folder)
    written = one_shard.write_rows
    monkeypatch.setattr(one_shard, "write_rows", lambda *words: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        job(folder, tmp_path / "job", format)
    assert find_files(tmp_path / "job")
    monkeypatch.setattr(one_shard, "write_rows", written)
    (folder / "0.mp4").write_bytes(b"not a video")
    (row,) = job(folder, tmp_path / "job", format).rows
    assert row["error"]
    with pytest.raises(ValueError, match="no token files"):
        find_files(tmp_path / "job")


class TestFiles:
    def test_a_job_writes_the_files_of_the_plain_command(self, clips, tmp_path):
        run("tokenize", *sorted(clips.glob("*.mp4")), *WORDS[:-2], "--out", tmp_path / "plain")
        run("tokenize", clips / "*.mp4", *WORDS, "--out", tmp_path / "job")
        plain, written = contents(tmp_path / "plain"), contents(tmp_path / "job")
        assert len(plain) == 5
        assert plain == {name: content for name, content in written.items() if name.endswith(".safetensors")}

    @pytest.mark.parametrize("format", [name for name in FORMATS if name != "safetensors"])
    def test_every_format_has_the_same_tokens(self, clips, tmp_path, format):
        if FORMATS[format].package:
            pytest.importorskip(FORMATS[format].package)
        job(clips, tmp_path / "files")
        report = job(clips, tmp_path / format, format)
        assert len(find_files(tmp_path / format)) == report.shards == 3
        expected = {
            record.key: record.tokens for file in find_files(tmp_path / "files") for record in read_records(file)
        }
        records = {record.key: record.tokens for file in find_files(tmp_path / format) for record in read_records(file)}
        sources = {tokens.meta["source"]["path"]: tokens for tokens in expected.values()}
        assert len(records) == 6
        for tokens in records.values():
            other = sources[tokens.meta["source"]["path"]]
            assert torch.equal(tokens.features, other.features) and dict(tokens.meta) == dict(other.meta)

    def test_videos_are_encoded_in_batches(self, clips, tmp_path, monkeypatch):
        vit = VitEncoder(small_vit()).save_pretrained(tmp_path / "vit")
        encoding = EncoderOptions(str(vit), batch=12)  # three videos of 4 frames
        work = TokenizeWork(WORK.method, encoding, WORK.run, WORK.reading, WORK.selecting, None)
        sizes = []
        forward = Pipeline.forward
        monkeypatch.setattr(
            Pipeline, "forward",
            lambda self, video, *rest, **cues: (sizes.append(len(video) if torch.is_tensor(video) else 1),
                                                forward(self, video, *rest, **cues))[1],
        )  # fmt: skip
        run_job(find_sources([str(clips)]), work, settings(work), str(tmp_path / "out"), per_shard=5, workers=1)
        assert sizes == [3, 2, 1]
        for record in (record for file in find_files(tmp_path / "out") for record in read_records(file)):
            alone = forward(
                work.load().pipeline, work.read(record.tokens.meta["source"]["path"], lambda *_: None).video
            )
            assert torch.allclose(record.tokens.features, alone.features, atol=1e-5)

    def test_manifest(self, clips, tmp_path):
        pytest.importorskip("pyarrow")
        from pyarrow import parquet

        out = tmp_path / "out"
        job(clips, out)
        rows = parquet.read_table(out / "manifest.parquet").to_pylist()
        assert [row["shard"] for row in rows] == [0, 0, 1, 1, 2, 2]
        for row in rows:
            tokens = Tokens.load(out / row["file"])
            assert tokens.meta["source"]["path"] == row["source"]
            assert row["tokens"] == int(tokens.count[0]) and row["cells"] == tokens.grid.cells
            assert row["bytes"] == Path(row["source"]).stat().st_size
            assert row["spec"] == tokens.meta["spec"] and row["weights"] is None and row["error"] is None
            assert row["seconds"] > 0

    def test_a_uri_of_another_file_system(self, clips, tmp_path):
        out = f"file://{tmp_path}/remote"
        first = job(clips, out, "shards")
        assert len(find_files(tmp_path / "remote")) == 3
        assert job(clips, out, "shards").new == 0 and first.new == 6


class TestResume:
    def test_finished_shards_are_never_done_again(self, clips, tmp_path):
        out = tmp_path / "out"
        job(clips, out, "shards")
        expected = contents(out)
        removed = out / "manifest/000001.jsonl"  # as if it had been killed before the end of this shard
        removed.unlink()
        times = {path: path.stat().st_mtime_ns for path in find_files(out)}
        assert job(clips, out, "shards").new == 2
        assert contents(out) == expected
        changed = [path.name for path, time in times.items() if path.stat().st_mtime_ns != time]
        assert changed == ["000001.safetensors"]
        assert job(clips, out, "shards").new == 0

    def test_new_videos_are_new_shards(self, clips, tmp_path):
        sources = find_sources([str(clips)])
        common = {"per_shard": 4, "workers": 1}
        run_job(sources[2:], WORK, settings(WORK), str(tmp_path), **common)
        before = contents(tmp_path)
        report = run_job(sources, WORK, settings(WORK), str(tmp_path), **common)
        assert report.new == 2 and len(report.rows) == 6
        after = contents(tmp_path)
        assert all(after[name] == value for name, value in before.items() if name != "plan.jsonl")
        assert len(list(tmp_path.glob("*.safetensors"))) == 6

    def test_other_settings_are_refused(self, clips, tmp_path):
        out = tmp_path / "out"
        run("tokenize", clips / "*.mp4", *WORDS, "--out", out)
        line = run("tokenize", clips / "*.mp4", *WORDS, "--seed", 3, "--out", out, code=2).stderr
        assert "other settings: seed (0, now 3)" in line and len(line.strip().splitlines()) == 1

    def test_a_changed_video_is_refused(self, clips, tmp_path):
        folder = tmp_path / "in"
        folder.mkdir()
        path = folder / "a.mp4"
        path.write_bytes((clips / "0.mp4").read_bytes())
        job(folder, tmp_path / "out")
        path.write_bytes((clips / "1.mp4").read_bytes())
        with pytest.raises(ValueError, match="has changed since"):
            job(folder, tmp_path / "out")
        path.unlink()
        write(folder / "b.mp4", synthetic("pan", frames=4, size=(32, 32)).frames, 4)
        assert job(folder, tmp_path / "out").new == 1  # one that was removed stays finished

    def test_a_second_job_is_refused_while_one_runs(self, clips, tmp_path):
        out = tmp_path / "out"
        out.mkdir()
        handle = os.open(out, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        line = run("tokenize", clips / "*.mp4", *WORDS, "--out", out, code=2).stderr
        assert "another job is writing into this folder" in line and list(out.iterdir()) == []
        os.close(handle)
        run("tokenize", clips / "*.mp4", *WORDS, "--out", out)


def test_small_jobs_have_shards_for_many_processes(clips, tmp_path):
    for format, shards in {"safetensors": 6, "shards": 1}.items():
        assert job(clips, tmp_path / format, format, per_shard=None).shards == shards


def test_files_of_the_plain_command_are_not_replaced(clips, tmp_path):
    out = tmp_path / "out"
    run("tokenize", clips / "0.mp4", clips / "1.mp4", "--with", "uniform(keep=0.5)", "--size", "32", "--out", out)
    before = contents(out)
    line = run("tokenize", clips, *WORDS, "--out", out, code=2).stderr
    assert "1.safetensors is not of a job, and would be replaced; give another --out" in line
    assert contents(out) == before
    run("tokenize", clips, *WORDS, "--format", "shards", "--out", out)  # replaces nothing


def test_urls_with_equal_paths_have_distinct_results():
    urls = ["http://h/d/v.mp4", "http://h/d//v.mp4", "http://h/d/./v.mp4", "http://h/e/w.mp4"]
    for plain in (True, False):
        names = keys_of({url: url for url in urls}, plain=plain)
        assert len({name.casefold() for name in names}) == 4 and names[3] == "w"
        (later,) = keys_of({"http://h//d/v.mp4": "http://h//d/v.mp4"}, names, plain=plain)
        assert later not in names


class TestBrokenVideos:
    def test_they_are_listed_and_tried_again_only_when_asked(self, clips, tmp_path):
        folder, out = tmp_path / "in", tmp_path / "out"
        folder.mkdir()
        for number in range(3):
            (folder / f"{number}.mp4").write_bytes((clips / f"{number}.mp4").read_bytes())
        (folder / "1.mp4").write_text("no video", encoding="utf-8")
        words = ("tokenize", folder, *WORDS, "--per-shard", "2", "--out", out, "--json")
        first = run(*words, code=1)
        assert first.stderr.count("1.mp4: cannot be opened") == 1
        report = json.loads(first.stdout)
        assert report["videos"] == 2 and [each["video"] for each in report["failed"]] == [str(folder / "1.mp4")]
        assert json.loads((out / "failed.jsonl").read_text(encoding="utf-8"))["video"] == str(folder / "1.mp4")
        (folder / "1.mp4").write_bytes((clips / "1.mp4").read_bytes())
        before = contents(out)
        assert json.loads(run(*words, code=1).stdout)["new"] == 0 and contents(out) == before
        again = json.loads(run(*words, "--retry").stdout)
        assert (again["new"], again["videos"], again["failed"]) == (1, 3, [])
        assert not (out / "failed.jsonl").exists() and Tokens.load(out / "1.safetensors").B == 1
        assert json.loads(run(*words, "--retry").stdout)["new"] == 0

    def test_a_shard_without_a_readable_video_has_no_file(self, tmp_path):
        (tmp_path / "in").mkdir()
        (tmp_path / "in/a.mp4").touch()
        report = job(tmp_path / "in", tmp_path / "out", "shards")
        assert report.rows[0]["error"] and not (tmp_path / "out/shards").exists()

    def test_a_list_with_urls_and_missing_files(self, clips, tmp_path):
        handler = partial(SimpleHTTPRequestHandler, directory=str(clips))
        handler.log_message = lambda *_: None
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with socket.socket() as free:  # a port where nobody listens
            free.bind(("127.0.0.1", 0))
            closed = free.getsockname()[1]
        host = f"http://127.0.0.1:{server.server_port}"
        lines = [f"{host}/0.mp4", f"{host}/none.mp4", f"http://127.0.0.1:{closed}/a.mp4", "s3://bucket/b.mp4"]
        lines += ["gone.mp4", str(clips / "1.mp4")]
        (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8")
        done = run("tokenize", tmp_path / "list.txt", *WORDS, "--out", tmp_path / "out", "--json", code=1)
        server.shutdown()
        server.server_close()
        report = json.loads(done.stdout)
        assert report["videos"] == 2
        errors = {each["video"].rpartition("/")[2]: each["error"] for each in report["failed"]}
        assert "cannot be downloaded" in errors["none.mp4"] and "cannot be downloaded (" in errors["a.mp4"]
        assert "only http and https" in errors["b.mp4"] and "no such file" in errors["gone.mp4"]
        assert not any("\n" in error for error in errors.values())
        tokens = Tokens.load(tmp_path / "out/0.safetensors")
        assert tokens.meta["source"]["path"] == lines[0]
        assert torch.equal(tokens.features, WORK.load()([WORK.read(str(clips / "0.mp4"), lambda *_: None)])[0].features)

    @pytest.mark.parametrize("argument", ["empty", "empty/*.mp4", "missing.mp4", "list.txt"])
    def test_arguments_without_a_video(self, tmp_path, argument):
        (tmp_path / "empty").mkdir()
        (tmp_path / "list.txt").write_text("\n\n", encoding="utf-8")
        line = run("tokenize", tmp_path / argument, "--engine", "local", "--out", tmp_path / "o", code=2).stderr
        assert argument in line and len(line.strip().splitlines()) == 1


class TestNames:
    NAMES = ("-rf.mp4", "a\nb.mp4", "a.b.mp4", "a_b.mp4", "ä.mp4", "a" * 240 + ".mp4", "con.mp4", "$(x);.mp4")

    @pytest.mark.parametrize("format", ["safetensors", "webdataset", "parquet"])
    def test_hostile_names_stay_in_their_folder(self, clips, tmp_path, format):
        if FORMATS[format].package:
            pytest.importorskip(FORMATS[format].package)
        folder = tmp_path / "in"
        for sub in ("x", "x/y"):
            (folder / sub).mkdir(parents=True)
            for name in self.NAMES[: 3 if sub == "x/y" else None]:
                (folder / sub / name).write_bytes((clips / "0.mp4").read_bytes())
            (folder / sub / os.fsdecode(b"\xff.mp4")).write_bytes((clips / "0.mp4").read_bytes())
        before = set(tmp_path.rglob("*"))
        report = job(folder, tmp_path / "out", format, per_shard=50)
        assert [row["error"] for row in report.rows if row["error"]] == []
        assert all((tmp_path / "out") in [path, *path.parents] for path in set(tmp_path.rglob("*")) - before)
        records = [record for file in find_files(tmp_path / "out") for record in read_records(file)]
        assert len({record.key for record in records}) == len(records) == len(self.NAMES) + 3 + 2

    def test_a_store_refuses_names_that_lead_out(self, tmp_path):
        for name in ("../a", "a/../../b", "/etc/passwd", "", "a//b", "."):
            with pytest.raises(ValueError, match="leads out"), Store(str(tmp_path)).writing(name):
                pass


class TestFullDisk:
    def test_in_the_middle_of_a_shard(self, clips, tmp_path, monkeypatch):
        out = tmp_path / "out"
        expected = tmp_path / "expected"
        job(clips, expected, "webdataset")
        calls = []
        add = token_formats._add

        def full(*arguments):
            calls.append(1)
            if len(calls) == 14:  # in the second shard
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")
            add(*arguments)

        monkeypatch.setattr(token_formats, "_add", full)
        words = ("tokenize", clips, *WORDS, "--per-shard", "2", "--format", "webdataset", "--out", out)
        line = run(*words, code=2).stderr
        assert "No space left on device" in line and len(line.strip().splitlines()) == 1
        names = [name for name in contents(out) if "0000" in name]
        assert names == ["manifest/000000.jsonl", "shards/000000.tar"]  # nothing of the second shard
        run(*words)
        assert contents(out) == contents(expected)

    def test_of_a_decoder_is_not_a_broken_video(self):
        class Full:
            def read(self, *_):
                raise OSError(errno.ENOSPC, "full")

        with pytest.raises(OSError, match="full"):
            decode(Full(), Source("a", "a.mp4"), lambda *_: None)


class Deadly(TokenizeWork):
    """Ends its process at the video 1.mp4, the first time."""

    def read(self, location, check):
        if location.endswith("1.mp4") and not Path(self.question).exists():
            Path(self.question).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return TokenizeWork.read(Deadly(*[*self._parts(), None]), location, check)

    def _parts(self):
        return self.method, self.encoding, self.run, self.reading, self.selecting

    def load(self):
        return WORK.load()


class Fatal(Deadly):
    def read(self, location, check):
        os.kill(os.getpid(), signal.SIGKILL)


class Breaking(Deadly):
    """Ends its process at the video 1.mp4, every time."""

    def read(self, location, check):
        if location.endswith("1.mp4"):
            os.kill(os.getpid(), signal.SIGKILL)
        return WORK.read(location, check)


class TestProcesses:
    def test_a_video_that_always_ends_its_process_is_a_row_with_an_error(self, clips, tmp_path, monkeypatch):
        monkeypatch.setattr("fewtokens.jobs.engines.MAX_SUSPICIONS", 1)  # a death less, to save time
        sources = find_sources([str(clips / "0.mp4"), str(clips / "1.mp4"), str(clips / "2.mp4")])
        run_job(sources[::2], WORK, settings(WORK), str(tmp_path / "expected"), workers=1)
        work = Breaking(*Deadly._parts(WORK), None)
        # Also of a single shard.
        report = run_job(sources, work, settings(WORK), str(tmp_path / "out"), per_shard=3, workers=2)
        errors = {Path(row["source"]).name: row["error"] for row in report.rows}
        assert errors == {"0.mp4": None, "1.mp4": f"{clips}/1.mp4: {ENDS_PROCESS}", "2.mp4": None}
        expected, written = contents(tmp_path / "expected"), contents(tmp_path / "out")
        names = {"0.safetensors", "2.safetensors"}
        assert {name for name in written if name.endswith(".safetensors")} == names
        assert all(written[name] == expected[name] for name in names)
        assert multiprocessing.active_children() == []

    def test_a_process_that_is_killed_is_replaced(self, clips, tmp_path):
        job(clips, tmp_path / "expected", "shards")
        work = Deadly(*Deadly._parts(WORK), str(tmp_path / "once"))
        report = run_job(
            find_sources([str(clips)]), work, settings(WORK, "shards"), str(tmp_path / "out"), per_shard=2, workers=2
        )
        assert (tmp_path / "once").exists() and len(report.rows) == 6
        assert contents(tmp_path / "out") == contents(tmp_path / "expected")
        assert multiprocessing.active_children() == []

    def test_processes_that_always_die_end_the_job(self, clips, tmp_path, monkeypatch):
        monkeypatch.setattr("fewtokens.jobs.engines.MAX_DEATHS", 1)
        work = Fatal(*Deadly._parts(WORK), None)
        with pytest.raises(ValueError, match="worker processes died 1 times"):
            run_job(find_sources([str(clips)]), work, settings(WORK), str(tmp_path / "out"), per_shard=3, workers=2)

    def test_a_killed_job_leaves_no_process_and_resumes(self, clips, tmp_path):
        job(clips, tmp_path / "expected")
        out = tmp_path / "out"
        words = [sys.executable, "-m", "fewtokens", "tokenize", str(clips), *WORDS[:-1], "2", "--per-shard", "2",
                 "--out", str(out)]  # fmt: skip
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (out / "plan.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.02)
        import psutil

        children = []
        while not children:
            children = psutil.Process(process.pid).children(recursive=True)
            time.sleep(0.02)
        process.kill()
        process.wait()

        def alive() -> list[psutil.Process]:
            return [each for each in children if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]

        end = time.monotonic() + 300
        while alive() and time.monotonic() < end:
            time.sleep(0.1)
        assert alive() == []
        job(clips, out)
        assert contents(out) == contents(tmp_path / "expected")
