# SPDX-License-Identifier: Apache-2.0
"""`fabrex.sim.run`: the same programs under the virtual clock; time, order, waiting, and what cannot be allowed."""

from __future__ import annotations

import asyncio
import datetime
import gc
import json
import os
import random
import secrets
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from time import monotonic as imported_by_name
from typing import Any

import pytest
from helpers import eventually

import fabrex
import fabrex.sim

pytest.importorskip("greenlet")

from . import programs

PAIR = "fabrex-pair"
SEED = int(os.environ.get("FABREX_TEST_SEED", str(random.SystemRandom().randrange(1 << 32))))


@pytest.fixture(autouse=True)
def told() -> None:
    """The seed of this run of the tests, shown if one fails; FABREX_TEST_SEED brings it back."""
    print(f"FABREX_TEST_SEED={SEED}")


def gva(node: Any, offset: int = 0, of: str = "host1") -> int:
    value: int = node.fabric.gva(of, offset)
    return value


# -- what it gives ----------------------------------------------------------------------------------------------------


def test_the_surface() -> None:
    result = fabrex.sim.run(PAIR, {"host0": programs.producer, "host1": programs.consumer}, ordering="posted", seed=7)
    assert result.returned == {"host0": None, "host1": 42}
    assert len(result.trace_hash) == 32 and result.seed == 7 and result.ordering == "posted"
    kinds = [(event.event, event.kind, event.node) for event in result.trace]
    assert kinds.count(("visible", "write", "host0")) == 2
    stores = [event for event in result.trace if event.kind == "store"]
    assert [event.value for event in stores] == [42, 1] and "ro" in stores[1].attributes
    assert stores[0].where == "host1:dram+0x0"
    assert stores[0].site is not None and "node.store" in stores[0].site.text
    assert [event.at_ps for event in result.trace] == sorted(event.at_ps for event in result.trace)


def test_modelled_times_are_exact() -> None:
    """What the model says an operation takes is what it takes; without a competitor there is nothing else."""

    def program(node: Any) -> list[tuple[int, int]]:
        times = []
        for kind, call in (
            ("load", lambda: node.load(gva(node))),
            ("fetch_add", lambda: node.fetch_add(gva(node, 8), 1)),
            ("read", lambda: node.read(gva(node, 4096), 256)),
        ):
            node.sleep(1e-3)
            begin = node.now_ps
            call()
            times.append((node.now_ps - begin, node.estimate(kind, gva(node, 4096), 256 if kind == "read" else 8)["completes_ps"]))
        return times

    for took, said in fabrex.sim.run(PAIR, {"host0": program}, ordering="posted").returned["host0"]:
        assert took == said


def test_time_jumps() -> None:
    """An hour of virtual time is no time."""

    def program(node: Any) -> int:
        node.sleep(3600.0)
        now: int = node.now_ps
        return now

    begin = time.process_time()
    result = fabrex.sim.run(PAIR, {"host0": program, "host1": program}, limit=1e5)
    assert result.returned["host0"] >= 3600 * 10**12 and result.events < 100
    assert time.process_time() - begin < 60


def test_everything_waits_in_virtual_time() -> None:
    for ordering in ("posted", "immediate", "adversarial"):
        result = fabrex.sim.run(PAIR, programs.PAIRS["busy"], ordering=ordering, seed=SEED)
        (spad, head), (counted, bulk) = result.returned["host0"], result.returned["host1"]
        assert spad == 99 and head == bytes(range(64)) and counted % 3 == 0 and counted >= 9 and bulk == b"bulkbulk"


def test_async_programs() -> None:
    result = fabrex.sim.run(PAIR, {"host0": programs.waits, "host1": programs.waits})
    assert result.returned["host0"] == ([0, 0, 4096], 3)

    async def events(node: Any) -> Any:
        return await node.ntb.wait_event_async(timeout=1.0)

    async def ring(node: Any) -> None:
        await asyncio.sleep(1e-3)
        node.ntb.peer_db_set("host1", 1)

    found = fabrex.sim.run(PAIR, {"host0": ring, "host1": events}).returned["host1"]
    assert [event.kind for event in found] == ["doorbell"]


def test_several_programs_on_a_node() -> None:
    def program(node: Any) -> tuple[bool, int]:
        return node.owner, node.fetch_add(gva(node), 1)

    result = fabrex.sim.run(PAIR, {"host0": [program, program], "host1": program})
    assert [owner for owner, _ in result.returned["host0"]] == [True, False]
    assert sorted(old for _, old in [*result.returned["host0"], result.returned["host1"]]) == [0, 1, 2]


def test_timeouts_and_faults() -> None:
    def program(node: Any) -> list[Any]:
        seen: list[Any] = []
        for wait in (
            lambda: node.wait_until(gva(node, 0, "host0"), "==", 1, timeout=0.5),
            lambda: node.wait_until(gva(node), "==", 1, timeout=0.5),
            lambda: node.barrier("nobody", timeout=0.5, size=2),
            lambda: node.fabric.get("nothing", timeout=0.5),
            lambda: node.ntb.wait_event(timeout=0.5),
        ):
            begin = node.now_ps
            with pytest.raises(fabrex.WaitTimeout):
                wait()
            seen.append(node.now_ps - begin)
        link = next(iter(node.fabric.links.values()))
        link.down()
        with pytest.raises(fabrex.LinkDown):
            node.load(gva(node))
        node.store(gva(node), 1)
        with pytest.raises(fabrex.LinkDown):
            node.flush("host1", check=True)
        link.up()
        node.ntb.wait_event(timeout=0.5)
        assert node.load(gva(node)) == 0
        return seen

    for took in fabrex.sim.run(PAIR, {"host0": program}).returned["host0"]:
        assert 500 * 10**9 <= took < 501 * 10**9


def test_a_spinning_program_lets_time_pass() -> None:
    def spin(node: Any) -> int:
        count = 0
        while node.load(gva(node)) != 1:
            count += 1
        return count

    def late(node: Any) -> None:
        node.sleep(10e-6)
        node.store(gva(node), 1)

    assert fabrex.sim.run(PAIR, {"host0": late, "host1": spin}).returned["host1"] > 100


def test_the_whole_rack() -> None:
    """Every accelerator of a SuperNODE: a ring of counters."""
    names = [name for name, node in fabrex.Topology.preset("supernode-32").nodes.items() if node.kind == "accelerator"]
    assert len(names) == 32

    def program(node: Any) -> int:
        peer = names[(names.index(node.name) + 1) % len(names)]
        for _ in range(20):
            node.fetch_add(node.fabric.gva(peer), 1)
        node.wait_until(node.fabric.gva(node.name), "==", 20)
        node.barrier(size=32)
        return node.load(node.fabric.gva(node.name))

    result = fabrex.sim.run("supernode-32", dict.fromkeys(names, program), ordering="adversarial", seed=SEED)
    assert set(result.returned.values()) == {20}


# -- one seed, one run ------------------------------------------------------------------------------------------------


def test_one_hash_whatever_the_process() -> None:
    """Other processes, other hash seeds, and a machine that is busy meanwhile."""
    mine = programs.hashes(4)
    script = Path(programs.__file__)
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            sum(range(10000))

    burner = threading.Thread(target=load)
    burner.start()
    try:
        others = [
            subprocess.Popen(
                [sys.executable, str(script), "4"],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONHASHSEED": str(seed)},
            )
            for seed in (1, 77)
        ]
        for other in others:
            out, _ = other.communicate(timeout=100)
            assert json.loads(out) == mine
        assert programs.hashes(4) == mine
    finally:
        stop.set()
        burner.join()
    assert len({h for row in mine.values() for h in row}) > len(mine)  # seeds do differ


def test_one_hash_over_a_hundred_runs() -> None:
    for ordering in ("posted", "adversarial"):
        assert len({fabrex.sim.run(PAIR, programs.PAIRS["busy"], ordering=ordering, seed=SEED).trace_hash for _ in range(100)}) == 1


def test_a_run_leaves_nothing_to_the_next() -> None:
    """A fabric that has been used for other things gives what a new one gives: trace, counters, memory."""
    from fabrex.sim._pool import _free

    def look(node: Any) -> Any:
        fabric = node.fabric
        facts = fabric.info()
        for moves in ("created_unix_ns", "tick_hz", "tick_cost_ps", "fabric_id"):
            facts.pop(moves)
        node.store(gva(node), 5)
        node.flush("host1")
        return facts, fabric.nodes(), [link.info() for link in fabric.links.values()], fabric.buffers(), fabric.fidelity()

    def dirty(node: Any) -> None:
        node.alloc(5 << 20, name=f"left-{node.name}").memory[:] = b"x" * (5 << 20)
        node.fabric.put(f"key-{node.name}", b"value" * 1000)
        node.ntb.db_set_mask(1)
        next(iter(node.fabric.links.values())).down()

    def run(ordering: str) -> Any:
        result = fabrex.sim.run(PAIR, {"host0": look, "host1": programs.consumer_at_once}, ordering=ordering, seed=3)
        return result.trace_hash, result.now_ps, result.events, result.returned

    for ordering in ("posted", "adversarial"):
        for waiting in _free.values():
            waiting.clear()
        gc.collect()
        fresh = run(ordering)
        for other in (programs.PAIRS["busy"], {"host0": dirty, "host1": dirty}, {"host0": lambda node: 1 / 0}):
            fabrex.sim.run(PAIR, other, ordering=ordering, seed=SEED, raises=False)
            assert run(ordering) == fresh


def test_what_a_program_keeps_does_no_harm() -> None:
    kept: list[Any] = []

    def keeper(node: Any) -> None:
        buffer = node.alloc(4096, name="mine")
        kept.extend([node, buffer, buffer.memory, node.dma.copy(gva(node), buffer.gva, 4096)])

    first = fabrex.sim.run(PAIR, {"host0": keeper}).trace_hash
    assert fabrex.sim.run(PAIR, {"host0": keeper}).trace_hash == first
    with pytest.raises(fabrex.ClosedHandle):
        kept[0].load(0)
    with pytest.raises((fabrex.StaleHandle, fabrex.ClosedHandle)):
        kept[1].free()
    assert kept[0].closed and repr(kept[3])


def test_traces_outlive_the_next_run() -> None:
    first = fabrex.sim.run(PAIR, {"host0": programs.producer, "host1": programs.consumer})
    fabrex.sim.run(PAIR, programs.PAIRS["busy"])
    assert [event.kind for event in first.trace if event.node == "host0" and event.event == "op"] == ["store", "store"]


def test_no_segment_is_made() -> None:
    before = sorted(os.listdir("/dev/shm"))
    own = sorted(os.listdir(os.environ["FABREX_DIRECTORY"]))

    def made() -> list[str]:
        return [name for name in os.listdir("/dev/shm") if name not in before and "@sim" in name]

    def program(node: Any) -> list[str]:
        node.alloc(1 << 20)
        return made()

    def listens(node: Any) -> None:
        assert node.ntb.fileno() >= 0  # others find it by name, so this is a file for as long as the node is there

    assert fabrex.sim.run(PAIR, {"host0": program}).returned["host0"] == []
    fabrex.sim.run(PAIR, {"host1": listens})
    assert eventually(lambda: not any("events" in name for name in made())), "others' are there for a moment only"
    assert sorted(os.listdir(os.environ["FABREX_DIRECTORY"])) == own


# -- deadlock and limits ----------------------------------------------------------------------------------------------


def test_deadlock_says_who_waits_for_what() -> None:
    def waiter(node: Any) -> None:
        node.wait_until(gva(node, 0x40, node.name), ">=", 7)

    async def awaits(node: Any) -> None:
        await asyncio.get_running_loop().create_future()

    for programs_, words in (
        ({"host0": waiter, "host1": waiter}, ["host0:dram+0x40 >= 7; it is 0", "host1:dram+0x40", "node.wait_until(gva("]),
        ({"host0": lambda node: node.wait_until(gva(node), "==", 1)}, ["host1:dram+0x0 == 1"]),
        ({"host0": lambda node: node.barrier()}, ["barrier"]),
        ({"host0": lambda node: node.fabric.get("key", timeout=None)}, ["put()"]),
        ({"host0": lambda node: node.ntb.wait_event()}, ["event of its NTB"]),
        ({"host0": awaits, "host1": awaits}, ["awaits", "create_future"]),
    ):
        with pytest.raises(fabrex.sim.Deadlock) as caught:
            fabrex.sim.run(PAIR, programs_)
        for word in words:
            assert word in str(caught.value)
        assert set(caught.value.waits) == set(programs_)
        assert caught.value.simulation.failed == "host0"


def test_limits() -> None:
    def spins(node: Any) -> None:
        while True:
            node.load(gva(node))

    with pytest.raises(fabrex.sim.LimitReached, match="host0"):
        fabrex.sim.run(PAIR, {"host0": spins}, limit=1e-6)
    with pytest.raises(fabrex.sim.LimitReached):
        fabrex.sim.run(PAIR, {"host0": spins}, limit_events=1000)


# -- failures ---------------------------------------------------------------------------------------------------------


def test_what_a_program_raises_is_raised() -> None:
    cleaned: list[str] = []

    def fails(node: Any) -> None:
        node.sleep(1e-6)
        raise KeyError("mine")

    def waits(node: Any) -> None:
        try:
            node.wait_until(gva(node), "==", 1)
        finally:
            cleaned.append(node.name)

    with pytest.raises(KeyError, match="mine") as caught:
        fabrex.sim.run(PAIR, {"host0": fails, "host1": waits})
    assert cleaned == ["host1"] and caught.value.simulation.failed == "host0"
    result = fabrex.sim.run(PAIR, {"host0": fails, "host1": waits}, raises=False)
    assert isinstance(result.error, KeyError) and len(result.trace) >= 1
    with pytest.raises(fabrex.AddressError):
        fabrex.sim.run(PAIR, {"host0": lambda node: node.load(5)})


def test_errors_are_each_program_s_own() -> None:
    """Two operations fail at the same time: each exception tells of its own."""

    def program(node: Any) -> str:
        try:
            node.begin("load", (60 + node.rank) << 40).wait()
        except fabrex.FabricError as error:
            return str(error)
        return ""

    returned = fabrex.sim.run(PAIR, {"host0": program, "host1": program}).returned
    assert f"{60 << 40:x}" in returned["host0"] and f"{61 << 40:x}" in returned["host1"]


def test_bad_arguments() -> None:
    for bad, kind in (
        ({}, fabrex.InvalidArgument),
        ({"host0": 5}, TypeError),
        ({"host0": [5]}, fabrex.InvalidArgument),
        ([("host0", print)], fabrex.InvalidArgument),
        ({"nobody": print}, fabrex.FabricNotFound),
        ({"sw0": print}, fabrex.InvalidArgument),
    ):
        with pytest.raises(kind):
            fabrex.sim.run(PAIR, bad)  # type: ignore[arg-type]
    with pytest.raises(fabrex.InvalidArgument):
        fabrex.sim.run(PAIR, {"host0": print}, seed=-1)
    with pytest.raises(fabrex.InvalidArgument):
        fabrex.sim.run(PAIR, {"host0": print}, ordering="backwards")
    with pytest.raises(fabrex.InvalidArgument, match="inside"):
        fabrex.sim.run(PAIR, {"host0": lambda node: fabrex.sim.run(PAIR, {"host0": print})})


# -- what would make two runs differ ----------------------------------------------------------------------------------

FORBIDDEN = {
    "time.time": lambda: time.time(),
    "time.sleep": lambda: time.sleep(0),
    "time.perf_counter_ns": lambda: time.perf_counter_ns(),
    "from time import": lambda: imported_by_name(),
    "time.localtime": lambda: time.localtime(),
    "datetime.now": lambda: datetime.datetime.now(),
    "date.today": lambda: datetime.date.today(),
    "random.random": lambda: random.random(),
    "random.shuffle": lambda: random.shuffle([1]),
    "random.Random": lambda: random.Random(),
    "os.urandom": lambda: os.urandom(1),
    "uuid.uuid4": lambda: uuid.uuid4(),
    "secrets": lambda: secrets.token_hex(),
    "thread": lambda: threading.Thread(target=print).start(),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_machine_s_time_and_chance_are_refused(name: str) -> None:
    ask = FORBIDDEN[name]
    with pytest.raises(fabrex.sim.NotDeterministic, match="Use "):
        fabrex.sim.run(PAIR, {"host0": lambda node: ask()})
    if name != "thread":
        ask()  # and only there


def test_what_is_repeatable_stays_allowed() -> None:
    def program(node: Any) -> Any:
        return (
            random.Random(5).random(),
            time.localtime(0).tm_year,
            datetime.datetime(2020, 1, 2),
            isinstance(datetime.datetime(2020, 1, 2), datetime.date),
            node.random.random(),
        )

    first = fabrex.sim.run(PAIR, {"host0": program, "host1": program}, seed=1).returned
    assert first == fabrex.sim.run(PAIR, {"host0": program, "host1": program}, seed=1).returned
    assert first["host0"][-1] != first["host1"][-1]
    assert first != fabrex.sim.run(PAIR, {"host0": program, "host1": program}, seed=2).returned
    assert type(datetime.datetime.now()) is datetime.datetime


def test_other_threads_keep_their_clocks() -> None:
    seen: list[float] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.append(time.monotonic())
            time.sleep(0.0001)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        for _ in range(50):
            fabrex.sim.run(PAIR, programs.PAIRS["busy"])
    finally:
        stop.set()
        thread.join()
    assert len(seen) > 1


def test_a_node_is_its_program_s() -> None:
    """From other threads, and after the run, a node refuses; nothing crashes."""
    caught: list[BaseException] = []
    kept: list[Any] = []

    def elsewhere(node: Any) -> None:
        try:
            node.load(gva(node))
        except RuntimeError as error:
            caught.append(error)

    def program(node: Any) -> None:
        kept.append(node)
        jobs.put(node)
        answer.get(timeout=20)

    import queue

    jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    answer: queue.SimpleQueue[int] = queue.SimpleQueue()

    def serve() -> None:
        elsewhere(jobs.get(timeout=20))
        answer.put(1)

    thread = threading.Thread(target=serve)
    thread.start()
    fabrex.sim.run(PAIR, {"host0": program})
    thread.join()
    assert len(caught) == 1 and "thread" in str(caught[0])
    with pytest.raises((RuntimeError, fabrex.ClosedHandle)):
        kept[0].load(0)
