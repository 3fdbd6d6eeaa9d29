"""Few tokens in a prompt: encode, reduce, and write the prompt again.

short = compress_inputs(model, inputs, "token_dynamics(keep=32)")
model.generate(**short)        model(**short)        # with labels, a loss
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from fewtokens.llm.backends.base import backend_of
from fewtokens.llm.chains import Methods, as_pipeline
from fewtokens.llm.features import note_pipeline
from fewtokens.llm.interface import unwrapped
from fewtokens.llm.prompt_editor import LAYOUTS, Compressed, edit_prompts
from fewtokens.llm.visuals import encode_visuals, reduce_visuals

_OPTIONS = ("layout", "positions", "items")


def compress_inputs(model: Any, inputs: Any, spec: Methods, **options: Any) -> dict[str, Any]:
    """A prompt with few visual tokens, for `model.generate(**short)` or `model(**short)`; see `compress`.

    A later turn on the cache is for `attach`, which gives it its positions; so is a prompt with images alone, of which
    nothing is reduced.
    """
    check_options("compress_inputs", options)
    return compress(model, inputs, spec, **options).inputs


def check_options(caller: str, options: Iterable[str]) -> None:
    """Raises a ValueError if an option is none of `compress`."""
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise ValueError(
            f"{caller} takes {', '.join(_OPTIONS)}; not {', '.join(unknown)}. Arguments of a method stand in the spec, "
            "such as 'tome(keep=0.1)'"
        )


def compress(
    model: Any,
    inputs: Any,
    spec: Methods,
    *,
    layout: str = "per_frame",
    positions: str | None = None,
    items: Sequence[Sequence[tuple[str, int]]] | None = None,
) -> Compressed:
    """Encodes the images and videos of a prompt, reduces the videos and shortens the prompt to fit.

    Args:
        model: of a family in `BACKENDS`, with its language-model head; also wrapped, see `unwrapped`.
        inputs: what the processor made: input_ids [B,L], attention_mask, pixels, grids; labels [B,L], if any.
            Other inputs are kept.
        spec: a chain of methods of the stages pixels and tokens. Their features have the width of the language model.
            Methods of the pixels stage decide on pixels what the language model is spared; these encoders take whole
            frames. Query-aware ones are given the embedded text of the prompt.
        layout: where a family writes words between frames: "per_frame" keeps them and gives each token to the frame
            nearest to its mean time; "collapse" takes them out and leaves one block of tokens.
        positions: "renumber" counts the tokens at hand, "keep" gives a token the position of the cell nearest to it,
            "average" a position between those of its cells; the text keeps its own with both. None is "average" where
            positions are (t, h, w), "renumber" elsewhere.
        items: for families whose videos and images share one placeholder: what each prompt holds, in order, such as
            [[("image", 1), ("video", 8)]] (pictures). None takes all pictures of a prompt as one video where there
            are several.

    A warning says if images are left whole although there are methods, and if a method has random weights.

    Raises:
        ValueError: another family, a missing cue, a count that does not meet the budget, a prompt whose placeholders
            do not fit its features, a video in a later turn.
    """
    model = unwrapped(model)
    backend = backend_of(model)
    prompt = dict(inputs)
    pipeline = as_pipeline(spec, model)
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    encoded = encode_visuals(backend, model, prompt, items, pixels="pixels" in pipeline.needs)
    if not encoded:
        return Compressed(prompt)
    reduced = reduce_visuals(backend, model, pipeline, prompt, encoded)
    if len(pipeline.methods) and any(visual.tokens is None for visuals in reduced.values() for visual in visuals):
        warnings.warn("images in the prompt are left whole; methods reduce videos only", stacklevel=2)
    compressed = edit_prompts(backend, model, prompt, encoded, reduced, layout=layout, positions=positions)
    for outputs in compressed.inputs["mm_encoder_outputs"].values():
        note_pipeline(outputs, pipeline)
    return compressed
