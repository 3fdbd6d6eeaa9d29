"""Demonstration files: safetensors, the pickles of R3M, and pickles that must be refused."""

from __future__ import annotations

import json
import os
import pickle
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fewtokens.core import files
from fewtokens.data import pickles
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


def assert_equal(demonstration, expected):
    assert demonstration.images.dtype == torch.uint8
    np.testing.assert_array_equal(demonstration.images, expected["images"])
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_allclose(getattr(demonstration, name), expected[name], rtol=1e-6)


def test_round_trip(tmp_path):
    episodes = [episode(n, length=4 + n) for n in range(3)]
    demonstrations = [
        Demonstration(
            *(torch.as_tensor(value, dtype=dtype) for value, dtype in zip(arrays.values(), DTYPES, strict=True))
        )
        for arrays in episodes
    ]
    path = write(tmp_path / "demos.safetensors", demonstrations, task="metaworld/hammer", proprio=4)
    result, about = read(path)
    assert about == {"task": "metaworld/hammer", "proprio": 4}
    assert [len(demonstration) for demonstration in result] == [4, 5, 6]
    for demonstration, arrays in zip(result, episodes, strict=True):
        assert_equal(demonstration, arrays)
    assert len(read(path, 2)[0]) == 2


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol(tmp_path, protocol):
    episodes = [
        episode(n) | {"env_infos": {"solved": np.array([True, False]), "name": "x", "t": (1, 2.5, None), 3: b"y"}}
        for n in (0, 1)
    ]
    result, about = read(pickled(tmp_path / "a.pickle", episodes, protocol))
    assert about == {}
    for demonstration, arrays in zip(result, episodes, strict=True):
        assert_equal(demonstration, arrays)


def test_array_layouts_and_dtypes(tmp_path):
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
        result, _ = read(pickled(tmp_path / f"{n}.pkl", [odd | {"actions": actions}]))
        assert_equal(result[0], part)


class Payload:
    def __init__(self, function, *words):
        self.words = function, words

    def __reduce__(self):
        return self.words


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("where", ["top", "metadata", "in an array", "in a dtype"])
def test_payloads_are_refused_and_not_executed(tmp_path, protocol, where):
    marker = tmp_path / "executed"
    payload = Payload(os.system, f"touch {marker}")
    objects = np.empty(1, dtype=object)
    objects[0] = payload
    value = {
        "top": payload,
        "metadata": [episode() | {"env_infos": payload}],
        "in an array": [episode() | {"env_infos": objects}],
        "in a dtype": [Payload(np.dtype, payload)],
    }[where]
    path = pickled(tmp_path / "a.pickle", value, protocol)
    with pytest.raises(ValueError, match=r"uses \w+\.system; only numpy arrays"):
        read(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "value",
    [Payload(eval, "1"), Payload(getattr, {}, "items"), Payload(np.load, "x"), torch.zeros(2), {1, 2}.__class__, print],
)
def test_other_names_are_refused(tmp_path, value):
    with pytest.raises(ValueError, match=r"uses .*; only numpy arrays and plain values"):
        read(pickled(tmp_path / "a.pickle", [value], 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "has no images"),
        ({"images": np.zeros((6, 8, 8, 3))}, r"images must be uint8"),
        ({"images": np.zeros((6, 8, 8), np.uint8)}, r"images must be uint8"),
        ({"actions": np.zeros((5, 3))}, "actions must be numbers for 6 images"),
        ({"actions": np.full((6, 3), np.nan)}, "actions contain NaN"),
        ({"actions": np.array(["a"] * 6, dtype=object)}, "actions must be numbers"),
    ],
)
def test_bad_demonstrations(tmp_path, change, message):
    part = {name: value for name, value in (episode() | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        read(pickled(tmp_path / "a.pickle", [part]))


def test_bad_files(tmp_path):
    whole = pickled(tmp_path / "a.pickle", [episode()])
    (tmp_path / "cut.pickle").write_bytes(whole.read_bytes()[:-40])
    (tmp_path / "text.pickle").write_bytes(b"no pickle at all")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    files.save(tmp_path / "other.safetensors", "tokens", {"a": torch.zeros(1)}, {})
    for name, message in (
        ("nowhere.pickle", "no such file"),
        ("cut.pickle", "not a complete pickle"),
        ("text.pickle", "not a complete pickle"),
        ("cut.safetensors", "invalid safetensors"),
        ("other.safetensors", "contains tokens, not demonstrations"),
    ):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)
    with pytest.raises(ValueError, match="not a list of demonstrations"):
        read(pickled(tmp_path / "a.pickle", episode()))
    with pytest.raises(ValueError, match="contains no demonstrations"):
        read(pickled(tmp_path / "a.pickle", []))
    with pytest.raises(ValueError, match="is a int, not a dict"):
        read(pickled(tmp_path / "a.pickle", [3]))
    with pytest.raises(ValueError, match=r"actions have \[3, 4\] values"):
        read(pickled(tmp_path / "a.pickle", [episode(), episode(actions=4)]))
    with pytest.raises(ValueError, match="contains 1 demonstrations, 3 requested"):
        read(pickled(tmp_path / "one.pickle", [episode()]), 3)
    with pytest.raises(ValueError, match="no demonstrations to write"):
        write(tmp_path / "b.safetensors", [])


class TestPicklesAsPrograms:
    """Hand-written pickle programs that no pickler would write."""

    def read(self, tmp_path, program: bytes, message: str) -> None:
        (tmp_path / "a.pickle").write_bytes(program)
        begin = time.process_time()
        with pytest.raises(ValueError, match=message) as error:
            read(tmp_path / "a.pickle")
        assert "\n" not in str(error.value)
        assert time.process_time() - begin < 5

    @pytest.mark.parametrize(
        "name", ["numpy.core.multiarray\nscalar", "numpy\ndtype", "numpy\nndarray", "_codecs\nencode",
                 "collections\nOrderedDict", "numpy.core.multiarray\n_reconstruct"],
    )  # fmt: skip
    def test_no_attribute_is_set(self, tmp_path, name):
        before = {key: dict(vars(value)) for key, value in vars(pickles).items() if isinstance(value, type)}
        named = b"c" + name.encode() + b"\n"
        state = b"}X\x07\x00\x00\x00unknownK\x01s"
        self.read(tmp_path, b"\x80\x04" + named + state + b"b.", "that must be a list|sets the state")
        self.read(tmp_path, b"\x80\x04" + named + b"N" + state + b"\x86b.", "sets the state")
        assert before == {key: dict(vars(value)) for key, value in vars(pickles).items() if isinstance(value, type)}

    @pytest.mark.parametrize(
        ("program", "message"),
        [
            (b"\x80\x04(K\x01K\x02o.", "uses OBJ"),
            (b"(ios\nsystem\n.", "uses INST"),
            (b"\x80\x02\x82\x01.", "uses EXT1"),
            (b"\x80\x02\x84\x01\x00\x00\x00.", "uses EXT4"),
            (b"Psomething\n.", "uses PERSID"),
            (b"\x80\x02K\x01Q.", "uses BINPERSID"),
            (b"\x80\x02cnumpy\nndarray\n)\x81.", "uses NEWOBJ"),
            (b"\x80\x04cnumpy\nndarray\n)}\x92.", "uses NEWOBJ_EX"),
            (b"\x80\x04\x8f.", "uses EMPTY_SET"),
            (b"\x80\x05\x97.", "uses NEXT_BUFFER"),
            (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "uses posix.system"),
            (
                b"\x80\x04K\x01K\x02\x86R.",
                "the stack is too short|that must be a list|calls something that is not a function",
            ),
            (b"\x80\x04K\x01K\x02K\x03\x86R.", "calls something that is not a function"),
            (b"\x80\x04}NK\x02s.", "has a dict with keys of type NoneType"),
            (b"\x80\x02}\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x1fK\x02s.", "has a dict with keys of type int"),
            (b"\x80\x04]K\x01K\x02s.", "that must be a dict"),
            (b"\x80\x04}K\x01a.", "that must be a list"),
            (b"\x80\x04cnumpy\nndarray\nK\x01\x8c\x01ss.", "that must be a dict"),
            (b"\x80\x04cnumpy\ndtype\n(\x8c\x02f8\x89\x88tR.", "not a list"),
            (b"\x80\x04cnumpy\ndtype\n(\x8c\x02V8\x89\x88tR.", "has an array of 'V8'"),
            (b"\x80\x04cnumpy\ndtype\n(\x8c\x05f8,f8\x89\x88tR.", "has an array of 'f8,f8'"),
            (b"\x80\x04.", "not a complete pickle"),
            (b"", "not a complete pickle .*empty"),
            (b"\x80\x04h\x07.", "not a complete pickle"),
            (b"e.", "not a complete pickle"),
            (b"I" + b"9" * 5000 + b"\n.", "not a complete pickle"),
        ],
    )
    def test_instructions_that_plain_data_does_not_need(self, tmp_path, program, message):
        self.read(tmp_path, program, message)

    @pytest.mark.parametrize(
        "program",
        [
            b"\x80\x04\x8e\x00\x00\x00\x00\x00\x01\x00\x00abc.",  # bytes of 1 TB
            b"\x80\x04\x8d\x00\x00\x00\x00\x00\x01\x00\x00abc.",  # text
            b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00abc.",  # bytearray
            b"\x80\x04B\xff\xff\xff\x7fabc.", b"\x80\x04X\xff\xff\xff\x7fabc.", b"\x80\x02\x8b\xff\xff\xff\x7fabc.",
            b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xffabc.",
        ],
    )  # fmt: skip
    def test_declared_sizes(self, tmp_path, program):
        self.read(tmp_path, program, "not a complete pickle")

    def test_memo_indices_allocate_no_memory(self, tmp_path):
        self.read(tmp_path, b"\x80\x04K\x01r\xff\xff\xff\xff.", "contains a int, not a list")

    def test_shared_lists_stay_shared(self, tmp_path):
        shared: list = [1.0, 2.0]
        for _ in range(100):
            shared = [shared, shared]
        self.read(tmp_path, pickle.dumps(shared), "demonstration 0 is a list")
        self.read(tmp_path, pickle.dumps([episode() | {"actions": shared}]), "demonstration 0: actions must be numbers")
        loop: list = []
        loop.append(loop)
        self.read(tmp_path, pickle.dumps([episode() | {"actions": loop}]), "actions must be numbers")
        # Unused keys may have any value.
        assert len(read(pickled(tmp_path / "b.pickle", [episode() | {"more": shared, "loop": loop}]))[0]) == 1

    def test_repeated_large_arrays(self, tmp_path):
        images = np.zeros((6, 600, 600, 3), np.uint8)
        whole = episode() | {"images": images}
        assert len(read(pickled(tmp_path / "a.pickle", [whole, whole]))[0]) == 2
        self.read(tmp_path, pickle.dumps([whole] * 1000), "expands to more than")
        row = list(np.zeros((1000, 1000), np.uint8))
        self.read(tmp_path, pickle.dumps([episode() | {"images": [row] * 10_000}]), "expands to more than")

    def test_repeated_calls(self, tmp_path):
        text = b"X" + (1_000_000).to_bytes(4, "little") + b"x" * 1_000_000 + b"q\x00"
        call = b"c_codecs\nencode\n(h\x00\x8c\x06latin1tR"
        self.read(tmp_path, b"\x80\x04(" + text + call * 1000 + b"l.", "expands to more than")
        pairs = b"](" + b"".join(b"\x8c\x04%04dK\x01\x86" % n for n in range(5000)) + b"eq\x00"
        call = b"ccollections\nOrderedDict\nh\x00\x85R"
        self.read(tmp_path, b"\x80\x04(" + pairs + call * 5000 + b"l.", "expands to more than")

    def test_deep_nesting(self, tmp_path):
        deep: list = []
        for _ in range(200):
            deep = [deep]
        self.read(tmp_path, pickle.dumps([episode() | {"rewards": deep}]), "rewards must be numbers")
        self.read(tmp_path, b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".", "demonstration 0 is a list")


def raw(path, tensors, header):
    save_file(tensors, path, metadata={"fewtokens": json.dumps({"kind": "demonstrations", "version": 1, **header})})
    return path


@pytest.mark.parametrize(
    ("change", "header", "message"),
    [
        ({}, {}, "count in its header must be a whole number"),
        ({}, {"count": "1", "about": {}}, "count in its header must be a whole number"),
        ({}, {"count": 1.5, "about": {}}, "count in its header must be a whole number"),
        ({}, {"count": -1, "about": {}}, "contains no demonstrations"),
        ({}, {"count": 10**12, "about": {}}, "incomplete demonstrations"),
        ({}, {"count": 1, "about": []}, "about in its header must be an object"),
        ({}, {"count": 1, "about": {"task": 3}}, "about in its header: task must be a string or null"),
        ({}, {"count": 1, "about": {"proprio": "4"}}, "about in its header: proprio must be a whole number"),
        ({"0.actions": None}, {"count": 1, "about": {}}, "incomplete demonstrations"),
        ({"0.actions": torch.zeros(())}, {"count": 1, "about": {}}, "actions must be numbers for 6 images"),
        ({"0.actions": torch.zeros(6, 0)}, {"count": 1, "about": {}}, "actions must be numbers for 6 images"),
        ({"0.actions": torch.zeros(6, dtype=torch.complex64)}, {"count": 1, "about": {}}, "actions must be numbers"),
        (
            {"0.actions": torch.full((6,), 1e300, dtype=torch.float64)},
            {"count": 1, "about": {}},
            "contain NaN or infinity",
        ),
        ({"0.images": torch.zeros(())}, {"count": 1, "about": {}}, "images must be uint8"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_headers_and_tensors_are_not_trusted(tmp_path, change, header, message):
    tensors = {f"0.{name}": torch.as_tensor(value, dtype=dtype)
               for (name, value), dtype in zip(episode().items(), DTYPES, strict=True)} | change  # fmt: skip
    path = raw(
        tmp_path / "a.safetensors", {name: value for name, value in tensors.items() if value is not None}, header
    )
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert "\n" not in str(error.value)


def test_half_precision_is_read(tmp_path):
    tensors = {f"0.{name}": torch.as_tensor(value, dtype=dtype)
               for (name, value), dtype in zip(episode().items(), DTYPES, strict=True)}  # fmt: skip
    tensors["0.actions"] = tensors["0.actions"].bfloat16()
    (demonstration,), _ = read(raw(tmp_path / "a.safetensors", tensors, {"count": 1, "about": {}}))
    assert torch.equal(demonstration.actions, tensors["0.actions"].float())
