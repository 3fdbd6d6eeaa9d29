"""One question about several videos, answered in one batch.

    python examples/batch.py --model models/qwen2_5_vl "What happens?" first.mp4 second.mp4

MODEL is a folder as transformers saves it, or a hub id; a folder needs no network.
"""

import argparse

from fewtokens.llm import attach, load


def main(name: str, question: str, videos: list[str], spec: str) -> None:
    model, processor = load(name)
    conversations = [
        [{"role": "user", "content": [{"type": "video", "path": video}, {"type": "text", "text": question}]}]
        for video in videos
    ]
    inputs = processor(model, conversations)
    with attach(model, spec) as few:
        ids = few.generate(**inputs, max_new_tokens=32, do_sample=False)
        length = few.last.inputs["input_ids"].shape[1]
        counts = [tokens.N for tokens in few.last.tokens]
    answers = processor.tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)
    for video, count, answer in zip(videos, counts, answers, strict=True):
        print(f"{video}, {count} visual tokens: {answer}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--with", dest="spec", default="kmeans(keep=0.25)")
    parser.add_argument("question")
    parser.add_argument("videos", nargs="+")
    arguments = parser.parse_args()
    main(arguments.model, arguments.question, arguments.videos, arguments.spec)
