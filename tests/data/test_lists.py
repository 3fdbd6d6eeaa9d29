"""Lists from spreadsheets, Windows, mmaction or text editors, with missing labels and with links."""

from __future__ import annotations

import itertools
import json
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewtokens.data import ClipData, Transform, View, read_listing
from fewtokens.data.footage import Footage, find_footage, read_frames
from fewtokens.data.lists import split_line
from fewtokens.video import VideoError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("0.png", "1.png", "2.png", "3.png", "my films/a b.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_items(name: str, text: str | bytes, **options: object) -> list[tuple[str, ...]]:
    """Writes a list with this text and returns (file, class, ...) of each of its items."""
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    listing = read_listing(name, **options)
    return [(item.path, *(listing.classes[n] for n in item.labels)) for item in listing.items]


ITEMS = [("0.png", "cat"), ("1.png", "cat"), ("2.png", "dog"), ("3.png", "dog")]
TEXTS = {
    "l.csv": "path,label\n0.png,cat\n1.png,cat\n2.png,dog\n3.png,dog\n",
    "l.jsonl": "".join(json.dumps({"path": path, "label": label}) + "\n" for path, label in ITEMS),
    "l.txt": "0.png cat\n1.png cat\n2.png dog\n3.png dog\n",
    "l.json": json.dumps(dict(ITEMS)),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("change", ["", "mark", "crlf", "cr", "blank lines", "no last end"])
def test_encodings_and_line_ends(folder, name, change):
    text = TEXTS[name]
    if change in ("crlf", "cr"):
        text = text.replace("\n", "\r\n" if change == "crlf" else "\r")
    if change == "blank lines":
        text = "\n" + text.replace("\n", "\n\n \n")
    if change == "no last end":
        text = text.rstrip("\n")
    assert read_items(name, text.encode("utf-8-sig" if change == "mark" else "utf-8")) == ITEMS


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_other_encodings_are_refused(folder, name, encoding):
    text = TEXTS[name] if encoding != "latin-1" else TEXTS[name].replace("cat", "Kätzchen")
    with pytest.raises(
        ValueError, match="UTF-16, not UTF-8 text" if encoding != "latin-1" else "save the file as UTF-8"
    ):
        read_items(name, text.encode(encoding))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("quoted", [False, True])
def test_separators_of_tables(folder, separator, quoted):
    quote = '"{}"'.format if quoted else str
    rows = [("path", "label", "start"), *((*row, "1") for row in ITEMS)]
    text = "\n".join(separator.join(map(quote, row)) for row in rows)
    assert read_items("l.csv", text) == read_items("l.tsv", text) == ITEMS
    (item, *_) = read_listing("l.csv").items
    assert item.start == 1.0
    # Spreadsheets pad rows with empty cells; a table may also have the suffix .txt.
    assert read_items("l.txt", text.replace("\n", separator * 3 + "\n")) == ITEMS


def test_quotes_and_commas(folder):
    Path("a,b.png").write_bytes(Path("0.png").read_bytes())
    assert read_items("l.csv", 'path,label\n"a,b.png","big, gray cat"\n') == [("a,b.png", "big, gray cat")]
    assert read_items("l.txt", '"a,b.png",big cat\n') == [("a,b.png", "big cat")]
    assert read_items("l.txt", '"a,b.png" big cat\n0.png a "b\n') == [("a,b.png", "big cat"), ("0.png", 'a "b')]
    listing = read_items("l.csv", "path,label\na,b.png,cat\n0.png,dog\n")
    assert listing == [("0.png", "dog")]
    assert "line 2: more cells than the header" in read_listing("l.csv").skipped[0]
    with pytest.raises(ValueError, match=r"l.csv, line 4: invalid CSV"):
        read_items("l.csv", 'path,label\n0.png,cat\n"1.png,cat\n2.png,dog\n')
    with pytest.raises(ValueError, match=r"l.csv, line 2: invalid CSV"):
        read_items("l.csv", "path,label\n" + "x" * 200_000 + ",cat\n")


class TestMissingLabels:
    @pytest.mark.parametrize(
        ("name", "text", "line"),
        [
            ("l.csv", TEXTS["l.csv"] + "0.png,\n1.png\n", "line 6"),
            ("l.csv", TEXTS["l.csv"] + "0.png, ; ;\n1.png,\n", "line 6"),
            ("l.jsonl", TEXTS["l.jsonl"] + '{"path": "0.png", "label": null}\n{"path": "1.png"}\n', "line 5"),
            (
                "l.jsonl",
                TEXTS["l.jsonl"] + '{"path": "0.png", "label": []}\n{"path": "1.png", "label": ""}\n',
                "line 5",
            ),
            ("l.txt", TEXTS["l.txt"] + "0.png\n1.png,\n", "line 5"),
        ],
    )
    def test_lines_without_labels_are_counted_and_skipped(self, folder, name, text, line):
        with pytest.warns(UserWarning, match=rf"skipped 2 lines without a label, the first is {name}, {line}$"):
            assert read_items(name, text) == ITEMS
        with pytest.warns(UserWarning, match="without a label"):
            listing = read_listing(name)
        assert listing.classes == ("cat", "dog")
        assert not listing.multi_label
        assert len(listing.skipped) == 2

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("l.csv", "path,label\n0.png,\n1.png,\n"),
            ("l.csv", "path\n0.png\n1.png\n"),
            ("l.jsonl", '{"path": "0.png"}\n{"path": "1.png", "label": null}\n'),
            ("l.txt", "0.png\n1.png\n"),
        ],
    )
    def test_a_list_without_labels(self, folder, name, text):
        with pytest.raises(ValueError, match=r"no labels in 2 lines, the first is .*; at least one is required"):
            read_items(name, text)
        assert [item.path for item in find_footage(name).items] == ["0.png", "1.png"]
        assert [item.labels for item in read_listing(name, labels=False).items] == [(), ()]

    def test_several_labels_stay(self, folder):
        assert read_items("l.csv", "path,label\n0.png,cat;dog\n1.png,dog\n") == [
            ("0.png", "cat", "dog"),
            ("1.png", "dog"),
        ]
        assert read_listing("l.csv").multi_label
        # The same class twice is one class.
        assert read_items("l.csv", "path,label\n0.png,cat;cat\n1.png,dog\n")[0] == ("0.png", "cat")
        assert not read_listing("l.csv").multi_label


class TestTextLists:
    @pytest.mark.parametrize("separator", [" ", "  ", "\t", ",", ", ", ";"])
    def test_path_frames_label(self, folder, separator):
        lines = [("0.png", "250", "0"), ("my films/a b.png", "300", "1"), ("1.png", "7", "12")]
        text = "".join(separator.join(line) + "\n" for line in lines)
        assert read_items("l.txt", text) == [("0.png", "0"), ("my films/a b.png", "1"), ("1.png", "12")]
        assert not read_listing("l.txt").multi_label

    def test_path_frames_and_a_name(self, folder):
        assert read_items("l.txt", "0.png 250 playing guitar\n1.png 3 dog\n") == [
            ("0.png", "playing guitar"), ("1.png", "dog"),
        ]  # fmt: skip
        # Leading numbers of a name are frame counts only if every line has one.
        assert read_items("l.txt", "0.png 3 point shot\n1.png dog\n") == [("0.png", "3 point shot"), ("1.png", "dog")]

    @pytest.mark.parametrize(
        "text", ["0.png 1 2 3\n1.png 4 5 6\n", "0.png 1\n1.png 4 5\n", "0.png 9 cat\n1.png 4 5 6\n"]
    )
    def test_ambiguous_numbers(self, folder, text):
        with pytest.raises(ValueError, match=r"l.txt, line \d: \d numbers after the path.*write a CSV"):
            read_items("l.txt", text)

    def test_names_of_two_words_spaces_comments_windows(self, folder):
        text = (
            "# made by hand\n0.png playing guitar\nmy films/a b.png cat\n"
            '"my films/a b.png" a dog\nmy films\\a b.png x\n'
        )
        assert read_items("l.txt", text) == [
            ("0.png", "playing guitar"), ("my films/a b.png", "cat"), ("my films/a b.png", "a dog"),
            ("my films/a b.png", "x"),
        ]  # fmt: skip
        assert read_items("l.csv", "path,label\nmy films\\a b.png,cat\n") == [("my films/a b.png", "cat")]
        for name in ("..\\x.png", "my films\\..\\..\\x.png", "my films/../../x.png"):
            with pytest.raises(ValueError, match="is outside"):
                read_items("l.txt", f"{name} cat\n")

    def test_missing_files(self, folder):
        lines = [
            ("missing.mp4 3", ("missing.mp4", "3")),
            ("my missing film.mp4 playing guitar", ("my missing film.mp4", "playing guitar")),
            ("missing/frames 3", ("missing/frames", "3")),
            ("missing.MP4", ("missing.MP4", "")),
        ]
        for line, parts in lines:
            assert split_line(line, lambda name: False) == parts

    def test_a_folder_of_frames(self, folder):
        os.mkdir("clip")
        for n in range(12):
            Image.fromarray(np.full((8, 8, 3), 20 * n, np.uint8)).save(f"clip/{n}.png")
        assert read_items("l.txt", "clip 12 1\n0.png 1 0\n") == [("clip", "1"), ("0.png", "0")]
        sample = ClipData(read_listing("l.txt"), Transform(8), View(frames=3, stride=2), training=False)[0]
        assert (sample.clip.mean((2, 3, 4)) * 255 / 20).round().tolist() == [[3, 5, 7]]

    def test_long_lines_are_read_fast(self, folder):
        begin = time.process_time()
        for line in (
            "a " * 20_000,
            "a," * 20_000 + "b",
            "x" * 40_000,
            " " * 40_000 + "x",
            '"' * 40_000,
            "\\ " * 20_000,
        ):
            Path("l.txt").write_text(f"{line}\n0.png cat\n")
            assert len(find_footage("l.txt").items) == 1
            assert len(read_listing("l.txt").items) == 1
        assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    "line",
    ["3", "[]", "null", '"x"', "{", '{"label": "x"}', '{"path": 3, "label": "x"}', '{"path": "0.png", "label": {}}',
     '{"path": "0.png", "label": true}', '{"path": "0.png", "label": [["a"]]}', '{"path": "0.png", "label": 1.5}',
     '{"path": "\\ud800.png", "label": "x"}', "[" * 100_000, '{"a":' * 100_000],
)  # fmt: skip
def test_json_lines_of_other_types(folder, line):
    assert read_items("l.jsonl", TEXTS["l.jsonl"] + line + "\n") == ITEMS
    (reason,) = read_listing("l.jsonl").skipped
    assert reason.startswith("l.jsonl, line 5: not an object with path and label (")
    assert len(reason) < 200


@pytest.mark.parametrize("value", ["[1]", "true", '"soon"', "NaN", "1e999", '"inf"'])
def test_times_must_be_seconds(folder, value):
    with pytest.raises(ValueError, match="line 1: start and end must be seconds"):
        read_items("l.jsonl", f'{{"path": "0.png", "label": "x", "start": {value}}}\n')


def test_numeric_classes(folder):
    assert read_items("l.txt", "0.png 7\n1.png 3\n") == [("0.png", "7"), ("1.png", "3")]
    assert read_listing("l.txt").classes == tuple(map(str, range(8)))
    # Text that only looks like a number is a name.
    for label in ("03", "²", "٣", "9" * 5000, "-1"):
        assert read_items("l.csv", f"path,label\n0.png,3\n1.png,{label}\n") == [("0.png", "3"), ("1.png", label)]


def test_incomplete_rows_of_kinetics(folder):
    os.makedirs("elsewhere/train")
    Path("elsewhere/train/x_000000_000010.mp4").write_bytes(b"")
    text = "label,youtube_id,time_start,time_end\nsing,x,0,10\nsing,x\nsing\nsing,x,inf,10\nsing,x,nan,1\n"
    assert read_items("k.csv", text, root="elsewhere") == [("elsewhere/train/x_000000_000010.mp4", "sing")]
    assert len(read_listing("k.csv", root="elsewhere").skipped) == 4
    for row in ("sing,../../x,0,10", "../..,x,0,10"):
        with pytest.raises(ValueError, match="is outside"):
            read_items("k.csv", f"label,youtube_id,time_start,time_end\n{row}\n")


@pytest.mark.parametrize("text", ["[]", "3", '{"0.png": 3}', '{"0.png": ["cat"]}', "[" * 5000])
def test_avid_of_other_types(folder, text):
    with pytest.raises(ValueError, match=r"l.json.* (must be|nested too deeply)"):
        read_items("l.json", text)


class TestSpecialFiles:
    def test_folders_and_devices_are_not_images(self, folder):
        os.makedirs("set/x/dir.jpg")
        os.makedirs("set/y")
        os.mkfifo("set/x/pipe.png")
        Image.new("RGB", (8, 8)).save("set/x/dir.jpg/inside.png")
        Image.new("RGB", (8, 8)).save("set/y/0.png")
        assert [item.path for item in read_listing("set").items] == ["set/x/dir.jpg/inside.png", "set/y/0.png"]
        text = "path,label\nset/x/dir.jpg,a\nset/x/pipe.png,a\n/dev/zero,a\n0.png,b\n"
        assert read_items("l.csv", text) == [("0.png", "b")]
        listing = read_listing("l.csv")
        assert listing.missing == ("set/x/pipe.png", "/dev/zero")
        assert listing.skipped == ("l.csv, line 2: 'set/x/dir.jpg' is a folder, not an image",)
        os.mkdir("films")
        os.mkfifo("films/pipe.mp4")
        os.mkdir("films/folder.mp4")
        Path("films/v.mp4").write_bytes(b"")
        assert [item.path for item in find_footage("films").items] == ["films/v.mp4"]

    def test_names_that_no_system_accepts(self, folder):
        long = "x" * 300
        listing = read_items(
            "l.jsonl",
            TEXTS["l.jsonl"] + f'{{"path": "{long}.png", "label": "a"}}\n{{"path": "a\\u0000b", "label": "a"}}\n',
        )
        assert listing == ITEMS
        assert len(read_listing("l.jsonl").missing) == 2


class TestLinks:
    @pytest.fixture
    def linked(self, folder):
        for name in ("set/a/real.png", "set/b/other.png", "disk/more/far.png"):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(name)
        return folder

    def names(self, source="set"):
        return sorted(str(Path(item.path).relative_to(source)) for item in read_listing(source).items)

    def test_links_to_folders_are_followed(self, linked):
        os.symlink(linked / "disk", "set/a/link")
        with pytest.warns(UserWarning, match=r"set: followed 1 link outside it, the first is set/a/link$"):
            assert self.names() == ["a/link/more/far.png", "a/real.png", "b/other.png"]
        with pytest.warns(UserWarning, match="link outside"):
            assert sorted(item.path for item in find_footage("set").items) == ["set/a", "set/a/link/more", "set/b"]
        # Links to a class and to a file are followed too.
        os.unlink("set/a/link")
        os.symlink(linked / "disk/more", "set/c")
        os.symlink(linked / "0.png", "set/a/zero.png")
        with pytest.warns(UserWarning, match="followed 2 links outside"):
            assert self.names() == ["a/real.png", "a/zero.png", "b/other.png", "c/far.png"]

    def test_loops_end_and_folders_are_read_once(self, linked):
        os.symlink("..", "set/a/up")
        os.symlink(".", "set/a/itself")
        os.symlink("/", "set/a/everything")
        os.symlink("../b", "set/a/the other")
        os.symlink(linked / "disk", "set/a/one")
        os.symlink(linked / "disk/more", "set/b/two")
        os.symlink("nowhere", "set/b/three.png")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            listing = read_listing("set")
            assert self.names() == ["a/one/more/far.png", "a/real.png", "b/other.png"]
        assert sorted(line.split(":")[0] for line in listing.skipped) == [
            "set/a/everything", "set/a/itself", "set/a/the other", "set/a/up", "set/b/three.png", "set/b/two",
        ]  # fmt: skip

    def test_a_list_that_names_links(self, linked):
        os.symlink(linked / "0.png", "disk/zero.png")
        os.symlink(linked / "set", "disk/set")
        os.symlink("more", "disk/near")
        text = "zero.png cat\nset/a/real.png cat\nnear/far.png cat\n"
        with pytest.warns(UserWarning, match=r"disk: followed 2 links outside it, .* disk/set/a/real.png$"):
            assert len(read_items("disk/l.txt", text)) == 3
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(read_items("disk/l.txt", "near/far.png cat\nmore/far.png cat\n")) == 2


def test_order_within_classes(folder):
    for label, n in itertools.product(("b", "a"), (10, 9, 2)):
        Path(f"set/{label}/sub").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(f"set/{label}/sub/{n}.png")
    assert [item.path for item in read_listing("set").items] == [
        f"set/{label}/sub/{n}.png" for label in "ab" for n in (2, 9, 10)
    ]


@pytest.fixture
def numbered(tmp_path) -> Path:
    """A folder of 100 images, whose pixels are their number; 25 per second."""
    folder = tmp_path / "seq"
    folder.mkdir()
    for number in range(100):
        Image.new("RGB", (16, 16), (number, number, number)).save(folder / f"{number:03}.png")
    return folder


def test_parts_of_a_folder_of_images(numbered, tmp_path):
    (tmp_path / "list.csv").write_text("path,start,end\nseq,0,1\nseq,2,3\n", encoding="utf-8")
    items = find_footage(tmp_path / "list.csv", root=tmp_path).items
    counts = []

    def ends(count: int) -> list[int]:
        counts.append(count)
        return [0, count - 1]

    shown = [read_frames(item, ends)[:, 0, 0, 0].tolist() for item in items]
    assert counts == [25, 25] and shown == [[0, 24], [50, 74]]
    np.save(tmp_path / "a.npy", np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(VideoError, match="has no times"):
        read_frames(Footage(str(tmp_path / "a.npy"), start=1.0), ends)


def test_neighboring_segments_share_no_frame(numbered, tmp_path):
    (tmp_path / "list.csv").write_text("path,label,start,end\nseq,x,0,1\nseq,y,1,2\n", encoding="utf-8")
    listing = read_listing(tmp_path / "list.csv", root=tmp_path)
    data = ClipData(listing, Transform(size=16), View(frames=4, stride=10), training=False)
    shown = [(255 * data[n].clip[0, :, 0, 0, 0].double()).round().int().tolist() for n in (0, 1)]
    assert max(shown[0]) < 25 <= min(shown[1]) and max(shown[1]) < 50
