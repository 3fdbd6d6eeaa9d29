"""Files of demonstrations: our own, R3M's pickles, and what must not be unpickled."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch

from fewtokens import files
from fewtokens.data.demonstrations import Demonstration, read, write

DTYPES = (torch.uint8, torch.float32, torch.float32, torch.float32)


def episode(seed=0, length=6, size=8, states=5, actions=3):
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 256, (length, size, size, 3), dtype=np.uint8),
        "observations": rng.normal(size=(length, states)),
        "actions": rng.normal(size=(length, actions)).astype(np.float32),
        "rewards": rng.normal(size=length),
    }


def pickled(path, value, protocol=4):
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def assert_same(one, wanted):
    assert one.images.dtype == torch.uint8
    np.testing.assert_array_equal(one.images, wanted["images"])
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_allclose(getattr(one, name), wanted[name], rtol=1e-6)


def test_there_and_back(tmp_path):
    parts = [episode(n, length=4 + n) for n in range(3)]
    made = [
        Demonstration(
            *(torch.as_tensor(value, dtype=dtype) for value, dtype in zip(part.values(), DTYPES, strict=True))
        )
        for part in parts
    ]
    path = write(tmp_path / "demos.safetensors", made, task="metaworld/hammer", proprio=4)
    found, about = read(path)
    assert about == {"task": "metaworld/hammer", "proprio": 4}
    assert [len(one) for one in found] == [4, 5, 6]
    for one, part in zip(found, parts, strict=True):
        assert_same(one, part)
    assert len(read(path, 2)[0]) == 2


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol(tmp_path, protocol):
    parts = [
        episode(n) | {"env_infos": {"solved": np.array([True, False]), "name": "x", "t": (1, 2.5, None)}}
        for n in (0, 1)
    ]
    found, about = read(pickled(tmp_path / "a.pickle", parts, protocol))
    assert about == {}
    for one, part in zip(found, parts, strict=True):
        assert_same(one, part)


def test_odd_arrays(tmp_path):
    part = episode()
    odd = {
        "images": np.asfortranarray(part["images"]),
        "observations": part["observations"].astype(">f8"),
        "actions": list(part["actions"]),  # a list of arrays
        "rewards": [np.float64(value) for value in part["rewards"]],
    }
    objects = np.empty(6, dtype=object)
    objects[:] = list(part["actions"])
    for n, actions in enumerate((odd["actions"], objects)):
        found, _ = read(pickled(tmp_path / f"{n}.pkl", [odd | {"actions": actions}]))
        assert_same(found[0], part)


class Payload:
    def __init__(self, function, *words):
        self.words = function, words

    def __reduce__(self):
        return self.words


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("where", ["alone", "beside", "in an array", "in a dtype"])
def test_payloads_are_refused_and_not_run(tmp_path, protocol, where):
    mark = tmp_path / "ran"
    payload = Payload(os.system, f"touch {mark}")
    objects = np.empty(1, dtype=object)
    objects[0] = payload
    value = {
        "alone": payload,
        "beside": [episode() | {"env_infos": payload}],
        "in an array": [episode() | {"env_infos": objects}],
        "in a dtype": [Payload(np.dtype, payload)],
    }[where]
    path = pickled(tmp_path / "a.pickle", value, protocol)
    with pytest.raises(ValueError, match=r"names \w+\.system; only numpy arrays"):
        read(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "value",
    [Payload(eval, "1"), Payload(getattr, {}, "items"), Payload(np.load, "x"), torch.zeros(2), {1, 2}.__class__, print],
)
def test_other_names_are_refused(tmp_path, value):
    with pytest.raises(ValueError, match=r"names .*; only numpy arrays and plain values"):
        read(pickled(tmp_path / "a.pickle", [value], 2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": None}, "has no images"),
        ({"images": np.zeros((6, 8, 8, 3))}, r"images must be uint8"),
        ({"images": np.zeros((6, 8, 8), np.uint8)}, r"images must be uint8"),
        ({"actions": np.zeros((5, 3))}, "actions must be numbers for 6 images"),
        ({"actions": np.full((6, 3), np.nan)}, "actions are not all finite"),
        ({"actions": np.array(["a"] * 6, dtype=object)}, "actions must be numbers"),
    ],
)
def test_bad_demonstrations(tmp_path, change, said):
    part = {name: value for name, value in (episode() | change).items() if value is not None}
    with pytest.raises(ValueError, match=said):
        read(pickled(tmp_path / "a.pickle", [part]))


def test_bad_files(tmp_path):
    whole = pickled(tmp_path / "a.pickle", [episode()])
    (tmp_path / "cut.pickle").write_bytes(whole.read_bytes()[:-40])
    (tmp_path / "text.pickle").write_bytes(b"no pickle at all")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    files.save(tmp_path / "other.safetensors", "tokens", {"a": torch.zeros(1)}, {})
    for name, said in (
        ("nowhere.pickle", "no such file"),
        ("cut.pickle", "not a whole pickle"),
        ("text.pickle", "not a whole pickle"),
        ("cut.safetensors", "not a readable safetensors"),
        ("other.safetensors", "holds tokens, not demonstrations"),
    ):
        with pytest.raises(ValueError, match=said):
            read(tmp_path / name)
    with pytest.raises(ValueError, match="not a list of demonstrations"):
        read(pickled(tmp_path / "a.pickle", episode()))
    with pytest.raises(ValueError, match="no demonstration in it"):
        read(pickled(tmp_path / "a.pickle", []))
    with pytest.raises(ValueError, match="is a int, not a dict"):
        read(pickled(tmp_path / "a.pickle", [3]))
    with pytest.raises(ValueError, match=r"actions of \[3, 4\] numbers in one file"):
        read(pickled(tmp_path / "a.pickle", [episode(), episode(actions=4)]))
    with pytest.raises(ValueError, match="holds 1 demonstrations, 3 are wanted"):
        read(pickled(tmp_path / "one.pickle", [episode()]), 3)
    with pytest.raises(ValueError, match="no demonstration to write"):
        write(tmp_path / "b.safetensors", [])
