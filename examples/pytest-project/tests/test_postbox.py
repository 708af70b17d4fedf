# SPDX-License-Identifier: Apache-2.0
"""The postbox, between processes that are hosts of a fabric."""

from __future__ import annotations

import fabrex
import pytest
from fabrex.pytest_plugin import NodeFailed

from postbox import ROOM, Postbox

# Programs of nodes: functions of the module. The node comes first, and what the test gives follows.


def sender(node, messages):
    box = Postbox(node, node.fabric.gva("host0"))
    for message in messages:
        box.send(message)
    return len(messages)


def receiver(node, count):
    box = Postbox(node, node.fabric.gva("host0"))
    return [box.receive() for _ in range(count)]


def impatient(node):
    return Postbox(node, node.fabric.gva("host0")).receive(timeout=0.05)


@pytest.mark.fabrex(topology="fabrex-pair")
def test_messages_arrive_in_order(fabrex_fabric):
    messages = [b"first", b"", b"x" * ROOM]
    results = fabrex_fabric.run({"host0": (receiver, 3), "host1": (sender, messages)}, timeout=10)
    assert results == {"host0": messages, "host1": 3}


@pytest.mark.parametrize("size", [1, 64, 4000])
def test_sizes(fabrex_fabric, size):
    results = fabrex_fabric.run({"host0": (receiver, 2), "host1": (sender, [b"a" * size, b"b" * size])})
    assert results["host0"] == [b"a" * size, b"b" * size]


def test_a_receiver_gives_up(fabrex_fabric):
    with pytest.raises(NodeFailed) as failed:
        fabrex_fabric.run({"host0": impatient})
    assert isinstance(failed.value.exceptions["host0"], fabrex.WaitTimeout)


def test_a_receiver_survives_its_sender(fabrex_fabric):
    run = fabrex_fabric.start({"host0": (receiver, 2), "host1": (sender, [b"only one"])})
    assert run["host1"].wait() == 0
    run["host0"].kill()
    run.join()
    assert run["host0"].outcome == "killed by SIGKILL, as the test asked"


@pytest.mark.fabrex(topology="topology.yaml", timing="on")
def test_in_real_time(fabrex_fabric):
    """With time on: the link of topology.yaml is slow, and the test sees it. Such tests run one at a time."""
    begin = fabrex_fabric.now_ps
    fabrex_fabric.run({"host0": (receiver, 1), "host1": (sender, [b"x" * ROOM])})
    assert fabrex_fabric.now_ps - begin >= 20_000_000  # the wire alone: two ways of 10 us
