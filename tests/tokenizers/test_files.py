"""Files of encoded videos: bit-equal decoding, sizes, reading without this library, and what they refuse."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from fewtokens.tokenizers import Tokenizer, create_tokenizer
from fewtokens.tokenizers.files import EncodedWriter, read_encoded, read_header, write_encoded, write_webdataset
from fewtokens.video import synthetic

ENDS = ("tubelet(24, stride=(2, 8, 8))", "tubelet(stride=(2, 8, 8))")
METHODS = {
    "fsq": "fsq((8, 5, 5))",
    "large": "fsq((8, 8, 8, 8, 8, 8))",
    "two codebooks": "product_vq(30, groups=2)",
    "no code for some levels": "residual_vq(30, levels=3)",
    "merged": "tome(keep=7) | lfq(10)",
    "dropped": "random(keep=7) | fsq",
    "held": "evs(keep=0.3) | lfq(10)",
    "continuous": "",
    "continuous merged": "tome(keep=7)",
}


def build(methods: str = METHODS["fsq"], **options) -> Tokenizer:
    torch.manual_seed(0)
    spec = f"{ENDS[0]} | {methods} > {ENDS[1]}" if methods else " > ".join(ENDS)
    return Tokenizer.from_spec(spec, **options).eval()


def frames(T: int = 5, height: int = 30, width: int = 44, kind: str = "pan") -> torch.Tensor:
    return synthetic(kind, frames=T, size=(height, width)).frames


def encode(tokenizer: Tokenizer, name: str):
    tokens = tokenizer.encode(frames(kind="static" if name == "held" else "pan"))
    if name == "no code for some levels":
        tokens.codes[:, ::2, 1:] = -1
    return tokens


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("name", METHODS)
def test_decoding_a_file_is_bit_equal(name, window, packed, tmp_path):
    tokenizer = build(METHODS[name], window=window)
    tokens = encode(tokenizer, name)
    if packed and tokenizer.quantizer is None:
        with pytest.raises(ValueError, match="packed has no effect"):
            write_encoded(tmp_path / "a", tokens, tokenizer, packed=packed)
        return
    path = write_encoded(tmp_path / "a.safetensors", tokens, tokenizer, packed=packed, fps=12.5, note="x")
    again = read_encoded(path, tokenizer)
    assert torch.equal(tokenizer.decode(again), tokenizer.decode(tokens))
    if tokens.codes is not None:
        assert torch.equal(again.codes, tokens.codes)
    assert (again.meta["fps"], again.meta["note"], again.meta["size"]) == (12.5, "x", [5, 30, 44])
    header = read_header(path)
    layout = tokenizer.layout(5, 30, 44)
    assert (header["size"], header["padded"]) == ([5, 30, 44], list(layout.padded))
    assert header["bits"] == pytest.approx(float(tokenizer.bits(tokens).sum()))
    stored = load_file(path)
    assert header["bytes"] == sum(array.nbytes for array in stored.values())
    assert (
        ("assignment" in stored)
        == tokenizer.stores_assignment
        == (name in ("merged", "dropped", "held", "continuous merged"))
    )
    assert ("present" in stored) == (name == "no code for some levels")


def test_decoding_equals_the_reconstruction_of_training(tmp_path):
    for name in ("fsq", "merged", "continuous"):
        tokenizer = build(METHODS[name])
        x = frames(4, 32, 40)[None]
        with torch.no_grad():
            expected = ((tokenizer(x).frames + 1) / 2).clamp(0, 1)
        assert torch.allclose(tokenizer.decode(tokenizer.encode(x)), expected, atol=1e-6)


def test_a_fresh_process_decodes_the_same(tmp_path):
    tokenizer = build(METHODS["merged"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokens = encode(tokenizer, "merged")
    write_encoded(tmp_path / "a.safetensors", tokens, tokenizer, packed=True)
    script = (
        "import sys, torch, numpy\n"
        "from fewtokens.tokenizers import load_tokenizer\n"
        "from fewtokens.tokenizers.files import read_encoded\n"
        "torch.set_num_threads(1)\n"
        "t = load_tokenizer(sys.argv[1] + '/tokenizer', device='cpu')\n"
        "numpy.save(sys.argv[1] + '/out.npy', t.decode(read_encoded(sys.argv[1] + '/a.safetensors', t)).numpy())\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    assert np.array_equal(np.load(tmp_path / "out.npy"), tokenizer.decode(tokens).numpy())


def test_packed_18_bits_have_the_stated_size(tmp_path):
    tokenizer = build(METHODS["large"])
    tokens = encode(tokenizer, "large")
    path = write_encoded(tmp_path / "a.safetensors", tokens, tokenizer, packed=True)
    assert read_header(path)["bytes"] == math.ceil(18 * tokens.N / 8)
    plain = write_encoded(tmp_path / "b.safetensors", tokens, tokenizer)
    assert load_file(plain)["codes"].dtype == np.uint32 and read_header(plain)["bytes"] == 4 * tokens.N


def test_half_precision_equals_half_tokens(tmp_path):
    tokenizer = build("")
    tokens = encode(tokenizer, "continuous")
    path = write_encoded(tmp_path / "a.safetensors", tokens, tokenizer, half=True)
    halved = tokens.replace(features=tokens.features.half())
    assert torch.equal(tokenizer.decode(read_encoded(path, tokenizer)), tokenizer.decode(halved))
    assert read_header(path)["bytes"] == tokens.features.numel() * 2
    with pytest.raises(ValueError, match="half has no effect"):
        write_encoded(path, build().encode(frames()), build(), half=True)


def plain_reader(path: Path) -> np.ndarray:
    """The codes [M,Q] of a file, -1 for none, from its header alone: without fewtokens and torch."""
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["fewtokens"])
    arrays = load_file(path)
    M, sizes = header["total_tokens"], header["codebook_sizes"]
    present = np.ones((M, len(sizes)), bool)
    if "present" in arrays:
        present = np.unpackbits(arrays["present"], count=present.size, bitorder="little").reshape(present.shape) > 0
    if not header["packed"]:
        return np.where(present, arrays["codes"].astype(np.int64), -1)
    codes, start = np.full(present.shape, -1), 0
    for q, bits in enumerate(header["bits_per_code"]):
        n = int(present[:, q].sum())
        stop = start + -(-bits * n // 8)
        table = np.unpackbits(arrays["codes"][start:stop], count=bits * n, bitorder="little").reshape(n, bits)
        codes[present[:, q], q] = table @ (1 << np.arange(bits))
        start = stop
    return codes


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["large", "two codebooks", "no code for some levels", "held"])
def test_a_file_is_readable_from_its_header_alone(name, packed, tmp_path):
    tokenizer = build(METHODS[name])
    tokens = encode(tokenizer, name)
    path = write_encoded(tmp_path / "a.safetensors", tokens, tokenizer, packed=packed)
    assert np.array_equal(plain_reader(path), tokens.codes[tokens.mask].numpy())


def test_the_index_order_of_fsq(tmp_path):
    tokenizer = build(METHODS["fsq"])
    tokens = encode(tokenizer, "fsq")
    header = read_header(write_encoded(tmp_path / "a.safetensors", tokens, tokenizer))
    assert header["index_order"] == "the first channel counts fastest"
    levels = tokens.codes[0, :, 0, None] // torch.tensor([1, 8, 40]) % torch.tensor([8, 5, 5])
    values = (levels - torch.tensor([4, 2, 2])) / torch.tensor([4, 2, 2])
    quantizer = tokenizer.quantizer
    expected = quantizer.project_out(values)
    assert torch.allclose(quantizer.lookup(tokens.codes)[0], expected, atol=1e-5)


def test_chunks_are_written_as_one_video(tmp_path):
    tokenizer = build()
    x = frames(6, 32, 40)
    writer = EncodedWriter(tokenizer, packed=True)
    for start in range(0, 6, 2):
        writer.add(tokenizer.encode(x[start : start + 2]))
    tokens = read_encoded(writer.save(tmp_path / "a.safetensors"), tokenizer)
    whole = tokenizer.encode(x)
    assert torch.equal(tokens.codes, whole.codes) and tokens.grid.shape == whole.grid.shape
    assert torch.equal(tokenizer.decode(tokens), tokenizer.decode(whole))


@pytest.mark.parametrize("name", ["fsq", "no code for some levels", "merged", "held", "continuous"])
def test_a_webdataset_tar(name, tmp_path):
    tokenizer = build(METHODS[name], window=2)
    tokens = encode(tokenizer, name)
    paths = [write_encoded(tmp_path / f"{key}.safetensors", tokens, tokenizer) for key in "ab"]
    tar = write_webdataset(tmp_path / "shard.tar", [(path.stem, path) for path in paths])
    with tarfile.open(tar) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive.getmembers()}
    assert {name.split(".")[0] for name in members} == {"a", "b"}
    header = json.loads(members["a.json"])
    arrays = {name.split(".", 1)[1]: np.load(BytesIO(data)) for name, data in members.items() if name.endswith("npy")}
    values = arrays["npy"]
    if tokens.codes is None:
        assert np.array_equal(values, tokens.features[tokens.mask].numpy())
    else:
        present = arrays.get("present.npy", np.ones(values.shape, bool))
        assert np.array_equal(np.where(present, values.astype(int), -1), tokens.codes[tokens.mask].numpy())
    if "count.npy" in arrays:
        assert arrays["count.npy"].tolist() == tokens.count.tolist()
    else:
        assert header["tokens"] * header["videos"] == len(values)
    if tokenizer.stores_assignment:
        assert np.array_equal(arrays["assignment.npy"], tokens.assignment.numpy())
    with pytest.raises(ValueError, match="unique and have no dot"):
        write_webdataset(tar, [("a", paths[0]), ("a", paths[1])])
    assert tarfile.is_tarfile(tar)  # the failed write did not replace it


class TestRefusals:
    @pytest.fixture
    def path(self, tmp_path):
        tokenizer = build()
        return write_encoded(tmp_path / "a.safetensors", tokenizer.encode(frames()), tokenizer)

    def test_another_tokenizer(self, path):
        with pytest.raises(ValueError, match="encoded by another tokenizer"):
            read_encoded(path, build(METHODS["large"]))
        with pytest.raises(ValueError, match=r"another tokenizer.*with window None; this one is.*with window 2"):
            read_encoded(path, build(window=2))

    def test_other_weights(self, path):
        other = build()
        with torch.no_grad():
            other.decoder.project.bias[0] += 1e-6
        with pytest.raises(ValueError, match=r"other weights .* .SHA-256 .*give the folder"):
            read_encoded(path, other)

    def test_another_kind_of_file(self, path, tmp_path):
        plain = build().encode(frames()).save(tmp_path / "b.safetensors")
        with pytest.raises(ValueError, match="contains tokens, not encoded video"):
            read_encoded(plain)
        with pytest.raises(ValueError, match="no such file"):
            read_encoded(tmp_path / "c.safetensors")

    def test_damaged_files(self, path, tmp_path):
        from fewtokens.core import files

        tensors, header = files.load(path, "encoded video")
        codes = {"codes": torch.full(tensors["codes"].shape, 250).to(torch.uint16)}
        for number, (change, values) in enumerate(
            [
                ({"total_tokens": 3}, {}),
                ({"tokens": 5}, {}),
                ({"codebook_sizes": "x"}, {}),
                ({"grid": [1, 1]}, {}),
                ({"grid": [0, 1, 1]}, {}),
                ({"packed": True}, {}),
                ({}, codes),
                ({}, {"count": torch.tensor([7], dtype=torch.int32)}),
                ({}, {"assignment": torch.zeros(3, dtype=torch.uint8)}),
                ({}, {"present": torch.zeros(3, dtype=torch.uint8)}),
            ]
        ):
            own = {key: value for key, value in header.items() if key not in ("kind", "version", "versions")}
            damaged = files.save(tmp_path / f"{number}", "encoded video", tensors | values, own | change)
            with pytest.raises(ValueError, match="a damaged file"):
                read_encoded(damaged)

    def test_missing_codes(self, tmp_path):
        tokenizer = build()
        tokens = tokenizer.encode(frames()).replace(codes=None)
        with pytest.raises(ValueError, match="without codes"):
            write_encoded(tmp_path / "a", tokens, tokenizer)


def test_the_fingerprint():
    tokenizer = build()
    assert tokenizer.fingerprint() == build().fingerprint() and len(tokenizer.fingerprint()) == 64
    assert tokenizer.fingerprint() != build(window=2).fingerprint()
    seeded = [create_tokenizer(tokenizer.spec, seed=seed).fingerprint() for seed in (1, 1, 2)]
    assert seeded[0] == seeded[1] != seeded[2]
    assert build().bfloat16().fingerprint() != tokenizer.fingerprint()
