# SPDX-License-Identifier: Apache-2.0
"""Small random programs for the exhaustive clock: every call that it knows, on few words, that get into each other's way."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fabrex import sim
from fabrex.sim._history import frozen
from fabrex.topology import Topology

from .catalogue import hosts

TOPOLOGIES = {
    "uncached": hosts("host0", "host1", boxes=["box"], switches=2),
    "combining": hosts("host0", "host1", boxes=["box"], switches=2, wc=["host0", "host1"]),
}
# fmt: off
CALLS = [
    "store", "store", "store", "load", "load", "write", "read", "fetch_add", "swap", "compare_swap", "drain", "fence",
    "flush", "begin_load", "begin_add", "copy", "fill", "pull", "signal", "wait_dma", "poll", "wait", "doorbell",
    "db_read", "spad", "spad_read", "barrier", "attach", "writeback", "invalidate",
]
# fmt: on
Call = tuple[str, str, int, dict[str, Any], int, bool]


def generate(seed: int) -> tuple[str, dict[str, list[Call]], tuple[str, ...]]:
    """Return a topology's name, what each node calls, and which nodes cache."""
    prng = random.Random(seed)
    programs: dict[str, list[Call]] = {}
    for name in ("host0", "host1")[: prng.choice([1, 2, 2, 2])]:
        calls: list[Call] = []
        for _ in range(prng.randint(1, 4)):
            target = prng.choice(["host0", "host1", "box", "box", "box"])
            how: dict[str, Any] = {}
            if prng.random() < 0.25:
                how["ro"] = True
            if prng.random() < 0.15:
                how["ido"] = True
            if prng.random() < 0.2:
                how["tc"] = 1
            if prng.random() < 0.15 and target != name:
                how["path"] = 1
            calls.append((prng.choice(CALLS), target, prng.choice([0, 0, 64]), how, prng.randint(1, 3), prng.random() < 0.5))
        programs[name] = calls
    stale = prng.choice([(), (), (), ("host0",), ("host0", "host1")])
    topology = prng.choice(["uncached", "uncached", "combining"])
    return topology, programs, tuple(name for name in stale if name in programs)


def program(calls: list[Call]) -> Callable[[Any], Any]:
    """Return a program that makes these calls and returns all that it learnt."""

    def run(node: Any) -> Any:
        gva, learnt, begun, copies, handle = node.fabric.gva, [], [], [], node
        for call, target, offset, how, value, flag in calls:
            at, here, away = gva(target, offset), gva(node.name, 512), target != node.name
            by = handle if flag else node
            if call == "store":
                by.store(at, value, **how)
            elif call == "load":
                learnt.append(by.load(at, **how))
            elif call == "write":
                by.write(gva(target, 56), value.to_bytes(8, "little") * 2, **how)
            elif call == "read":
                data = by.read(gva(target, 0), 16, **how)
                learnt.append((data[0], data[8]))
            elif call in ("fetch_add", "swap"):
                learnt.append(getattr(by, call)(at, value, **how))
            elif call == "compare_swap":
                learnt.append(by.compare_swap(at, 0, value, **how))
            elif call in ("drain", "fence"):
                getattr(by, call)()
            elif call == "flush":
                by.flush(target if value == 1 else None)
            elif call == "begin_load":
                begun.append(by.begin("load", at, **how))
            elif call == "begin_add":
                begun.append(by.begin("fetch_add", at, 1, **how))
            elif call == "copy" and away:
                node.store(here, value)
                copies.append(by.dma.copy(at, here, 8, visible=flag, channel=value % 2, **how))
            elif call == "fill":
                copies.append(by.dma.fill(at, value, 8, width=8, visible=flag, channel=value % 2, **how))
            elif call == "pull" and away:
                copies.append(by.dma.copy(here + 8, at, 8, channel=value % 2, **how))
            elif call == "signal":
                source = gva("box" if away else "host1", 512)
                copies.append(by.dma.put_signal(gva(target, 256), source, 8, gva(target, 0), value, **how))
            elif call == "wait_dma":
                for copy in copies:
                    copy.wait()
            elif call == "poll":
                learnt += [copy.done() for copy in copies] + [operation.done() for operation in begun]
            elif call == "wait":
                learnt.append(node.wait_until(at, "!=", 0, timeout=1.0 if flag else None))
            elif call == "doorbell" and away and target != "box":
                by.ntb.peer_db_set(target, value)
            elif call == "db_read":
                learnt.append(node.ntb.db_read())
            elif call == "spad" and away and target != "box":
                by.ntb.peer_spad_write(target, 0, value)
            elif call == "spad_read" and target != "box":
                learnt.append(by.ntb.peer_spad_read(target, 0) if away else node.ntb.spad_read(0))
            elif call == "barrier":
                node.barrier("here", size=2, timeout=1.0)
            elif call == "attach":
                handle = node.fabric.attach(node.name, "client")
            elif call == "writeback":
                by.writeback(gva(target, 0), 64)
            elif call == "invalidate":
                by.invalidate(gva(target, 0), 64)
        return learnt + [operation.wait() for operation in begun]

    return run


def compare(seed: int, explore: Callable[..., Any]) -> tuple[bool, str, tuple[int, int]]:
    """Explore a random program with reduction and without; returns whether the outcomes agree, what was done, and the states."""
    topology, calls, stale = generate(seed)
    programs: Mapping[str, Any] = {name: program(of) for name, of in calls.items()}
    reduced = explore(TOPOLOGIES[topology], programs, stale=stale, max_states=20_000, seconds=20)
    whole = explore(TOPOLOGIES[topology], programs, stale=stale, max_states=20_000, seconds=20, reduce=False)
    if reduced.bounded or whole.bounded:
        agree = reduced.bounded or whole.outcomes <= reduced.outcomes
    else:
        agree = reduced.outcomes == whole.outcomes
    states = (reduced.states, whole.states)
    said = f"seed {seed}: {states[0]} states of {states[1]}, {len(reduced.outcomes)} outcomes of {len(whole.outcomes)}"
    return agree, said, states


def against_core(number: int, seeds: Iterable[int]) -> tuple[dict[Any, int], str]:
    """Run one random program under the adversary; returns what it showed that it must not (with the seed), and what was done.

    Runs that end otherwise (a wait that times out, a deadlock) are left out.
    """
    topology, calls, stale = generate(number)
    described = Topology.resolve(TOPOLOGIES[topology])
    programs: Mapping[str, Any] = {name: program(of) for name, of in calls.items()}
    allowed = sim.explore(described, programs, stale=stale, max_states=20_000, seconds=20)
    shown: dict[Any, int] = {}
    for seed in seeds if allowed.complete else ():
        options: dict[str, Any] = {"ordering": "adversarial", "seed": seed, "stale": stale, "lines": False, "limit_events": 2000}
        result = sim.run(described, programs, raises=False, **options)
        if result.error is None:
            shown.setdefault(tuple(frozen(result.returned[name]) for name in allowed.nodes), seed)
    forbidden = {outcome: seed for outcome, seed in shown.items() if outcome not in allowed.outcomes}
    return forbidden, f"program {number}: {len(shown)} of {len(allowed.outcomes)} outcomes; forbidden {forbidden}"
