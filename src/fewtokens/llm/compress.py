"""Reduces the visual tokens of a prompt: encode, reduce, rewrite the prompt.

short = compress_inputs(model, inputs, "token_dynamics(keep=32)")
model.generate(**short)        model(**short)        # with labels, a loss
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from fewtokens.llm.backends.base import backend_of
from fewtokens.llm.chains import Methods, as_pipeline
from fewtokens.llm.cues import check_cues
from fewtokens.llm.features import note_pipeline
from fewtokens.llm.interface import unwrap
from fewtokens.llm.prompt_editor import LAYOUTS, Compressed, edit_prompts
from fewtokens.llm.tower_run import TowerMethods
from fewtokens.llm.visuals import encode_visuals, reduce_visuals

_OPTIONS = ("layout", "positions", "items", "tower")


def compress_inputs(model: Any, inputs: Any, spec: Methods, **options: Any) -> dict[str, Any]:
    """Returns a prompt with few visual tokens, for `model.generate(**short)` or `model(**short)`; see `compress`.

    Use `attach` for later turns on a cache, whose positions it sets, and for prompts with images only, of which nothing
    is reduced.
    """
    check_options("compress_inputs", options)
    return compress(model, inputs, spec, **options).inputs


def check_options(caller: str, options: Iterable[str]) -> None:
    """Raises a ValueError if an option is not one of `compress`."""
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise ValueError(
            f"{caller} does not accept {', '.join(unknown)}, only {', '.join(_OPTIONS)}; put arguments of a method in "
            "the spec, such as 'tome(keep=0.1)'"
        )


def compress(
    model: Any,
    inputs: Any,
    spec: Methods,
    *,
    layout: str = "per_frame",
    positions: str | None = None,
    items: Sequence[Sequence[tuple[str, int]]] | None = None,
    tower: str = "kept",
) -> Compressed:
    """Encodes the images and videos of a prompt, reduces the videos and shortens the prompt to match.

    Args:
        model: a model that takes precomputed features (`fewtokens llm-families`), with its language-model head;
            may be wrapped, see `unwrap`.
        inputs: the output of the processor: input_ids [B,L], attention_mask, pixels, grids; labels [B,L], if given.
            Other inputs are passed through.
        spec: a chain of methods of the stages pixels, encoder and tokens. Features have the hidden size of the language
            model. Methods at the start of the chain that decide from pixels (those of the pixels stage,
            `dtd(mode="pixel")`) choose before encoding; see `tower`. Those of the encoder stage act between the blocks
            of the vision tower. Query-aware methods receive the embedded text of the prompt.
        layout: for families with text between frames, such as Qwen3-VL and InternVL: "per_frame" keeps
            the text and assigns each token to the frame nearest to its mean time; "collapse" removes the text and
            leaves one block of tokens.
        positions: "renumber" counts the remaining tokens; "keep" gives a token the position of its nearest cell;
            "average" interpolates the positions of its cells. The positions of the text change only with "renumber".
            Default: "average" if positions have several axes, as (t, h, w) in Qwen3-VL, otherwise
            "renumber"; that of training in a `ComposedVideoLLM`.
        items: for families whose videos are images in a row, or whose encoder returns a video in parts: the images and
            videos of each prompt in order, with their number of images or parts, such as [[("image", 1), ("video",
            8)]]. None treats all of a prompt as one video if they have a common grid.
        tower: "kept" encodes only the patches of the cells that methods keep from pixels, at their positions in the
            full video; they attend only to one another, so their features differ. "full" encodes all patches and
            chooses afterwards.

    Warns if images are kept in full although there are methods, if a method has random weights, and if patches cannot
    be left out in the vision tower of the family, which then encodes all.

    Raises:
        ValueError: an unsupported family, a missing cue, a token count that differs from the budget, placeholders that
            do not match the features, or a video in a later turn.
    """
    model = unwrap(model)
    backend = backend_of(model)
    prompt = dict(inputs)
    pipeline = as_pipeline(spec, model)
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    methods = TowerMethods.of(pipeline, tower)
    check_cues(backend, pipeline)
    encoded = encode_visuals(backend, model, prompt, items, pixels="pixels" in pipeline.needs, methods=methods)
    if not encoded:
        return Compressed(prompt)
    reduced = reduce_visuals(backend, model, pipeline, prompt, encoded)
    if len(pipeline.methods) and any(visual.tokens is None for visuals in reduced.values() for visual in visuals):
        warnings.warn("images in the prompt are kept in full; methods reduce only videos", stacklevel=2)
    compressed = edit_prompts(backend, model, prompt, encoded, reduced, layout=layout, positions=positions)
    for outputs in compressed.inputs["mm_encoder_outputs"].values():
        note_pipeline(outputs, pipeline)
    return compressed
