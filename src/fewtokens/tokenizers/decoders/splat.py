"""Adds up 2-D Gaussians on a map of features, which a decoder of images maps to pixels."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

from fewtokens.tokenizers.blocks.splat import GEOMETRY, SHORTEST, read_geometry, splat
from fewtokens.tokenizers.parts import GridDecoder
from fewtokens.tokenizers.registry import build_part


class Splat(GridDecoder):
    """The decoder of GaussianToken (arXiv 2501.15619): the Gaussians of a frame are a set, whose order does not matter.

    Args:
        dim: channels of a token; the last five are the geometry, see the encoder `gaussians`.
        network: the decoder of images, as a spec such as "conv2d(width=64)".
        share: as in the encoder.
        longest: largest standard deviation in cells of the map; the smallest is 0.1. Default: 3, with which the
            published schedule, 4 to 3, ends.

    Raises:
        ValueError: an argument is out of range, or the network is not of images.
    """

    def __init__(
        self,
        dim: int = 69,
        *,
        network: str = "conv2d(mult=(1, 2, 2, 4))",
        share: int = 2,
        longest: float = 3.0,
    ) -> None:
        super().__init__()
        if dim <= GEOMETRY:
            raise ValueError(f"dim must be more than {GEOMETRY}, the scalars of the geometry, got {dim}")
        if share < 1 or not SHORTEST < longest < float("inf"):
            raise ValueError(f"share must be at least 1 and longest above {SHORTEST}, got {share} and {longest}")
        image = build_part("decoders", network, dim=dim - GEOMETRY)
        if not isinstance(image, GridDecoder) or image.stride[0] != 1:
            raise ValueError(f"network must decode each frame separately from a map, got {network!r}")
        self.dim, self.network, self.share, self.longest, self.image = dim, network, share, longest, image
        self.stride, self.causal = (1, share * image.stride[1], share * image.stride[2]), image.causal

    def pixels_of(self, latents: Tensor) -> Tensor:
        height, width = (self.share * n for n in latents.shape[3:])
        tokens = rearrange(latents, "b c t h w -> (b t) (h w) c")
        gaussians = read_geometry(tokens[..., -GEOMETRY:], height, width, self.longest)
        maps = splat(tokens[..., :-GEOMETRY], gaussians, height, width)
        return self.image.pixels_of(rearrange(maps, "(b t) c h w -> b c t h w", b=len(latents)))
