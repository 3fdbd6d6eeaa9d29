"""Few tokens inside video language models of transformers, on their public interface.

    with attach(model, "token_dynamics(keep=32)") as few:
        ids = few.generate(**inputs, max_new_tokens=64)

or, for those who call `generate` themselves:

    short = compress_inputs(model, inputs, "token_dynamics(keep=32)")
    ids = model.generate(**short, max_new_tokens=64)

Methods inside the layers of the language model come after a chain, or alone; `registry.INSIDE` names them:

    with attach(model, "tome(keep=0.25) | fastv(keep=0.5, layer=2)") as few: ...
"""

from fewtokens.llm.attach import Attached, attach
from fewtokens.llm.family import FAMILIES, Family, Visual, family_of
from fewtokens.llm.layout import Layout
from fewtokens.llm.splice import Compressed, compress, compress_inputs

__all__ = [
    "FAMILIES",
    "Attached",
    "Compressed",
    "Family",
    "Layout",
    "Visual",
    "attach",
    "compress",
    "compress_inputs",
    "family_of",
]
