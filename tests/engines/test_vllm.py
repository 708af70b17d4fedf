# SPDX-License-Identifier: Apache-2.0
"""vLLM as it comes, with its own NIXL connector: two engines, two nodes, the tokens of one. `make test-vllm` runs it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from fabrex.kv import demo, model

pytest_plugins = ["helpers"]

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm does it"),
]


def expected_bytes(lengths: tuple[int, ...]) -> int:
    """Blocks x tokens of a block x layers x 2 x heads x head size x element size."""
    shape = demo.VLLM_SHAPE
    token = shape["layers"] * 2 * shape["heads"] * shape["head_size"] * 4
    return sum(-(-length // demo.VLLM_BLOCK) * demo.VLLM_BLOCK * token for length in lengths)


@pytest.mark.parametrize("way", ["pull", "push"])
def test_two_engines_say_what_one_says(place: Path, way: str) -> None:
    [row] = demo.run_vllm(demo.settings(["fabrex-pair"]), [way], prompts=8, tokens=8)
    assert (row.same, row.prompts) == (8, 8), row.details
    assert row.bytes == row.expected_bytes == expected_bytes(model.LENGTHS)


def test_a_damaged_cache_changes_the_tokens(place: Path) -> None:
    [row] = demo.run_vllm(demo.settings(["fabrex-pair"]), ["pull"], prompts=4, tokens=8, damage=True)
    assert row.same == 0 and row.bytes == row.expected_bytes
