"""Generation with few visual tokens, for `model.generate(custom_generate=...)` of transformers.

    inputs = processor(...)  # of transformers, or of fewtokens
    ids = model.generate(
        **inputs, custom_generate="examples/few_tokens", trust_remote_code=True, few_tokens="evs(keep=0.25)"
    )

The result is that of `few.generate` in `with fewtokens.llm.attach(model, few_tokens) as few`: the sequences begin with
the shortened prompt. Copied into the folder of a model, it replaces the `generate` of that model.
"""

from typing import Any

from fewtokens.llm import attach

_OPTIONS = ("layout", "positions", "items", "images")


def generate(model: Any, few_tokens: str = "token_dynamics(keep=32)", **arguments: Any) -> Any:
    """Generates from a prompt whose visual tokens were reduced.

    Args:
        model: a video language model of transformers.
        few_tokens: a chain of methods, see `fewtokens.llm.attach`.
        arguments: those of `generate`, and layout, positions, items and images of `attach`.
    """
    options = {name: arguments.pop(name) for name in _OPTIONS if name in arguments}
    arguments = {name: value for name, value in arguments.items() if value is not None}
    with attach(model, few_tokens, **options) as few:
        # `model.generate` may be this function.
        return type(model).generate(model, **few.compress(**arguments))
