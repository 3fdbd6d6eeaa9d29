"""SmolVLM: a video is a sequence of images, each after its time. arXiv 2504.05299."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, ClassVar

from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.llm.backends.base import Backend
from fewtokens.llm.backends.rows import RowLayout
from fewtokens.llm.pixels import LANCZOS, PreparedVideo, normalize, resize
from fewtokens.video import Video

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_MAX_SIDE = 4096


class SmolVLM(Backend):
    """Rows of a video: T runs of 8 x 8 (512 px), with text between them. Images of zeros are padding."""

    name = "smolvlm"
    needs_items = True
    nested_images = True
    cues: ClassVar = ("text", "frame_global", "pixels")
    video_marker = "<video>"
    unsupported_versions = ((5, 20),)
    preprocess_config: ClassVar = {
        "size": {"longest_edge": 4 * 364},
        "max_image_size": {"longest_edge": 364},
        "resample": LANCZOS,
    }
    # transformers uses this one for videos, whatever the folder contains; the folders' own templates are for images.
    template = (
        "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
        "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
        "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
        "{% elif line['type'] == 'image' %}<image>{% elif line['type'] == 'video' %}<video>{% endif %}{% endfor %}"
        "<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    )

    def prepare(self, model: Any, processor: Any, video: Video) -> PreparedVideo:
        config = processor.preprocess_config
        side = config["max_image_size"]["longest_edge"]
        frames = resize(video.frames, _first_size(config["size"], *video.size), config["resample"])
        frames = normalize(resize(frames, (side, side), config["resample"]), config)
        prepared = self.describe(model, processor, video, Grid(len(frames), 1, model.base_model.image_seq_len))
        prepared.inputs["pixel_values"] = frames[None]
        return prepared

    def describe(self, model: Any, processor: Any, video: Video, grid: Grid) -> PreparedVideo:
        times = video.times.tolist()
        image = self._text(model, processor, 0, 0)
        seconds = times[-1] if video.duration is None else video.duration
        text = (
            f"You are provided the following series of {in_words(len(times))} frames from a "
            f"{timedelta(seconds=int(seconds))} [H:MM:SS] video.\n"
        )
        for time in times:
            text += f"\nFrame from {int(time // 60):02d}:{int(time % 60):02d}:{image}"
        return PreparedVideo(text=text + "\n\n")

    def prepare_images(self, model: Any, processor: Any, images: Sequence[Video]) -> list[PreparedVideo]:
        inputs = processor.image_inputs(images, nested=True, return_row_col_info=True)
        shapes = list(zip(inputs["rows"][0], inputs["cols"][0], strict=True))
        # The last one is the whole image.
        counts = [rows * columns + 1 for rows, columns in shapes]
        tiles = inputs["pixel_values"][0, : sum(counts)].split(counts)
        return [
            PreparedVideo({"pixel_values": own[None]}, self._text(model, processor, *shape), count)
            for own, shape, count in zip(tiles, shapes, counts, strict=True)
        ]

    def _text(self, model: Any, processor: Any, rows: int, columns: int) -> str:
        """The text for an image in rows and columns of tiles, which the whole image follows."""
        boundary = processor.token("fake_image_token", "<fake_token_around_image>")
        start = processor.token("global_image_token", "<global-img>")
        run = processor.placeholder * model.base_model.image_seq_len
        text = ""
        for row in range(1, rows + 1):
            text += "".join(f"{boundary}<row_{row}_col_{column}>{run}" for column in range(1, columns + 1)) + "\n"
        return text + ("\n" if text else "") + boundary + start + run + boundary

    def pixels(self, model: Any, modality: str, inputs: dict[str, Any], entries: slice, layout: RowLayout) -> Tensor:
        images = inputs["pixel_values"].flatten(0, 1)
        return super().pixels(model, modality, {"pixel_values": images[images.flatten(1).any(1)]}, entries, layout)


def _first_size(size: dict[str, int], height: int, width: int) -> tuple[int, int]:
    """The size before frames are made square: the long side as specified, the short side even."""
    if not size.get("longest_edge"):
        return size["height"], size["width"]
    long = min(_MAX_SIDE, size["longest_edge"])
    aspect = width / height
    short = int(long / aspect) if width >= height else int(long * aspect)
    short = max(1, short + short % 2)
    return (short, long) if width >= height else (long, short)


def in_words(number: int) -> str:
    """Spells out a whole number below a million in English, as the package num2words does."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        return _TENS[number // 10 - 2] + (f"-{_ONES[number % 10]}" if number % 10 else "")
    if number < 1000:
        tens = f" and {in_words(number % 100)}" if number % 100 else ""
        return f"{_ONES[number // 100]} hundred{tens}"
    rest = number % 1000
    join = " and " if rest < 100 else ", "
    return f"{in_words(number // 1000)} thousand" + (join + in_words(rest) if rest else "")
