"""LLaVA-OneVision 0.5B on a video, with `attach` around the model's own generate.

    python examples/llava_onevision_0_5b.py clip.mp4 "What happens in this video?"

Downloads about 1.8 GB once. Expect 3 GB of a GPU in half precision; on a CPU 5 GB of memory, and most of the time goes
into encoding. Requires pip install 'fewtokens[llm]'. Inputs of transformers' AutoProcessor also work.
"""

import sys

from fewtokens import read
from fewtokens.llm import attach, load


def main(path: str, question: str) -> None:
    model, processor = load("llava-hf/llava-onevision-qwen2-0.5b-ov-hf")
    inputs = processor(model, read(path, frames=16), question)
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].to(model.dtype)
    with attach(model, "dycoke(keep=0.25)") as few:
        ids = few.generate(**inputs, max_new_tokens=64, do_sample=False)
        length = few.last.inputs["input_ids"].shape[1]
    print(processor.tokenizer.decode(ids[0, length:], skip_special_tokens=True))


if __name__ == "__main__":
    main(*sys.argv[1:3])
