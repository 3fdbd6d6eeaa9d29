"""Reduces the visual tokens of a prompt: encode, reduce, rewrite the prompt.

short = compress_inputs(model, inputs, "token_dynamics(keep=32)")
model.generate(**short)        model(**short)        # with labels, a loss
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from fewtokens.core.pipeline import Pipeline
from fewtokens.llm.backends.base import Backend, backend_of
from fewtokens.llm.chains import Methods, as_pipeline, image_pipeline
from fewtokens.llm.cues import attention_rule, check_cues, needed_cues
from fewtokens.llm.features import note_pipeline
from fewtokens.llm.interface import unwrap
from fewtokens.llm.prompt_editor import Compressed, check_prompt_options, edit_prompts
from fewtokens.llm.tower_run import TowerMethods
from fewtokens.llm.visuals import EncodedVisuals, encode_visuals, reduce_visuals

_OPTIONS = ("layout", "positions", "items", "images", "tower")


def compress_inputs(model: Any, inputs: Any, spec: Methods, **options: Any) -> dict[str, Any]:
    """Returns a prompt with few visual tokens, for `model.generate(**short)` or `model(**short)`; see `compress`.

    Use `attach` for later turns on a cache, whose positions it sets.
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
    images: bool | Methods = False,
    tower: str = "kept",
) -> Compressed:
    """Encodes the images and videos of a prompt, reduces them and shortens the prompt to match.

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
            8)]]. None takes those of the inputs, if `Processor` made them (their attribute `visual_items`); otherwise
            it treats all of a prompt as one video if they have a common grid.
        images: False leaves images whole; True reduces them with the methods of `spec`; or a separate chain, such as
            "kmeans(keep=0.25)". An image is a video of one frame. In LLaVA-NeXT and later, its small version and its
            tiles are two grids, which share a count by their numbers of cells; each row of cells that keeps a token
            keeps its newline, and with the layout "collapse" the image keeps the last one. Where tiles are
            separate images in the prompt (InternVL, SmolVLM, Idefics3, Aya), the budget applies to each.
        tower: "kept" encodes only the patches of the cells that methods keep from pixels, at their positions in the
            full video; they attend only to one another, so their features differ. "full" encodes all patches and
            chooses afterwards. Images are encoded in full.

    Warns if images are left whole although there are methods, if a method has random weights, and if patches cannot
    be left out in the vision tower of the family, which then encodes all.

    Raises:
        ValueError: an unsupported family, a missing cue, a token count that differs from the budget, placeholders that
            do not match the features, a video in a later turn, or methods for images that compare frames.
    """
    options: dict[str, Any] = {
        "layout": layout,
        "positions": positions,
        "items": items,
        "images": images,
        "tower": tower,
    }
    return compress_each(model, inputs, [spec], **options)[0]


def compress_each(
    model: Any,
    inputs: Any,
    specs: Sequence[Methods],
    *,
    layout: str = "per_frame",
    positions: str | None = None,
    items: Sequence[Sequence[tuple[str, int]]] | None = None,
    images: bool | Methods = False,
    tower: str = "kept",
) -> list[Compressed]:
    """As `compress`, for several chains of methods, all of which reduce the same features: the tower runs once.

    Raises:
        ValueError: as `compress`, or one of several chains acts before or inside the vision tower.
    """
    model = unwrap(model)
    backend = backend_of(model)
    prompt, items = dict(inputs), getattr(inputs, "visual_items", None) if items is None else items
    chains = [as_pipeline(spec, model) for spec in specs]
    check_prompt_options(layout, positions)
    towers = [TowerMethods.of(pipeline, tower) for pipeline in chains]
    if any(methods != towers[0] for methods in towers):
        raise ValueError("methods that act before or inside the vision tower cannot share its features with others")
    for_images = [image_pipeline(images, pipeline, model) for pipeline in chains]
    pipelines: dict[str, list[Pipeline]] = {"video": chains, "image": [each for each in for_images if each is not None]}
    for each in (*pipelines["video"], *pipelines["image"]):
        check_cues(backend, model, each)
    needs = {kind: {name for each in group for name in needed_cues(each)} for kind, group in pipelines.items() if group}
    rule = attention_rule(*pipelines["video"], *pipelines["image"])
    encoded = encode_visuals(backend, model, prompt, items, needs=needs, rule=rule, methods=towers[0])
    if not encoded:
        return [Compressed(prompt) for _ in chains]
    results = []
    for pipeline, own in zip(chains, for_images, strict=True):
        results.append(_finish(backend, model, prompt, encoded, pipeline, own, layout=layout, positions=positions))
    return results


def _finish(
    backend: Backend, model: Any, prompt: dict[str, Any], encoded: dict[str, EncodedVisuals], pipeline: Pipeline,
    for_images: Pipeline | None, **options: Any,
) -> Compressed:  # fmt: skip
    """Reduces the images and videos of a prompt and shortens it."""
    reduced = reduce_visuals(backend, model, pipeline, prompt, encoded, for_images)
    compressed = edit_prompts(backend, model, prompt, encoded, reduced, **options)
    if compressed.whole and len(pipeline.methods if for_images is None else for_images.methods):
        number, plural = len(compressed.whole), len(compressed.whole) > 1
        reason = "pass images=True to reduce them too" if for_images is None else "their rows form no grid"
        warnings.warn(
            f"{number} image{'s' if plural else ''} of {sum(compressed.whole):,} tokens "
            f"{'are' if plural else 'is'} left whole; {reason}",
            stacklevel=4,  # the caller of `compress`
        )
    for outputs in compressed.inputs["mm_encoder_outputs"].values():
        note_pipeline(outputs, pipeline)
    return compressed
