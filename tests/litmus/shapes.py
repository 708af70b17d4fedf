# SPDX-License-Identifier: Apache-2.0
"""Litmus tests that have names: the published shapes, and what PCIe adds to them.

Shapes: message passing (MP), store buffering (SB), load buffering (LB), independent reads of independent writes (IRIW), 2+2W, S,
R, write-to-read causality (WRC), ISA2 and coherence, as in Alglave, Maranget, Tautschnig, *Herding cats*, TOPLAS 2014; put and
get orders as one-sided libraries name them. Locations are offsets in the fixed area of a node; `x`, `y`, `z` are in lines of
their own. All programs return plain numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from .catalogue import BOX, BOX4, BOXES, BOXES4, PAIR, PAIR_WC, QUAD, SOURCE, TRIO, TWO_WAYS, Litmus, hosts, litmus

x, y, z = 0, 64, 128
ONES = (1).to_bytes(8, "little")
BITS = (0, 1)


def at(node: Any, name: str, offset: int) -> int:
    return int(node.fabric.gva(name, offset))


def every(count: int) -> set[tuple[int, ...]]:
    return set(itertools.product(BITS, repeat=count))


def nothing(node: Any) -> None:
    pass


def fence(node: Any) -> None:
    node.fence()


def flush(node: Any) -> None:
    node.flush()


SHAPES: list[Litmus] = []


def add(*arguments: Any, **options: Any) -> None:
    SHAPES.append(litmus(*arguments, **options))


# -- message passing, read from afar ----------------------------------------------------------------------------------


def _mp_box(between: Callable[[Any], None], where: tuple[str, str], **relaxed: Any) -> dict[str, Any]:
    def writer(node: Any) -> None:
        node.store(at(node, where[0], x), 1)
        between(node)
        node.store(at(node, where[1], y), 1, **relaxed)

    def reader(node: Any) -> tuple[int, int]:
        return node.load(at(node, where[1], y)), node.load(at(node, where[0], x))

    return {"host0": writer, "host1": reader}


one, two = ("box", "box"), ("box0", "box1")
add("MP+box", "A2a B2a", BOX, _mp_box(nothing, one), "host1", every(2) - {(1, 0)}, [(1, 0)])
add("MP+box+ro", "A2b", BOX, _mp_box(nothing, one, ro=True), "host1", every(2))
add("MP+box+fence+ro", "X3", BOX, _mp_box(fence, one, ro=True), "host1", every(2) - {(1, 0)}, [(1, 0)])
add("MP+box+flush+ro", "X2", BOX, _mp_box(flush, one, ro=True), "host1", every(2) - {(1, 0)}, [(1, 0)])
add("MP+boxes", "P2", BOXES, _mp_box(nothing, two), "host1", every(2))
add("MP+boxes+fence", "X3", BOXES, _mp_box(fence, two), "host1", every(2) - {(1, 0)}, [(1, 0)])
add("MP+boxes+flush", "X2", BOXES, _mp_box(flush, two), "host1", every(2) - {(1, 0)}, [(1, 0)])


def _mp_flush_of(target: str | None) -> dict[str, Any]:
    def writer(node: Any) -> None:
        node.store(at(node, "host1", x), 1)
        node.flush(target)
        node.store(at(node, "host2", y), 1)

    def reader(node: Any) -> int:
        node.wait_until(at(node, "host2", y), "==", 1)
        return int(node.load(at(node, "host1", x)))

    return {"host0": writer, "host2": reader}


add(
    "MP+flush-of-another", "X2 P2", TRIO, _mp_flush_of("host2"), "host2", BITS, about="a flush of one node orders nothing at others"
)
add("MP+flush-of-all", "X2", TRIO, _mp_flush_of(None), "host2", [1], [0])


def _bulk_read(second: int) -> dict[str, Any]:
    def writer(node: Any) -> None:
        node.store(at(node, "host0", 0), 1)
        node.store(at(node, "host0", second), 1)

    def reader(node: Any) -> tuple[int, int]:
        data = node.read(at(node, "host0", 0), second + 8)
        return data[second], data[0]

    return {"host0": writer, "host1": reader}


add("MP+bulk-read", "G3", PAIR, _bulk_read(64), "host1", every(2), about="data and flag in one read: the flag's line may be older")
add("MP+bulk-read+one-line", "G3", PAIR, _bulk_read(56), "host1", every(2), must=every(2) - {(1, 0)})


def _bulk_write(**options: Any) -> dict[str, Any]:
    def writer(node: Any) -> None:
        node.write(at(node, "host1", 56), ONES * 2, **options)

    def reader(node: Any) -> tuple[int, int]:
        return node.load(at(node, "host1", 64)), node.load(at(node, "host1", 56))

    return {"host0": writer, "host1": reader}


add("MP+bulk-write", "G2", PAIR, _bulk_write(), "host1", every(2) - {(1, 0)}, [(1, 0)], about="a bulk write grows upwards")
add("MP+bulk-write+ro", "G2", PAIR, _bulk_write(ro=True), "host1", every(2))
add("MP+bulk-write+wc", "W1", PAIR_WC, _bulk_write(), "host1", every(2), about="its lines are in buffers that leave in any order")


def _down(**options: Any) -> dict[str, Any]:
    def writer(node: Any) -> None:
        node.write(at(node, "host1", 56), ONES * 2, **options)

    def reader(node: Any) -> tuple[int, int]:
        return node.load(at(node, "host1", 56)), node.load(at(node, "host1", 64))

    return {"host0": writer, "host1": reader}


add("MP+bulk-write+flag-first", "G1", PAIR, _down(), "host1", every(2), about="its first word says nothing about its last")


def _tear(size: int) -> dict[str, Any]:
    def writer(node: Any) -> None:
        node.store(at(node, "host1", 0), (2**32 + 1).to_bytes(8, "little") * (size // 8) if size > 8 else 2**32 + 1, size=size)

    def reader(node: Any) -> tuple[int, ...]:
        if size == 8:
            value = node.load(at(node, "host1", 0))
            return value & 1, value >> 32
        data = node.load(at(node, "host1", 0), size=size)
        return data[0], data[8]

    return {"host0": writer, "host1": reader}


add("tear+8", "G1", PAIR, _tear(8), "host1", {(0, 0), (1, 1)}, {(0, 1), (1, 0)})
add("tear+16", "G1 G2 G3", PAIR, _tear(16), "host1", every(2), must={(0, 0), (1, 1), (1, 0)})


# -- store buffering --------------------------------------------------------------------------------------------------


def _sb(between: Callable[[Any], None], places: tuple[str, str]) -> dict[str, Any]:
    def program(mine: int) -> Callable[[Any], int]:
        offsets = (x, y)

        def run(node: Any) -> int:
            node.store(at(node, places[mine], offsets[mine]), 1)
            between(node)
            return int(node.load(at(node, places[1 - mine], offsets[1 - mine])))

        return run

    return {"host0": program(0), "host1": program(1)}


add("SB", "L1", PAIR, _sb(nothing, ("host1", "host0")), "host0 host1", every(2), about="each writes afar and reads at home")
add("SB+fence", "X3", PAIR, _sb(fence, ("host1", "host0")), "host0 host1", every(2), about="a fence orders writes, not reads")
add("SB+flush", "X2", PAIR, _sb(flush, ("host1", "host0")), "host0 host1", every(2) - {(0, 0)}, [(0, 0)])
add("SB+box", "B2a", BOX, _sb(nothing, one), "host0 host1", every(2) - {(0, 0)}, [(0, 0)], about="a read pushes")
add("SB+boxes", "P2", BOXES, _sb(nothing, two), "host0 host1", every(2))
add("SB+boxes+flush", "X2", BOXES, _sb(flush, two), "host0 host1", every(2) - {(0, 0)}, [(0, 0)])


def _sb_atomic(second: str) -> dict[str, Any]:
    def program(mine: int) -> Callable[[Any], int]:
        offsets, places = (x, y), ("host1", "host0")

        def run(node: Any) -> int:
            node.swap(at(node, places[mine], offsets[mine]), 1)
            return int(node.load(at(node, places[1 - mine], offsets[1 - mine])))

        return run

    return {"host0": program(0), "host1": program(1)}


add("SB+atomics", "G4", PAIR, _sb_atomic("load"), "host0 host1", every(2) - {(0, 0)}, [(0, 0)])

# -- load buffering ---------------------------------------------------------------------------------------------------


def _lb(begun: bool, places: tuple[str, str]) -> dict[str, Any]:
    def program(mine: int) -> Callable[[Any], int]:
        offsets = (x, y)

        def run(node: Any) -> int:
            where = at(node, places[mine], offsets[mine])
            operation = node.begin("load", where) if begun else None
            value = None if begun else node.load(where)
            node.store(at(node, places[1 - mine], offsets[1 - mine]), 1)
            return int(operation.wait() if operation is not None else value)

        return run

    return {"host0": program(0), "host1": program(1)}


add("LB", "B2a", BOX, _lb(False, one), "host0 host1", every(2) - {(1, 1)}, [(1, 1)], about="a load has returned before the store")
add("LB+begun", "A3", BOX, _lb(True, one), "host0 host1", every(2), about="a posted write passes reads under way")
add("LB+boxes", "L1", BOXES, _lb(False, two), "host0 host1", every(2) - {(1, 1)}, [(1, 1)])

# -- IRIW and causality -----------------------------------------------------------------------------------------------


def _iriw(places: tuple[str, str]) -> dict[str, Any]:
    def writer(mine: int) -> Callable[[Any], None]:
        return lambda node: node.store(at(node, places[mine], (x, y)[mine]), 1)

    def reader(order: tuple[int, int]) -> Callable[[Any], tuple[int, int]]:
        def run(node: Any) -> tuple[int, int]:
            first, second = (node.load(at(node, places[i], (x, y)[i])) for i in order)
            return first, second

        return run

    return {"host0": writer(0), "host1": writer(1), "host2": reader((0, 1)), "host3": reader((1, 0))}


iriw = every(4) - {(1, 0, 1, 0)}
add("IRIW", "P3 G1", BOX4, _iriw(one), "host2 host3", iriw, [(1, 0, 1, 0)], about="a write becomes visible to all at once")
add("IRIW+boxes", "P3 G1", BOXES4, _iriw(two), "host2 host3", iriw, [(1, 0, 1, 0)])
add("IRIW+stale", "S1", BOX4, _iriw(one), "host2 host3", every(4), must=iriw, stale="host2 host3", about="a cache may fetch ahead")


def _wrc(node0: str, between: Callable[[Any], None]) -> dict[str, Any]:
    def first(node: Any) -> None:
        node.store(at(node, node0, x), 1)

    def second(node: Any) -> None:
        node.wait_until(at(node, node0, x), "==", 1)
        node.store(at(node, "box1", y), 1)

    def third(node: Any) -> int:
        node.wait_until(at(node, "box1", y), "==", 1)
        return int(node.load(at(node, node0, x)))

    return {"host0": first, "host1": second, "host2": third}


add("WRC", "G1", BOXES4, _wrc("box0", nothing), "host2", [1], [0], about="what somebody has seen is there for all")


def _isa2(between: Callable[[Any], None]) -> dict[str, Any]:
    def first(node: Any) -> None:
        node.store(at(node, "box0", x), 1)
        between(node)
        node.store(at(node, "host1", y), 1)

    def second(node: Any) -> None:
        node.wait_until(at(node, "host1", y), "==", 1)
        node.store(at(node, "host2", z), 1)

    def third(node: Any) -> int:
        node.wait_until(at(node, "host2", z), "==", 1)
        return int(node.load(at(node, "box0", x)))

    return {"host0": first, "host1": second, "host2": third}


add("ISA2", "P2", BOXES4, _isa2(nothing), "host2", BITS)
add("ISA2+fence", "X3", BOXES4, _isa2(fence), "host2", [1], [0])
add("ISA2+flush", "X2", BOXES4, _isa2(flush), "host2", [1], [0])

# -- 2+2W, S, R -------------------------------------------------------------------------------------------------------


def _settle(node: Any) -> None:
    node.flush()
    node.barrier("end", size=2)


def _two_two_w(between: Callable[[Any], None], places: tuple[str, str]) -> dict[str, Any]:
    def program(mine: int) -> Callable[[Any], tuple[int, ...]]:
        offsets = (x, y)

        def run(node: Any) -> tuple[int, ...]:
            node.store(at(node, places[mine], offsets[mine]), 1)
            between(node)
            node.store(at(node, places[1 - mine], offsets[1 - mine]), 2)
            _settle(node)
            return () if mine else tuple(node.load(at(node, places[i], offsets[i])) for i in BITS)

        return run

    return {"host0": program(0), "host1": program(1)}


final = {(1, 2), (2, 1), (2, 2)}
add("2+2W", "A2a", BOX, _two_two_w(nothing, one), "host0", final, [(1, 1)])
add("2+2W+boxes", "P2", BOXES, _two_two_w(nothing, two), "host0", final | {(1, 1)})
add("2+2W+boxes+fence", "X3", BOXES, _two_two_w(fence, two), "host0", final, [(1, 1)])
add("2+2W+boxes+flush", "X2", BOXES, _two_two_w(flush, two), "host0", final, [(1, 1)])


def _s(between: Callable[[Any], None], places: tuple[str, str]) -> dict[str, Any]:
    def first(node: Any) -> int:
        node.store(at(node, places[0], x), 2)
        between(node)
        node.store(at(node, places[1], y), 1)
        _settle(node)
        return int(node.load(at(node, places[0], x)))

    def second(node: Any) -> int:
        seen = node.load(at(node, places[1], y))
        node.store(at(node, places[0], x), 1)
        _settle(node)
        return int(seen)

    return {"host0": first, "host1": second}


add("S", "A2a", BOX, _s(nothing, one), "host1 host0", {(0, 1), (0, 2), (1, 1)}, [(1, 2)])
add("S+boxes", "P2", BOXES, _s(nothing, two), "host1 host0", {(0, 1), (0, 2), (1, 1), (1, 2)})
add("S+boxes+fence", "X3", BOXES, _s(fence, two), "host1 host0", {(0, 1), (0, 2), (1, 1)}, [(1, 2)])


def _r(first_between: Any, second_between: Any, places: tuple[str, str]) -> dict[str, Any]:
    def first(node: Any) -> None:
        node.store(at(node, places[0], x), 1)
        first_between(node)
        node.store(at(node, places[1], y), 1)
        _settle(node)

    def second(node: Any) -> tuple[int, int]:
        node.store(at(node, places[1], y), 2)
        second_between(node)
        seen = node.load(at(node, places[0], x))
        _settle(node)
        return seen, node.load(at(node, places[1], y))

    return {"host0": first, "host1": second}


all_r = {(0, 1), (0, 2), (1, 1), (1, 2)}
add("R", "A2a B2a", BOX, _r(nothing, nothing, one), "host1", all_r - {(0, 2)}, [(0, 2)])
add("R+boxes", "P2", BOXES, _r(nothing, nothing, two), "host1", all_r)
add("R+boxes+fence", "X3", BOXES, _r(fence, nothing, two), "host1", all_r, about="the reader's write is still on its way")
add("R+boxes+flush", "P2", BOXES, _r(nothing, flush, two), "host1", all_r)
add("R+boxes+fence+flush", "X2 X3", BOXES, _r(fence, flush, two), "host1", all_r - {(0, 2)}, [(0, 2)])

# -- coherence, put and get -------------------------------------------------------------------------------------------


def _pair(first: Callable[[Any], Any], second: Callable[[Any], Any] | None = None) -> dict[str, Any]:
    return {"host0": first, "host1": second} if second is not None else {"host0": first}


def _corr(**how: Any) -> dict[str, Any]:
    def reader(node: Any) -> tuple[int, int]:
        return node.load(at(node, "box", x)), node.load(at(node, "box", x))

    return _pair(lambda node: node.store(at(node, "box", x), 1), reader)


add("CoRR", "G4", BOX, _corr(), "host1", every(2) - {(1, 0)}, [(1, 0)])
add("CoRR+stale", "S1", BOX, _corr(), "host1", every(2) - {(1, 0)}, [(1, 0)], stale="host1")


def _coww(**how: Any) -> dict[str, Any]:
    def writer(node: Any) -> int:
        node.store(at(node, "host1", x), 1)
        node.store(at(node, "host1", x), 2, **how)
        node.flush()
        return int(node.load(at(node, "host1", x)))

    return _pair(writer)


add("CoWW", "A2a", PAIR, _coww(), "host0", [2], [1])
add("CoWW+ro", "A2b", PAIR, _coww(ro=True), "host0", [1, 2], about="relaxed ordering makes no exception for the same address")
add("CoWW+tc", "T1", PAIR, _coww(tc=1), "host0", [1, 2])
add("CoWW+path", "P1", TWO_WAYS, _coww(path=1), "host0", [1, 2])
add("CoWW+wc", "W2", PAIR_WC, _coww(), "host0", [2], [1])


def _corw() -> dict[str, Any]:
    def second(node: Any) -> tuple[int, int]:
        seen = node.load(at(node, "box", x))
        node.store(at(node, "box", x), 1)
        _settle(node)
        return seen, node.load(at(node, "box", x))

    def first(node: Any) -> None:
        node.store(at(node, "box", x), 2)
        _settle(node)

    return _pair(first, second)


add("CoRW", "B2a", BOX, _corw(), "host1", {(0, 1), (0, 2), (2, 1)}, [(1, 1), (2, 2)])


def _put_get(store: dict[str, Any], load: dict[str, Any], wide: bool = False) -> dict[str, Any]:
    def program(node: Any) -> int:
        where = at(node, "host1", x)
        node.store(where, 1, **store)
        return int(node.begin("load", where, **load).wait())

    return _pair(program)


add("put-get", "B2a", PAIR, _put_get({}, {}), "host0", [1], [0])
add("put-get+ro", "B2a", PAIR, _put_get({"ro": True}, {}), "host0", [1], [0], about="a read passes no write, relaxed or not")
add("put-get+read-ro", "B2a", PAIR, _put_get({}, {"ro": True}), "host0", [1], [0], about="RO on the read changes nothing here")
add("put-get+ido", "B2b", PAIR, _put_get({}, {"ido": True}), "host0", [1], [0], about="IDO needs another requester")
add("put-get+tc", "T1", PAIR, _put_get({"tc": 1}, {}), "host0", BITS)
add("put-get+tc-both", "B2a", PAIR, _put_get({"tc": 1}, {"tc": 1}), "host0", [1], [0])
add("put-get+path", "P1", TWO_WAYS, _put_get({"path": 1}, {}), "host0", BITS, about="a read on another path returns stale zeros")
add("put-get+wc", "W3 B2a", PAIR_WC, _put_get({}, {}), "host0", [1], [0])


def _put_get_flush(store: dict[str, Any]) -> dict[str, Any]:
    def program(node: Any) -> int:
        node.store(at(node, "host1", x), 1, **store)
        node.flush("host1")
        return int(node.load(at(node, "host1", x)))

    return _pair(program)


add("put-flush-get+tc", "X2", PAIR, _put_get_flush({"tc": 1}), "host0", [1], [0])
add("put-flush-get+path", "X2", TWO_WAYS, _put_get_flush({"path": 1}), "host0", [1], [0])


def _get_put() -> dict[str, Any]:
    def program(node: Any) -> int:
        seen = node.load(at(node, "host1", x))
        node.store(at(node, "host1", x), 1)
        return int(seen)

    return _pair(program)


def _get_put_begun() -> dict[str, Any]:
    def program(node: Any) -> int:
        under_way = node.begin("load", at(node, "host1", x))
        node.store(at(node, "host1", x), 1)
        return int(under_way.wait())

    return _pair(program)


add("get-put", "A3", PAIR, _get_put(), "host0", [0], [1])
add("get-put+begun", "A3", PAIR, _get_put_begun(), "host0", BITS, about="a write passes the read before it")


def _two_gets() -> dict[str, Any]:
    def reader(node: Any) -> tuple[int, int]:
        first, second = node.begin("load", at(node, "box", y)), node.begin("load", at(node, "box", x))
        return first.wait(), second.wait()

    def writer(node: Any) -> None:
        node.store(at(node, "box", x), 1)
        node.store(at(node, "box", y), 1)

    return _pair(writer, reader)


add("get-get+begun", "B3 D5", BOX, _two_gets(), "host1", every(2), about="reads under way are unordered")

# -- requesters and IDO -----------------------------------------------------------------------------------------------


def _two_handles(between: str, **how: Any) -> dict[str, Any]:
    def writer(node: Any) -> None:
        other = node.fabric.attach("host0", "client")
        node.store(at(node, "host1", x), 1)
        if between == "own fence":
            node.fence()
        elif between == "other's fence":
            other.fence()
        elif between == "other's flush":
            other.flush("host1")
        other.store(at(node, "host1", y), 1, **how)

    def reader(node: Any) -> int:
        node.wait_until(at(node, "host1", y), "==", 1)
        return int(node.load(at(node, "host1", x)))

    return _pair(writer, reader)


add("IDO+none", "A2a", PAIR, _two_handles(""), "host1", [1], [0], about="handles of a node share its stream")
add("IDO", "A2b", PAIR, _two_handles("", ido=True), "host1", BITS)
add("IDO+own-fence", "X3", PAIR, _two_handles("own fence", ido=True), "host1", BITS, about="a fence is one handle's")
add("IDO+others-fence", "X3", PAIR, _two_handles("other's fence", ido=True), "host1", BITS)
add("IDO+others-flush", "X2", PAIR, _two_handles("other's flush", ido=True), "host1", [1], [0], about="a flush is the node's")


def _ido_same() -> dict[str, Any]:
    def writer(node: Any) -> None:
        node.store(at(node, "host1", x), 1)
        node.store(at(node, "host1", y), 1, ido=True)

    def reader(node: Any) -> int:
        node.wait_until(at(node, "host1", y), "==", 1)
        return int(node.load(at(node, "host1", x)))

    return _pair(writer, reader)


add("IDO+same", "A2b", PAIR, _ido_same(), "host1", [1], [0], about="one requester's own writes stay in order")


def _ido_read(kind: str, **how: Any) -> dict[str, Any]:
    def program(node: Any) -> int:
        other = node.fabric.attach("host0", "client")
        where = at(node, "host1", x)
        node.store(where, 1)
        if kind == "load":
            return int(other.begin("load", where, **how).wait())
        return int(other.begin("fetch_add", where, 0, **how).wait())

    return _pair(program)


add("IDO+read-none", "B2a", PAIR, _ido_read("load"), "host0", [1], [0])
add("IDO+read", "B2b", PAIR, _ido_read("load", ido=True), "host0", BITS)
add("IDO+atomic-none", "C2a", PAIR, _ido_read("atomic"), "host0", [1], [0])
add("IDO+atomic", "C2b", PAIR, _ido_read("atomic", ido=True), "host0", BITS)

# -- completions ------------------------------------------------------------------------------------------------------


def _push(kind: str, write: dict[str, Any], read: dict[str, Any], late: bool = False) -> dict[str, Any]:
    """host1 writes y to host0, then x at home; host0 asks for x, then looks at home for y."""

    def answerer(node: Any) -> None:
        if late:
            node.store(at(node, "host1", x), 1)
        node.store(at(node, "host0", y), 1, **write)
        if not late:
            node.store(at(node, "host1", x), 1)

    def asker(node: Any) -> tuple[int, int]:
        where = at(node, "host1", x)
        arguments = () if kind == "load" else (0,)
        seen = node.begin(kind, where, *arguments, **read).wait()
        return seen, node.load(at(node, "host0", y))

    return {"host0": asker, "host1": answerer}


add("push", "D2a", PAIR, _push("load", {}, {}), "host0", every(2) - {(1, 0)}, [(1, 0)], about="a completion pushes writes")
add("push+atomic", "D2a", PAIR, _push("fetch_add", {}, {}), "host0", every(2) - {(1, 0)}, [(1, 0)])
add("push+ro-write", "D2a", PAIR, _push("load", {"ro": True}, {}), "host0", every(2) - {(1, 0)}, [(1, 0)])
add("push+ro-read", "D2b", PAIR, _push("load", {}, {"ro": True}), "host0", every(2))
add("push+tc", "T1", PAIR, _push("load", {"tc": 1}, {}), "host0", every(2))
add("push+tc-both", "D2a", PAIR, _push("load", {"tc": 1}, {"tc": 1}), "host0", every(2) - {(1, 0)}, [(1, 0)])
add("push+path", "P1", TWO_WAYS, _push("load", {"path": 1}, {}), "host0", every(2))
add("push+late", "L1", PAIR, _push("load", {}, {}, late=True), "host0", every(2), about="what is written afterwards is not pushed")


def _overtaken() -> dict[str, Any]:
    """host1 writes once it has seen host0's atomic: the write may be there before the atomic's answer."""

    def asker(node: Any) -> int:
        under_way = node.begin("fetch_add", at(node, "host1", x), 1)
        node.wait_until(at(node, "host0", y), "==", 1)
        return int(under_way.done())

    def answerer(node: Any) -> None:
        node.wait_until(at(node, "host1", x), "==", 1)
        node.store(at(node, "host0", y), 1)

    return {"host0": asker, "host1": answerer}


add("overtaken", "A5", PAIR, _overtaken(), "host0", BITS, about="a posted write passes a completion")


def _push_by_flush(between: str) -> dict[str, Any]:
    """host1 writes y to host0 and tells host2, which tells host0: a flush of host1 brings y."""

    def first(node: Any) -> None:
        node.store(at(node, "host0", y), 1)
        node.store(at(node, "host2", x), 1)

    def second(node: Any) -> None:
        node.wait_until(at(node, "host2", x), "==", 1)
        node.store(at(node, "host0", z), 1)

    def third(node: Any) -> int:
        node.wait_until(at(node, "host0", z), "==", 1)
        if between == "flush":
            node.flush("host1")
        elif between == "load":
            node.load(at(node, "host1", z))
        return int(node.load(at(node, "host0", y)))

    return {"host0": third, "host1": first, "host2": second}


add("push-by-nothing", "P2", TRIO, _push_by_flush(""), "host0", BITS)
add("push-by-flush", "D2a", TRIO, _push_by_flush("flush"), "host0", [1], [0], about="a flush is a read, and its completion pushes")
add("push-by-load", "D2a", TRIO, _push_by_flush("load"), "host0", [1], [0])

# -- home and away ----------------------------------------------------------------------------------------------------


def _home(between: Callable[[Any], None], data_at: str) -> dict[str, Any]:
    def writer(node: Any) -> None:
        node.store(at(node, data_at, x), 1)
        between(node)
        node.store(at(node, "host0", y), 1)

    def reader(node: Any) -> int:
        node.wait_until(at(node, "host0", y), "==", 1)
        return int(node.load(at(node, data_at, x)))

    return {"host0": writer, "host1": reader}


add("home", "L1", PAIR, _home(nothing, "host0"), "host1", [1], [0], about="data and flag at home: in program order")
add("home+flag", "L1", BOX, _home(nothing, "box"), "host1", BITS, about="a flag at home overtakes data sent away")
add("home+flag+fence", "X3 L1", BOX, _home(fence, "box"), "host1", BITS, about="a store at home is no posted write")
add("home+flag+flush", "X2", BOX, _home(flush, "box"), "host1", [1], [0])
add("home+flag+reader", "D2a", PAIR, _home(nothing, "host1"), "host1", [1], [0], about="the answer about the flag pushes the data")


def _barrier(between: Callable[[Any], None]) -> dict[str, Any]:
    def writer(node: Any) -> None:
        node.store(at(node, "host1", x), 1)
        between(node)
        node.barrier("here", size=2)

    def reader(node: Any) -> int:
        node.barrier("here", size=2)
        return int(node.load(at(node, "host1", x)))

    return _pair(writer, reader)


add("barrier", "X4 V1", PAIR, _barrier(nothing), "host1", BITS, about="a barrier orders no write")
add("barrier+fence", "X4 X3", PAIR, _barrier(fence), "host1", BITS)
add("barrier+flush", "X2", PAIR, _barrier(flush), "host1", [1], [0])


def _names(between: Callable[[Any], None]) -> dict[str, Any]:
    def writer(node: Any) -> None:
        node.store(at(node, "host1", x), 1)
        between(node)
        node.fabric.put("ready", b"1")

    def reader(node: Any) -> int:
        node.fabric.get("ready", timeout=None)
        return int(node.load(at(node, "host1", x)))

    return _pair(writer, reader)


add("put-name", "X4", PAIR, _names(nothing), "host1", BITS, about="values by name do not travel with data")
add("put-name+flush", "X2", PAIR, _names(flush), "host1", [1], [0])


def _doorbell_event(**how: Any) -> dict[str, Any]:
    def writer(node: Any) -> None:
        node.store(at(node, "host1", x), 1, **how)
        node.ntb.peer_db_set("host1", 1)

    def reader(node: Any) -> int:
        node.ntb.wait_event()
        return int(node.load(at(node, "host1", x)))

    return _pair(writer, reader)


add("doorbell-event", "A2a", PAIR, _doorbell_event(), "host1", [1], [0])
add("doorbell-event+ro", "A2a", PAIR, _doorbell_event(ro=True), "host1", [1], [0], about="RO on the first lets nothing pass it")
add("doorbell-event+tc", "T1", PAIR, _doorbell_event(tc=1), "host1", BITS)

# -- atomics ----------------------------------------------------------------------------------------------------------


def _add_twice() -> dict[str, Any]:
    def program(node: Any) -> int:
        return int(node.fetch_add(at(node, "box", x), 1))

    return {"host0": program, "host1": program}


add("atomic+add", "G4", BOX, _add_twice(), "host0 host1", {(0, 1), (1, 0)}, {(0, 0), (1, 1)})


def _add_store() -> dict[str, Any]:
    def writer(node: Any) -> None:
        node.store(at(node, "box", x), 5)
        _settle(node)

    def adder(node: Any) -> tuple[int, int]:
        old = node.fetch_add(at(node, "box", x), 1)
        _settle(node)
        return old, node.load(at(node, "box", x))

    return {"host0": writer, "host1": adder}


add("atomic+store", "G4", BOX, _add_store(), "host1", {(0, 5), (5, 6)}, {(0, 6), (0, 1)})


def _lock(release: str) -> dict[str, Any]:
    """Two nodes add to a counter in one box under a lock in another."""

    def program(node: Any) -> int:
        lock, count = at(node, "box0", x), at(node, "box1", y)
        if node.compare_swap(lock, 0, 1) == 1:
            return 9  # taken: give up, so that the program ends
        value = node.load(count)
        node.store(count, value + 1)
        if release == "flush":
            node.flush("box1")
        elif release == "fence":
            node.fence()
        if release == "atomic":
            node.swap(lock, 0)
        else:
            node.store(lock, 0)
        return int(value)

    return {"host0": program, "host1": program}


locked = {(0, 1), (1, 0), (0, 9), (9, 0)}
add("lock", "P2", BOXES, _lock(""), "host0 host1", locked | {(0, 0)}, about="the lock is free before the data is there")
add("lock+fence", "X3", BOXES, _lock("fence"), "host0 host1", locked, [(0, 0)])
add("lock+flush", "X2", BOXES, _lock("flush"), "host0 host1", locked, [(0, 0)])
add("lock+atomic", "P2", BOXES, _lock("atomic"), "host0 host1", locked | {(0, 0)}, about="an atomic pushes at its own target only")

# -- DMA --------------------------------------------------------------------------------------------------------------


def _reuse(wait: bool) -> dict[str, Any]:
    def writer(node: Any) -> int:
        source = at(node, "host0", SOURCE)
        node.store(source, 1)
        done = node.dma.copy(at(node, "host1", x), source, 8)
        if wait:
            done.wait()
        node.store(source, 2)
        done.wait()
        node.flush("host1")
        return int(node.load(at(node, "host1", x)))

    return _pair(writer)


add("DMA+reuse", "M1", PAIR, _reuse(False), "host0", [1, 2], about="the source is used again before completion")
add("DMA+reuse+wait", "M2", PAIR, _reuse(True), "host0", [1], [2])


def _dma_visible(after: str) -> dict[str, Any]:
    def writer(node: Any) -> None:
        source = at(node, "host0", SOURCE)
        node.store(source, 1)
        node.dma.copy(at(node, "host1", x), source, 8, visible=after == "visible").wait()
        if after == "flush":
            node.flush("host1")
        node.barrier("here", size=2)

    def reader(node: Any) -> int:
        node.barrier("here", size=2)
        return int(node.load(at(node, "host1", x)))

    return _pair(writer, reader)


add("DMA+done", "M2", PAIR, _dma_visible(""), "host1", BITS, about="complete is not visible")
add("DMA+done+flush", "X2", PAIR, _dma_visible("flush"), "host1", [1], [0])
add("DMA+done+visible", "M3", PAIR, _dma_visible("visible"), "host1", [1], [0])


def _put_signal(**how: Any) -> dict[str, Any]:
    def writer(node: Any) -> None:
        source = at(node, "host0", SOURCE)
        node.store(source, 1)
        node.store(source + 8, 1)
        node.dma.put_signal(at(node, "host1", 56), source, 16, at(node, "host1", 256), 1, **how)

    def reader(node: Any) -> int:
        node.wait_until(at(node, "host1", 256), "==", 1)
        return min(node.load(at(node, "host1", 56)), node.load(at(node, "host1", 64)))

    return _pair(writer, reader)


add("put_signal", "M4", PAIR, _put_signal(), "host1", [1], [0])
add("put_signal+ro", "M4", PAIR, _put_signal(ro=True), "host1", [1], [0], about="the signal itself is never relaxed")
add("put_signal+tc", "M4", PAIR, _put_signal(tc=1), "host1", [1], [0])


def _pull_signal() -> dict[str, Any]:
    def puller(node: Any) -> int:
        node.dma.put_signal(at(node, "host0", x), at(node, "host1", SOURCE), 16, at(node, "host0", 256), 1)
        node.wait_until(at(node, "host0", 256), "==", 1)
        return min(node.load(at(node, "host0", x)), node.load(at(node, "host0", x + 8)))

    def source(node: Any) -> None:
        node.store(at(node, "host1", SOURCE), 1)
        node.store(at(node, "host1", SOURCE + 8), 1)

    def program(node: Any) -> int:
        node.barrier("filled", size=2)
        return puller(node)

    def filler(node: Any) -> None:
        source(node)
        node.barrier("filled", size=2)

    return {"host0": program, "host1": filler}


add("put_signal+pull", "M4", PAIR, _pull_signal(), "host0", [1], [0])


def _dma_order(**how: Any) -> dict[str, Any]:
    edge = 4096  # no packet crosses it

    def writer(node: Any) -> None:
        source = at(node, "host0", SOURCE)
        node.store(source, 1)
        node.store(source + 8, 1)
        node.dma.copy(at(node, "host1", edge - 8), source, 16, **how)

    def reader(node: Any) -> tuple[int, int]:
        return node.load(at(node, "host1", edge)), node.load(at(node, "host1", edge - 8))

    return _pair(writer, reader)


add("DMA+order", "G2", PAIR, _dma_order(), "host1", every(2) - {(1, 0)}, [(1, 0)], about="a push grows upwards")
add("DMA+order+ro", "G2", PAIR, _dma_order(ro=True), "host1", every(2))


def _dma_pio(wait: bool) -> dict[str, Any]:
    def writer(node: Any) -> int:
        done = node.dma.fill(at(node, "host1", x), 2, 8, width=8)
        if wait:
            done.wait()
        node.store(at(node, "host1", x), 1)
        done.wait()
        node.flush("host1")
        return int(node.load(at(node, "host1", x)))

    return _pair(writer)


def _pio_dma(**how: Any) -> dict[str, Any]:
    def writer(node: Any) -> int:
        node.store(at(node, "host1", x), 1)
        node.dma.fill(at(node, "host1", x), 2, 8, width=8, **how).wait()
        node.flush("host1")
        return int(node.load(at(node, "host1", x)))

    return _pair(writer)


add("DMA-PIO", "M1", PAIR, _dma_pio(False), "host0", [1, 2])
add("DMA-wait-PIO", "A2a", PAIR, _dma_pio(True), "host0", [1], [2])
add("PIO-DMA", "A2a", PAIR, _pio_dma(), "host0", [2], [1])
add("PIO-DMA+ro", "A2b", PAIR, _pio_dma(ro=True), "host0", [1, 2])


def _store_pull(**how: Any) -> dict[str, Any]:
    def program(node: Any) -> int:
        node.store(at(node, "host1", x), 1)
        node.dma.copy(at(node, "host0", y), at(node, "host1", x), 8, **how).wait()
        return int(node.load(at(node, "host0", y)))

    return _pair(program)


add("PIO-pull", "B2a", PAIR, _store_pull(), "host0", [1], [0], about="an engine's reads push like others")
add("PIO-pull+tc", "T1", PAIR, _store_pull(tc=1), "host0", BITS)


def _push_get(wait: bool) -> dict[str, Any]:
    def program(node: Any) -> int:
        node.store(at(node, "host0", SOURCE), 1)
        done = node.dma.copy(at(node, "host1", x), at(node, "host0", SOURCE), 8)
        if wait:
            done.wait()
        return int(node.load(at(node, "host1", x)))

    return _pair(program)


add("DMA-get", "M1", PAIR, _push_get(False), "host0", BITS)
add("DMA-wait-get", "B2a", PAIR, _push_get(True), "host0", [1], [0])


def _pull_landed() -> dict[str, Any]:
    """A pulled copy lands at home: complete means that it is there."""

    def program(node: Any) -> int:
        node.barrier("filled", size=2)
        node.dma.copy(at(node, "host0", x), at(node, "host1", SOURCE), 8).wait()
        return int(node.load(at(node, "host0", x)))

    def filler(node: Any) -> None:
        node.store(at(node, "host1", SOURCE), 1)
        node.barrier("filled", size=2)

    return {"host0": program, "host1": filler}


add("DMA-pull", "M2", PAIR, _pull_landed(), "host0", [1], [0])


def _pull_torn() -> dict[str, Any]:
    def program(node: Any) -> tuple[int, int]:
        node.dma.copy(at(node, "host0", x), at(node, "host1", 56), 16).wait()
        return node.load(at(node, "host0", x + 8)), node.load(at(node, "host0", x))

    def filler(node: Any) -> None:
        node.store(at(node, "host1", 56), 1)
        node.store(at(node, "host1", 64), 1)

    return {"host0": program, "host1": filler}


add(
    "DMA-pull+torn",
    "G3",
    PAIR,
    _pull_torn(),
    "host0",
    every(2),
    must={(0, 0), (1, 1), (0, 1)},
    about="an engine's read samples in any order",
)


def _third_party() -> dict[str, Any]:
    """An engine copies from one node to another: complete means issued, at the destination later."""

    def program(node: Any) -> int:
        node.barrier("filled", size=2)
        node.dma.copy(at(node, "host2", x), at(node, "host1", SOURCE), 8).wait()
        return int(node.load(at(node, "host2", x)))

    def filler(node: Any) -> None:
        node.store(at(node, "host1", SOURCE), 1)
        node.barrier("filled", size=2)

    return {"host0": program, "host1": filler}


add("DMA-third-party", "B2a", TRIO, _third_party(), "host0", [1], [0], about="the issuer's own load pushes what its engine sent")

# -- write combining --------------------------------------------------------------------------------------------------


def _wc_three(between: int | None) -> dict[str, Any]:
    """Three stores to three lines; the reader looks at the last first."""

    def writer(node: Any) -> None:
        for k in range(3):
            if k == between:
                node.drain()
            node.store(at(node, "host1", 64 * k), 1)

    def reader(node: Any) -> tuple[int, int, int]:
        third, second, first = (node.load(at(node, "host1", 64 * k)) for k in (2, 1, 0))
        return third, second, first

    return _pair(writer, reader)


add("WC+three", "W1", PAIR_WC, _wc_three(None), "host1", every(3))
add(
    "WC+three+drain-1",
    "X1",
    PAIR_WC,
    _wc_three(1),
    "host1",
    every(3) - {(1, 0, 0), (1, 1, 0), (0, 1, 0)},
    [(1, 0, 0), (1, 1, 0), (0, 1, 0)],
)
add(
    "WC+three+drain-2",
    "X1",
    PAIR_WC,
    _wc_three(2),
    "host1",
    every(3) - {(1, 0, 0), (1, 1, 0), (1, 0, 1)},
    [(1, 0, 0), (1, 1, 0), (1, 0, 1)],
)
add(
    "UC+three",
    "A2a",
    PAIR,
    _wc_three(None),
    "host1",
    {(0, 0, 0), (0, 0, 1), (0, 1, 1), (1, 1, 1)},
    [(1, 0, 0), (1, 1, 0), (1, 0, 1), (0, 1, 0)],
)

# -- caches without coherence -----------------------------------------------------------------------------------------


def _stale_reader(warm: bool, invalidate: bool) -> dict[str, Any]:
    def writer(node: Any) -> None:
        node.store(at(node, "box", x), 1)
        node.store(at(node, "box", y), 1)

    def reader(node: Any) -> int:
        if warm:
            node.load(at(node, "box", x))
        node.wait_until(at(node, "box", y), "==", 1)
        if invalidate:
            node.invalidate(at(node, "box", x), 64)
        return int(node.load(at(node, "box", x)))

    return _pair(writer, reader)


add("stale+read", "S1", BOX, _stale_reader(True, False), "host1", BITS, stale="host1")
add(
    "stale+read+cold",
    "S1",
    BOX,
    _stale_reader(False, False),
    "host1",
    BITS,
    must=[1],
    stale="host1",
    about="a cache may fetch ahead",
)
add("stale+read+invalidate", "S1", BOX, _stale_reader(True, True), "host1", [1], [0], stale="host1")
add("stale+read+coherent", "A2a", BOX, _stale_reader(True, False), "host1", [1], [0], about="without caches it cannot happen")


def _stale_writer(between: tuple[str, ...], flag: str) -> dict[str, Any]:
    def writer(node: Any) -> None:
        node.store(at(node, "host1", x), 1)
        for what in between:
            if what == "writeback":
                node.writeback(at(node, "host1", x), 64)
            elif what == "flush":
                node.flush("host1")
            elif what == "fence":
                node.fence()
        if flag == "atomic":
            node.swap(at(node, "host1", y), 1)
        else:
            node.store(at(node, "host1", y), 1)
            node.writeback(at(node, "host1", y), 64)

    def reader(node: Any) -> int:
        node.wait_until(at(node, "host1", y), "==", 1)
        return int(node.load(at(node, "host1", x)))

    return _pair(writer, reader)


add("stale+write", "S2", PAIR, _stale_writer((), "atomic"), "host1", BITS, stale="host0")
add(
    "stale+write+flush",
    "S2",
    PAIR,
    _stale_writer(("flush",), "atomic"),
    "host1",
    BITS,
    stale="host0",
    about="a flush writes no cache back",
)
add("stale+write+fence", "S2", PAIR, _stale_writer(("fence",), "atomic"), "host1", BITS, stale="host0")
add("stale+write+writeback", "S2 C2a", PAIR, _stale_writer(("writeback",), "atomic"), "host1", [1], [0], stale="host0")
add("stale+write+writeback+store", "S2 A2a", PAIR, _stale_writer(("writeback",), "store"), "host1", [1], [0], stale="host0")
add("stale+write+store", "S2", PAIR, _stale_writer((), "store"), "host1", BITS, stale="host0")


def _stale_own() -> dict[str, Any]:
    def program(node: Any) -> int:
        node.store(at(node, "host1", x), 1)
        return int(node.load(at(node, "host1", x)))

    return _pair(program)


add("stale+own", "S2", PAIR, _stale_own(), "host0", [1], [0], stale="host0", about="a node sees its own stores")

# -- raw views --------------------------------------------------------------------------------------------------------


def _raw(acquires: bool, afar: bool) -> dict[str, Any]:
    """host0 writes into a buffer of host1 and flags it; the reader, at home or on host0's side of the box, looks raw."""

    def owner(node: Any) -> int:
        buffer = node.alloc(64, name="inbox", on="box" if afar else None)
        assert buffer.memory[0] == 0
        node.wait_until(at(node, "host1", y), "==", 1)
        if acquires:
            with buffer.access() as view:
                return int(view[0])
        return int(buffer.memory[0])

    def writer(node: Any) -> None:
        buffer = node.fabric.buffer("inbox", timeout=1.0)
        node.store(buffer.gva, 1)
        node.fence()
        node.store(at(node, "host1", y), 1)

    return {"host0": writer, "host1": owner}


add("raw+acquire", "R1 A2a", PAIR, _raw(True, False), "host1", [1], [0])
add("raw+forgotten", "R1", PAIR, _raw(False, False), "host1", [0], about="what nobody acquired shows old bytes")
add("raw+acquire+box", "R1 X3", BOX, _raw(True, True), "host1", [1], [0])


def _raw_writer(releases: bool) -> dict[str, Any]:
    def owner(node: Any) -> None:
        buffer = node.alloc(64, name="outbox")
        view = buffer.acquire()
        view[0] = 1
        if releases:
            buffer.release()
        node.store(at(node, "host1", y), 1)

    def reader(node: Any) -> int:
        buffer = node.fabric.buffer("outbox", timeout=1.0)
        node.wait_until(at(node, "host1", y), "==", 1)
        return int(node.load(buffer.gva, size=1))

    return {"host0": reader, "host1": owner}


add("raw+release", "R1", PAIR, _raw_writer(True), "host0", [1], [0])
add("raw+unreleased", "R1", PAIR, _raw_writer(False), "host0", [0], about="what nobody released is nobody else's")

__all__ = ["QUAD", "SHAPES", "hosts"]
