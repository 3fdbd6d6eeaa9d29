"""`AttentionRule`: which attention of a vision tower is the cue "attention"."""

from __future__ import annotations

from typing import NamedTuple

QUERIES = {
    "class": "the class token",
    "received": "all queries, averaged after the softmax",
    "mean_query": "the mean query of a frame, and one mean key for each row of features",
    "probe": "the probe of the attention-pooling head (SigLIP)",
}
HEADS = {
    "mean": "the mean over the heads",
    "joined": 'queries and keys of full width, not split into heads; so is the cue "keys"',
}


class AttentionRule(NamedTuple):
    """Which attention of the vision tower of a language model is the cue "attention".

    Methods differ in it: each has the rule of its published code, `Method.published_attention`. It applies to the
    towers of language models; the encoders of fewtokens always return the attention received in their last block.

    Attributes:
        queries: keys of `QUERIES`, in order of preference: the first that the tower has is used.
        layer: -1 is the layer whose output the language model reads, -2 the one before it; 0 the first of the tower.
            "last" is the last of the tower, which differs from -1 where the model reads an earlier one (CLIP in LLaVA).
        heads: a key of `HEADS`.
    """

    queries: tuple[str, ...] = ("class", "received")
    layer: int | str = -1
    heads: str = "mean"

    def override(self, text: str | None) -> AttentionRule:
        """Returns the rule with the query, and the layer after "@", of a text such as "received" or "class@-2".

        Raises:
            ValueError: an unknown query, or a layer that is neither a whole number nor "last".
        """
        if text is None:
            return self
        query, at, layer = text.partition("@")
        is_layer = layer == "last" or layer.removeprefix("-").isdecimal()
        if query not in QUERIES or (at and not is_layer):
            raise ValueError(
                f"attention must be one of {', '.join(QUERIES)}, with a layer after '@' if it is not the default, such "
                f"as 'received@-2' or 'class@last'; got {text!r}"
            )
        number = self.layer if not at else layer if layer == "last" else int(layer)
        return self._replace(queries=(query,), layer=number)
