# SPDX-License-Identifier: Apache-2.0
"""A small Llama with random weights, and prompts for it: a model that needs no download and answers the same everywhere."""

from __future__ import annotations

import random
from typing import Any

VOCABULARY = 1024
LENGTHS = (33, 64, 100, 128, 200, 257, 384, 500)


def config(layers: int = 4, heads: int = 2, head_size: int = 64) -> Any:
    """Return its shape: 2.9 million parameters as it is."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=heads,
        head_dim=head_size,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def build(seed: int = 7, **shape: Any) -> Any:
    """Return the model, the same for the same seed in every process."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(config(**shape)).to(torch.float32).eval()


def prompts(count: int = 8, seed: int = 3, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    """Return prompts of different lengths."""
    noise = random.Random(seed)
    return [[noise.randrange(1, VOCABULARY) for _ in range(lengths[i % len(lengths)])] for i in range(count)]


def _with(model: Any, cache: Any) -> dict[str, Any]:
    """Return the argument that hands a cache to a model; its name changed during transformers 5."""
    import inspect

    named = "cache" in inspect.signature(type(model).forward).parameters
    return {"cache" if named else "past_key_values": cache, "use_cache": True}


def prefill(model: Any, prompt: list[int], cache: Any) -> None:
    """Fill a cache with all of a prompt but its last token, which the decoder computes itself."""
    import torch

    with torch.inference_mode():
        model(input_ids=torch.tensor([prompt[:-1]]), **_with(model, cache))


def decode(model: Any, prompt: list[int], cache: Any, count: int) -> list[int]:
    """Go on from a cache that holds all but the prompt's last token: greedy, `count` tokens."""
    import torch

    tokens, last = [], prompt[-1]
    with torch.inference_mode():
        for _ in range(count):
            logits = model(input_ids=torch.tensor([[last]]), **_with(model, cache)).logits
            last = int(logits[0, -1].argmax())
            tokens.append(last)
    return tokens


def alone(model: Any, prompt: list[int], count: int) -> list[int]:
    """Return what transformers itself generates, with its own cache and nobody else's help."""
    import torch

    with torch.inference_mode():
        out = model.generate(torch.tensor([prompt]), max_new_tokens=count, min_new_tokens=count, do_sample=False)
    return [int(token) for token in out[0, len(prompt) :]]
