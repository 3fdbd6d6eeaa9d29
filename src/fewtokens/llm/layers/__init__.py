"""Methods that drop or merge visual tokens inside the layers of a language model, by hooks; see `fewtokens.llm.attach`.

with attach(model, "fastv(keep=0.5, layer=2)") as few: ...
with attach(model, "tome(keep=0.25) | fastv(keep=0.5)") as few: ...     # before the model, then inside
"""

from fewtokens.core.layer_method import Choice, InsideMethod, Stop, View
from fewtokens.llm.layers.attention import attention_rows
from fewtokens.llm.layers.cache import FewerLayer, cache_bytes
from fewtokens.llm.layers.hooks import Inside, language_model

__all__ = [
    "Choice",
    "FewerLayer",
    "Inside",
    "InsideMethod",
    "Stop",
    "View",
    "attention_rows",
    "cache_bytes",
    "language_model",
]
