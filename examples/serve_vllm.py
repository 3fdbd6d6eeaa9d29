"""The plugin for vLLM on a GPU with published weights: the checks of `make test-vllm`, and the time with few tokens.

    python examples/serve_vllm.py Qwen/Qwen2.5-VL-3B-Instruct qwen2_5_vl "kmeans(keep=0.25)"

Downloads about 7.5 GB once. It is written for a GPU with 40 GB, and has not been run on one. The answers of vLLM are
compared with those that transformers computes by hand on the CPU in float32, which takes 16 GB of memory and minutes.
Run it from a clone of the repository, in the environment of vLLM: pip install '.[vllm]'. The second argument is a key
of FAMILIES in tests/serve/engine/reference.py. For internvl_chat a fourth one names the checkpoint of the same weights
that transformers loads: OpenGVLab/InternVL3-1B internvl_chat "kmeans(keep=0.25)" OpenGVLab/InternVL3-1B-hf
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Kernels on a GPU round differently from the CPU.
TOLERANCE = 0.02


def run(module, job):
    """Runs a script of the tests and returns what it printed."""
    command = [sys.executable, "-m", f"tests.serve.engine.{module}", json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    return json.loads(done.stdout.rpartition("RESULT ")[2])


def serve(model, kind, spec, **engine):
    """Answers with few tokens, or with all of them if there is no spec."""
    settings = {"fewtokens": {"spec": spec}} if spec else {}
    options = {"max_model_len": 8192, "additional_config": settings, **kind.engine, **engine}
    return run("run", {"model": model, "requests": kind.requests, "texts": kind.texts, "engine": options})


def difference(answer, by_hand):
    """The largest difference of log-probabilities while the tokens are equal."""
    worst = 0.0
    steps = zip(answer["tokens"], by_hand["tokens"], answer["logprobs"], by_hand["logprobs"], strict=True)
    for token, expected, step, scores in steps:
        worst = max(worst, *(abs(value - scores[int(other)]) for other, value in step.items()))
        if token != expected:
            break
    return worst


def main(model, family, spec, reference=None):
    sys.path.insert(0, str(ROOT))
    from tests.serve.engine.reference import FAMILIES

    kind = FAMILIES[family]
    full = serve(model, kind, None)
    few = {"whole prompts": serve(model, kind, spec), "chunks": serve(model, kind, spec, max_num_batched_tokens=256)}
    other = serve(model, kind, "uniform(keep=0.5)")
    job = {"family": family, "model": reference or model, "specs": [spec], "requests": kind.requests}
    expected = run("reference", job)[spec]
    for name, result in few.items():
        for index, (answer, by_hand) in enumerate(zip(result["answers"], expected, strict=True)):
            worst = difference(answer, by_hand)
            print(f"{name}, request {index}: {len(answer['prompt'])} tokens, log-probabilities within {worst:.4f}")
            assert sorted(answer["prompt"]) == sorted(by_hand["prompt"]), "another number of tokens"
            assert worst < TOLERANCE, "another answer"
    assert not set(few["chunks"]["hashes"]) & set(other["hashes"]), "two specs share a cache entry"
    print(f"all tokens: {full['seconds']:.2f} s, {spec}: {few['whole prompts']['seconds']:.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:5])
