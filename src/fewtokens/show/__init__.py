"""Figures and pages: the region of a video that each token represents, and the video rebuilt from the tokens."""

from fewtokens.core.checks import check_comparison, check_overlay
from fewtokens.show.boxes import write_boxes
from fewtokens.show.colors import method_color, method_styles
from fewtokens.show.comparison import draw_comparison
from fewtokens.show.figures import compare, draw, frame_rate, result_of, write_comparison
from fewtokens.show.labels import shorten
from fewtokens.show.overlay import STYLES, heat, overlay
from fewtokens.show.page import write_page
from fewtokens.show.recording import write_recording
from fewtokens.show.sheet import draw_sheet
from fewtokens.show.types import Clip, Result
from fewtokens.show.write import write_overlay

__all__ = [
    "STYLES",
    "Clip",
    "Result",
    "check_comparison",
    "check_overlay",
    "compare",
    "draw",
    "draw_comparison",
    "draw_sheet",
    "frame_rate",
    "heat",
    "method_color",
    "method_styles",
    "overlay",
    "result_of",
    "shorten",
    "write_boxes",
    "write_comparison",
    "write_overlay",
    "write_page",
    "write_recording",
]
