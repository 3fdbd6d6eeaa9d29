"""Labeled images and videos: listings, clips and transforms."""

from fewtokens.data.clips import ClipData, Sample, View, collate
from fewtokens.data.listing import Item, Listing, read_listing
from fewtokens.data.moving_digits import MovingDigits
from fewtokens.data.transforms import Transform

__all__ = ["ClipData", "Item", "Listing", "MovingDigits", "Sample", "Transform", "View", "collate", "read_listing"]
