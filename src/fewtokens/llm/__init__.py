"""Token reduction inside the video language models of transformers, through their public interface.

    with attach(model, "token_dynamics(keep=32)") as few:
        ids = few.generate(**inputs, max_new_tokens=64)

or, to call `generate` yourself:

    short = compress_inputs(model, inputs, "token_dynamics(keep=32)")
    ids = model.generate(**short, max_new_tokens=64)

or, from a saved model and a video to an answer, with each video encoded once:

    model = VideoLLM.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct")
    print(model.session("token_dynamics(keep=32)").ask("clip.mp4", "What happens?").text)

Methods inside the layers of the language model come after a chain, or alone; `registry.layer_names()` lists them:

    with attach(model, "tome(keep=0.25) | fastv(keep=0.5, layer=2)") as few: ...
"""

from fewtokens.llm.answer import Answer
from fewtokens.llm.attach import Attached, attach
from fewtokens.llm.backends.base import BACKENDS, Backend, backend_of, register_family
from fewtokens.llm.backends.rows import RowLayout, VisualFeatures
from fewtokens.llm.composed import ComposedVideoLLM
from fewtokens.llm.compress import compress, compress_inputs
from fewtokens.llm.decompose import Decomposed, ask_in_parts
from fewtokens.llm.embeds import Embeds, embeds
from fewtokens.llm.families import FAMILIES, Family
from fewtokens.llm.layout import Layout
from fewtokens.llm.load import VideoLLM, find, load
from fewtokens.llm.prompt_editor import Compressed
from fewtokens.llm.prompts import Processor
from fewtokens.llm.relevance import ModelScorer
from fewtokens.llm.session import Session
from fewtokens.llm.speculative import Speculation, speculate
from fewtokens.llm.stream_session import StreamSession

__all__ = [
    "BACKENDS",
    "FAMILIES",
    "Answer",
    "Attached",
    "ComposedVideoLLM",
    "Compressed",
    "Decomposed",
    "Backend",
    "Family",
    "RowLayout",
    "Embeds",
    "ModelScorer",
    "Processor",
    "Session",
    "Speculation",
    "StreamSession",
    "Layout",
    "VideoLLM",
    "VisualFeatures",
    "ask_in_parts",
    "attach",
    "compress",
    "compress_inputs",
    "backend_of",
    "embeds",
    "find",
    "load",
    "register_family",
    "speculate",
]
