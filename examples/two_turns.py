"""Two questions about one video in one conversation: the second turn continues on the cache of the first.

    python examples/two_turns.py --model models/qwen2_5_vl clip.mp4 "What happens?" "Who is in it?"

MODEL is a folder as transformers saves it, or a hub id; a folder needs no network.
"""

import argparse

import torch

from fewtokens.llm import attach, load


def main(name: str, video: str, first: str, second: str, spec: str) -> None:
    model, processor = load(name)
    inputs = processor(model, video, first)
    with attach(model, spec) as few:
        # The ids begin with the shortened prompt.
        out = few.generate(**inputs, max_new_tokens=32, do_sample=False, return_dict_in_generate=True)
        length = few.last.inputs["input_ids"].shape[1]
        print(processor.tokenizer.decode(out.sequences[0, length:], skip_special_tokens=True))
        # The text that the chat template writes after the first answer, whose end the model may have written.
        turns = [("user", first), ("assistant", "(answer)"), ("user", second)]
        conversation = processor.render([{"role": role, "content": text} for role, text in turns])
        end = processor.tokenizer.decode(out.sequences[0, -1])
        text = conversation.rpartition("(answer)")[2].removeprefix(end)
        new = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        ids = torch.cat([out.sequences, new.to(model.device)], dim=1)
        # Only the new tokens are processed; their positions continue from the first turn.
        second_turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": out.past_key_values}
        answer = few.generate(**second_turn, max_new_tokens=32, do_sample=False)
        print(processor.tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--with", dest="spec", default="kmeans(keep=0.25)")
    parser.add_argument("video")
    parser.add_argument("first")
    parser.add_argument("second")
    arguments = parser.parse_args()
    main(arguments.model, arguments.video, arguments.first, arguments.second, arguments.spec)
