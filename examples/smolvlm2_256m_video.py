"""SmolVLM2 256M on a video, with streamed answers: small enough for a laptop without a GPU.

    python examples/smolvlm2_256m_video.py clip.mp4 "What happens in this video?"

Downloads about 1 GB once. Expect 2 to 3 GB of memory; most of the time goes into encoding 16 frames of 512 pixels,
which happens once for all questions. Requires pip install 'fewtokens[llm]'.
"""

import sys

from fewtokens.llm import Session, load


def main(video: str, *questions: str) -> None:
    model, processor = load("HuggingFaceTB/SmolVLM2-256M-Video-Instruct")
    session = Session(model, processor, spec="tome(keep=0.1)", frames=16)
    for question in questions:
        answer = session.ask(video, question, on_text=lambda text: print(text, end="", flush=True))
        print(f"\n  {answer.prompt_tokens} tokens in the prompt; {answer.seconds}")


if __name__ == "__main__":
    main(*sys.argv[1:])
