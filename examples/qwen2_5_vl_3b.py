"""Qwen2.5-VL 3B on a video, with all tokens and with few: tokens, time to first token, answers.

    python examples/qwen2_5_vl_3b.py clip.mp4 "What happens in this video?"

Downloads about 7.5 GB once. Expect 8 GB of a GPU in bfloat16, and more with all tokens of a large video; on a CPU
16 GB of memory and minutes for an answer. Requires pip install 'fewtokens[llm]'.
"""

import sys

from fewtokens.llm import Session, load


def main(video: str, question: str) -> None:
    model, processor = load("Qwen/Qwen2.5-VL-3B-Instruct")
    session = Session(model, processor, spec="token_dynamics(keep=64)", frames=16)
    # Both sessions share the encoded video.
    for name, asker in (("full", session.unreduced()), ("few", session)):
        answer = asker.ask(video, question)
        print(f"{name}: {answer.tokens} visual tokens of {answer.cells}, first token after {answer.first_token:.2f} s")
        print(answer.text)


if __name__ == "__main__":
    main(*sys.argv[1:3])
