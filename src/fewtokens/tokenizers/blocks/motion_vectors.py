"""Motion vectors of blocks of pixels: from a codec or by block matching, pooling, normalization and warping.

A vector (x, y) is in pixels and points from a block to its source in the frame before, as in codecs: the block at
(x0, y0) looks like the pixels at (x0 + x, y0 + y) of the frame before. The motion of T frames are T - 1 fields of
vectors, [B,T-1,2,H,W] for H x W blocks.
"""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

# Side of a block in pixels.
BLOCK = 16
# Standard deviations of vectors that are divided by the size of the image, from Video-LaVIT (arXiv 2402.03161).
_STD = (0.0993703, 0.1130276)
# MPEG-4 divides blocks into parts with this side.
_PART = 8
# Quantizer of the codec, 1..31, from fine to coarse.
_QUALITY = 3


def normalize(vectors: Tensor, height: int, width: int) -> Tensor:
    """Divides vectors [...,2,H,W] in pixels by the size of the image in pixels, and by their standard deviations."""
    return vectors / _scale(vectors, height, width)


def denormalize(vectors: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `normalize`."""
    return vectors * _scale(vectors, height, width)


def _scale(vectors: Tensor, height: int, width: int) -> Tensor:
    return vectors.new_tensor([_STD[0] * width, _STD[1] * height])[:, None, None]


def pool_vectors(vectors: Tensor, side: int) -> Tensor:
    """Pools fields [...,2,H,W] to blocks of side x side vectors, of which the longest one is kept.

    A maximum of signed components, as in the code of Video-LaVIT, loses motion to the left and up.
    """
    blocks = rearrange(vectors, "... c (h p) (w q) -> ... h w (p q) c", p=side, q=side)
    longest = blocks.square().sum(-1).argmax(-1)[..., None, None]
    return blocks.take_along_dim(longest, -2)[..., 0, :].movedim(-1, -3)


def match_blocks(frames: Tensor, search: int = 7) -> Tensor:
    """Finds for each block of a frame the most similar pixels of the frame before.

    The distance is the mean absolute difference of colors; of equally similar places, the nearest one.

    Args:
        frames: [B,T,3,height,width], float; height and width are multiples of 16.
        search: longest vector in each direction, in whole pixels.

    Returns:
        Vectors [B,T-1,2,height/16,width/16].
    """
    before, after = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
    height, width = frames.shape[-2:]
    wide = F.pad(before, (search,) * 4, mode="replicate") if len(before) else before
    steps = range(-search, search + 1)
    best = after.new_full((len(after), height // BLOCK, width // BLOCK), torch.inf)
    vectors = after.new_zeros(len(after), 2, height // BLOCK, width // BLOCK)
    for y, x in sorted(((y, x) for y in steps for x in steps), key=lambda step: step[0] ** 2 + step[1] ** 2):
        source = wide[..., search + y : search + y + height, search + x : search + x + width]
        distance = F.avg_pool2d((after - source).abs().mean(1), BLOCK) if len(after) else best
        better = distance < best
        best = torch.where(better, distance, best)
        vectors = torch.where(better[:, None], vectors.new_tensor([x, y])[:, None, None], vectors)
    return vectors.unflatten(0, (len(frames), -1))


def codec_vectors(frames: Tensor) -> Tensor:
    """Returns the vectors of MPEG-4, which encodes each frame from the one before, to a quarter of a pixel.

    A block that the codec encodes without prediction has the vector 0, as has a block that it skips. Of the four
    vectors that a block may have, the longest one is kept.

    Args:
        frames: [B,T,3,height,width], float in 0..1; height and width are multiples of 16.

    Returns:
        Vectors [B,T-1,2,height/16,width/16].
    """
    images = frames.mul(255).round().clamp(0, 255).byte().permute(0, 1, 3, 4, 2).cpu().contiguous().numpy()
    fields = [_video_vectors(video) for video in images]
    return pool_vectors(torch.stack(fields).to(frames.device, frames.dtype), BLOCK // _PART)


def _video_vectors(images: Any) -> Tensor:
    """The vectors of parts of blocks, float32 [T-1,2,H,W], of uint8 images [T,height,width,3]."""
    import av

    T, height, width, _ = images.shape
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream: Any = container.add_stream("mpeg4", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.gop_size, context.max_b_frames, context.thread_count = T, 0, 1
        context.options = {"qmin": str(_QUALITY), "qmax": str(_QUALITY), "sc_threshold": "1000000000"}
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    field = torch.zeros(T, 2, height // _PART, width // _PART)
    with av.open(file, "r") as source:
        source.streams.video[0].codec_context.options = {"flags2": "+export_mvs"}
        for t, frame in enumerate(source.decode(video=0)):
            data: Any = frame.side_data.get("MOTION_VECTORS")
            if data is None:
                continue
            table = data.to_ndarray()
            for side in (BLOCK, _PART):
                rows = table[(table["w"] == side) & (table["h"] == side)]
                corner = [torch.from_numpy(rows[f"dst_{axis}"].astype("int64") - side // 2) // _PART for axis in "xy"]
                vector = torch.stack(
                    [torch.from_numpy(rows[f"motion_{axis}"] / rows["motion_scale"]).float() for axis in "xy"]
                )
                steps = range(side // _PART)
                for down, right in ((y, x) for y in steps for x in steps):
                    field[t, :, corner[1] + down, corner[0] + right] = vector
    return field[1:]


def warp(images: Tensor, vectors: Tensor) -> Tensor:
    """Returns images made of the pixels that vectors point to, bilinearly; those past the edge are those of the edge.

    Args:
        images: [B,C,height,width].
        vectors: [B,2,H,W], one per block of equal size.
    """
    height, width = images.shape[-2:]
    dense = F.interpolate(vectors, (height, width), mode="nearest")
    x = torch.arange(width, device=images.device) + dense[:, 0]
    y = torch.arange(height, device=images.device)[:, None] + dense[:, 1]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def warp_in_turn(image: Tensor, vectors: Tensor) -> Tensor:
    """Returns a video [B,T,C,height,width] from its first frame and the vectors [B,T-1,2,H,W] of the others."""
    frames = [image]
    for field in vectors.unbind(1):
        frames.append(warp(frames[-1], field))
    return torch.stack(frames, 1)
