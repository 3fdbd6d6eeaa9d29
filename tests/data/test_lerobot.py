"""LeRobot datasets of both layouts: demonstrations, frames at the right times, footage, and what must be refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from fewtokens.data.demonstrations import read
from fewtokens.data.footage import find_footage, read_frames
from fewtokens.data.lerobot import open_dataset
from fewtokens.data.packed import pack_frames
from tests.helpers.robots import ACTIONS, KEYS, LENGTHS, STATES, frames, rows, write_dataset

pytest.importorskip("pyarrow")
VERSIONS = ("v2.1", "v3.0")


@pytest.fixture(scope="module", params=VERSIONS)
def two_cameras(request, tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("robots") / request.param, request.param, KEYS)


def change(folder, **values):
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(info | values), encoding="utf-8")


def assert_frames(images, expected):
    # Lossy video; episodes differ by 70 and steps by 8.
    np.testing.assert_allclose(images.numpy().astype(float), expected, atol=3)


@pytest.mark.parametrize(("camera", "number"), [("top", 0), ("observation.images.wrist", 1)])
def test_demonstrations(two_cameras, camera, number):
    demonstrations, about = read(two_cameras, camera=camera)
    assert about == {"proprio": STATES}
    assert [len(demonstration) for demonstration in demonstrations] == list(LENGTHS)
    for n, demonstration in enumerate(demonstrations):
        expected = rows(n, 0)
        np.testing.assert_array_equal(demonstration.actions, expected["action"])
        np.testing.assert_array_equal(demonstration.observations, expected["observation.state"])
        np.testing.assert_array_equal(demonstration.rewards, expected["next.reward"])
        assert_frames(demonstration.images, frames(n, number, LENGTHS[n]))


def test_count_and_size(two_cameras):
    demonstrations, _ = read(two_cameras, 2, camera="top", short=16)
    assert [tuple(demonstration.images.shape) for demonstration in demonstrations] == [(5, 16, 24, 3), (3, 16, 24, 3)]
    assert read(two_cameras, 1, camera="top", short=64)[0][0].images.shape[1:3] == (32, 48)  # never enlarged
    with pytest.raises(ValueError, match="contains 3 demonstrations, 4 requested"):
        read(two_cameras, 4, camera="top")


@pytest.mark.parametrize("version", VERSIONS)
def test_images_in_parquet(tmp_path, version):
    write_dataset(tmp_path / "set", version, KEYS[:1], "image")
    for n, demonstration in enumerate(read(tmp_path / "set")[0]):
        np.testing.assert_array_equal(demonstration.images, frames(n, 0, LENGTHS[n]))  # PNG loses nothing
    assert read(tmp_path / "set", 1, short=16)[0][0].images.shape == (5, 16, 24, 3)
    with pytest.raises(ValueError, match="contains no videos"):
        find_footage(tmp_path / "set")


def test_footage_is_cut_at_episodes(two_cameras, tmp_path):
    items = find_footage(two_cameras).items
    assert len(items) == len(set(items)) == 6
    expected = [frames(n, camera, length) for camera in range(2) for n, length in enumerate(LENGTHS)]
    for item, pixels in zip(items, expected, strict=True):
        read_ = read_frames(item, lambda count: list(range(count)))
        assert_frames(read_.permute(0, 2, 3, 1), pixels)
    packed = pack_frames(items, tmp_path / "frames", short=0)
    assert packed.frames == 2 * sum(LENGTHS)
    assert not packed.broken
    assert sorted(len(np.load(path)) for path in packed.files) == sorted(2 * LENGTHS)


def test_a_camera_must_be_chosen(two_cameras):
    with pytest.raises(ValueError, match=r"several cameras; choose one of: observation.images.top, observation.images"):
        read(two_cameras)
    with pytest.raises(ValueError, match=r"no single camera 'left'; choose one of"):
        read(two_cameras, camera="left")


def test_rounded_times(tmp_path):
    """Times of rows and bounds of episodes that are off by less than half a frame change nothing."""
    from pyarrow import parquet

    folder = write_dataset(tmp_path / "set", "v3.0")
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    table = parquet.read_table(path)
    for offset in (0.04, -0.04):
        name = f"videos/{KEYS[0]}/from_timestamp"
        times = [0.0, LENGTHS[0] / 10 + offset, 0.0]
        parquet.write_table(table.set_column(table.column_names.index(name), name, [times]), path)
        assert_frames(read(folder)[0][1].images, frames(1, 0, LENGTHS[1]))
        count = len(read_frames(find_footage(folder).items[1], lambda count: list(range(count))))
        assert count == LENGTHS[1]


def test_steps_without_a_frame(tmp_path):
    folder = write_dataset(tmp_path / "set")
    videos = folder / "videos/chunk-000" / KEYS[0]
    shutil.copy(videos / "episode_000001.mp4", videos / "episode_000002.mp4")  # 3 frames for 7 steps
    with pytest.raises(ValueError, match=r"episode_000002.mp4: has no frame at 0.\d+ s, where the dataset has a step"):
        read(folder)
    (videos / "episode_000001.mp4").unlink()
    with pytest.raises(ValueError, match=r"episode_000001.mp4: no such file"):
        read(folder, 2)
    assert len(read(folder, 1)[0]) == 1


def test_several_tasks_are_reported(tmp_path):
    folder = write_dataset(tmp_path / "set")
    path = folder / "meta" / "episodes.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("reach", "push", 1), encoding="utf-8")
    with pytest.warns(UserWarning, match="contains 2 tasks, which a policy cannot tell apart"):
        read(folder)


def test_depth_is_no_camera(tmp_path):
    folder = write_dataset(tmp_path / "set", keys=KEYS)
    info = json.loads((folder / "meta/info.json").read_text(encoding="utf-8"))
    info["features"][KEYS[1]]["info"] = {"video.is_depth_map": True}
    change(folder, **info)
    assert list(open_dataset(folder).cameras) == [KEYS[0]]
    assert len(find_footage(folder).items) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"codebase_version": "v1.6"}, "version 'v1.6' is not supported"),
        ({"fps": 0}, "fps and chunks_size must be positive"),
        ({"fps": "fast"}, r"info.json: fps must be"),
        ({"data_path": "../{episode_index}.parquet"}, "outside the folder"),
        ({"data_path": "/etc/{episode_index}"}, "outside the folder"),
        ({"video_path": "{video_key}\\..\\..\\x.mp4"}, "outside the folder"),
        ({"video_path": "{name}.mp4"}, r"'\{name\}.mp4', which cannot be filled in"),
        ({"video_path": None}, "file name None"),
        ({"features": {}}, "has no camera"),
        ({"data_path": "data/{episode_index:09999999d}.parquet"}, "no such file; the dataset is incomplete"),
    ],
)
def test_refused(tmp_path, values, message):
    folder = write_dataset(tmp_path / "set")
    change(folder, **values)
    with pytest.raises(ValueError, match=message) as error:
        read(folder)
    assert "\n" not in str(error.value)


def test_damaged(tmp_path):
    folder = write_dataset(tmp_path / "set", "v3.0")
    with pytest.raises(ValueError, match=r"has no feature 'action', only next.reward"):
        info = json.loads((folder / "meta/info.json").read_text(encoding="utf-8"))
        change(folder, features={name: info["features"][name] for name in ("next.reward", KEYS[0])})
        read(folder)
    info["features"]["action"]["shape"] = [ACTIONS + 1]
    change(folder, **info)
    with pytest.raises(ValueError, match=r"action of episode 0 must be numbers of shape \[3\]"):
        read(folder)
    path = folder / "data/chunk-000/file-000.parquet"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"file-000.parquet: cannot be read"):
        read(folder)
    for path in (folder / "meta/episodes").glob("*/*"):
        path.unlink()
    with pytest.raises(ValueError, match="contains no episodes"):
        find_footage(folder)
    with pytest.raises(ValueError, match=r"not a LeRobot dataset; it has no meta/info.json"):
        read(tmp_path)


def test_without_pyarrow(tmp_path, monkeypatch):
    write_dataset(tmp_path / "old")
    write_dataset(tmp_path / "new", "v3.0")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert len(find_footage(tmp_path / "old").items) == 3  # v2.1 needs it for demonstrations only
    for call in (lambda: read(tmp_path / "old"), lambda: find_footage(tmp_path / "new")):
        with pytest.raises(ValueError, match=r"require pyarrow; install it with pip install 'fewtokens\[jobs\]'"):
            call()
