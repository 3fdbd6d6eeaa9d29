"""Prompts with generated media, the same for the engine and for transformers."""

from __future__ import annotations

from typing import Any

import numpy as np

# (seed, frames, height, width) of each video, (seed, height, width) of each image.
Request = dict[str, Any]
REQUESTS: list[Request] = [
    {"text": "<video>What happens?", "videos": [(1, 8, 56, 84)]},
    {"text": "Hello, <video>why?", "videos": [(2, 6, 112, 84)]},
    {"text": "No video.", "videos": []},
    {
        "text": "<video>first <image>then <video>last",
        "videos": [(3, 4, 84, 84), (1, 8, 56, 84)],
        "images": [(4, 56, 84)],
    },
    {"text": "Again: <video>", "videos": [(1, 8, 56, 84)]},
]


def frames(seed: int, count: int, height: int, width: int) -> np.ndarray:
    """uint8 [count,height,width,3]: a bright square on noise that changes slowly."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 255, (1, height, width, 3)) + random.integers(-20, 20, (count, height, width, 3))
    clip = noise.clip(0, 255).astype(np.uint8)
    for t in range(count):
        x = (t * 11 + seed * 7) % (width - 20)
        clip[t, 10:30, x : x + 20] = 255
    return clip


def image(seed: int, height: int, width: int) -> np.ndarray:
    return frames(seed, 1, height, width)[0]


def metadata(count: int) -> dict[str, Any]:
    """As vLLM passes it to processors."""
    return {"fps": 2.0, "duration": count / 2, "total_num_frames": count, "frames_indices": list(range(count)),
            "video_backend": "opencv", "do_sample_frames": False}  # fmt: skip
