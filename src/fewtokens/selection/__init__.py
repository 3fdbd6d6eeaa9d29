"""Selecting the frames of a video before decoding it: scorers of relevance, and `read(select=)`."""

from fewtokens.selection.choose import make_chooser, select_among
from fewtokens.selection.scorers import EncoderScorer, Oracle, PixelScorer, Scorer, load_scorer
from fewtokens.selection.text_image import TextImageScorer
from fewtokens.video import read
from fewtokens.video.footage import set_selection

set_selection(make_chooser)

__all__ = [
    "EncoderScorer", "Oracle", "PixelScorer", "Scorer", "TextImageScorer", "load_scorer", "read", "select_among",
]  # fmt: skip
