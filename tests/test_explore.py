# SPDX-License-Identifier: Apache-2.0
"""The exhaustive clock: what it returns, what it refuses, where it stops. What it allows is in tests/litmus."""

from __future__ import annotations

import random
from typing import Any

import pytest
from litmus import random_programs

import fabrex
from fabrex import sim


def producer(node: Any) -> None:
    gva = node.fabric.gva
    node.store(gva("host1", 0), 1)
    node.store(gva("host1", 64), 1, ro=True)


def consumer(node: Any) -> int:
    gva = node.fabric.gva
    node.wait_until(gva("host1", 64), "==", 1)
    return int(node.load(gva("host1", 0)))


def test_outcomes_have_nodes_in_name_order() -> None:
    found = sim.explore("fabrex-pair", {"host1": consumer, "host0": producer})
    assert found.nodes == ("host0", "host1")
    assert found.outcomes == {(None, 0), (None, 1)}
    assert found.complete and not found.bounded


def test_witness_says_what_passed_what() -> None:
    found = sim.explore("fabrex-pair", {"host0": producer, "host1": consumer})
    witness = found.witness((None, 0))
    assert "A2b" in witness.rules
    told = str(witness)
    assert "ro=True) [host1:dram+0x40] went before host0: store(host1:dram+0x0, 1)" in told
    assert "test_explore.py:" in told
    assert found.witness((None, 1)).passes == ()


def test_several_programs_of_a_node_are_owner_and_clients() -> None:
    def which(node: Any) -> bool:
        return bool(node.owner)

    found = sim.explore("fabrex-pair", {"host0": [which, which], "host1": which})
    assert found.outcomes == {((True, False), True)}


def test_async_programs_work() -> None:
    async def run(node: Any) -> int:
        operation = node.begin("fetch_add", node.fabric.gva("host1", 0), 1)
        return int(await operation) + 1

    assert sim.explore("fabrex-pair", {"host0": run}).outcomes == {(1,)}


def test_what_programs_raise_is_an_outcome() -> None:
    def bad(node: Any) -> None:
        node.load(8)

    (outcome,) = sim.explore("fabrex-pair", {"host0": bad}).outcomes
    assert isinstance(outcome[0], sim.Raised) and outcome[0][0] == "AddressError"


def test_waiting_for_ever_is_an_outcome() -> None:
    def wait(node: Any) -> None:
        node.wait_until(node.fabric.gva("host0", 0), "==", 1)

    (outcome,) = sim.explore("fabrex-pair", {"host0": wait}).outcomes
    assert isinstance(outcome[0], sim.Stuck) and "wait_until(host0:dram+0x0" in outcome[0]


def test_a_timeout_comes_when_nothing_else_can() -> None:
    def late(node: Any) -> None:
        node.store(node.fabric.gva("host1", 0), 1)

    def wait(node: Any) -> Any:
        try:
            node.wait_until(node.fabric.gva("host1", 0), "==", 1, timeout=1e-9)
            node.wait_until(node.fabric.gva("host1", 0), "==", 2, timeout=1e-9)
        except fabrex.errors.WaitTimeout:
            return "timeout"

    assert sim.explore("fabrex-pair", {"host0": late, "host1": wait}).outcomes == {(None, "timeout")}


def test_polling_loops_end() -> None:
    def poll(node: Any) -> int:
        where = node.fabric.gva("host1", 0)
        while node.load(where) == 0:
            pass
        return int(node.load(where))

    def write(node: Any) -> None:
        node.store(node.fabric.gva("host1", 0), 1)
        node.store(node.fabric.gva("host1", 0), 2)

    found = sim.explore("fabrex-pair", {"host0": write, "host1": poll})
    assert found.complete and found.outcomes == {(None, 1), (None, 2)}


def test_counting_loops_hit_the_bound() -> None:
    def poll(node: Any) -> int:
        turns = 0
        while node.load(node.fabric.gva("host0", 0)) == 0:
            turns += 1
        return turns

    found = sim.explore("fabrex-pair", {"host0": poll}, max_steps=30)
    assert found.bounded and found.bound == "max_steps=30"


def test_bounds_are_told_and_keep_what_was_found() -> None:
    def busy(node: Any) -> list[int]:
        return [node.fetch_add(node.fabric.gva("host1", 0), 1) for _ in range(6)]

    found = sim.explore("fabrex-pair", {"host0": busy, "host1": busy}, max_states=50)
    assert found.bound == "max_states=50" and "stopped at" in str(found)
    assert sim.explore("fabrex-pair", {"host0": busy, "host1": busy}).complete


def test_programs_that_depend_on_more_than_the_fabric_are_refused() -> None:
    prng = random.Random(1)

    def dice(node: Any) -> list[int]:
        return [node.load(node.fabric.gva("host1", 8 * prng.randrange(64))) for _ in range(8)]

    with pytest.raises(sim.NotRepeatable, match="with the same answers"):
        sim.explore("fabrex-pair", {"host0": dice, "host1": lambda node: node.store(node.fabric.gva("host1", 0), 1)})


@pytest.mark.parametrize(
    ("programs", "error"),
    [
        ({}, fabrex.errors.InvalidArgument),
        ({"host0": 3}, fabrex.errors.InvalidArgument),
        ({"nobody": producer}, fabrex.errors.FabricNotFound),
        ({"sw0": producer}, fabrex.errors.InvalidArgument),
    ],
)
def test_bad_programs_are_refused(programs: Any, error: type[Exception]) -> None:
    with pytest.raises((error, TypeError)):
        sim.explore("fabrex-pair", programs)


def test_names_buffers_and_values() -> None:
    def first(node: Any) -> int:
        buffer = node.alloc(64, name="inbox")
        node.wait_until(buffer.gva, "==", 5)
        return len(buffer)

    def second(node: Any) -> bytes:
        node.store(node.fabric.buffer("inbox", timeout=1).gva, 5)
        node.fabric.put("key", b"value")
        return bytes(node.fabric.get("key"))

    assert sim.explore("fabrex-pair", {"host0": first, "host1": second}).outcomes == {(64, b"value")}


def test_scalars_have_their_sizes() -> None:
    def run(node: Any) -> Any:
        at = node.fabric.gva("host1", 0)
        node.store(at, 0x0102030405060708)
        node.store(at + 2, 0xFFFF, size=2)
        node.store(at + 16, bytes(range(16)), size=16)
        return node.load(at), node.load(at + 3, size=1), node.load(at + 16, size=16), node.read(at + 7, 3)

    (outcome,) = sim.explore("fabrex-pair", {"host0": run}).outcomes
    assert outcome[0] == (0x01020304FFFF0708, 0xFF, bytes(range(16)), b"\x01\x00\x00")


@pytest.mark.parametrize("start", range(0, 200, 50))
def test_reduction_loses_nothing(start: int) -> None:
    """Random programs: the reduced search finds what the whole one does. `make campaign-oracle` does more of them."""
    for seed in range(start, start + 50):
        agree, said, _ = random_programs.compare(seed, sim.explore)
        assert agree, said
