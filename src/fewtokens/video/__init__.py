"""Reads, streams, writes and synthesizes videos."""

from fewtokens.video.clips import KINDS, synthetic
from fewtokens.video.live import live
from fewtokens.video.reader import read, stream
from fewtokens.video.types import Video, VideoError
from fewtokens.video.writer import write

__all__ = ["KINDS", "Video", "VideoError", "live", "read", "stream", "synthetic", "write"]
