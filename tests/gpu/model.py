"""A language model of transformers behind HTTP: random weights of a known shape, greedy tokens.

    python -m gpu.model SHAPE PORT [DEVICE [CACHE]]    SHAPE: see shapes.py
                              CACHE: GiB of zeros that nobody has touched, as an engine keeps for
                              keys and values that are yet to come

    GET /health               200, once it has made tokens for the first time
    GET /check?tokens=N       the N likeliest next tokens of a fixed prompt, one by one
    GET /check?tokens=N&cache=1    and how many numbers of the cache are not zero

Nothing is downloaded: the weights are made where they are used, from a seed, so that two workers of
one shape say the same. It knows nothing of Thaw.
"""

from __future__ import annotations

import math
import os
import sys
from typing import Any

import torch
from gpu.answering import serve
from gpu.shapes import HEAD, SHAPES, VOCABULARY
from transformers import Qwen3Config, Qwen3ForCausalLM

SEED = 20250101
PROMPT = [785, 6722, 315, 9625, 374, 264, 3283, 429, 5610]
DEFAULT = 16  # tokens
GIB = 1 << 30


def config(shape: str) -> Qwen3Config:
    """Qwen3's, of that size."""
    chosen = SHAPES[shape]
    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=chosen.hidden,
        intermediate_size=chosen.intermediate,
        num_hidden_layers=chosen.layers,
        num_attention_heads=chosen.heads,
        num_key_value_heads=chosen.shared,
        head_dim=HEAD,
        max_position_embeddings=4096,
        tie_word_embeddings=chosen.tied,
        initializer_range=0.05,  # wide enough that the likeliest token changes as it goes
    )


def load(shape: str, device: str) -> Any:
    """The model with its random weights; the same ones at every start."""
    torch.manual_seed(SEED)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        return Qwen3ForCausalLM(config(shape)).eval()


def generate(model: Any, count: int) -> list[int]:
    """The `count` likeliest next tokens of the prompt, one by one."""
    with torch.inference_mode():
        return _generated(model, count)


def _generated(model: Any, count: int) -> list[int]:
    device = model.lm_head.weight.device
    given = torch.tensor([PROMPT], device=device)
    past, found = None, []
    for _ in range(count):
        out = model(input_ids=given, past_key_values=past, use_cache=True)
        past = out.past_key_values
        given = out.logits[:, -1:].argmax(-1)
        found.append(int(given))
    return found


def untouched(size: float, device: str) -> list[Any]:
    """Zeros of so many GiB, in blocks of at most one."""
    sizes = [min(1.0, size - done) for done in range(math.ceil(size))]
    return [torch.zeros(int(part * GIB), dtype=torch.uint8, device=device) for part in sizes]


def main(shape: str, port: int, device: str = "cuda", cache: str = "0") -> None:
    """Make the weights, warm up, answer."""
    model = load(shape, device)
    kept = untouched(float(cache), device)
    generate(model, 2)
    answers = 0

    def answer(_path: str, query: dict[str, str]) -> dict[str, Any]:
        nonlocal answers
        answers += 1
        told = {"tokens": generate(model, int(query.get("tokens", DEFAULT)))}
        if query.get("cache"):
            told["cache"] = [int(block.count_nonzero()) for block in kept]
        return {**told, "answers": answers, "pid": os.getpid()}

    serve(port, answer)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
