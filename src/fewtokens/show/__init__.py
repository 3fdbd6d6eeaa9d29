"""Pictures and pages: which region of a video each token stands for, and what comes back from the tokens."""

from fewtokens.show.overlay import STYLES, heat, overlay
from fewtokens.show.page import write_page
from fewtokens.show.sheet import draw_sheet
from fewtokens.show.types import Clip, Result
from fewtokens.show.write import check_overlay, write_overlay

__all__ = ["STYLES", "Clip", "Result", "check_overlay", "draw_sheet", "heat", "overlay", "write_overlay", "write_page"]
