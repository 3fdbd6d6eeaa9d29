"""Methods with parameters: both use the same seeded random parameters, without positions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.tokens import Tokens
from fewtokens.methods.clustering.kmeans import KMeans
from fewtokens.methods.learned.llama_vid import LlamaVid
from fewtokens.methods.learned.perceiver import Perceiver
from fewtokens.methods.learned.ppllava import PpLlava
from fewtokens.methods.learned.qformer import QFormer
from fewtokens.methods.learned.token_turing import TokenTuring
from fewtokens.methods.learned.tokenlearner import TokenLearner
from fewtokens.methods.learned.vqtoken import VqToken
from fewtokens.methods.ops.spherical import Seeds, kmeans_plus_plus
from fewtokens.methods.ops.token_base import cluster_fixed
from fidelity_rows import Agreement, Features, Row, importing, load, same_rows
from fidelity_rows.clusters import means

# Tolerance for outputs of networks, whose float32 sums have a different order.
NEAR = 1e-3


def kmeans(peers: Path, features: Features) -> Agreement:
    """32 clusters from the same initial centroids; compares the means of the original tokens."""
    x = features.tokens()
    unit = F.normalize(x.features[0], dim=1)
    initial: list[Tensor] = []

    def seeded(*args: Tensor) -> Seeds:
        seeds = kmeans_plus_plus(*args)
        initial.append(seeds.centroids)
        return seeds

    with patch("fewtokens.methods.ops.spherical.kmeans_plus_plus", seeded):
        ours = KMeans(32, iterations=300, tol=1e-6)(x)
    code = load(peers / "VQToken" / "VQToken" / "cluster.py", "faiss").KMeansTorch(32, 300, 1e-6)
    code.sample_init_centroids = lambda _: initial[0][0]
    label, _ = code.fit(unit)
    return Agreement(*same_rows(ours.features[0], means(x.features[0], label, 32)))


def vqtoken(peers: Path, features: Features) -> Agreement:
    """The attention of the released code, over the same clusters."""
    torch.manual_seed(0)
    x = features.tokens()
    method = VqToken(32, dim=x.C, side=x.grid.H).eval()
    code = load(peers / "VQToken" / "VQToken" / "vq_attn.py")
    theirs = code.VQAttn(x.grid.cells_per_frame, x.C, num_heads=8).eval()
    theirs.load_state_dict(method.attention.state_dict())
    plan = cluster_fixed(x, torch.tensor([32]), method.seed)
    assert plan.dest is not None
    centroids = means(F.normalize(x.features[0], dim=1), plan.dest[0], 32)
    frames = plan.dest[0].unflatten(0, (x.grid.T, -1)).float()
    return Agreement(
        *same_rows(method(x).features[0], theirs.cross_attention_weighted_clusters(frames, centroids), NEAR)
    )


def copy(layers: dict[Any, Any]) -> None:
    """Copies parameters from layer or parameter (value) to layer or parameter (key); missing biases become zero."""
    for target, source in layers.items():
        if isinstance(target, nn.Parameter):
            target.data.copy_(source)
            continue
        target.weight.data.copy_(source.weight)
        if target.bias is not None:
            target.bias.data.copy_(torch.zeros_like(target.bias) if source.bias is None else source.bias)


def perceiver(peers: Path, features: Features) -> Agreement:
    """OpenFlamingo's resampler, 6 layers of 6 heads of 64; its layers have no biases, so ours are zero."""
    torch.manual_seed(0)
    x = features.tokens()
    with patch.dict("sys.modules", einops_exts=SimpleNamespace(rearrange_many=_rearrange_many)):
        code = load(peers / "open_flamingo" / "open_flamingo" / "src" / "helpers.py")
    theirs = code.PerceiverResampler(dim=x.C, depth=6, heads=6, num_latents=64).eval()
    method = Perceiver(64, dim=x.C, heads=6).eval()
    method.places.layer.weight.data.zero_()
    method.latents.data.copy_(theirs.latents)
    copy({method.norm: theirs.norm})
    for own, (attention, mlp) in zip(method.layers, theirs.layers, strict=True):
        key, value = (SimpleNamespace(weight=part, bias=None) for part in attention.to_kv.weight.chunk(2))
        copy({own.norm_latents: attention.norm_latents, own.norm_seen: attention.norm_media})
        copy({own.attention.query: attention.to_q, own.attention.key: key, own.attention.value: value})
        copy({own.attention.out: attention.to_out})
        copy({own.norm_mlp: mlp[0], own.mlp[0]: mlp[1], own.mlp[2]: mlp[3]})
    return Agreement(*same_rows(method(x).features[0], theirs(x.features[:, None, None])[0, 0], NEAR))


def _rearrange_many(tensors: tuple[Tensor, ...], pattern: str, **sizes: int) -> list[Tensor]:
    from einops import rearrange

    return [rearrange(tensor, pattern, **sizes) for tensor in tensors]


def qformer(peers: Path, features: Features) -> Agreement:
    """Blip2QFormerModel of transformers, 12 layers, with zero attention biases and epsilon 1e-5 as in ours."""
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    torch.manual_seed(0)
    x = features.tokens()
    config = Blip2QFormerConfig(
        hidden_size=x.C,
        encoder_hidden_size=x.C,
        num_attention_heads=12,
        intermediate_size=4 * x.C,
        layer_norm_eps=1e-5,
        attn_implementation="eager",
    )
    theirs = Blip2QFormerModel(config).eval()
    method = QFormer(32, dim=x.C).eval()
    method.places.layer.weight.data.zero_()
    copy({method.norm_queries: theirs.layernorm})
    for own, layer in zip(method.layers, theirs.encoder.layer, strict=True):
        parts = [(own.attention, own.norm1, layer.attention)]
        if own.cross is not None:
            parts.append((own.cross, own.norm2, layer.crossattention))
        for attention, norm, other in parts:
            inner = other.attention
            for linear in (inner.query, inner.key, inner.value, other.output.dense):
                linear.bias.data.zero_()
            copy({attention.query: inner.query, attention.key: inner.key, attention.value: inner.value})
            copy({attention.out: other.output.dense, norm: other.output.LayerNorm})
        copy({own.mlp[0]: layer.intermediate_query.dense, own.mlp[2]: layer.output_query.dense})
        copy({own.norm3: layer.output_query.LayerNorm})
    inputs = method.norm_seen(x.features)
    out = theirs(query_embeds=method.queries[None], encoder_hidden_states=inputs).last_hidden_state
    return Agreement(*same_rows(method(x).features[0], out[0], NEAR))


def llama_vid(peers: Path, features: Features) -> Agreement:
    """One context and one content token per frame, with the same text queries."""
    torch.manual_seed(0)
    x = features.tokens()
    method = LlamaVid("2/frame", dim=x.C).eval()
    text = torch.randn(1, 8, x.C)
    code = load(peers / "LLaMA-VID" / "llamavid" / "model" / "llamavid_arch.py", "llamavid")
    parts = SimpleNamespace(
        vlm_att_key_projector=method.key, vlm_att_val_projector=method.context, mm_projector=method.content
    )
    model = SimpleNamespace(get_model=lambda: parts, config=SimpleNamespace(compress_type="mean"))
    queries = method.query(text).expand(x.grid.T, -1, -1)
    frames = x.features[0].unflatten(0, (x.grid.T, -1))
    theirs = code.LLaMAVIDMetaForCausalLM.token_generation(model, queries, frames)
    return Agreement(*same_rows(method(x, text=text).features[0], theirs.flatten(0, 1), NEAR))


def ppllava(peers: Path, features: Features) -> Agreement:
    """The formula of the paper against the released code."""
    why = (
        "the released code applies one softmax over the video and another in each window; softmax='twice' does the same"
    )
    return _ppllava(peers, features, "window", why)


def ppllava_twice(peers: Path, features: Features) -> Agreement:
    return _ppllava(peers, features, "twice", "")


def _ppllava(peers: Path, features: Features, softmax: str, why: str) -> Agreement:
    """CLIP's scale of 100 and the released temperature of 0.01."""
    x = features.tokens()
    text = x.features.mean(1, keepdim=True) + 0.5 * x.features[:, :1]
    code = load(peers / "PPLLaVA" / "ppllava" / "models" / "utils.py", "decord", "transformers", "peft", "torchvision")
    weights = (100 * F.cosine_similarity(x.features, text, dim=2)).softmax(1).unflatten(1, x.grid.shape)
    grid = x.features[0].unflatten(0, x.grid.shape).permute(3, 0, 1, 2)[None]
    window = (2, 2, 2)
    pooled = code.weighted_adaptive_avg_pool3d_unfold(grid, None, window, window, weights, 0.01)
    ours = PpLlava(window, dim=x.C, softmax=softmax)(x, text=text)
    return Agreement(*same_rows(ours.features[0], pooled[0].flatten(1).T, NEAR), why)


def tokenlearner(peers: Path, features: Features) -> Agreement:
    return _scenic(peers, features, "1.0")


def tokenlearner_11(peers: Path, features: Features) -> Agreement:
    return _scenic(peers, features, "1.1")


def _scenic(peers: Path, features: Features, version: str) -> Agreement:
    """Eight tokens per frame, with parameters initialized by flax."""
    import jax

    x = features.tokens()
    frames = x.features[0].unflatten(0, x.grid.shape).numpy()
    with importing(peers / "scenic", *_SCENIC_STUBS):
        from scenic.projects.token_learner import model

        module = model.TokenLearnerModule(8) if version == "1.0" else model.TokenLearnerModuleV11(8)
        options = {} if version == "1.0" else {"deterministic": True}
        params = module.init(jax.random.PRNGKey(0), frames, **options)
        theirs = torch.tensor(jax.device_get(module.apply(params, frames, **options)))
    method = TokenLearner("8/frame", dim=x.C, version=version).eval()
    _from_flax(method, params["params"], version)
    return Agreement(*same_rows(method(x).features[0], theirs.flatten(0, 1), NEAR))


def token_turing(peers: Path, features: Features) -> Agreement:
    """Scenic's unit over 8 frames, with parameters initialized by flax: the output at each frame and the memory."""
    import jax

    x = features.tokens(frames=8)
    frames = x.features.unflatten(1, (x.grid.T, -1))
    with importing(peers / "scenic", *_SCENIC_STUBS):
        from scenic.projects.token_turing import model

        unit = model.TokenTuringMachineUnit(num_layers=4, mlp_dim=4 * x.C, num_heads=8)
        memory = jax.numpy.zeros((1, 64, x.C))
        params = unit.init(jax.random.PRNGKey(0), memory, frames[:, 0].numpy())
        theirs = []
        for frame in frames.unbind(1):
            memory, out = unit.apply(params, memory, frame.numpy())
            theirs.append(torch.tensor(jax.device_get(out))[0])
        theirs.append(torch.tensor(jax.device_get(memory))[0])
    method = TokenTuring(8, dim=x.C, heads=8).eval()
    _turing_from_flax(method, dict(_leaves(params["params"])))
    ours, state = [], None
    for frame in frames.unbind(1):
        state, out = method.advance(Tokens.from_cells(frame.unflatten(1, (1, x.grid.H, x.grid.W))), state)
        ours.append(out[0])
    assert state is not None
    why = "ours uses the exact GELU and epsilon 1e-5, the published code the tanh approximation and 1e-6"
    return Agreement(*same_rows(torch.cat([*ours, state[0]]), torch.cat(theirs), 0.02), why)


def _turing_from_flax(method: TokenTuring, params: dict[str, Any]) -> None:
    """Loads scenic's parameters; embeddings of memory, positions and outputs, which it does not have, become zero."""
    for embedding in (method.places.layer.weight, method.slots, method.outputs):
        embedding.data.zero_()
    for number, summary in enumerate((method.reader, method.writer)):
        name = f"TokenLearnerModuleV11_{number}"
        _fill(summary.norm, params[f"{name}/LayerNorm_0"])
        for layer, dense in ((summary.mlp[0], "Dense_0"), (summary.mlp[2], "Dense_1")):
            _fill(layer, params[f"{name}/token_masking/{dense}"])
    method.order.data.copy_(_tensor(params["Encoder_0/posembed_input"]["pos_embedding"])[0])
    _fill(method.norm, params["Encoder_0/encoder_norm"])
    for number, block in enumerate(method.blocks):
        name = f"Encoder_0/encoderblock_{number}/"
        attention = f"{name}MultiHeadDotProductAttention_0/"
        _fill(block.norm1, params[f"{name}LayerNorm_0"])
        _fill(block.norm2, params[f"{name}LayerNorm_1"])
        _fill(block.mlp[0], params[f"{name}MlpBlock_0/Dense_0"])
        _fill(block.mlp[2], params[f"{name}MlpBlock_0/Dense_1"])
        for layer in ("query", "key", "value"):
            _fill(getattr(block.attention, layer), params[attention + layer])
        _fill(block.attention.out, params[f"{attention}out"])


def _fill(layer: Any, params: Any) -> None:
    """Loads a linear layer or LayerNorm from flax's parameters; the heads of a kernel are concatenated."""
    if "scale" in params:
        layer.weight.data.copy_(_tensor(params["scale"]))
    else:
        layer.weight.data.copy_(_tensor(params["kernel"]).reshape(layer.in_features, layer.out_features).T)
    if layer.bias is not None:
        layer.bias.data.copy_(_tensor(params["bias"]))


def _tensor(value: Any) -> Tensor:
    return torch.tensor(value.__array__())


def _from_flax(method: TokenLearner, params: Any, version: str) -> None:
    leaves = dict(_leaves(params))
    _fill(method.norm, leaves["LayerNorm_0"])
    layers = [layer for layer in method.scorer if isinstance(layer, nn.Conv2d | nn.Linear)]
    for number, layer in enumerate(layers):
        if version == "1.0":
            layer.weight.data.copy_(_tensor(leaves[f"Conv_{number}"]["kernel"]).permute(3, 2, 0, 1))
        else:
            _fill(layer, leaves[f"token_masking/Dense_{number}"])


def _leaves(params: Any, before: str = "") -> Any:
    """The innermost dictionaries of flax's parameters, by path."""
    for name, part in params.items():
        if all(not hasattr(value, "items") for value in part.values()):
            yield before + name, part
        else:
            yield from _leaves(part, f"{before}{name}/")


_SCENIC_STUBS = ("clu", "tensorflow")
_VQ, _SCENIC = ("Hai-chao-Zhang/VQToken", "019f89f"), ("google-research/scenic", "4a38d47")
_PPLLAVA = "farewellthree/PPLLaVA", "d5766c8"
ROWS = [
    Row("kmeans", *_VQ, "32 clusters, same initial centroids, until convergence", kmeans),
    Row("vqtoken", *_VQ, "32 clusters, the same map and parameters", vqtoken),
    Row("token_dynamics", why="the released code is `vqtoken`, see its row; the clusters are those of `kmeans`"),
    Row("tokenlearner", *_SCENIC, "version 1.0, 8 tokens per frame", tokenlearner),
    Row("tokenlearner", *_SCENIC, "version 1.1, 8 tokens per frame", tokenlearner_11),
    Row("token_turing", *_SCENIC, "8 frames, memory 64, 8 read, 4 layers, without positions", token_turing),
    Row("perceiver", "mlfoundations/open_flamingo", "655f693", "64 latents, 6 layers, without positions", perceiver),
    Row("qformer", "huggingface/transformers", "", "32 queries, 12 layers, without positions", qformer),
    Row("llama_vid", "dvlab-research/LLaMA-VID", "b3d3ae2", "two tokens per frame, the same queries", llama_vid),
    Row("ppllava", *_PPLLAVA, "windows of 2x2x2, tau 0.01", ppllava),
    Row("ppllava", *_PPLLAVA, "windows of 2x2x2, tau 0.01, softmax='twice'", ppllava_twice),
    Row(
        "linvt",
        "gls0425/LinVT",
        "9301c89",
        why="not run: the released network differs. It has no norms or residuals around its attention within frames "
        "and over time, norms after the residuals of its queries, and no MLP; it also mixes the samples of a batch",
    ),
    Row(
        "attentional_pool",
        why="xGen-MM-Vid's code is not available; its formula is tokenlearner 1.1 over all tokens",
    ),
    Row("storm", why="no published code available"),
    Row("pvc", why="the published repository has no code of the model"),
    Row(
        "langdc",
        why="not run: its tokens are the hidden states of a trained caption model, whose weights were not at hand",
    ),
    Row("vista_llama", why="no published code was found"),
    Row("grid_split", why="no published code for this alternative in TokenLearner's paper"),
    Row("spatial_pool", why="no published code for this alternative in TokenLearner's paper"),
    Row("dense_tokens", why="no published code for this alternative in TokenLearner's paper"),
    Row("pool_mlp", why="no published code for this alternative in TokenLearner's paper"),
]
