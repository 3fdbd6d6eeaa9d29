"""Text lines, tables and JSON, as editors, spreadsheets and other programs write them."""

import pytest

from fewtokens.core import files


def test_line_endings(tmp_path):
    text = "\ufeffone\r\n\r\n two\u2028still two\rthree\x0b\x85\n  \nlast"
    (tmp_path / "a").write_bytes(text.encode())
    assert list(files.read_lines(tmp_path / "a")) == [
        (1, "one"), (3, " two\u2028still two"), (4, "three\x0b\x85"), (6, "last"),
    ]  # fmt: skip


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables(tmp_path, separator, end):
    rows = [
        ["a", " b ", '"c, d; e\tf"'],
        ["1", "", '"x""y"'],
        [" ", "", ""],
        ["2"],
        ["3", "4", "5", "", ""],
        list("6789"),
    ]
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + end.join(separator.join(row) for row in rows).encode())
    wide = "c, d; e\tf"
    assert files.read_header(tmp_path / "t.csv") == ["a", "b", wide]
    assert list(files.read_table(tmp_path / "t.csv")) == [
        (2, {"a": "1", "b": "", wide: 'x"y'}, 0), (4, {"a": "2", "b": "", wide: ""}, -2),
        (5, {"a": "3", "b": "4", wide: "5"}, 0), (6, {"a": "6", "b": "7", wide: "8"}, 1),
    ]  # fmt: skip


def test_invalid_tables(tmp_path):
    path = tmp_path / "t.csv"
    for text, message in [
        ('a,b\n1,"2\n3,4\n', "line 3: invalid CSV"),
        ("a,b\n" + "x" * 200_000 + ",1\n", "line 2: invalid CSV"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as error:
            list(files.read_table(path))
        assert "\n" not in str(error.value)
    path.write_text("")
    assert files.read_header(path) == []
    assert list(files.read_table(path)) == []


@pytest.mark.parametrize("text", ['"\\ud800"', '{"a": "x\\udbff"}', '{"\\uD83D": 1}', '["\\ude00\\ud83d"]'])
def test_lone_surrogates_are_rejected(text):
    with pytest.raises(ValueError, match=r"f: invalid JSON .*lone surrogate"):
        files.parse_json(text, "f")
    assert files.parse_json('"\\ud83d\\ude00"', "f") == "\N{GRINNING FACE}"
