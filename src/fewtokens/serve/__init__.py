"""Few tokens in serving engines: what an engine has to know of a spec, without importing an engine.

    planned("kmeans(keep=0.25)", Grid(8, 12, 16))        # 384 placeholders, before the encoder runs
    reduce("kmeans(keep=0.25)", rows, Grid(8, 12, 16))   # exactly 384 rows, after it

Nothing here imports transformers or an engine, so it runs with any version of either. `fewtokens.serve.vllm` is the
plugin for vLLM.
"""

from fewtokens.serve.contract import Reduced, planned, positions, reduce

__all__ = ["Reduced", "planned", "positions", "reduce"]
