"""Writes the embeddings of short prompts, for an engine that accepts prompts as embeddings.

python -m tests.serve.engine.embed '{"family": "llava_onevision", "model": "FOLDER", "spec": "kmeans(keep=0.4)",
    "requests": [0, 1], "path": "embeds.safetensors"}'
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from safetensors.torch import save_file

from fewtokens.llm import embeds
from tests.serve.engine.reference import FAMILIES
from tests.serve.engine.requests import REQUESTS


@torch.no_grad()
def main(job: dict[str, Any]) -> dict[str, Any]:
    family = FAMILIES[job["family"]](job["model"])
    prompts = {}
    for index in job["requests"]:
        inputs = family.inputs(REQUESTS[index])
        if isinstance(inputs["pixel_values_videos"], list):
            inputs["pixel_values_videos"] = torch.stack(inputs["pixel_values_videos"])
        short = embeds(family.model, inputs, job["spec"], plain=True, positions="renumber")
        prompts[f"{index:03d}"] = short.inputs_embeds[0]
    save_file(prompts, job["path"])
    return {"lengths": [len(rows) for rows in prompts.values()]}


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(json.loads(sys.argv[1]))))
