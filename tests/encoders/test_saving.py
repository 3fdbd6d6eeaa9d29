"""Encoders with `from_pretrained`, in folders and on the hub (mocked, without network access)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fewtokens.core import encoder as contract
from fewtokens.core.hub import from_hub
from fewtokens.core.pipeline import Pipeline
from fewtokens.encoders import Encoder, Patches, VitEncoder, load_encoder
from fewtokens.encoders.hf import HfEncoder
from fewtokens.networks.encoder import ModelEncoder
from tests.encoders.test_modules import KINDS, encoder, video

huggingface_hub = pytest.importorskip("huggingface_hub")
CLASSES = {"patches": Patches, "vit": VitEncoder, "network": ModelEncoder, "hf": HfEncoder}


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_round_trip(kind, tmp_path):
    before = encoder(kind, tmp_path / "first")
    folder = before.save_pretrained(tmp_path / "second")
    again = CLASSES[kind].from_pretrained(folder, device="cpu")
    assert not any(module.training for module in again.children())
    expected, loaded = before(video())[0], again(video())[0]
    assert torch.equal(loaded.features, expected.features)
    assert again.dim == before.dim
    assert (again.fingerprint is None) == (kind == "patches")
    assert Encoder.from_pretrained(folder, device="cpu").describe() == again.describe()
    half = Encoder.from_pretrained(folder, device=torch.device("cpu"), dtype=torch.float16)
    assert half(video())[0].features.dtype == torch.float16


def test_options_and_normalization_are_saved(tmp_path):
    Patches(4, tubelet_size=2).save_pretrained(tmp_path / "p")
    again = Patches.from_pretrained(tmp_path / "p")
    assert again.describe() == Patches(4, tubelet_size=2).describe()
    assert Patches.from_pretrained(tmp_path / "p", patch_size=8).patch_size == 8
    model = VitEncoder(encoder("vit", tmp_path).vit, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    model.vit.proportional = "bias"
    again = VitEncoder.from_pretrained(model.save_pretrained(tmp_path / "v"))
    assert (again.mean, again.std, again.vit.proportional) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0), "bias")
    assert again.vit.config == model.vit.config
    other = VitEncoder.from_pretrained(tmp_path / "v", proportional="none")
    assert (other.vit.proportional, other.options) == ("none", {"proportional": "none"})


def test_a_pipeline_loads_a_saved_encoder(tmp_path):
    folder = encoder("vit", tmp_path).save_pretrained(tmp_path / "encoder")
    pipeline = Pipeline("uniform(5)", load_encoder(folder, device="cpu"))
    again = Pipeline.from_pretrained(pipeline.save_pretrained(tmp_path / "pipeline"), device="cpu")
    assert torch.equal(again(video()).features, pipeline(video()).features)


def test_with_only_the_top_level_package():
    code = "import fewtokens; print(fewtokens.Encoder.from_pretrained('patches', dtype='float16').dtype)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "torch.float16"


class TestErrors:
    def test_another_class(self):
        with pytest.raises(ValueError, match=r"^patches: is a Patches, not a VitEncoder$"):
            VitEncoder.from_pretrained("patches")

    def test_before_encoders_are_imported(self, monkeypatch):
        monkeypatch.setattr(contract, "_load", None)
        with pytest.raises(ValueError, match=r"import fewtokens.encoders first"):
            Encoder.from_pretrained("patches")

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"config": {"dim": 10**9}}, r"does not fit its config\.json; it cannot be built"),
            ({"config": {"dim": 64}}, r"does not fit its config\.json"),
            ({"config": {"depth": 10**8}}, "depth 100000000 does not match"),
            ({"config": {"dim": "wide"}}, "dim must be a whole number"), ({"config": 3}, "config must be an object"),
            ({"config": {"color": 1}}, "unknown settings color"), ({"std": [1.0, 0.0, 1.0]}, "std must be above 0"),
            ({"proportional": "sometimes"}, "proportional must be"), ({"mean": [0.5]}, "mean must be a list of 3"),
        ],
    )  # fmt: skip
    def test_a_damaged_config(self, changes, says, tmp_path):
        folder = encoder("vit", tmp_path).save_pretrained(tmp_path / "e")
        path = folder / "config.json"
        config = json.loads(path.read_text())
        if isinstance(changes.get("config"), dict):
            changes = {"config": config["config"] | changes["config"]}
        path.write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match=says) as caught:
            load_encoder(folder)
        assert "\n" not in str(caught.value)

    def test_damaged_weights_and_patches(self, tmp_path):
        folder = encoder("vit", tmp_path).save_pretrained(tmp_path / "e")
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[:-100])
        with pytest.raises(ValueError, match="invalid safetensors"):
            load_encoder(folder)
        folder = Patches(4).save_pretrained(tmp_path / "p")
        (folder / "config.json").write_text(json.dumps({"fewtokens_model": "patches", "config": {"patch_size": "4"}}))
        with pytest.raises(ValueError, match="patch_size must be a whole number"):
            load_encoder(folder)


class Hub:
    """The two calls of an upload and their arguments."""

    def __init__(self, monkeypatch, error: Exception | None = None) -> None:
        self.calls: list[dict] = []
        self.files: dict[str, bytes] = {}

        def create_repo(api, repo_id, *, private=None, exist_ok=False):
            if error is not None:
                raise error
            self.calls.append({"repo_id": repo_id, "private": private, "exist_ok": exist_ok, "token": api.token})
            return f"https://huggingface.co/{repo_id}"

        def upload_folder(api, *, repo_id, folder_path, commit_message):
            self.calls.append({"repo_id": repo_id, "message": commit_message})
            self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
            return SimpleNamespace(commit_url="")

        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
        monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)

    def serve(self, monkeypatch, folder) -> list[str]:
        """Serves the uploaded files as downloads."""
        requested: list[str] = []

        def snapshot_download(repo_id, *, allow_patterns):
            requested.append(repo_id)
            folder.mkdir(exist_ok=True)
            for name, content in self.files.items():
                (folder / name).write_bytes(content)
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return requested


class TestHub:
    def test_a_failed_download_is_one_sentence(self, monkeypatch):
        from huggingface_hub.errors import LocalEntryNotFoundError

        def snapshot_download(*_, **__):
            raise LocalEntryNotFoundError("An error happened while looking for the files of the revision on )")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        with pytest.raises(ValueError, match=r"me/it; it is not in the local cache, and the hub cannot be reached$"):
            from_hub("me/it")

    @pytest.mark.parametrize("kind", KINDS)
    def test_an_encoder_up_and_down(self, kind, tmp_path, monkeypatch):
        hub = Hub(monkeypatch)
        model = encoder(kind, tmp_path / "first")
        assert model.push_to_hub("me/it", private=True, token="hf_x") == "https://huggingface.co/me/it"
        assert hub.calls[0] == {"repo_id": "me/it", "private": True, "exist_ok": True, "token": "hf_x"}
        assert hub.calls[1] == {"repo_id": "me/it", "message": f"Upload {type(model).__name__}"}
        assert "config.json" in hub.files
        requested = hub.serve(monkeypatch, tmp_path / "cache")
        again = type(model).from_pretrained("me/it", device="cpu")
        assert requested == ["me/it"]
        assert again.id == ("patches" if kind == "patches" else "me/it")
        assert torch.equal(again(video())[0].features, model(video())[0].features)

    def test_a_pipeline_up_and_down(self, tmp_path, monkeypatch):
        hub = Hub(monkeypatch)
        model = Pipeline("perceiver(4, dim=768)", Patches(16)).eval()
        model.push_to_hub("me/chain", message="first")
        assert hub.calls[-1] == {"repo_id": "me/chain", "message": "first"}
        assert set(hub.files) == {"config.json", "methods.safetensors"}
        hub.serve(monkeypatch, tmp_path / "cache")
        again = Pipeline.from_pretrained("me/chain", device="cpu").eval()
        torch.testing.assert_close(again(video()).features, model(video()).features)

    def test_a_pipeline_with_a_local_encoder(self, tmp_path, monkeypatch):
        Hub(monkeypatch)
        for own in (encoder("vit", tmp_path), load_encoder(encoder("vit", tmp_path).save_pretrained(tmp_path / "e"))):
            with pytest.raises(ValueError, match="push the encoder first"):
                Pipeline("uniform(3)", own).push_to_hub("me/chain")

    def test_a_network(self, tmp_path, monkeypatch):
        hub = Hub(monkeypatch)
        model = encoder("network", tmp_path)
        model.model.push_to_hub("me/net")
        assert set(hub.files) == {"config.json", "model.safetensors"}

    def test_hub_errors_are_one_line(self, monkeypatch):
        Hub(monkeypatch, OSError("no\nway"))
        with pytest.raises(ValueError, match=r"^me/it: upload failed \(no way\)$"):
            Patches(4).push_to_hub("me/it")

    def test_without_huggingface_hub(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(ValueError, match=r"requires huggingface-hub; install it with pip install"):
            Patches(4).push_to_hub("me/it")
