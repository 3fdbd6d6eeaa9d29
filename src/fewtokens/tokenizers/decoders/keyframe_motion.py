"""A keyframe, and the frames after it by warping it along decoded motion vectors."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.tokenizers.blocks.motion_transformer import STRIDE, MotionDecoder
from fewtokens.tokenizers.blocks.motion_vectors import BLOCK, denormalize, warp_in_turn
from fewtokens.tokenizers.encoders.keyframe_motion import keyframe_slots
from fewtokens.tokenizers.parts import GridDecoder
from fewtokens.tokenizers.registry import build_part


class KeyframeMotion(GridDecoder):
    """Decodes the tokens of the encoder of the same name: each frame is the one before, warped.

    The pixels that motion uncovers cannot be decoded; the video diffusion model of the paper paints them.

    Args:
        dim: number of channels of a token.
        keyframe: the decoder of the first frame, as a spec such as "conv_up"; the side of its patches divides 64.
        width, depth, heads: channels, blocks per stage and attention heads of the transformer of motion.
    """

    first_frame = True

    def __init__(
        self, dim: int = 32, *, keyframe: str = "conv_up", width: int = 512, depth: int = 3, heads: int = 8
    ) -> None:
        super().__init__()
        self.image: GridDecoder = build_part("decoders", keyframe, dim=dim)
        self.stride = (STRIDE[0], BLOCK * STRIDE[1], BLOCK * STRIDE[2])
        self.slots = keyframe_slots(self.image.stride, self.stride)
        self.dim, self.keyframe, self.width, self.depth, self.heads = dim, keyframe, width, depth, heads
        self.motion = MotionDecoder(dim, width=width, depth=depth, heads=heads)

    def pixels(self, grid: Grid) -> tuple[int, int, int]:
        return super().pixels(Grid(grid.T + 1 - self.slots, grid.H, grid.W))

    def fields(self, latents: Tensor) -> Tensor:
        """The normalized motion vectors [B,T-1,2,H,W] of features [B,C,T',H',W'] of all cells."""
        return self.motion(latents[:, :, self.slots :].movedim(1, -1))

    def pixels_of(self, latents: Tensor) -> Tensor:
        side = self.stride[1] // self.image.stride[1]
        first = latents[:, :, : self.slots]
        image = self.image.pixels_of(rearrange(first, "b c (p q) h w -> b c 1 (h p) (w q)", p=side))[:, :, 0]
        if latents.shape[2] == self.slots:
            return image[:, :, None]
        # Motion is trained by its vectors, not by the colors of pixels, as in the paper.
        vectors = denormalize(self.fields(latents).detach(), *image.shape[-2:])
        return warp_in_turn(image, vectors).transpose(1, 2)
