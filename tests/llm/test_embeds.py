"""Prompts as embeddings: what the language model alone needs."""

from __future__ import annotations

import pytest
import torch

from fewtokens.llm import attach, embeds
from tests.llm.tiny import FAMILIES, MROPE_FAMILIES, batch, prompt, tiny

PARTS = (("text", 3), ("image",), ("text", 2), ("video", 3), ("text", 3))


def language_model(model):
    return getattr(model.model, "language_model", None) or model.model.text_model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positions", [None, "renumber"])
def test_the_language_model_alone_gives_the_same_logits(family, positions):
    """For a batch with padding, an image and videos of different length."""
    model = tiny(family)
    example = batch(family, prompt(family, *PARTS), prompt(family, ("text", 4), ("video", 3), ("text", 5), seed=1))
    options = {"items": example.items, "positions": positions}
    spec = "kmeans(keep=5)"
    with torch.no_grad(), attach(model, spec, **options) as few:
        expected = few(**example.inputs).logits
    with torch.no_grad():
        short = embeds(model, example.inputs, spec, **options)
        more = {}
        if short.deepstack is not None:
            more = {
                "visual_pos_masks": short.attention_mask.bool() & ~short.text_mask,
                "deepstack_visual_embeds": [short.deepstack[layer] for layer in sorted(short.deepstack)],
            }
        hidden = language_model(model)(
            inputs_embeds=short.inputs_embeds,
            attention_mask=short.attention_mask,
            position_ids=short.position_ids,
            **more,
        )[0]
    real = short.attention_mask.bool()
    torch.testing.assert_close(model.lm_head(hidden)[real], expected[real], rtol=0, atol=1e-6)
    assert (short.deepstack is not None) == (family == "qwen3_vl")
    assert short.position_ids.ndim == (3 if family in MROPE_FAMILIES else 2)
    # Marked columns are the embeddings of their ids, and no others.
    table = model.get_input_embeddings()(short.input_ids)
    same = (short.inputs_embeds == table).all(2)
    assert torch.equal(same & real, short.text_mask)
    assert [tokens.N for tokens in short.tokens] == [5, 5]


def test_deepstack_features_are_not_in_the_embeddings():
    example = prompt("qwen3_vl", *PARTS)
    with pytest.raises(ValueError, match="DeepStack") as error:
        embeds(tiny("qwen3_vl"), example.inputs, "tome(keep=0.5)", plain=True)
    assert "\n" not in str(error.value)
    plain = prompt("qwen2_5_vl", *PARTS)
    assert embeds(tiny("qwen2_5_vl"), plain.inputs, "tome(keep=0.5)", plain=True).deepstack is None


def test_a_prompt_without_pixels():
    with pytest.raises(ValueError, match="no images or videos"):
        embeds(tiny("qwen2_5_vl"), prompt("qwen2_5_vl", ("text", 4)).inputs, "tome(keep=0.5)")
