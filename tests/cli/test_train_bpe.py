"""`train bpe`: encoded videos with fewer tokens that decode to the same frames, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fewtokens.tokenizers import Tokenizer, load_tokenizer
from fewtokens.tokenizers.files import read_encoded, write_encoded
from fewtokens.tokenizers.pairs import merge_pairs
from fewtokens.video import synthetic
from tests.cli.test_command import error_line, quick

SPEC = "tubelet(12, stride=(1, 4, 4)) | lfq(3) > tubelet(stride=(1, 4, 4))"


def save(folder: Path, spec: str = SPEC, kinds: tuple[str, ...] = ("static", "pan")) -> list[Path]:
    torch.manual_seed(0)
    tokenizer = load_tokenizer(Tokenizer.from_spec(spec).save_pretrained(folder / "base"), device="cpu")
    return [
        write_encoded(
            folder / f"{kind}.safetensors",
            tokenizer.encode(synthetic(kind, frames=2, size=(24, 32)).frames),
            tokenizer,
        )
        for kind in kinds
    ]


def test_fewer_tokens_decode_to_the_same_frames(tmp_path):
    files, out = save(tmp_path), tmp_path / "merged"
    report = json.loads(quick("train", "bpe", *files, "--merges", 10, "--out", out, "--json").stdout)
    base, merged = (load_tokenizer(folder, device="cpu") for folder in (tmp_path / "base", out))
    assert report["files"] == 2 and report["cells"] == 2 * 2 * 6 * 8 and report["new_codes"] == 10
    assert merged.codebook_sizes == (8 + 10,)
    count = 0
    for file, kind in zip(files, ("static", "pan"), strict=True):
        frames = synthetic(kind, frames=2, size=(24, 32)).frames
        tokens = merged.encode(frames)
        assert torch.equal(merged.decode(tokens), base.decode(base.encode(frames)))
        codes = read_encoded(file, base).codes.reshape(2, 6, 8).numpy()
        assert len(merge_pairs(codes, merged.pairs[:10].numpy(), 8).ids) == tokens.N
        count += tokens.N
    assert count == report["tokens"] < report["cells"]
    # Merges are learned from the codes before merging, so those of a merged tokenizer are learned again.
    again = write_encoded(tmp_path / "again.safetensors", merged.encode(frames), merged)
    quick("train", "bpe", again, "--merges", 5, "--out", tmp_path / "second")
    second = load_tokenizer(tmp_path / "second", device="cpu")
    assert second.codebook_sizes == (8 + 5,)
    assert torch.equal(second.decode(second.encode(frames)), base.decode(base.encode(frames)))


def test_refusals(tmp_path):
    files = save(tmp_path)
    words = ("train", "bpe", *files, "--out")
    assert "must be a folder" in error_line(quick(*words, tmp_path / "a.txt", code=2))
    assert "already contains a model" in error_line(quick(*words, tmp_path / "base", code=2))
    assert "merges must be in 1..1024" in error_line(quick(*words, tmp_path / "o", "--merges", 1025, code=2))
    assert "no such file" in error_line(quick("train", "bpe", tmp_path / "x", "--out", tmp_path / "o", code=2))
    (tmp_path / "other").mkdir()
    (other,) = save(tmp_path / "other", SPEC.replace("12", "8"), ("pan",))
    line = error_line(quick("train", "bpe", files[0], other, "--out", tmp_path / "o", code=2))
    assert "encoded by another tokenizer" in line
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("spec", [SPEC.replace("lfq(3)", "fsq(groups=2)"), SPEC.replace(" | lfq(3)", "")])
def test_codes_that_cannot_be_merged(tmp_path, spec):
    words = ("train", "bpe", *save(tmp_path, spec), "--out", tmp_path / "o")
    assert "one per cell of a grid" in error_line(quick(*words, code=2))
