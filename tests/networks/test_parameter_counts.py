"""Parameter counts of every network with a published count or published code.

Those of X(2+1)D (TokenLearner's tables 12 and 13) are in test_x2plus1d.py. Each number says where it is from: printed
in a paper, or counted in the released code (its network built with its defaults, parameters that learn).
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewtokens import networks as models
from fewtokens.core import registry
from fewtokens.methods.ops.cross_dynamics import ReferenceAttention
from fewtokens.methods.ops.resample import TokenSummary
from fewtokens.networks.pretrained import PRETRAINING
from fewtokens.networks.token_fuser import TokenFuser


def trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


# Exact: counted in released code.
EXACT = [
    # torchvision's table of weights (vit_b_16, vit_l_16, vit_h_14); timm's vit_tiny and vit_small: 224 px, class token.
    ("vit_ti16", {"head": "token"}, 5_717_416),
    ("vit_s16", {"head": "token"}, 22_050_664),
    ("vit_b16", {"head": "token"}, 86_567_656),
    ("vit_b32", {"head": "token"}, 88_224_232),
    ("vit_l16", {"head": "token"}, 304_326_632),
    ("vit_l32", {"head": "token"}, 306_535_400),
    ("vit_h14", {"head": "token"}, 632_045_800),
    # scenic's ViViT and SpaceTimeViViT with the settings of configs/kinetics400, layer by layer.
    ("vivit_b16", {}, 88_954_000),
    ("vivit_b16_factorized_encoder", {}, 115_062_928),
]
# Published in millions: network, count, unit of the last digit.
PRINTED = [
    # ViViT, arXiv 2103.15691, table 2: models 1 to 4, 32 frames of Kinetics-400. It truncates (88.95 is its 88.9).
    ("vivit_b16", 88.9, 0.1), ("vivit_b16_factorized_encoder", 115.1, 0.1), ("vivit_b16_factorized_self", 117.3, 0.1),
    ("vivit_b16_factorized_dot", 88.9, 0.1),
    # TokenLearner, arXiv 2106.11297, table 7, Kinetics-400.
    ("vivit_l16", 308, 1), ("tokenlearner_vivit_l16_16at12", 308, 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "count"), EXACT)
def test_networks_to_the_parameter(name, changes, count):
    assert trainable(models.build_on_meta(name, **changes)) == count


@pytest.mark.parametrize(("name", "millions", "unit"), PRINTED)
def test_networks_to_the_printed_digit(name, millions, unit):
    assert abs(trainable(models.build_on_meta(name)) / 1e6 - millions) < unit


# Counted in the released codes: facebookresearch/mae, huiwon-jang/RSP, naver-ai/tobo; ViT-S, B, L (and H/14) at 224 px.
PRETRAINED = [
    ("mae", "b", 16, 111_655_680), ("mae", "l", 16, 329_239_296), ("mae", "h", 14, 656_613_964),
    ("rsp", "s", 16, 59_006_208), ("rsp", "s", 8, 58_489_536), ("rsp", "b", 16, 127_685_376),
    ("rsp", "l", 16, 349_202_176),
    ("tobo", "s", 16, 55_823_104), ("tobo", "b", 16, 120_077_056), ("tobo", "l", 16, 337_660_672),
    # SiamMAE is the auxiliary path in the code of Token Bottleneck.
    ("siam_mae", "s", 16, 55_823_104),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "size", "patch", "count"), PRETRAINED)
def test_pre_training_to_the_parameter(kind, size, patch, count):
    dim, depth, num_heads = models.SIZES[size]
    network = PRETRAINING[kind]
    with torch.device("meta"):
        model = network(network.config_type(dim=dim, depth=depth, num_heads=num_heads, patch_size=patch))
    assert trainable(model) == count


C, S = 768, 8
MODULES = [
    # scenic, projects/token_learner: module v1.0 (four convolutions without bias), v1.1 (an MLP of 64), TokenFuser.
    ("tokenlearner", lambda: registry.build(f"tokenlearner('{S}/frame')", dim=C)[0], 2 * C + 9 * C * S + 27 * S * S),
    ("tokenlearner 1.1", lambda: registry.build(f"tokenlearner('{S}/frame', version='1.1')", dim=C)[0],
     2 * C + 64 * C + 64 + 64 * S + S),
    ("fuser", lambda: TokenFuser(S, dim=C), 6 * C + S * S + S + C * S),
    ("fuser, mlp", lambda: TokenFuser(S, dim=C, gate="mlp"), 6 * C + S * S + S + 64 * C + 64 + 64 * S + S),
    # xGen-MM-Vid's attentional pooling and scenic's token_turing summarize with TokenLearner 1.1; ours omits the
    # last bias, to which a softmax is invariant.
    ("summary", lambda: TokenSummary(C, S, 64), 2 * C + 64 * C + 64 + 64 * S),
    # transformers' Blip2QFormerModel, 12 layers over features of 768 channels (99,239,424); ours omits the biases of
    # its 18 attentions and includes the 32 queries, the norm of the input (BLIP-2's ln_vision) and the position
    # embedding.
    ("q-former", lambda: registry.build("qformer(32, num_layers=12)", dim=768)[0],
     99_239_424 - 18 * 4 * 768 + 32 * 768 + 2 * 768 + 48 * 768),
    # VQToken, VQToken/vq_attn.py: a linear layer of 27 * 27 cells, a post-norm decoder layer of 2048 hidden channels.
    ("vq attention", lambda: ReferenceAttention(896, 27),
     729 * 896 + 896 + 2 * (4 * 896 * 896 + 4 * 896) + 2 * 2048 * 896 + 2048 + 896 + 6 * 896),
]  # fmt: skip


@pytest.mark.parametrize(("make", "count"), [row[1:] for row in MODULES], ids=[row[0] for row in MODULES])
def test_modules_to_the_parameter(make, count):
    assert trainable(make()) == count
