"""One question about several images, such as the pages of a document, with few tokens for each.

    python examples/images.py --model models/qwen2_5_vl "What is the total?" page1.png page2.png

MODEL is a folder as transformers saves it, or a hub id; a folder needs no network.
"""

import argparse

from fewtokens.llm import attach, load


def main(name: str, question: str, images: list[str], spec: str) -> None:
    model, processor = load(name)
    content = [*({"type": "image", "path": image} for image in images), {"type": "text", "text": question}]
    inputs = processor(model, [{"role": "user", "content": content}])
    # Which images of a prompt are tiles of one picture, or frames of a video; only some families read it.
    with attach(model, spec, images=True, items=inputs.visual_items) as few:
        ids = few.generate(**inputs, max_new_tokens=32, do_sample=False)
        length = few.last.inputs["input_ids"].shape[1]
        counts = [(tokens.N, tokens.grid.cells) for tokens in few.last.tokens]
    after, before = map(sum, zip(*counts, strict=True))
    print(f"{after} visual tokens of {before}: {processor.tokenizer.decode(ids[0, length:], skip_special_tokens=True)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--with", dest="spec", default="kmeans(keep=0.25)")
    parser.add_argument("question")
    parser.add_argument("images", nargs="+")
    arguments = parser.parse_args()
    main(arguments.model, arguments.question, arguments.images, arguments.spec)
