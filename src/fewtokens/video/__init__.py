"""Videos in and out: reading, chunks, writing, and clips that are made rather than filmed."""

from fewtokens.video.read import read, stream
from fewtokens.video.synthetic import KINDS, synthetic
from fewtokens.video.types import Video, VideoError
from fewtokens.video.write import write

__all__ = ["KINDS", "Video", "VideoError", "read", "stream", "synthetic", "write"]
