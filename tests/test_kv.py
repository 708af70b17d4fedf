# SPDX-License-Identifier: Apache-2.0
"""KV caches in fabric memory, as far as no torch is needed; and a connector under the adversary."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from fabrex.errors import InvalidArgument
from fabrex.kv import KVAddress, KVLayout, demo

# --- arithmetic, without torch ---------------------------------------------------------------------------------------


def test_the_arithmetic_of_a_cache() -> None:
    layout = KVLayout(layers=4, heads=2, head_size=64, tokens=1024, block=32)
    assert layout.token_bytes == 4 * 2 * 2 * 64 * 4
    assert layout.size == 1024 * layout.token_bytes
    assert [layout.bytes_for(n) // layout.token_bytes for n in (0, 1, 32, 33, 1024)] == [0, 32, 32, 64, 1024]
    assert KVLayout(4, 2, 64, 1024, 32, "bfloat16").token_bytes * 2 == layout.token_bytes


@pytest.mark.parametrize("shape", [(0, 2, 64, 32), (4, -1, 64, 32), (4, 2, 64, 33), (4, 2, 64, 32, 16, "int8"), (4, 2, 64, 32.0)])
def test_shapes_that_are_none(shape: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidArgument):
        KVLayout(*shape)


def test_an_address_travels() -> None:
    address = KVAddress(0x10000000000, "host1", KVLayout(4, 2, 64, 1024))
    assert KVAddress.unpack(address.pack()) == address
    for data in (b"", b"\x93\x01\xa1x\x93", address.pack()[:-2], b"\x93\xff\xa1x\x96\x01\x01\x01\x10\x10\xa7float32"):
        with pytest.raises(InvalidArgument):
            KVAddress.unpack(data)


def test_settings_of_the_demonstration() -> None:
    found = demo.settings(["fabrex-pair"], ["links.*.delay=1us,2us", "dilation=4,8"])
    assert [setting.label for setting in found] == [f"fabrex-pair delay={d} dilation={n}" for d in ("1us", "2us") for n in (4, 8)]
    assert found[0].topology.dilation == 4
    with pytest.raises(ValueError, match="KEY=VALUE"):
        demo.settings(["fabrex-pair"], ["dilation"])


def test_the_picture_is_a_picture() -> None:
    rows = [demo.Row("a <b>", "push", 1e9, 2e9, 1.9e9, 10, 10, 1, 1), demo.Row("local", "pull", 1e9, 2e6, timing=False)]
    root = ElementTree.fromstring(demo.picture(rows, "transformers"))
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "a <b>" in texts and "2 ms" in texts and "1.9 ms" in texts and "no time is injected" in texts


@pytest.mark.parametrize("kind", ["Connector", "Mended"])
def test_the_connector_of_the_documentation(kind: str) -> None:
    """The careless one fails for most seeds and is told why; the mended one for none."""
    folder = Path(__file__).resolve().parent.parent / "examples" / "kv-connector"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "CONNECTOR": kind}, cwd=folder)
    if kind == "Mended":
        assert done.returncode == 0 and "8 passed" in done.stdout, done.stdout + done.stderr
    else:
        assert done.returncode == 1 and " failed" in done.stdout and "traffic class" in done.stdout, done.stdout + done.stderr
