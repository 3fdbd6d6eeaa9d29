"""Methods that drop or merge visual tokens inside the layers of a language model, by hooks; see `fewtokens.llm.attach`.

with attach(model, "fastv(keep=0.5, layer=2)") as few: ...
with attach(model, "tome(keep=0.25) | fastv(keep=0.5, layer=2)") as few: ...     # before the model, then inside

`fewtokens.core.layer_method` defines what such a method decides; the modules here carry out the decision.
"""
