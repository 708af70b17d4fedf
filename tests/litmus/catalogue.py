# SPDX-License-Identifier: Apache-2.0
"""The litmus catalogue: small programs, what they may show, and the rule that says so.

Written by hand from the rules in fabrex/sim/_rules.py and docs/concepts/ordering-rules.md, before any machine ran it. A litmus
test says nothing about how it is run: any clock can run its programs, and `observed` turns what they returned into an outcome.

Two parts: `shapes.py` has the programs that have names (message passing, store buffering…), and `CELLS` below is the contract
table, one line of marks for each pair of operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Outcome = tuple[Any, ...]


def hosts(
    *names: str, wc: Iterable[str] = (), boxes: Iterable[str] = (), switches: int = 1, channels: int = 2
) -> Mapping[str, Any]:
    """Return a topology: hosts and memory boxes, each with a link to each of the switches."""
    nodes: dict[str, Any] = {}
    for name in names:
        nodes[name] = {"kind": "host", "memory": {"dram": "1MiB"}, "dma": {"channels": channels}}
        if name in wc:
            nodes[name]["pio"] = {"wc": True}
    for name in boxes:
        nodes[name] = {"kind": "memory", "memory": {"dram": "1MiB"}}
    links = []
    for k in range(switches):
        nodes[f"sw{k}"] = {"kind": "switch", "delay": "105ns"}
        links += [
            {"endpoints": [f"{name}:p{k}", f"sw{k}:{name}"], "pcie": {"gen": 4, "lanes": 16}, "delay": "5ns"}
            for name in (*names, *boxes)
        ]
    return {"fabrex": 1, "name": "litmus", "nodes": nodes, "links": links}


PAIR = hosts("host0", "host1")
TRIO = hosts("host0", "host1", "host2")
QUAD = hosts("host0", "host1", "host2", "host3")
TWO_WAYS = hosts("host0", "host1", switches=2)
PAIR_WC = hosts("host0", "host1", wc=["host0"])
BOX = hosts("host0", "host1", boxes=["box"])
BOXES = hosts("host0", "host1", boxes=["box0", "box1"])
BOX4 = hosts("host0", "host1", "host2", "host3", boxes=["box"])
BOXES4 = hosts("host0", "host1", "host2", "host3", boxes=["box0", "box1"])


@dataclass(frozen=True)
class Litmus:
    """One test.

    Attributes:
        name: unique.
        rules: the rules that it rests on.
        topology: for `Topology.resolve`.
        programs: node -> function of `node`.
        by: the nodes whose returned values are the outcome, in this order; tuples are flattened.
        allowed: every outcome that the rules allow. All others are forbidden.
        telling: forbidden outcomes that a wrong machine would be likely to show; none of them is in `allowed`.
        must: what a weak machine must show some time: `allowed` unless given.
        stale: nodes that cache without coherence.
        about: one sentence.
    """

    name: str
    rules: tuple[str, ...]
    topology: Any
    programs: Mapping[str, Callable[[Any], Any]]
    by: tuple[str, ...]
    allowed: frozenset[Outcome]
    telling: frozenset[Outcome] = frozenset()
    must: frozenset[Outcome] = frozenset()
    stale: tuple[str, ...] = ()
    about: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.must:
            object.__setattr__(self, "must", self.allowed)
        assert not self.allowed & self.telling and self.must <= self.allowed, self.name

    def observed(self, returned: Mapping[str, Any]) -> Outcome:
        """Return the outcome of a run from what each program returned."""
        values: list[Any] = []
        for name in self.by:
            value = returned[name]
            values += value if isinstance(value, (tuple, list)) else [value]
        return tuple(values)

    def project(self, outcomes: Iterable[Outcome]) -> set[Outcome]:
        """Return the outcomes of an exploration, whose tuples have all nodes in name order."""
        names = sorted(self.programs)
        return {self.observed(dict(zip(names, outcome, strict=True))) for outcome in outcomes}


def litmus(
    name: str,
    rules: str,
    topology: Any,
    programs: Mapping[str, Callable[[Any], Any]],
    by: str,
    allowed: Iterable[Any],
    telling: Iterable[Any] = (),
    must: Iterable[Any] = (),
    stale: str = "",
    about: str = "",
) -> Litmus:
    """Return a Litmus; outcomes may be given as single values."""

    def tuples(values: Iterable[Any]) -> frozenset[Outcome]:
        return frozenset(value if isinstance(value, tuple) else (value,) for value in values)

    return Litmus(
        name,
        tuple(rules.split()),
        topology,
        programs,
        tuple(by.split()),
        tuples(allowed),
        tuples(telling),
        tuples(must),
        tuple(stale.split()),
        about,
    )


# -- the contract table -----------------------------------------------------------------------------------------------

X, FLAG, SOURCE = 56, 256, 1024  # offsets: data (its second word is in another line), the flag, the source of DMA

# What comes first and what comes second. The reader waits for the second and looks for the first: "1" in the table means that
# it always finds it, "0" that it need not.


def _first(node: Any, kind: str, target: str) -> Any:
    at = node.fabric.gva(target, X)
    if kind == "store":
        return node.store(at, 1)
    if kind == "bulk":
        return node.write(at, (1).to_bytes(8, "little") * 2)
    if kind == "line":
        return [node.store(node.fabric.gva(target, 64 + 8 * k), 1) for k in range(8)]
    if kind == "wide":
        return node.store(node.fabric.gva(target, 64), (1).to_bytes(8, "little") * 8, size=64)
    if kind in ("dma", "dma+wait", "dma+visible"):
        node.store(node.fabric.gva(node.name, SOURCE), 1)
        done = node.dma.copy(at, node.fabric.gva(node.name, SOURCE), 8, visible=kind == "dma+visible")
        if kind != "dma":
            done.wait()
        return done
    if kind == "atomic":
        return node.fetch_add(at, 1)
    if kind == "begun":
        return node.begin("fetch_add", at, 1)
    if kind == "doorbell":
        return node.ntb.peer_db_set(target, 2)
    if kind == "spad":
        return node.ntb.peer_spad_write(target, 0, 1)
    raise AssertionError(kind)


def _look(node: Any, kind: str, target: str) -> int:
    if kind == "doorbell":
        return int(node.ntb.db_read() >> 1 & 1)
    if kind == "spad":
        return int(node.ntb.spad_read(0))
    if kind == "bulk":
        return min(node.load(node.fabric.gva(target, X)), node.load(node.fabric.gva(target, X + 8)))
    if kind in ("line", "wide"):
        return int(node.load(node.fabric.gva(target, 64)))
    return int(node.load(node.fabric.gva(target, X)))


def _second(node: Any, kind: str, target: str, options: dict[str, Any]) -> None:
    at = node.fabric.gva(target, FLAG)
    kind, _, relaxed = kind.partition("+")
    if relaxed == "ro":
        options = {**options, "ro": True}
    if kind == "store":
        node.store(at, 1, **options)
    elif kind == "near":  # in the same line as the first
        node.store(node.fabric.gva(target, X - 8), 1, **options)
    elif kind == "bulk":
        node.write(at, (1).to_bytes(8, "little"), **options)
    elif kind == "atomic":
        node.begin("swap", at, 1, **options).wait()
    elif kind == "dma":
        node.dma.fill(at, 1, 8, width=8, **options)
    elif kind == "dma1":
        node.dma.fill(at, 1, 8, width=8, channel=1, **options)
    elif kind == "doorbell":
        node.ntb.peer_db_set(target, 1)
    elif kind == "spad":
        node.ntb.peer_spad_write(target, 1, 1)
    else:
        raise AssertionError(kind)


def _await(node: Any, kind: str, target: str) -> None:
    if kind == "doorbell":
        while not node.ntb.db_read() & 1:
            node.ntb.wait_event()
    elif kind == "spad":
        while not node.ntb.spad_read(1):
            pass
    else:
        node.wait_until(node.fabric.gva(target, X - 8 if kind.startswith("near") else FLAG), "==", 1)


def cell(route: str, first: str, between: str, second: str) -> tuple[Any, Mapping[str, Callable[[Any], Any]], str]:
    """Return topology, programs and observer of one cell of the contract table."""
    options = {"class": {"tc": 1}, "path": {"path": 1}}.get(route, {})
    target = "host2" if route == "node" else "host1"

    def writer(node: Any) -> None:
        under_way = _first(node, first, "host1")
        if between == "drain":
            node.drain()
        elif between == "fence":
            node.fence()
        elif between == "flush":
            node.flush("host1")
        _second(node, second, target, options)
        del under_way

    def reader(node: Any) -> int:
        _await(node, second, target)
        return _look(node, first, "host1")

    topology = {"class": PAIR, "path": TWO_WAYS, "node": TRIO, "wc": PAIR_WC}.get(route, PAIR)
    return topology, {"host0": writer, target: reader}, target


# One line per pair. Routes: `same`: one target, path and class; `class`: the second in another traffic class; `path`: over
# another path; `node`: to another node; `wc`: as `same`, from a node whose windows are write-combining. The marks stand for what
# is between the two: nothing, drain, fence, flush(target of the first). The rule is the one that the first mark rests on.
CELLS = """
# route first       second     nothing drain fence flush  rule
same    store       store        1 1 1 1  A2a
same    store       store+ro     0 0 1 1  A2b
same    store       bulk         1 1 1 1  A2a
same    store       bulk+ro      0 0 1 1  A2b
same    store       doorbell     1 1 1 1  A2a
same    store       spad         1 1 1 1  A2a
same    store       atomic       1 1 1 1  C2a
same    store       atomic+ro    0 0 0 1  C2b
same    store       dma          1 1 1 1  A2a
same    store       dma+ro       0 0 1 1  A2b
same    bulk        store        1 1 1 1  A2a
same    bulk        store+ro     0 0 1 1  A2b
same    bulk        bulk         1 1 1 1  A2a
same    bulk        bulk+ro      0 0 1 1  A2b
same    bulk        doorbell     1 1 1 1  A2a
same    bulk        atomic       1 1 1 1  C2a
same    bulk        atomic+ro    0 0 0 1  C2b
same    bulk        dma          1 1 1 1  A2a
same    dma         store        0 0 0 0  M1
same    dma         bulk         0 0 0 0  M1
same    dma         doorbell     0 0 0 0  M1
same    dma         atomic       0 0 0 0  M1
same    dma         dma          1 1 1 1  M5
same    dma         dma1         0 0 0 0  M5
same    dma         dma+ro       0 0 0 0  A2b
same    dma+wait    store        1 1 1 1  A2a
same    dma+wait    store+ro     0 0 1 1  M2
same    dma+wait    bulk         1 1 1 1  A2a
same    dma+wait    doorbell     1 1 1 1  A2a
same    dma+wait    atomic       1 1 1 1  C2a
same    dma+wait    atomic+ro    0 0 0 1  C2b
same    dma+wait    dma1         1 1 1 1  A2a
same    dma+visible store        1 1 1 1  M3
same    dma+visible store+ro     1 1 1 1  M3
same    dma+visible atomic+ro    1 1 1 1  M3
same    atomic      store        1 1 1 1  G4
same    atomic      store+ro     1 1 1 1  G4
same    atomic      atomic+ro    1 1 1 1  G4
same    atomic      doorbell     1 1 1 1  G4
same    begun       store        0 0 0 0  A4
same    begun       doorbell     0 0 0 0  A4
same    begun       atomic       0 0 0 0  C3
same    doorbell    store        1 1 1 1  A2a
same    doorbell    store+ro     0 0 1 1  A2b
same    doorbell    doorbell     1 1 1 1  A2a
same    doorbell    atomic       1 1 1 1  C2a
same    spad        store        1 1 1 1  A2a
same    spad        store+ro     0 0 1 1  A2b
same    spad        spad         1 1 1 1  A2a
class   store       store        0 0 1 1  T1
class   store       bulk         0 0 1 1  T1
class   store       atomic       0 0 0 1  T1
class   store       dma          0 0 1 1  T1
class   bulk        store        0 0 1 1  T1
class   bulk        bulk         0 0 1 1  T1
class   dma         store        0 0 0 0  M1
class   dma+wait    store        0 0 1 1  T1
class   dma+visible store        1 1 1 1  M3
class   atomic      store        1 1 1 1  G4
class   doorbell    store        0 0 1 1  T1
class   spad        store        0 0 1 1  T1
path    store       store        0 0 1 1  P1
path    store       bulk         0 0 1 1  P1
path    store       atomic       0 0 0 1  P1
path    store       dma          0 0 1 1  P1
path    bulk        store        0 0 1 1  P1
path    bulk        bulk         0 0 1 1  P1
path    dma         store        0 0 0 0  M1
path    dma+wait    store        0 0 1 1  P1
path    dma+visible store        1 1 1 1  M3
path    atomic      store        1 1 1 1  G4
path    doorbell    store        0 0 1 1  P1
path    spad        store        0 0 1 1  P1
node    store       store        0 0 1 1  P2
node    store       bulk         0 0 1 1  P2
node    store       doorbell     0 0 1 1  P2
node    store       spad         0 0 1 1  P2
node    store       atomic       0 0 0 1  P2
node    store       dma          0 0 1 1  P2
node    bulk        store        0 0 1 1  P2
node    bulk        doorbell     0 0 1 1  P2
node    bulk        atomic       0 0 0 1  P2
node    dma         store        0 0 0 0  M1
node    dma+wait    store        0 0 1 1  P2
node    dma+wait    doorbell     0 0 1 1  P2
node    dma+wait    atomic       0 0 0 1  P2
node    dma+visible store        1 1 1 1  M3
node    dma+visible doorbell     1 1 1 1  M3
node    atomic      store        1 1 1 1  G4
node    begun       store        0 0 0 0  P2
wc      store       store        0 1 1 1  W1
wc      store       store+ro     0 0 1 1  W1
wc      store       near         0 1 1 1  W1
wc      store       bulk         0 1 1 1  W1
wc      store       doorbell     1 1 1 1  W3
wc      store       spad         1 1 1 1  W3
wc      store       atomic       1 1 1 1  W3
wc      store       dma          1 1 1 1  W3
wc      bulk        store        0 1 1 1  W1
wc      bulk        bulk         0 1 1 1  W1
wc      line        store        0 1 1 1  W1
wc      wide        store        0 1 1 1  W1
wc      dma+wait    store        1 1 1 1  A2a
wc      doorbell    store        1 1 1 1  A2a
"""

BETWEEN = ("nothing", "drain", "fence", "flush")


def _cells() -> list[Litmus]:
    found = []
    for line in CELLS.splitlines():
        if not line or line.startswith("#"):
            continue
        route, first, second, *marks, rule = line.split()
        for between, mark in zip(BETWEEN, marks, strict=True):
            topology, programs, by = cell(route, first, between, second)
            rules = rule if between == "nothing" else {"drain": "X1", "fence": "X3", "flush": "X2"}[between] + " " + rule
            found.append(
                litmus(
                    f"{route}/{first}-{between}-{second}",
                    rules,
                    topology,
                    programs,
                    by,
                    [1] if mark == "1" else [0, 1],
                    [0] if mark == "1" else [],
                    about=f"{first}, then {between}, then {second} ({route})",
                )
            )
    return found


CONTRACT: list[Litmus] = _cells()


def everything() -> list[Litmus]:
    """Return the whole catalogue."""
    from .shapes import SHAPES

    return [*CONTRACT, *SHAPES]
