# SPDX-License-Identifier: Apache-2.0
"""What an installed fabrex must do on any machine, in a few seconds; run against wheels."""

from __future__ import annotations

import multiprocessing
import os

import pytest

import fabrex
from fabrex.pcie import Link

pytestmark = pytest.mark.smoke


def produce(name: str, directory: str) -> None:
    with fabrex.Fabric.open(name, directory, timeout=10) as fabric, fabric.attach("host1") as node:
        inbox = fabric.buffer("inbox", timeout=10)
        node.write(inbox.gva + 64, b"payload " * 100)
        node.store(inbox.gva, 42)
        node.flush()


@pytest.mark.parametrize("timing", [False, True])
def test_two_processes_share_an_address_space(timing: bool) -> None:
    directory = os.environ.get("FABREX_DIRECTORY") or "/dev/shm"
    with fabrex.Fabric.create("fabrex-pair", timing=timing, directory=directory) as fabric:
        node = fabric.attach("host0")
        inbox = node.alloc(4096, name="inbox")
        process = multiprocessing.get_context("spawn").Process(target=produce, args=(fabric.name, directory))
        process.start()
        try:
            assert node.wait_until(inbox.gva, "==", 42, timeout=60) == 42
            assert node.read(inbox.gva + 64, 800) == b"payload " * 100
        finally:
            process.join(60)
        assert process.exitcode == 0
        assert node.fetch_add(inbox.gva, 1) == 42
        assert node.compare_swap(inbox.gva, 43, 44, size=16) == 43
        assert bytes(inbox.memory[:1]) == b"\x2c"


def test_a_load_takes_as_long_as_the_model_says() -> None:
    with fabrex.Fabric.create("fabrex-pair", timing=True) as fabric:
        node = fabric.attach("host0")
        operation = node.begin("load", fabric.gva("host1"))
        assert operation.wait(timeout=10) == 0
        assert operation.completes_ps - operation.issued_ps == node.estimate("load", fabric.gva("host1"))["completes_ps"]


def test_the_link_arithmetic_is_the_published_one() -> None:
    assert round(Link(gen=3, lanes=8, mps=256, mrrs=512).tlp_bps() / 1e9, 3) == 57.885
