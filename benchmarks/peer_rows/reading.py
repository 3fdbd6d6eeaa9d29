"""Reading frames: decord, torchcodec, OpenCV and PyAV.

Each reader is used as its documentation recommends for the task, with the same number of threads. Frames are compared
pixel by pixel; where they are resized, the others' filters differ from ours (area averaging with accurate rounding),
except in PyAV, which is given the same swscale flags. torchcodec needs FFmpeg's libraries (apt-get install ffmpeg) and
a build for the installed PyTorch (pip install torchcodec --index-url https://download.pytorch.org/whl/cpu).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewtokens.video import read
from fewtokens.video.select import target_size
from peer_rows import Pair, Row, Workload
from read_video import FOLDER, make_clip

Size = tuple[int, int]  # height and width
_RESIZED = "another filter for resizing"
_CHROMA = "another conversion of colors"
_FILTER = "theirs resizes by a filter that reads fewer pixels; ours averages areas"
_COPIES = (
    "theirs decodes with all threads, with which results for damaged files may vary; ours decodes with one thread "
    "from each of at most four keyframes, and copies three planes into [T,3,H,W]"
)


def _torchcodec(path: Path, indices: list[int], size: Size | None) -> Tensor:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    transforms = None if size is None else [Resize(size)]
    decoder = VideoDecoder(path, num_ffmpeg_threads=torch.get_num_threads(), transforms=transforms)
    return decoder.get_frames_at(indices).data


def _decord(path: Path, indices: list[int], size: Size | None) -> Tensor:
    from decord import VideoReader

    height, width = size or (-1, -1)
    reader = VideoReader(str(path), height=height, width=width, num_threads=torch.get_num_threads())
    return torch.from_numpy(reader.get_batch(indices).asnumpy()).permute(0, 3, 1, 2)


def _opencv(path: Path, indices: list[int], size: Size | None) -> Tensor:
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = f"threads;{torch.get_num_threads()}"
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = []
    position = 0
    for index in indices:
        if index - position > 100:
            capture.set(cv2.CAP_PROP_POS_FRAMES, index)
            position = index
        while position < index:
            capture.grab()
            position += 1
        image = capture.read()[1]
        position += 1
        if size is not None:
            image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
        frames.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    capture.release()
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def _pyav(path: Path, indices: list[int], size: Size | None) -> Tensor:
    import av
    from av.video.reformatter import VideoReformatter

    frames = []
    convert = VideoReformatter().reformat
    flags = 0x4 if size is None else 0x20 | 0x2000 | 0x4000 | 0x40000
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = torch.get_num_threads()
        stream.thread_type = "AUTO"
        step = 1 / float(stream.average_rate * stream.time_base)  # units of the timestamps per frame
        decoded, latest = container.decode(stream), -1
        for index in indices:
            target = round(index * step) + (stream.start_time or 0)
            if index - latest > 100:
                container.seek(target, stream=stream)
                decoded = container.decode(stream)
            frame = next(frame for frame in decoded if frame.pts >= target)
            latest = index
            height, width = size or (frame.height, frame.width)
            frames.append(convert(frame, width, height, "rgb24", interpolation=flags).to_ndarray())
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def _clip(name: str, work: Workload) -> Path:
    return make_clip(FOLDER / "600s.mp4", 600) if name == "10 min" else work.features.clip.parent / name


def _reading(
    reader: Callable[[Path, list[int], Size | None], Tensor], name: str, frames: int | None, side: int | None
) -> Callable[[Path, Workload], Pair]:
    def build(_: Path, work: Workload) -> Pair:
        path = _clip(name, work)
        index: list[int] = []

        def select(times: np.ndarray) -> np.ndarray:
            count = len(times) if frames is None else min(frames, len(times))
            index[:] = np.round(np.linspace(0, len(times) - 1, count)).astype(int).tolist()
            return np.array(index)

        video = read(path, pick=select)
        size = None if side is None else target_size(*video.size[::-1], side, name)
        return Pair(
            lambda: read(path, frames=frames, size=side).frames,
            lambda: reader(path, index, size),
            lambda ours, theirs: int((ours == theirs).sum()) / ours.numel() if ours.shape == theirs.shape else 0.0,
        )

    return build


_READERS = {
    "decord==0.6.0": (_decord, _RESIZED),
    "torchcodec==0.17.0": (_torchcodec, _RESIZED),
    "opencv-python-headless==5.0.0.93": (_opencv, _RESIZED),
    "av==18.1.0": (_pyav, ""),
}
_TASKS: tuple[tuple[str, int | None, int | None], ...] = (
    ("10 min", 32, None),
    ("10 min", 32, 224),
    ("01_dog.mp4", None, None),
    ("01_dog.mp4", None, 224),
    ("01_dog.mp4", 32, None),
    ("01_dog.mp4", 32, 224),
    ("sample_demo_1.mp4", None, None),
    ("mmaction_demo.mp4", 32, 224),
)
ROWS = tuple(
    Row(
        "reading",
        f"{frames or 'all'} frames of {name}, {f'resized to {side}' if side else 'full size'}",
        reference,
        _reading(reader, name, frames, side),
        frames=(0,),
        repeats=7,
        devices=("cpu",),
        threads=(2,),  # the readers choose their own
        memory=False,
        unequal=unequal if side else _CHROMA,
        reason=_FILTER if side else _COPIES,
    )
    for name, frames, side in _TASKS
    for reference, (reader, unequal) in _READERS.items()
)
