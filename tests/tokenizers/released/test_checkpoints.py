"""Which file of a folder is loaded as a checkpoint, and what is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from fewtokens.tokenizers import load as loading
from fewtokens.tokenizers import load_tokenizer, open_tokenizer
from tests.tokenizers.released.test_bsq_vit import network


class Code:
    def __reduce__(self):
        return print, ("this must not be printed",)


def test_one_checkpoint_per_folder(tmp_path):
    state = network(1).released()
    torch.save(state, tmp_path / "a.pt")
    tokenizer = open_tokenizer(tmp_path, device="cpu")
    assert tokenizer.origin == {"folder": str(tmp_path)}
    assert open_tokenizer(tmp_path / "a.pt", device="cpu").fingerprint() == tokenizer.fingerprint()
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"several checkpoints \(a\.pt, b\.safetensors\); give the path of one"):
        load_tokenizer(tmp_path, device="cpu")


def test_checkpoints_of_the_hub_are_downloaded_if_there_is_no_config(tmp_path, monkeypatch):
    asked = []

    def download(name, patterns=("*.json", "*.safetensors")):
        asked.append((name, *patterns))
        if "*.ckpt" in patterns:
            torch.save(network(1).released(), tmp_path / "model.ckpt")
        return tmp_path

    monkeypatch.setattr(loading, "from_hub", download)
    assert load_tokenizer("user/name", device="cpu").origin == {"folder": "user/name"}
    assert [name for name, *_ in asked] == ["user/name"] * 2


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a folder of a tokenizer"):
        load_tokenizer(tmp_path, device="cpu")
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, path)
    with pytest.raises(ValueError, match=r"not a checkpoint of a tokenizer that can be loaded"):
        load_tokenizer(path, device="cpu")
    torch.save({"state_dict": network(1).released(), "callback": Code()}, path)
    with pytest.raises(ValueError, match="could run arbitrary code"):
        load_tokenizer(path, device="cpu")
    path.write_bytes(b"video")
    with pytest.raises(ValueError, match=r"a\.ckpt: contains more than tensors"):
        load_tokenizer(path, device="cpu")
