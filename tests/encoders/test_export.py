"""Export of merging inside the encoder with torch.export and to ONNX: outputs equal those of the network."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core import registry
from fewtokens.encoders import ViT, ViTConfig, VitEncoder
from fewtokens.encoders.export import FrameEncoder, export_onnx

MERGING = "tome_in_encoder(keep=0.4)"


def encoder(proportional: str = "channels") -> VitEncoder:
    torch.manual_seed(0)
    config = ViTConfig(dim=16, depth=2, num_heads=2, patch_size=4, image_size=(16, 16), num_registers=1)
    return VitEncoder(ViT(config, proportional=proportional).eval())


def exportable(spec: str = MERGING, **options) -> FrameEncoder:
    return FrameEncoder(encoder(**options), registry.build(spec) if spec else ()).eval()


def frames(F: int = 3, H: int = 16, W: int = 24) -> torch.Tensor:
    return torch.rand(F, 3, H, W, generator=torch.Generator().manual_seed(F))


def close(actual, expected) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_equals_the_encoder_frame_by_frame():
    features, positions, sizes, assignment = exportable()(frames())
    assert features.shape == (3, 9, 16)
    assert sizes.sum(1).tolist() == [24, 24, 24]
    tokens, _ = encoder()(frames()[None], block_methods=registry.build(MERGING))
    torch.testing.assert_close(features.flatten(0, 1), tokens.features[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(sizes.flatten(), tokens.sizes[0])
    torch.testing.assert_close(positions[..., 1:].flatten(0, 1), tokens.positions[0, :, 1:])
    rows = torch.arange(3)[:, None] * 9
    assert torch.equal((assignment + rows).flatten(), tokens.assignment[0])


@torch.no_grad()
@pytest.mark.parametrize(
    ("spec", "proportional"),
    [(MERGING, "channels"), (MERGING, "bias"), ("tome_in_encoder(r=(5, -0.5))", "none"), ("", "channels")],
)
def test_torch_export(spec, proportional):
    module = exportable(spec, proportional=proportional)
    shapes = ({0: torch.export.Dim("F", min=1)},)
    program = torch.export.export(module, (frames(),), dynamic_shapes=shapes, strict=False).module()
    for number in (3, 1, 5):
        close(program(frames(number)), module(frames(number)))


@torch.no_grad()
def test_compiles_to_one_graph():
    module = exportable()
    close(torch.compile(module, fullgraph=True, backend="eager")(frames()), module(frames()))


class TestOnnx:
    @torch.no_grad()
    def test_runs_in_onnxruntime(self, tmp_path):
        pytest.importorskip("onnxscript")
        runtime = pytest.importorskip("onnxruntime")
        module = exportable()
        path = export_onnx(module, frames(), tmp_path / "vit.onnx")
        assert [each.name for each in tmp_path.iterdir()] == ["vit.onnx"]
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [each.name for each in session.get_outputs()] == ["features", "positions", "sizes", "assignment"]
        for number in (3, 1, 5):
            outputs = session.run(None, {"frames": frames(number).numpy()})
            close([torch.from_numpy(value) for value in outputs], module(frames(number)))

    def test_without_onnx(self, monkeypatch, tmp_path):
        monkeypatch.setitem(__import__("sys").modules, "onnx", None)
        with pytest.raises(
            ValueError, match=r"requires onnx and onnxscript; install them with pip install 'fewtokens\[onnx\]'"
        ):
            export_onnx(exportable(), frames(), tmp_path / "vit.onnx")
        assert list(tmp_path.iterdir()) == []


def test_methods_of_other_stages_are_refused():
    with pytest.raises(
        ValueError, match="kmeans acts at stage 'tokens'; only methods of stage 'encoder' act between blocks"
    ):
        exportable("kmeans(3)")
