"""Settings for training a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fewtokens.data.pairs import Pairing
from fewtokens.encoders.config import rename_hint
from fewtokens.tokenizers.preset import create_tokenizer, get_preset
from fewtokens.tokenizers.tokenizer import Tokenizer
from fewtokens.train.settings import Settings, setting_values
from fewtokens.train.tokenizer_losses import PIXEL_LOSSES


@dataclass(frozen=True)
class TokenizerRecipe(Settings):
    """Settings for training a tokenizer on videos: of the loop, the data and the losses.

    Attributes:
        tokenizer: a preset, or the spec of a tokenizer.
        tiny: whether a preset has the size that trains on a CPU instead of the published one.
        frames: frames of a clip. Default: those of the preset.
        size: side of the crop in pixels. Default: that of the preset.
        short: short side in pixels before the crop; 0 keeps the size of the frames.
        min_gap, max_gap: range of the distance of consecutive frames of a clip, in frames of the video.
        area: range of the area of a random crop, as a fraction of the frame.
        flip: probability of a horizontal flip.
        repeats: clips per decoded video.
        visits: visits of each video per epoch.
        pixel: reconstruction loss, one of l1, l2, charbonnier, logit_laplace.
        perceptual: an encoder whose features are compared, or "BACKBONE,HEADS", the weights of LPIPS with VGG-16 (see
            `Perceptual`); "" for none.
        perceptual_weight: weight of the perceptual loss.
        gram_weight: weight of the Gram matrices of the perceptual features (AToken).
        gan_weight: weight of the adversarial loss, times the adaptive weight of VQGAN; 0 is off.
        gan_start: step at which the adversarial loss starts.
        gan_width: channels of the first layer of the discriminator.
        lecam: weight of the LeCAM regularization of the discriminator.
        images: number of first steps on single frames (image, then video).
        shown: clips that are evaluated and shown during training.
        note: origin and cost of the settings.
    """

    tokenizer: str = ""
    tiny: bool = True
    batch: int = 8
    steps: int = 1000
    weight_decay: float = 0.01
    eval_every: float = 5
    frames: int = 5
    size: int = 64
    short: int = 0
    min_gap: int = 1
    max_gap: int = 4
    area: tuple[float, float] = (0.3, 1.0)
    flip: float = 0.5
    repeats: int = 1
    visits: int = 8
    pixel: str = "l1"
    perceptual: str = ""
    perceptual_weight: float = 1.0
    gram_weight: float = 0.0
    gan_weight: float = 0.0
    gan_start: int = 20000
    gan_width: int = 64
    lecam: float = 0.005
    images: int = 0
    shown: int = 8
    note: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "area", tuple(self.area))
        if self.pixel not in PIXEL_LOSSES:
            raise ValueError(f"pixel must be one of {', '.join(PIXEL_LOSSES)}, got {self.pixel!r}")
        if self.gram_weight and not self.perceptual:
            raise ValueError("gram_weight requires perceptual, the network whose features are compared")

        if self.gan_weight and self.size < 32:
            raise ValueError(f"gan_weight requires clips of at least 32 pixels, got size={self.size}")

    @property
    def pairing(self) -> Pairing:
        """The settings for sampling clips from videos."""
        names = ("size", "short", "min_gap", "max_gap", "area", "flip", "repeats")
        return Pairing(mode="clip", length=self.frames, **{name: getattr(self, name) for name in names})


def make_tokenizer_recipe(tokenizer: str, **changes: Any) -> TokenizerRecipe:
    """Returns the settings of a preset, or the defaults for a spec, with changes.

    Raises:
        ValueError: an unknown preset or setting, or a value out of range.
    """
    if unknown := sorted(set(changes) - accepted_settings().keys()):
        raise ValueError(
            rename_hint(unknown, set(accepted_settings()))
            or f"no setting {', '.join(unknown)}; available: {', '.join(sorted(accepted_settings()))}"
        )
    settings: dict[str, Any] = {}
    if ">" not in tokenizer:
        preset = get_preset(tokenizer)
        if preset.source != "video":
            raise ValueError(f"{tokenizer} encodes {preset.source}, not videos; train it in Python with its `forward`")
        frames, height, width = preset.tiny_clip if changes.get("tiny", True) else preset.clip
        settings = {"frames": frames, "size": min(height, width), **preset.recipe}
    if "epochs" in changes and "steps" not in changes:
        settings["steps"] = 0
    return TokenizerRecipe(**{**settings, **changes, "tokenizer": tokenizer})


def accepted_settings() -> Mapping[str, Any]:
    """Returns every setting that --set accepts, with a value of its type."""
    return setting_values(TokenizerRecipe(), exclude=("tokenizer", "note"))


def build_tokenizer(recipe: TokenizerRecipe) -> Tokenizer:
    """Builds the tokenizer of a recipe; its parameters are initialized with the recipe's seed.

    Raises:
        ValueError: it does not accept clips of this size.
    """
    import torch

    torch.manual_seed(recipe.seed)
    tokenizer = create_tokenizer(recipe.tokenizer, tiny=recipe.tiny)
    tokenizer.encoder.grid(recipe.frames, recipe.size, recipe.size)
    return tokenizer
