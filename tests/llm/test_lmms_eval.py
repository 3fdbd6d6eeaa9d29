"""The model that lmms-eval finds, without lmms-eval.

It is not a test dependency. The classes below have the interfaces of EvolvingLMMs-Lab/lmms-eval as read from
lmms_eval/models/registry_v2.py (commit 059d63b), lmms_eval/api/model.py (06fd786), lmms_eval/api/instance.py (015949b)
and ConfigurableMessagesTask in lmms_eval/api/task.py (00dfe29).
"""

from __future__ import annotations

import abc
import importlib
import sys
import tomllib
import types
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fewtokens.llm import lmms_eval as plugin


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class Hook:
    def __init__(self) -> None:
        self.entries: list[Any] = []

    def add_partial(self, attribute: str, request: Any, reply: str) -> None:
        self.entries.append((attribute, request, reply))


class lmms(abc.ABC):
    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.cache_hook = Hook()
        self.task_dict: dict[str, Any] = {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...

    @classmethod
    def create_from_arg_string(cls, arg_string, additional_config=None):
        args = dict(part.split("=", 1) for part in arg_string.split(";"))
        return cls(**args, **{k: v for k, v in (additional_config or {}).items() if v is not None})


@dataclass
class Instance:
    request_type: str
    arguments: tuple
    idx: int
    metadata: dict = field(default_factory=dict)

    @property
    def args(self):
        return self.arguments


class FakeSession:
    """Answers with its arguments."""

    def __init__(self, model, processor, spec=None, frames=None):
        self.arguments = (model, processor, spec, frames)

    def ask(self, video, question, max_new_tokens=64, choices=None):
        return SimpleNamespace(text=f" {Path(video).name}: {question[-8:]} ({max_new_tokens})\n\nmore")


@pytest.fixture
def stand_ins(monkeypatch):
    modules = {name: types.ModuleType(name) for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models")}
    modules["lmms_eval.api.model"] = model = types.ModuleType("lmms_eval.api.model")
    modules["lmms_eval.models.registry_v2"] = registry = types.ModuleType("lmms_eval.models.registry_v2")
    model.lmms, registry.ModelManifest = lmms, ModelManifest
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    import fewtokens.llm

    monkeypatch.setattr(fewtokens.llm, "load", lambda where, **options: ((where, options), "processor"), raising=False)
    monkeypatch.setattr(fewtokens.llm, "Session", FakeSession, raising=False)
    plugin._model_class.cache_clear()
    yield
    plugin._model_class.cache_clear()


def find_class() -> Any:
    """Finds the class as the registry does: entry point, manifest, class path, checks."""
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    module, name = pyproject["project"]["entry-points"]["lmms_eval.models"]["fewtokens"].split(":")
    manifest = getattr(importlib.import_module(module), name)()
    assert isinstance(manifest, ModelManifest)
    assert manifest.model_id == "fewtokens" and manifest.simple_class_path is None
    module, name = manifest.chat_class_path.rsplit(".", 1)
    cls = getattr(importlib.import_module(module), name)
    assert isinstance(cls, type) and issubclass(cls, lmms)
    assert cls.is_simple is False
    return cls


def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
    media = [{"type": kind, "url": url} for kind, url in document["media"]]
    return [{"role": "user", "content": [*media, {"type": "text", "text": document["text"]}]}]


def request(number: int, **settings: Any) -> Instance:
    return Instance("generate_until", ("context", messages, settings, number, "videomme", "test"), 0)


def model(**options: Any) -> Any:
    instance = find_class()(pretrained="folder", device="cpu", **options)
    instance.task_dict["videomme"] = {
        "test": [
            {"media": [("video", "/data/1.mp4")], "text": "What is it?"},
            {"media": [("video", "/data/2.mp4")], "text": "Where is it?"},
            {"media": [("video", "/data/1.mp4"), ("image", object())], "text": "Which?"},
            {"media": [], "text": "Which?"},
            {"media": [("video", b"bytes")], "text": "Which?"},
        ]
    }
    return instance


def test_lmms_eval_is_imported_on_demand():
    assert "lmms_eval" not in sys.modules
    with pytest.raises(AttributeError, match="has no attribute 'Other'"):
        _ = plugin.Other


def test_created_as_on_the_command_line(stand_ins):
    text = "pretrained=folder;spec='token_dynamics(keep=32)';frames=16;dtype=float32"
    instance = find_class().create_from_arg_string(text, {"batch_size": 1, "max_batch_size": None, "device": "cpu"})
    assert instance.session.arguments == (
        ("folder", {"device": "cpu", "dtype": "float32"}),
        "processor",
        "token_dynamics(keep=32)",
        16,
    )
    assert model().session.arguments[2:] == (None, 32)


def test_answers_are_in_order_and_end_as_the_task_specifies(stand_ins):
    instance = model()
    requests = [request(1, max_new_tokens=16, temperature=0, do_sample=False, until=["\n\n"]), request(0, until=None)]
    assert instance.generate_until(requests) == ["2.mp4: e is it? (16)", "1.mp4: t is it? (128)\n\nmore"]
    assert [entry[2] for entry in instance.cache_hook.entries] == [
        "2.mp4: e is it? (16)",
        "1.mp4: t is it? (128)\n\nmore",
    ]
    assert instance.cache_hook.entries[0][:2] == ("generate_until", ("context", requests[0].args[2]))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"batch_size": 4}, "batch_size must be 1, got 4"),
        ({"frames": "many"}, "frames must be a whole number of at least 1, got 'many'"),
        ({"frames": 0}, "frames must be a whole number"),
        ({"pretrained": ""}, "pretrained is required"),
    ],
)
def test_wrong_arguments(stand_ins, options, error):
    with pytest.raises(ValueError, match=error):
        find_class()(**{"pretrained": "folder", "device": "cpu", **options})


def test_one_process(stand_ins, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="runs in one process"):
        model()


@pytest.mark.parametrize(
    ("number", "settings", "error"),
    [
        (2, {}, "videomme, 2: fewtokens requires one video file, got video, image"),
        (3, {}, "videomme, 3: .* got none"),
        (4, {}, "videomme, 4: fewtokens requires one video file"),
        (0, {"temperature": 0.7}, "videomme: fewtokens decodes greedily"),
        (0, {"do_sample": True}, "decodes greedily"),
        (0, {"num_beams": 5}, "num_beams=1"),
    ],
)
def test_unsupported_requests(stand_ins, number, settings, error):
    with pytest.raises(ValueError, match=error):
        model().generate_until([request(number, **settings)])


def test_turns_of_an_assistant(stand_ins):
    turns = [{"role": "assistant", "content": []}]
    with pytest.raises(ValueError, match="has a turn of 'assistant'"):
        plugin.read_messages(lambda _: turns, {}, "task, 1")


def test_other_types_of_tasks(stand_ins):
    instance = model()
    with pytest.raises(NotImplementedError, match="choose a task whose output_type is generate_until"):
        instance.loglikelihood([])
    with pytest.raises(NotImplementedError, match="one question at a time"):
        instance.generate_until_multi_round([])


@pytest.mark.parametrize(
    ("reply", "until", "expected"),
    [(" B\n\nwhy", "\n\n", "B"), ("B. C", [".", ""], "B"), ("B", None, "B"), ("B", [], "B")],
)
def test_cut(reply, until, expected):
    assert plugin.cut(reply, until) == expected


def test_quotation_marks():
    assert [plugin.unquote(text) for text in ("'a, b'", '"a"', "a", "'")] == ["a, b", "a", "a", "'"]
