"""Pairs of frames: which frames, the same crop for both, and all sources of videos."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewtokens.data.footage import Footage, find_footage, open_frames, read_frames
from fewtokens.data.packed import pack_frames, write_frames
from fewtokens.data.pairs import PairData, Pairing, collate_pairs, first_valid_sample, mask_noise, sample_pair
from tests.video.makers import make_video, moving_frames, numbered_frames


def frames_of(n: int, height: int = 24, width: int = 32) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(moving_frames(n, width, height))).permute(0, 3, 1, 2)


def packed_videos(folder: Path, *lengths: int) -> list[Footage]:
    for number, length in enumerate(lengths):
        write_frames(folder / f"{number}.npy", [frames_of(length)])
    return list(find_footage(folder).items)


@pytest.mark.parametrize("length", [2, 5, 97, 300])
@pytest.mark.parametrize("gaps", [(1, 96), (4, 96), (4, 48), (0, 0), (1, 1)])
def test_gaps_fit_any_length(length, gaps):
    generator = torch.Generator().manual_seed(0)
    pairs = [sample_pair(length, *gaps, generator) for _ in range(600)]
    starts, ends = (np.array(part) for part in zip(*pairs, strict=True))
    longest = min(gaps[1], length - 1)
    assert starts.min() >= 0
    assert ends.max() < length
    assert set(ends - starts) <= set(range(min(gaps[0], longest), longest + 1))
    # Every gap occurs, including the first and the last, and so does every start.
    if longest < 20:
        assert set(ends - starts) == set(range(min(gaps[0], longest), longest + 1))
    assert starts.min() == 0
    assert starts.max() >= 0.9 * (length - 1 - (gaps[1] if length > gaps[1] else longest))


def test_a_pair_requires_two_frames():
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="requires two frames, the video has 1"):
        sample_pair(1, 1, 96, generator)
    assert sample_pair(1, 0, 0, generator) == [0, 0]


def test_same_crop_and_flip_for_both(tmp_path):
    items = packed_videos(tmp_path, 40)
    same = PairData(items, Pairing(size=16, min_gap=0, max_gap=0, repeats=3))
    for number in range(20):
        sample = same[(number, 0)].frames
        assert sample.shape == (3, 2, 3, 16, 16)
        assert torch.equal(sample[:, 0], sample[:, 1])
        assert not torch.equal(sample[0], sample[1])


def test_a_sample_depends_on_seed_epoch_and_index_only(tmp_path):
    items = packed_videos(tmp_path, 30, 8)
    data, again = (PairData(items, Pairing(size=16), seed=3, visits=4) for _ in range(2))
    assert len(data) == 8
    assert torch.equal(data[(2, 5)].frames, again[(2, 5)].frames)
    assert data[(2, 5)].seeds == again[(2, 5)].seeds
    others = [(2, 3), (1, 5)]
    assert all(not torch.equal(data[(2, 5)].frames, data[key].frames) for key in others)
    assert not torch.equal(data[(2, 5)].frames, PairData(items, Pairing(size=16), seed=4, visits=4)[(2, 5)].frames)
    noise = mask_noise(data[(2, 5)].seeds, 16)
    assert torch.equal(noise, mask_noise(again[(2, 5)].seeds, 16))
    assert noise.shape == (1, 16)


def test_a_crop_of_a_crop(tmp_path):
    items = packed_videos(tmp_path, 5)
    options = {"mode": "crops", "size": 24, "area": (1.0, 1.0), "flip": 0.0}
    sample = PairData(items, Pairing(**options, local=(0.3, 0.6)))[(0, 0)].frames[0]
    assert sample.shape == (2, 3, 24, 24)
    # The target is an enlarged part of the source, so some part of the source is much closer to it than chance.
    best = min(
        float((torch.nn.functional.interpolate(sample[:1, :, t : t + h, l : l + w].float(), (24, 24), mode="bicubic")
               - sample[1:].float()).abs().mean())
        for h in range(12, 21) for w in range(12, 21) for t in range(0, 25 - h) for l in range(0, 25 - w)
    )  # fmt: skip
    assert best < 0.35 * float((sample[0].float() - sample[1].float()).abs().mean())
    single = PairData(items, Pairing(mode="frame", size=12))[(0, 0)].frames
    assert single.shape == (1, 1, 3, 12, 12)


def test_the_requested_frames_are_read(tmp_path):
    path = make_video(tmp_path / "v.mp4", numbered_frames(40))
    levels = (np.arange(40) * 7) % 200 + 20
    indices = [31, 3, 3, 17]
    frames = read_frames(Footage(str(path)), lambda count: indices if count == 40 else [])
    assert np.abs(frames.float().mean((1, 2, 3)).numpy() - levels[indices]).max() < 3
    # A part of the video, in seconds: the frames 10..19.
    part = read_frames(Footage(str(path), 1.0, 2.0), lambda count: [0, count - 1])
    assert np.abs(part.float().mean((1, 2, 3)).numpy() - levels[[10, 19]]).max() < 3
    packed = pack_frames([Footage(str(path))], tmp_path / "out", short=24)
    assert packed.frames == 40
    (file,) = packed.files
    assert open_frames(file).shape == (40, 24, 32, 3)
    assert np.abs(open_frames(file).mean((1, 2, 3)) - levels).max() < 3
    assert isinstance(open_frames(file), np.memmap)
    assert pack_frames([Footage(str(path))], tmp_path / "out", short=24).frames == 0


def test_footage_of_every_type(tmp_path):
    (tmp_path / "set" / "class a").mkdir(parents=True)
    make_video(tmp_path / "set" / "class a" / "v.mp4", moving_frames(12))
    images = tmp_path / "set" / "class b" / "clip"
    images.mkdir(parents=True)
    for n in range(12):
        Image.fromarray(numbered_frames(12)[n]).save(images / f"{n}.png")
    packed_videos(tmp_path / "set", 12)
    items = find_footage(tmp_path / "set").items
    assert len(items) == 3
    for item in items:
        assert read_frames(item, lambda count: [count - 1, 0], short=16).shape == (2, 3, 16, 21)
    # The frames of a folder are in natural order: 2 before 10.
    frames = read_frames(Footage(str(images)), lambda count: list(range(count)))
    assert frames[:, 0, 0, 0].tolist() == ((np.arange(12) * 7) % 200 + 20).tolist()
    video_list = tmp_path / "list.txt"
    video_list.write_text("class a/v.mp4 7\nclass b/clip\nclass a/v.mp4\na missing video.mp4 3\n")
    collection = find_footage(video_list, root=tmp_path / "set")
    assert len(collection.items) == 3
    assert collection.missing == ("a missing video.mp4",)
    (tmp_path / "set" / "l.csv").write_text("path,label,start,end\nclass a/v.mp4,x,0.5,1\n")
    (item,) = find_footage(tmp_path / "set" / "l.csv").items
    assert (item.start, item.end) == (0.5, 1.0)


def test_tars(tmp_path):
    video = make_video(tmp_path / "v.mp4", moving_frames(12))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(video, "k1.mp4")
        for n in range(12):
            buffer = io.BytesIO()
            Image.fromarray(numbered_frames(12)[n]).save(buffer, "PNG")
            for name in (f"clips/x/{n}.png", f"y.{n:03d}.png"):
                member = tarfile.TarInfo(name)
                member.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(member, buffer)
    items = find_footage(tmp_path).items
    assert len(items) == 3
    for item in items:
        assert read_frames(item, lambda count: [0, 11] if count == 12 else []).shape == (2, 3, 48, 64)
    data = PairData(items, Pairing(size=16, max_gap=4, repeats=2))
    batch = collate_pairs([data[n] for n in range(3)])
    assert batch["frames"].shape == (6, 2, 3, 16, 16)
    assert len(set(batch["seeds"])) == 6
    assert batch["broken"] == []
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:700])
    with pytest.raises(ValueError, match="cannot be read as a tar"):
        find_footage(tmp_path / "a.tar")


def test_unusable_videos_are_reported(tmp_path):
    items = packed_videos(tmp_path, 9, 1)
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    np.save(tmp_path / "float.npy", np.zeros((4, 8, 8, 3)))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    data = PairData(find_footage(tmp_path).items, Pairing(size=8))
    batch = collate_pairs([data[n] for n in range(len(data))])
    assert batch["frames"].shape == (1, 2, 3, 8, 8)
    errors = " ".join(batch["broken"])
    assert len(batch["broken"]) == 4
    for part in ("1.npy: a pair requires two frames", "broken.mp4", "uint8 [T,H,W,3], got float64", "object.npy"):
        assert part in errors
    assert first_valid_sample(data).frames is not None
    with pytest.raises(ValueError, match=r"none of 1 videos can be used.*a pair requires two frames"):
        first_valid_sample(PairData([item for item in items if "1.npy" in item.path], Pairing(size=8)))
    # One frame is enough for the modes other than "pair".
    assert PairData(items, Pairing(mode="crops", size=8))[1].frames is not None
    assert collate_pairs([data[n] for n in range(len(data)) if data[n].frames is None]).keys() == {"broken", "seeds"}


def test_invalid_input(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no video"):
        find_footage(tmp_path / "empty")
    with pytest.raises(ValueError, match="no such file"):
        find_footage(tmp_path / "nowhere")
    (tmp_path / "l.txt").write_text("../v.mp4 1\n")
    with pytest.raises(ValueError, match="is outside"):
        find_footage(tmp_path / "l.txt")
    (tmp_path / "l.pickle").write_bytes(b"")
    with pytest.raises(ValueError, match="can run any code"):
        find_footage(tmp_path / "l.pickle")
    (tmp_path / "m.txt").write_text("a.mp4 1\nb.mp4 2\n")
    with pytest.raises(ValueError, match="none of the 2 listed files"):
        find_footage(tmp_path / "m.txt")
    with pytest.raises(ValueError, match="no frame"):
        write_frames(tmp_path / "n.npy", [])
    assert not (tmp_path / "n.npy").exists()
    (tmp_path / "bad.mp4").write_bytes(b"x")
    with pytest.raises(ValueError, match="none of 1 videos can be read"):
        pack_frames([Footage(str(tmp_path / "bad.mp4"))], tmp_path / "out", short=8)
    for changes, message in (
        ({"mode": "triple"}, "mode"), ({"min_gap": 5, "max_gap": 4}, "gaps"), ({"area": (0.0, 1.0)}, "area"),
        ({"local": (0.6, 0.3)}, "local"), ({"repeats": 0}, "at least 1"), ({"flip": 2}, "flip"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Pairing(**changes)
    with pytest.raises(ValueError, match="visits"):
        PairData([], Pairing(), visits=0)
