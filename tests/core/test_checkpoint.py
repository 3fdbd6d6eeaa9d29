"""Checkpoints of PyTorch: tensors next to settings are read, code is not run."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from fewtokens.core.checkpoint import read_checkpoint


class Node:
    """Pickled like a config of OmegaConf, which need not be installed."""

    def __init__(self, content):
        self.content = content


Node.__module__, Node.__qualname__, Node.__name__ = "omegaconf.dictconfig", "DictConfig", "DictConfig"


class Code:
    def __reduce__(self):
        return print, ("this must not be printed",)


def test_settings_and_scores_are_skipped(tmp_path, monkeypatch):
    module = ModuleType("omegaconf.dictconfig")
    module.DictConfig = Node
    monkeypatch.setitem(sys.modules, "omegaconf", ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    settings = {"config": Node({"width": Node(3)}), "args": Namespace(folder=Path("runs")), "score": np.float64(1.5)}
    torch.save({"state_dict": {"a": torch.ones(2)}, "ema_state_dict": None, **settings}, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt", ("ema_state_dict", "state_dict"))["a"].tolist() == [1, 1]
    assert read_checkpoint(tmp_path / "a.pt", ())["config"] is not None


def test_code_is_refused(tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.ones(2)}, "callback": Code()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="contains more than tensors; loading it could run arbitrary code") as error:
        read_checkpoint(tmp_path / "a.pt", ("state_dict",))
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


def test_damaged_files_are_refused(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "b.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is it truncated"):
        read_checkpoint(tmp_path / "b.pt", ())
    torch.save([torch.ones(2)], tmp_path / "c.pt")
    with pytest.raises(ValueError, match="contains a list instead of named tensors"):
        read_checkpoint(tmp_path / "c.pt", ())
