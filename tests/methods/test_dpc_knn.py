"""DPC-kNN against planted structure."""

from __future__ import annotations

import torch.nn.functional as F

from fewtokens.methods.clustering.dpc_knn import DpcKnn
from tests.helpers.planted import planted_clusters, same_partition


class TestDpcKnn:
    def test_finds_planted_clusters(self):
        tokens, labels = planted_clusters(8, noise=0.02)
        tokens = tokens.replace(features=F.normalize(tokens.features, dim=2))
        assert same_partition(DpcKnn(8)(tokens).assignment[0], labels)
