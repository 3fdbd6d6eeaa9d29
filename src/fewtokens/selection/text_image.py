"""Relevance by a text-image model of transformers: the cosine of its image and text features."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.hub import from_hub
from fewtokens.encoders.devices import pick_device
from fewtokens.encoders.frames import normalize, patchify, resize, to_unit
from fewtokens.encoders.weights import fingerprint, hash_files, height_and_width, read_config, read_normalization
from fewtokens.selection.scorers import BATCH, Scorer
from fewtokens.video.footage import SmallFrames

# Of CLIP; a preprocessor_config.json in the folder replaces them.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model")


class TextImageScorer(Scorer):
    """Scores the cosine between the features of a frame and of the question.

    Frames are resized to the square that the model reads, so that nothing is cropped; the published preprocessing of
    CLIP crops the center. A question longer than the text tower accepts is cut, with a warning.

    Args:
        folder: a model of transformers with `get_image_features` and `get_text_features` and a tokenizer (CLIP, SigLIP,
            SigLIP 2): a folder or a hub id.
        device: see `load_encoder`.

    Raises:
        ValueError: no such model, or it has no text tower or no tokenizer.
    """

    needs_question = lasting = True

    def __init__(self, folder: str | Path, *, device: str = "auto") -> None:
        path = Path(folder) if Path(folder).is_dir() else Path(from_hub(str(folder)))
        config = read_config(path)
        if "text_config" not in config or "vision_config" not in config:
            raise ValueError(
                f"{folder}: a {config['model_type']} has no text tower, so it cannot compare frames with a question; "
                f"use a CLIP or SigLIP model, or the scorer features:{folder}"
            )
        texts = hash_files(sorted(path.glob("*.json")) + sorted(path.glob("*.txt")))  # tokenizer and preprocessing
        self.id = f"clip:{folder}:{fingerprint(path)}:{texts[:16]}"
        self.model, self.tokenizer = _load(path)
        self.model.to(pick_device(device))
        self.device = next(self.model.parameters()).device  # with its index, which other threads need
        vision = self.model.config.vision_config
        self._packed = not hasattr(vision, "image_size")
        if self._packed:  # SigLIP 2 with variable resolution: a square of the number of patches that it was trained on
            self.size = int(vision.num_patches**0.5) * vision.patch_size
        else:
            self.size = max(height_and_width({"image_size": vision.image_size}, "image_size", 224, str(path)))
        self.mean, self.std = read_normalization(path, _MEAN, _STD)

    @torch.inference_mode()
    def features(self, frames: Tensor) -> Tensor:
        return torch.cat([self._encode(part) for part in frames.split(BATCH)])

    def _encode(self, frames: Tensor) -> Tensor:
        square = resize(to_unit(frames.to(self.device))[:, None], (self.size, self.size))
        pixels = normalize(square, self.mean, self.std)
        if not self._packed:
            return F.normalize(_pooled(self.model.get_image_features(pixel_values=pixels[:, 0])), dim=1)
        patch = self.model.config.vision_config.patch_size
        side, n = self.size // patch, len(frames)
        rows = patchify(pixels, 1, patch).flatten(2)
        output = self.model.get_image_features(
            pixel_values=rows,
            pixel_attention_mask=torch.ones(n, side**2, dtype=torch.int64, device=self.device),
            spatial_shapes=torch.full((n, 2), side, device=self.device),
        )
        return F.normalize(_pooled(output), dim=1)

    @torch.inference_mode()
    def score(self, thumbnails: SmallFrames, question: str | None, features: Tensor | None) -> Tensor:
        assert question is not None and features is not None
        return F.normalize(features.float(), dim=1) @ self.text_features(question)[0]

    @torch.inference_mode()
    def text_features(self, question: str) -> Tensor:
        """Returns the unit features of a text, float32 [1,C]; warns if it is cut."""
        limit = self.model.config.text_config.max_position_embeddings
        length = len(self.tokenizer(question, truncation=False)["input_ids"])
        if length > limit:
            warnings.warn(
                f"the question has {length} tokens, of which {self.id.split(':')[1]} reads the first {limit}",
                stacklevel=2,
            )
        # SigLIP was trained with text padded to its full length.
        padding: Any = "max_length" if self.model.config.model_type.startswith("siglip") else False
        inputs = self.tokenizer(question, return_tensors="pt", truncation=True, max_length=limit, padding=padding)
        inputs = {key: inputs[key].to(self.device) for key in ("input_ids", "attention_mask") if key in inputs}
        if padding:
            inputs.pop("attention_mask", None)
        return F.normalize(_pooled(self.model.get_text_features(**inputs)), dim=1)


def _pooled(output: Any) -> Tensor:
    """The features of a tower, which releases of transformers return alone or in an output object."""
    return (output if isinstance(output, Tensor) else output.pooler_output).float().cpu()


def _load(folder: Path) -> tuple[Any, Any]:
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise ValueError(f"{folder}: requires transformers; install it with pip install 'fewtokens[hf]'") from None
    # Without these files, transformers makes a tokenizer that knows no words.
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ValueError(f"{folder}: has no tokenizer ({', '.join(_TOKENIZER_FILES)})")
    try:
        model = AutoModel.from_pretrained(folder, use_safetensors=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers raises all kinds of errors for folders it cannot load
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: transformers cannot load its model and tokenizer ({reason})") from None
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise ValueError(f"{folder}: {type(model).__name__} cannot compare images and text; use CLIP or SigLIP")
    return model, tokenizer
