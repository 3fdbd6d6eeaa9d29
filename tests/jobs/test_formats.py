"""Formats of token data sets: each is read by the library it is for, and keeps values and headers."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from fewtokens import Grid, Tokens, create_method
from fewtokens.core.files import CorruptFileError
from fewtokens.jobs import FORMATS, export, find_files, read_records
from tests.helpers.command import run


def videos() -> dict[str, Tokens]:
    """Tokens with every optional field, times or none, and several dtypes and sizes."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    plain = create_method("tome", keep=0.3)(
        Tokens.from_cells(random(1, 12, 8), Grid(3, 2, 2, times=torch.tensor([0, 0.1, 1 / 3], dtype=torch.float64)))
    )
    soft = plain.replace(attribution=random(1, plain.N, 12).softmax(2), prefix=random(1, 2, 8))
    codes = torch.randint(0, 9, (1, plain.N, 2), generator=generator)
    return {
        "plain": plain.replace(meta={"spec": "tome(keep=0.3)", "name": "ä\n"}),
        "soft": soft.replace(meta={}),
        "codes": plain.replace(codes=codes, dropped="held", aux={"loss": torch.tensor([0.1])}),
        "one": Tokens.from_cells(random(1, 1, 1, 1, 8)),
    }


def save(folder: Path, tokens: dict[str, Tokens]) -> Path:
    for name, value in tokens.items():
        value.save(folder / f"{name}.safetensors")
    return folder


def assert_equal(one: Tokens, other: Tokens) -> None:
    expected, values = one.numpy(), other.numpy()
    assert expected.keys() == values.keys()
    for name, value in expected.items():
        assert values[name].dtype == value.dtype and np.array_equal(values[name], value), name
    assert one.features.dtype == other.features.dtype
    assert one.grid == other.grid and one.dropped == other.dropped and dict(one.meta) == dict(other.meta)
    assert one.aux.keys() == other.aux.keys()
    assert all(torch.equal(one.aux[name], other.aux[name]) for name in one.aux)


def needs(name: str) -> None:
    if FORMATS[name].package is not None:
        pytest.importorskip(FORMATS[name].package)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FORMATS)
def test_export_and_back_keeps_everything(tmp_path, name, dtype):
    needs(name)
    tokens = {key: value.to(dtype) for key, value in videos().items()}
    source = save(tmp_path / "source", tokens)
    assert export(source, str(tmp_path / name), name, per_shard=3) == len(tokens)
    assert export(tmp_path / name, str(tmp_path / "back"), "safetensors") == len(tokens)
    for key, value in tokens.items():
        assert_equal(Tokens.load(tmp_path / "back" / f"{key}.safetensors"), value)
    count = len(tokens) if FORMATS[name].per_video else 2
    assert len(find_files(tmp_path / name)) == count


def test_shards_are_read_by_safetensors(tmp_path):
    tokens = videos()
    export(save(tmp_path / "source", tokens), str(tmp_path / "out"), "shards")
    with safe_open(tmp_path / "out/shards/000000.safetensors", framework="np") as file:
        header = json.loads(file.metadata()["fewtokens"])
        for number, video in enumerate(header["videos"]):
            expected = tokens[video["key"]]
            assert np.array_equal(file.get_tensor(f"{number}.features"), expected.features.numpy())
            assert np.array_equal(file.get_tensor(f"{number}.positions"), expected.positions.numpy())
            assert video["grid"]["shape"] == list(expected.grid.shape)


def test_tars_are_read_by_webdataset(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    tokens = videos()
    export(save(tmp_path / "source", tokens), str(tmp_path / "out"), "webdataset")
    samples = list(webdataset.WebDataset(str(tmp_path / "out/shards/000000.tar"), shardshuffle=False).decode())
    assert sorted(sample["__key__"] for sample in samples) == sorted(tokens)
    for sample in samples:
        expected = tokens[sample["__key__"]]
        assert np.array_equal(sample["features.npy"], expected.features[0].numpy())
        assert np.array_equal(sample["positions.npy"], expected.positions[0].numpy())
        assert np.array_equal(sample["sizes.npy"], expected.sizes[0].numpy())
        assert ("times.npy" in sample) == (expected.grid.times is not None)
        assert sample["json"]["grid"]["shape"] == list(expected.grid.shape)


def test_parquet_is_read_by_pyarrow(tmp_path):
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    tokens = videos()
    export(save(tmp_path / "source", tokens), str(tmp_path / "out"), "parquet", per_shard=3)
    rows = parquet.read_table(tmp_path / "out/shards").to_pylist()
    assert sorted(row["key"] for row in rows) == sorted(tokens)
    for row in rows:
        expected = tokens[row["key"]]
        assert np.array_equal(np.float32(row["features"]), expected.features[0].numpy())
        assert np.array_equal(np.float32(row["positions"]), expected.positions[0].numpy())
        assert row["assignment"] == expected.assignment[0].tolist()
        assert row["times"] == (None if expected.grid.times is None else expected.grid.times.tolist())


def test_a_folder_is_loaded_by_datasets(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    tokens = videos()
    export(save(tmp_path / "source", tokens), str(tmp_path / "out"), "hf", per_shard=3)
    table = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert table.num_rows == len(tokens)
    for row in table.with_format("numpy"):
        expected = tokens[row["key"]]
        assert np.array_equal(np.stack(row["features"]), expected.features[0].numpy())
        assert np.array_equal(np.stack(row["positions"]), expected.positions[0].numpy())
        assert np.array_equal(row["sizes"], expected.sizes[0].numpy())


def test_arrays_with_a_damaged_header_are_refused(tmp_path):
    save(tmp_path / "source", videos())
    export(str(tmp_path / "source"), str(tmp_path / "out"), "webdataset")
    (path,) = (tmp_path / "out").rglob("*.tar")
    data = path.read_bytes()
    at = data.index(b"\x93NUMPY")
    length = int.from_bytes(data[at + 8 : at + 10], "little")
    for index in range(at + 6, at + 10 + length, 5):
        path.write_bytes(data[:index] + b"(" + data[index + 1 :])
        with contextlib.suppress(ValueError):  # some change nothing that is read
            export(str(tmp_path / "out"), str(tmp_path / "again" / str(index)), "safetensors")
    path.write_bytes(data[: at + 10] + b"{" * length + data[at + 10 + length :])
    line = run("export", tmp_path / "out", tmp_path / "last", "--format", "safetensors", code=2).stderr
    assert "a damaged array" in line and line.count("\n") == 1


@pytest.mark.parametrize("column", ["features", "sizes"])
def test_parquet_columns_of_another_type_are_refused(column, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    export(save(tmp_path / "source", videos()), str(tmp_path / "out"), "parquet")
    (path,) = (tmp_path / "out").rglob("*.parquet")
    table = parquet.read_table(path)
    index = table.column_names.index(column)
    parquet.write_table(table.set_column(index, column, pyarrow.array([1.5] * len(table))), path)
    line = run("export", tmp_path / "out", tmp_path / "again", "--format", "safetensors", code=2).stderr
    assert f"the column {column} must be a list, is double" in " ".join(line.split())


def hostile_tar(path: Path, names: list[str]) -> None:
    """A tar for WebDataset whose videos have these keys, with valid tokens."""
    save(path.parent / "one", {"one": videos()["one"]})
    export(path.parent / "one", str(path.parent / "template"), "webdataset")
    with tarfile.open(path.parent / "template/shards/000000.tar") as source, tarfile.open(path, "w") as tar:
        members = [(member.name.partition(".")[2], source.extractfile(member).read()) for member in source]
        for name in names:
            for suffix, data in members:
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def test_hostile_keys_stay_in_their_folder(tmp_path):
    (tmp_path / "in").mkdir()
    hostile_tar(tmp_path / "in/bad.tar", ["/etc/passwd", "a/b/passwd", "x\ny", "-rf", "CON"])
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    export(tmp_path / "in/bad.tar", str(tmp_path / "out"), "safetensors")
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert len(written) == 5 and all(path.parent == tmp_path / "out" for path in written)
    export(tmp_path / "in/bad.tar", str(tmp_path / "tars"), "webdataset")
    with tarfile.open(tmp_path / "tars/shards/000000.tar") as tar:
        assert not any("/" in name or "\n" in name for name in tar.getnames())


@pytest.mark.parametrize("name", ["shards", "webdataset", "parquet"])
def test_damaged_files_are_one_line(tmp_path, name):
    needs(name)
    export(save(tmp_path / "source", videos()), str(tmp_path / name), name)
    (file,) = find_files(tmp_path / name)
    content = file.read_bytes()
    members = 512 * (len(content) // 1024)  # a tar that is cut between members is one that tarfile accepts
    for size in (0, len(content) // 3, members):
        file.write_bytes(content[:size])
        with pytest.raises(ValueError, match=file.name) as error:
            list(read_records(file))
        assert "\n" not in str(error.value)
        assert isinstance(error.value, CorruptFileError) or "no tokens" in str(error.value)


def test_command(tmp_path):
    source = save(tmp_path / "source", videos())
    done = run("export", source, tmp_path / "out", "--format", "webdataset", "--json")
    assert json.loads(done.stdout) == {"out": str(tmp_path / "out"), "format": "webdataset", "videos": 4}
    assert "not empty" in run("export", source, tmp_path / "out", "--format", "shards", code=2).stderr
    assert "format must be one of" in run("export", source, tmp_path / "b", "--format", "zip", code=2).stderr
    assert "no token files" in run("export", tmp_path, tmp_path / "b", "--format", "shards", code=2).stderr
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["parquet", "hf"])
def test_columns_keep_the_dtype_of_each_video(tmp_path, name):
    """float16 fits in a column of float32, and is float16 again."""
    needs(name)
    tokens = videos()["one"]
    source = save(tmp_path / "source", {"a": tokens, "b": tokens.to(torch.float16)})
    export(source, str(tmp_path / "out"), name)
    (path,) = find_files(tmp_path / "out")
    records = {record.key: record.tokens for record in read_records(path)}
    assert records["a"].features.dtype == torch.float32
    assert_equal(records["b"], tokens.to(torch.float16))


def test_an_export_that_was_killed_is_not_taken_for_a_whole(tmp_path, monkeypatch):
    source, target = save(tmp_path / "source", videos()), tmp_path / "out"
    written = FORMATS["shards"].write

    def fail(*words):
        if (target / "shards").exists():
            raise KeyboardInterrupt
        return written(*words)

    monkeypatch.setitem(FORMATS, "shards", FORMATS["shards"]._replace(write=fail))
    with pytest.raises(KeyboardInterrupt):
        export(source, str(target), "shards", per_shard=2)
    with pytest.raises(ValueError, match="did not finish; run the same command again"):
        find_files(target)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="not empty"):
        export(source, str(target), "shards", per_shard=3)
    assert export(source, str(target), "shards", per_shard=2) == 4
    assert len(find_files(target)) == 2
