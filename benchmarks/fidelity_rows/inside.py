"""Layer methods: the published decision and ours, for the same hidden states and attention.

The prompt has four text tokens, eight frames of real features and eight text tokens. The layer has six heads, random
projections and no rotary embedding. Published code in a model's forward pass is run with layers
that return their input. DART's own repository was not at hand: its function is that of LightCompress, a port.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from fewtokens.core.layer_method import CacheState, LayerMethod, LayerState, VideoPlacement
from fewtokens.llm.layers.attention import AttentionInputs, attention_rows
from fewtokens.methods.layers.dart import Dart
from fewtokens.methods.layers.dycoke_cache import DyCokeCache
from fewtokens.methods.layers.fastv import FastV
from fewtokens.methods.layers.flexselect import FlexSelect
from fewtokens.methods.layers.holitom_inner import HoliTomInner
from fewtokens.methods.layers.prunevid_inner import PruneVidInner
from fewtokens.methods.layers.pyramid_drop import PyramidDrop
from fewtokens.methods.layers.sparsevlm import SparseVlm
from fidelity_rows import Agreement, Features, Row, importing, load, same_places, same_rows
from fidelity_rows.pruned import compile_lines, run_definitions, run_lines, without_noise

BEFORE, AFTER, HEADS, WIDTH = 4, 8, 6, 64


class Prompt:
    """The prompt and layer that both sides receive."""

    def __init__(self, features: Features, frames: int = 8) -> None:
        torch.manual_seed(0)
        self.tokens = features.tokens(frames)
        self.N, C = self.tokens.N, self.tokens.C
        text = torch.randn(1, BEFORE + AFTER, C)
        self.hidden = torch.cat([text[:, :BEFORE], self.tokens.features, text[:, BEFORE:]], 1)
        self.M = self.hidden.shape[1]
        self.attention = nn.Module()
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(self.attention, name, nn.Linear(C, HEADS * WIDTH, bias=False))
        self.attention.head_dim, self.attention.scaling = WIDTH, WIDTH**-0.5
        self.attention.num_heads = self.attention.num_key_value_heads = HEADS
        self.attention.num_key_value_groups = 1
        self.attention.rotary_emb = lambda x, *_, **__: self.rotary(x.shape[2])
        self.layer = nn.Module()
        self.layer.input_layernorm, self.layer.self_attn = nn.LayerNorm(C), self.attention

    def rotary(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of an identity rotary embedding, [1,length,d]."""
        return torch.ones(1, length, WIDTH), torch.zeros(1, length, WIDTH)

    def inputs(self) -> AttentionInputs:
        """The queries and keys of the layer."""
        x = self.layer.input_layernorm(self.hidden)
        q, k = (
            getattr(self.attention, name)(x).unflatten(2, (HEADS, WIDTH)).transpose(1, 2)
            for name in ("q_proj", "k_proj")
        )
        return AttentionInputs(q, k, WIDTH**-0.5)

    def maps(self) -> Tensor:
        """The causal attention of the layer, [1,heads,M,M]."""
        inputs = self.inputs()
        q, k = inputs.queries, inputs.keys
        future = torch.ones(self.M, self.M, dtype=torch.bool).triu(1)
        return (q @ k.transpose(2, 3) * WIDTH**-0.5).masked_fill(future, -torch.inf).softmax(3)

    def state(self, method: LayerMethod) -> LayerState:
        """What our method receives."""
        columns = torch.arange(BEFORE, BEFORE + self.N)
        video = torch.zeros(1, self.M, dtype=torch.bool)
        video[:, columns] = True
        question = torch.zeros_like(video)
        question[:, -AFTER:] = True
        raters = method.raters(self.hidden, video, question) if method.scoring_queries == "text" else None
        queries = torch.tensor([self.M - 1])
        if method.scoring_queries == "text":
            queries = (question if raters is None else raters)[0].nonzero()[:, 0]
        real, rope = torch.ones(1, self.M, dtype=torch.bool), self.rotary(self.M)
        inputs = self.inputs()
        scores = attention_rows(inputs, queries[None], real, pool=method.pool)
        videos = [VideoPlacement(0, columns, self.tokens)]
        norm = self.layer.input_layernorm
        return LayerState(
            self.hidden, rope, video, torch.tensor([self.N]), scores, videos, question, norm, inputs.flat_keys()
        )

    def choose(self, method: LayerMethod) -> tuple[Tensor, Tensor]:
        """The columns of the video that our method keeps, and their hidden states."""
        state = self.state(method)
        decision = method.choose(state, 0)
        kept = (decision.kept & state.video)[0].nonzero()[:, 0]
        return kept, (self.hidden if decision.hidden is None else decision.hidden)[0, kept]

    def forward_until(self, forward: Any, model: SimpleNamespace, cut: int, **options: Any) -> Tensor:
        """The input [L,C] of layer `cut` of a published forward pass whose layers return their input."""

        class Stop(Exception):
            pass

        inputs: list[Tensor] = []

        def layer(hidden: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            if len(inputs) == cut:
                inputs.append(hidden)
                raise Stop
            inputs.append(hidden)
            return hidden, maps

        maps = self.maps()
        vars(model).update(
            layers=[layer] * (cut + 1),
            config=SimpleNamespace(
                output_attentions=False,
                output_hidden_states=False,
                use_cache=False,
                use_return_dict=True,
                num_hidden_layers=cut + 1,
            ),
            gradient_checkpointing=False,
            training=False,
            device="cpu",
            rotary_emb=lambda *_: None,
            _update_causal_mask=lambda *_: None,
        )
        try:
            forward(model, inputs_embeds=self.hidden.clone(), use_cache=False, **options)
        except Stop:
            return inputs[-1][0]
        raise AssertionError("the published forward has fewer layers")


def fastv(peers: Path, features: Features) -> Agreement:
    prompt = Prompt(features)
    folder = peers / "FastV/src/FastV/llava-hf/transformers/src/transformers/models/llama"
    code = load(folder / "modeling_llama.py", "transformers", "flash_attn")
    settings = {"fastv_k": 2, "fastv_r": 0.5, "image_token_start_index": BEFORE, "image_token_length": prompt.N}
    theirs = prompt.forward_until(code.LlamaModel.fastv_forward, SimpleNamespace(), 2, fastv_config=settings)
    _, ours = prompt.choose(FastV(0.5, layer=2))
    return Agreement(*same_rows(ours, theirs[BEFORE:-AFTER]))


def holitom_inner(peers: Path, features: Features) -> Agreement:
    prompt = Prompt(features)
    code = load(peers / "HoliTom" / "holitom" / "modeling_qwen2.py", "transformers")
    model = SimpleNamespace(image_token_posi=[BEFORE], image_tokens=[prompt.N])
    with patch.dict("os.environ", HOLITOM_k="2", HOLITOM_r="0.5"):
        theirs = prompt.forward_until(code.Qwen2Model_holitom.forward, model, 2)
    _, ours = prompt.choose(HoliTomInner(0.5, layer=2))
    return Agreement(*same_rows(ours, theirs[BEFORE:-AFTER]))


def pyramid_drop(peers: Path, features: Features) -> Agreement:
    prompt = Prompt(features)
    code = load(
        peers / "PyramidDrop" / "llava" / "model" / "modeling_llama_pdrop.py", "transformers", "flash_attn", "llava"
    )
    future = torch.full((prompt.M, prompt.M), -torch.inf).triu(1)[None, None]
    code._prepare_4d_causal_attention_mask = lambda *_, **__: future
    code.apply_rotary_pos_emb, code.IGNORE_INDEX = lambda q, k, *_: (q, k), -100
    model = SimpleNamespace(
        config=SimpleNamespace(tokenizer_padding_side="right", tokenizer_model_max_length=10**6),
        image_tokens=[prompt.N],
        image_token_ratio_list=[1.0, 0.5],
        image_token_posi=[BEFORE],
        prompt_len=[BEFORE + AFTER],
        layers=[prompt.layer],
        training=False,
    )
    _, _, theirs, _ = code.LlamaModel.pdrop_rank_drop(model, 0, 0, prompt.hidden, None, None, None)
    _, ours = prompt.choose(PyramidDrop((0.5,), layers=(8,)))
    return Agreement(*same_rows(ours, theirs[0, BEFORE:-AFTER]))


def flexselect(peers: Path, features: Features) -> Agreement:
    return _flexselect(peers, features, "max", "token_selection")


def flexselect_mean(peers: Path, features: Features) -> Agreement:
    return _flexselect(peers, features, "mean", "token_selection_mean")


def _flexselect(peers: Path, features: Features, by: str, name: str) -> Agreement:
    prompt = Prompt(features)
    file = peers / "flexselect/train/LLaVA-Video/llava/model/token_selector/qwen_selector.py"
    code = load(file, "transformers", "qwen2").Qwen2DecoderLayer_Selector
    scores, _ = getattr(code, name)(prompt.layer, prompt.hidden, [[(BEFORE, prompt.N)]], prompt.N // 4)
    theirs = scores[0].topk(prompt.N // 4).indices + BEFORE
    kept, _ = prompt.choose(FlexSelect(prompt.N // 4, by=by))
    return Agreement(same_places(kept, theirs), 0.0)


def prunevid_inner(peers: Path, features: Features) -> Agreement:
    """Each frame is a group."""
    prompt = Prompt(features)
    code = load(peers / "PruneVid" / "models" / "pllava" / "elastic_cache.py")
    asked = prompt.maps()[:, :, -AFTER:, BEFORE : BEFORE + prompt.N]
    theirs = code.VTPWindowCache(alpha=0.4).process_attention(asked, [0], [prompt.N], [prompt.tokens.grid.T])
    kept, _ = prompt.choose(PruneVidInner(0.4))
    return Agreement(same_places(kept, theirs + BEFORE), 0.0)


def dycoke_cache(peers: Path, features: Features) -> Agreement:
    """The last word of the prompt as the first that is generated."""
    prompt = Prompt(features)
    file = peers / "DyCoke" / "llava" / "model" / "language_model" / "modeling_qwen2.py"
    code = load(file, "transformers", "flash_attn")
    settings = SimpleNamespace(
        image_token_start_index=BEFORE,
        image_token_length=prompt.N,
        dycoke_radio=0.7,
        seq_length_with_past=prompt.M - 1,
        attention_score=None,
    )
    theirs = code.PrunableDynamicCache()
    theirs.dycoke_pruning((None, prompt.maps()[:, :, -1:]), 3, settings)
    inputs = prompt.inputs()
    newest = AttentionInputs(inputs.queries[:, :, -1:], inputs.keys, inputs.scaling)
    video = torch.zeros(1, prompt.M - 1, dtype=torch.bool)
    video[:, BEFORE : BEFORE + prompt.N] = True
    real, query = torch.ones(1, prompt.M, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.int64)
    scores = attention_rows(newest, query, real)[:, :-1]
    kept = DyCokeCache(0.3).choose_cached(CacheState(scores * video, video, video, None, None))
    assert kept is not None
    return Agreement(same_places((kept | ~video)[0].nonzero()[:, 0], torch.tensor(theirs.kv_cache)), 0.0)


class InOrder(dict[int, None]):
    """A set of integers that is visited in the order of insertion."""

    def __init__(self, items: Iterable[int] = ()) -> None:
        super().__init__(dict.fromkeys(items))

    def update(self, items: Iterable[int]) -> None:  # type: ignore[override]
        super().update(dict.fromkeys(items))

    def difference_update(self, items: Iterable[int]) -> None:
        for item in items:
            self.pop(item, None)

    def __sub__(self, items: InOrder) -> InOrder:
        return InOrder(item for item in self if item not in items)


def dart_reference(peers: Path, prompt: Prompt, each: int, order: type = set) -> Callable[[], Tensor]:
    """Runs the published function, which keeps `each` tokens per pivot; returns the kept columns.

    Args:
        order: the class of its sets, in whose order pivots are visited.
    """
    path = peers / "LightCompress/llmc/compression/token_reduction/dart.py"
    run = run_definitions(path, "get_retained_image_token", set=order)["get_retained_image_token"]
    settings = {
        "vision_token_start_index": BEFORE,
        "vision_token_length": prompt.N,
        "pivot_image_token": 4,
        "pivot_text_token": 4,
        "reduction_ratio": 1 - (8 * each + 0.5) / prompt.N,
    }
    normed = prompt.layer.input_layernorm(prompt.hidden)
    keys = prompt.attention.k_proj(normed).unflatten(2, (HEADS, WIDTH)).transpose(1, 2)
    return lambda: run(settings, normed, keys).sort().values


def dart(peers: Path, features: Features) -> Agreement:
    """With the pivots from the largest norm down, those of the video first."""
    return _dart(peers, features, InOrder)


def dart_in_order_of_a_set(peers: Path, features: Features) -> Agreement:
    why = "the port, as the published code, visits pivots in the order of a Python set, each taking from what is left"
    return _dart(peers, features, set, why)


def _dart(peers: Path, features: Features, order: type, why: str = "") -> Agreement:
    prompt, each = Prompt(features), 43
    kept, _ = prompt.choose(Dart(4 + 8 * each))
    return Agreement(same_places(kept, dart_reference(peers, prompt, each, order)()), 0.0, why)


def sparsevlm_reference(peers: Path, prompt: Prompt) -> Callable[[], Tensor]:
    """Runs the published lines for layer 2, which keep 300 tokens and recycle others; returns their rows [M,C]."""
    path = peers / "SparseVLMs/llava/model/language_model"
    with importing(path), patch.dict("os.environ", USE_VERSION="1_0", RETAIN_TOKN="192"):
        import score
        import utils
    rate = compile_lines(path / "modelling_sparse_llama.py", "v_t = hidden_states", "t_token_idx = torch.where")
    prune = compile_lines(
        path / "modelling_sparse_llama.py", "attn_logits = layer_outputs[2]", "v_token_num = pred_score_vis.sum()"
    )
    names = ("batch_index_select", "cluster_and_merge")
    variables = {name: getattr(utils, name) for name in names} | {
        "attn_postprocess_topk": score.attn_postprocess_topk,
        "V2_0": score.V2_0,
        "hidden_states": prompt.hidden,
        "v_token_start": BEFORE,
        "v_token_num": prompt.N,
        "image_shape": prompt.N,
        "text_token_start": BEFORE + prompt.N,
        "pre_prompt_length_list": [BEFORE],
        "position_ids": torch.arange(prompt.M)[None],
        "layer_outputs": (prompt.hidden, None, prompt.maps()),
        "layer_idx": 2,
        "B": 1,
    }

    def run() -> Tensor:
        raters = run_lines(rate, **variables)["t_token_idx"]
        with without_noise():
            out = run_lines(prune, **variables, t_token_idx=raters)
        return out["layer_outputs"][0][0, BEFORE:-AFTER]

    return run


def sparsevlm(peers: Path, features: Features) -> Agreement:
    prompt = Prompt(features)
    _, ours = prompt.choose(SparseVlm((300,), layers=(2,)))
    return Agreement(*same_rows(ours, sparsevlm_reference(peers, prompt)()))


_DART = "ModelTC/LightCompress", "9701d03"
_FLEX = "yunzhuzhang0918/flexselect", "a1d1f5a"
ROWS = [
    Row("fastv", "pkunlp-icler/FastV", "d165972", "half, before layer 2", fastv),
    Row("pyramid_drop", "Cooperx521/PyramidDrop", "6444f30", "one stage, half", pyramid_drop),
    Row("holitom_inner", "cokeshao/HoliTom", "e9b2972", "half, in sequence", holitom_inner),
    Row("prunevid_inner", "Visual-AI/PruneVid", "b12600c", "0.4 of each frame", prunevid_inner),
    Row("flexselect", *_FLEX, "a quarter, by='max'", flexselect),
    Row("flexselect", *_FLEX, "a quarter, by='mean'", flexselect_mean),
    Row(
        "sttm_inner",
        "HYUNJS/STTM",
        "00736c7",
        why="the merging is `sttm`, see its row; for LLaVA the published code renumbers positions, ours keeps them",
    ),
    Row("dart", *_DART, "348 of 1,568, a port with its pivots in falling order", dart),
    Row("dart", *_DART, "348 of 1,568, a port", dart_in_order_of_a_set),
    Row("sparsevlm", "Gumpest/SparseVLMs", "26a5f48", "300 of 1,568 at layer 2, recycled, noise off", sparsevlm),
    Row("dycoke_cache", "KD-TAO/DyCoke", "dd74634", "0.3 at the first generated token", dycoke_cache),
]
