# SPDX-License-Identifier: Apache-2.0
"""The exhibits: ordering and lifetime bugs of fabric software, as small programs, each with its mended form.

An exhibit says nothing about how it is run. A *runner* is a function of (topology, programs, stale) that yields what the programs
returned, once for each run: one per seed, or one per possible outcome. `complaints` runs it and asks the exhibit about each. All
buggy programs work on shared memory, where a write is visible at once; that is why they were written like this.

docs/museum.md tells the stories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Programs = Mapping[str, Callable[[Any], Any]]
Runner = Callable[[Any, Programs, tuple[str, ...]], Iterable[Mapping[str, Any]]]


@dataclass(frozen=True)
class Exhibit:
    """One bug.

    Attributes:
        name: its name, also the anchor in docs/museum.md.
        rules: the ordering rules by which it happens.
        topology: for `Topology.resolve`.
        buggy, mended: the programs.
        check: what programs returned -> what is wrong with that, or None.
        stale: nodes that cache without coherence.
        needs: what a runner must have besides the common calls: "path", "stale".
    """

    name: str
    rules: tuple[str, ...]
    topology: Any
    buggy: Programs
    mended: Programs
    check: Callable[[Mapping[str, Any]], str | None]
    stale: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


def complaints(exhibit: Exhibit, programs: Programs, runner: Runner) -> Iterator[str | None]:
    """Yield for each run what is wrong with it, or None."""
    for returned in runner(exhibit.topology, programs, exhibit.stale):
        yield exhibit.check(returned)


def _fabric(*names: str, wc: Iterable[str] = (), boxes: Iterable[str] = (), switches: int = 1) -> Mapping[str, Any]:
    nodes: dict[str, Any] = {}
    for name in names:
        nodes[name] = {"kind": "host", "memory": {"dram": "1MiB"}, "dma": {"channels": 2}}
        if name in wc:
            nodes[name]["pio"] = {"wc": True}
    for name in boxes:
        nodes[name] = {"kind": "memory", "memory": {"dram": "1MiB"}}
    links = []
    for k in range(switches):
        nodes[f"sw{k}"] = {"kind": "switch", "delay": "105ns"}
        for name in (*names, *boxes):
            links.append({"endpoints": [f"{name}:p{k}", f"sw{k}:{name}"], "pcie": {"gen": 4, "lanes": 16}, "delay": "5ns"})
    return {"fabrex": 1, "name": "museum", "nodes": nodes, "links": links}


PAIR = _fabric("consumer", "producer")
POOL = _fabric("consumer", "producer", boxes=["pool"])
BLOCK, FLAG, INDEX, SCRATCH = 0, 256, 320, 1024
BODY = (7).to_bytes(8, "little") * 2  # a block of two words; 7 is what a consumer must find
EXHIBITS: list[Exhibit] = []


def _expect(node: str, good: Any, said: str) -> Callable[[Mapping[str, Any]], str | None]:
    def check(returned: Mapping[str, Any]) -> str | None:
        return None if returned[node] == good else f"{said}: {returned[node]!r} instead of {good!r}"

    return check


def _consumer(where: str) -> Callable[[Any], tuple[int, ...]]:
    """Wait for the flag at home, then take the block from `where`."""

    def consumer(node: Any) -> tuple[int, ...]:
        gva = node.fabric.gva
        node.wait_until(gva("consumer", FLAG), "==", 1)
        return node.load(gva(where, BLOCK)), node.load(gva(where, BLOCK + 8))

    return consumer


GOOD = (7, 7)


def show(
    name: str,
    rules: str,
    topology: Any,
    buggy: Programs,
    mended: Programs,
    check: Callable[[Mapping[str, Any]], str | None],
    **options: Any,
) -> None:
    EXHIBITS.append(Exhibit(name, tuple(rules.split()), topology, buggy, mended, check, **options))


# -- flags that overtake ----------------------------------------------------------------------------------------------


def _striped(mend: bool) -> Programs:
    """A writer with two ports: blocks over both, the flag over the first."""

    def producer(node: Any) -> None:
        gva = node.fabric.gva
        node.write(gva("consumer", BLOCK), BODY[:8], path=0)
        node.write(gva("consumer", BLOCK + 8), BODY[8:], path=1)
        if mend:
            node.fence()
        node.store(gva("consumer", FLAG), 1)

    return {"producer": producer, "consumer": _consumer("consumer")}


show(
    "two-paths",
    "P1",
    _fabric("consumer", "producer", switches=2),
    _striped(False),
    _striped(True),
    _expect("consumer", GOOD, "the flag came over the empty path"),
    needs=("path",),
)


def _classes(mend: bool) -> Programs:
    """Bulk in one traffic class, control in another, so that control is not held up. It is not."""

    def producer(node: Any) -> None:
        gva = node.fabric.gva
        node.write(gva("consumer", BLOCK), BODY, tc=1)
        node.store(gva("consumer", FLAG), 1, tc=1 if mend else 0)

    return {"producer": producer, "consumer": _consumer("consumer")}


show(
    "control-class",
    "T1",
    PAIR,
    _classes(False),
    _classes(True),
    _expect("consumer", GOOD, "the control class overtook the bulk class"),
)


def _pooled(mend: bool) -> Programs:
    """A KV block goes to the pool, the news of it to the consumer."""

    def producer(node: Any) -> None:
        gva = node.fabric.gva
        node.write(gva("pool", BLOCK), BODY)
        if mend:
            node.fence()
        node.store(gva("consumer", FLAG), 1)

    return {"producer": producer, "consumer": _consumer("pool")}


show(
    "block-here-flag-there",
    "P2",
    POOL,
    _pooled(False),
    _pooled(True),
    _expect("consumer", GOOD, "the consumer knew of the block before the pool had it"),
)


def _relaxed_atomic(mend: bool) -> Programs:
    """A flag that counts arrivals, as an atomic with relaxed ordering because atomics are slow."""

    def producer(node: Any) -> None:
        gva = node.fabric.gva
        node.write(gva("consumer", BLOCK), BODY)
        node.begin("fetch_add", gva("consumer", FLAG), 1, ro=not mend).wait()

    return {"producer": producer, "consumer": _consumer("consumer")}


show(
    "relaxed-atomic",
    "C2b",
    PAIR,
    _relaxed_atomic(False),
    _relaxed_atomic(True),
    _expect("consumer", GOOD, "the relaxed atomic passed the data"),
)


def _two_clients(mend: bool) -> Programs:
    """A data path and a control path, each with a handle of its own, and IDO switched on because the card has it."""

    def producer(node: Any) -> None:
        gva = node.fabric.gva
        control = node.fabric.attach("producer", "client")
        node.write(gva("consumer", BLOCK), BODY)
        if mend:
            node.flush("consumer")
        control.store(gva("consumer", FLAG), 1, ido=True)

    return {"producer": producer, "consumer": _consumer("consumer")}


show(
    "two-requesters",
    "A2b",
    PAIR,
    _two_clients(False),
    _two_clients(True),
    _expect("consumer", GOOD, "the control path's write passed the data path's"),
)


def _ring(mend: bool) -> Programs:
    """A ring in write-combining memory: the slot, then the index."""

    def producer(node: Any) -> None:
        gva = node.fabric.gva
        node.store(gva("consumer", BLOCK), 7)
        node.store(gva("consumer", BLOCK + 8), 7)
        if mend:
            node.drain()
        node.store(gva("consumer", INDEX), 1)

    def consumer(node: Any) -> tuple[int, ...]:
        gva = node.fabric.gva
        node.wait_until(gva("consumer", INDEX), "==", 1)
        return node.load(gva("consumer", BLOCK)), node.load(gva("consumer", BLOCK + 8))

    return {"producer": producer, "consumer": consumer}


show(
    "index-before-slot",
    "W1",
    _fabric("consumer", "producer", wc=["producer"]),
    _ring(False),
    _ring(True),
    _expect("consumer", GOOD, "the index left its buffer before the slot did"),
)

# -- not there yet ----------------------------------------------------------------------------------------------------


def _out_of_band(mend: bool) -> Programs:
    """Write, then say so over another channel: a barrier, a socket, a message broker."""

    def producer(node: Any) -> None:
        node.write(node.fabric.gva("consumer", BLOCK), BODY)
        if mend:
            node.flush("consumer")
        node.barrier("written", size=2)

    def consumer(node: Any) -> tuple[int, ...]:
        gva = node.fabric.gva
        node.barrier("written", size=2)
        return node.load(gva("consumer", BLOCK)), node.load(gva("consumer", BLOCK + 8))

    return {"producer": producer, "consumer": consumer}


show(
    "missing-flush",
    "V1 X4",
    PAIR,
    _out_of_band(False),
    _out_of_band(True),
    _expect("consumer", GOOD, "the news was faster than the data"),
)


def _done_is_not_visible(mend: bool) -> Programs:
    """A transfer is complete, so its block is published under a name."""

    def producer(node: Any) -> None:
        gva = node.fabric.gva
        node.write(gva("producer", SCRATCH), BODY)
        node.dma.copy(gva("pool", BLOCK), gva("producer", SCRATCH), 16, visible=mend).wait()
        node.fabric.put("block", b"ready")

    def consumer(node: Any) -> tuple[int, ...]:
        gva = node.fabric.gva
        node.fabric.get("block", timeout=None)
        return node.load(gva("pool", BLOCK)), node.load(gva("pool", BLOCK + 8))

    return {"producer": producer, "consumer": consumer}


show(
    "done-is-not-visible",
    "V1 M2",
    POOL,
    _done_is_not_visible(False),
    _done_is_not_visible(True),
    _expect("consumer", GOOD, "the copy was complete and not visible"),
)


def _read_back(mend: bool) -> Programs:
    """Write a setting in the bulk class, read it back in the default class to be sure."""

    def producer(node: Any) -> int:
        where = node.fabric.gva("consumer", BLOCK)
        node.store(where, 7, tc=1)
        if mend:
            node.flush("consumer")
        return int(node.load(where))

    return {"producer": producer}


show(
    "stale-zeros",
    "T1",
    PAIR,
    _read_back(False),
    _read_back(True),
    _expect("producer", 7, "the read took another way than the write and found zeros"),
)


def _lock(mend: bool) -> Programs:
    """A counter in one memory box, its lock in another."""

    def worker(node: Any) -> int:
        lock, count = node.fabric.gva("locks", 0), node.fabric.gva("pool", 0)
        while node.compare_swap(lock, 0, 1):
            pass
        value = node.load(count)
        node.store(count, value + 1)
        if mend:
            node.flush("pool")
        node.store(lock, 0)
        return int(value)

    return {"consumer": worker, "producer": worker}


show(
    "unlock-before-data",
    "P2",
    _fabric("consumer", "producer", boxes=["locks", "pool"]),
    _lock(False),
    _lock(True),
    lambda returned: None if sorted((returned["consumer"], returned["producer"])) == [0, 1] else "both saw the same count",
)


def _sleeper(mend: bool) -> Programs:
    """A consumer that tells the producer that it sleeps, looks once more, and sleeps."""

    def consumer(node: Any) -> int:
        gva = node.fabric.gva
        node.store(gva("producer", FLAG), 1)  # asleep
        if mend:
            node.flush("producer")
        if node.load(gva("consumer", BLOCK)) == 0:
            node.wait_until(gva("consumer", FLAG), "==", 1, timeout=0.01)  # woken
        return int(node.load(gva("consumer", BLOCK)))

    def producer(node: Any) -> None:
        gva = node.fabric.gva
        node.store(gva("consumer", BLOCK), 7)
        if mend:
            node.flush("consumer")
        if node.load(gva("producer", FLAG)) == 1:
            node.store(gva("consumer", FLAG), 1)

    def asleep(node: Any) -> Any:
        try:
            return consumer(node)
        except TimeoutError:
            return "asleep"

    return {"consumer": asleep, "producer": producer}


show(
    "lost-wake-up",
    "V1 L1",
    PAIR,
    _sleeper(False),
    _sleeper(True),
    _expect("consumer", 7, "each looked before it saw what the other had written"),
)

# -- one access is not one moment -------------------------------------------------------------------------------------


def _trailing_flag(mend: bool) -> Programs:
    """A record with its flag in the last line, asked for and then polled by whole reads."""

    def producer(node: Any) -> None:
        gva = node.fabric.gva
        node.wait_until(gva("producer", INDEX), "==", 1)
        node.store(gva("producer", BLOCK), 7)
        node.store(gva("producer", BLOCK + 64), 1)

    def consumer(node: Any) -> int:
        gva = node.fabric.gva
        node.store(gva("producer", INDEX), 1)
        while True:
            record = node.read(gva("producer", BLOCK), 72)
            if record[64] == 1:
                break
        if mend:
            record = node.read(gva("producer", BLOCK), 8)  # now that the flag has been seen
        return int(record[0])

    return {"producer": producer, "consumer": consumer}


show(
    "flag-at-the-end",
    "G3",
    PAIR,
    _trailing_flag(False),
    _trailing_flag(True),
    _expect("consumer", 7, "the last line was sampled after the first had been"),
)


def _torn(mend: bool) -> Programs:
    """A descriptor of two words, address and length, that is valid once its address is not zero."""

    def producer(node: Any) -> None:
        where = node.fabric.gva("consumer", BLOCK)
        if mend:
            node.store(where + 8, 7)
            node.store(where, 7)
        else:
            node.store(where, BODY, size=16)

    def consumer(node: Any) -> tuple[int, ...]:
        where = node.fabric.gva("consumer", BLOCK)
        node.wait_until(where, "!=", 0)
        return node.load(where), node.load(where + 8)

    return {"producer": producer, "consumer": consumer}


show(
    "torn-descriptor",
    "G1",
    PAIR,
    _torn(False),
    _torn(True),
    _expect("consumer", GOOD, "the address was there and the length was not"),
)

# -- lifetimes --------------------------------------------------------------------------------------------------------


def _source_reuse(mend: bool) -> Programs:
    """A staging buffer that is filled again while the engine still reads it."""

    def producer(node: Any) -> None:
        gva = node.fabric.gva
        node.store(gva("producer", SCRATCH), 7)
        node.store(gva("producer", SCRATCH + 8), 7)
        done = node.dma.put_signal(gva("consumer", BLOCK), gva("producer", SCRATCH), 16, gva("consumer", FLAG), 1)
        if mend:
            done.wait()
        node.store(gva("producer", SCRATCH), 8)  # the next block

    return {"producer": producer, "consumer": _consumer("consumer")}


show(
    "source-reused",
    "M1",
    PAIR,
    _source_reuse(False),
    _source_reuse(True),
    _expect("consumer", GOOD, "the next block went out as this one"),
)


def _early_credit(mend: bool) -> Programs:
    """A consumer that asks for a slot, looks at the next one, and gives the first back: its read may still be under way."""

    def producer(node: Any) -> None:
        gva = node.fabric.gva
        node.store(gva("producer", BLOCK), 7)
        node.store(gva("producer", INDEX), 1)
        node.wait_until(gva("producer", FLAG), "==", 1)
        node.store(gva("producer", BLOCK), 8)  # the slot is free: the next item

    def consumer(node: Any) -> int:
        gva = node.fabric.gva
        node.wait_until(gva("producer", INDEX), "==", 1)
        item = node.begin("load", gva("producer", BLOCK))
        node.load(gva("producer", SCRATCH))  # is there a next one? By now the item must have come
        value = item.wait() if mend else None
        node.store(gva("producer", FLAG), 1)
        return int(item.wait() if value is None else value)

    return {"producer": producer, "consumer": consumer}


show(
    "early-credit",
    "A3",
    PAIR,
    _early_credit(False),
    _early_credit(True),
    _expect("consumer", 7, "the slot was used again before it had been read"),
)


def _late_write(mend: bool) -> Programs:
    """A reply goes into the caller's buffer; by the time that it lands the buffer is somebody else's."""

    def producer(node: Any) -> None:
        node.store(node.fabric.gva("consumer", BLOCK), 5)  # the reply, which nobody waits for any more
        if mend:
            node.flush("consumer")
        node.fabric.put("call", b"over")

    def consumer(node: Any) -> int:
        where = node.fabric.gva("consumer", BLOCK)
        node.fabric.get("call", timeout=None)
        node.store(where, 7)  # recycled
        node.barrier("later", size=1)
        node.load(node.fabric.gva("producer", BLOCK))  # some time passes, and pushes what is on its way here
        return int(node.load(where))

    return {"producer": producer, "consumer": consumer}


show(
    "write-after-free",
    "X4 V1",
    PAIR,
    _late_write(False),
    _late_write(True),
    _expect("consumer", 7, "a late write landed in a recycled buffer"),
)


def _two_channels(mend: bool) -> Programs:
    """Blocks on one DMA channel, flags on the other so that they need not queue."""

    def producer(node: Any) -> None:
        gva = node.fabric.gva
        node.write(gva("producer", SCRATCH), BODY)
        if mend:
            node.dma.put_signal(gva("consumer", BLOCK), gva("producer", SCRATCH), 16, gva("consumer", FLAG), 1)
        else:
            node.dma.copy(gva("consumer", BLOCK), gva("producer", SCRATCH), 16, channel=0)
            node.dma.fill(gva("consumer", FLAG), 1, 8, width=8, channel=1)

    return {"producer": producer, "consumer": _consumer("consumer")}


show(
    "two-channels",
    "M5",
    PAIR,
    _two_channels(False),
    _two_channels(True),
    _expect("consumer", GOOD, "the flag's channel was faster than the block's"),
)

# -- caches -----------------------------------------------------------------------------------------------------------


def _stale_reader(mend: bool) -> Programs:
    """A consumer that looked into the pool before, and looks again."""

    def producer(node: Any) -> None:
        gva = node.fabric.gva
        node.write(gva("pool", BLOCK), BODY)
        node.flush("pool")
        node.store(gva("consumer", FLAG), 1)

    def consumer(node: Any) -> tuple[int, ...]:
        gva = node.fabric.gva
        node.load(gva("pool", BLOCK))
        node.wait_until(gva("consumer", FLAG), "==", 1)
        if mend:
            node.invalidate(gva("pool", BLOCK), 16)
        return node.load(gva("pool", BLOCK)), node.load(gva("pool", BLOCK + 8))

    return {"producer": producer, "consumer": consumer}


show(
    "cached-copy",
    "S1",
    POOL,
    _stale_reader(False),
    _stale_reader(True),
    _expect("consumer", GOOD, "the consumer read its cache"),
    stale=("consumer",),
    needs=("stale",),
)


def _dirty_writer(mend: bool) -> Programs:
    """A producer whose stores stay in its cache while its flag, an atomic, does not."""

    def producer(node: Any) -> None:
        gva = node.fabric.gva
        node.write(gva("consumer", BLOCK), BODY)
        if mend:
            node.writeback(gva("consumer", BLOCK), 16)
        node.swap(gva("consumer", FLAG), 1)

    return {"producer": producer, "consumer": _consumer("consumer")}


show(
    "dirty-line",
    "S2",
    PAIR,
    _dirty_writer(False),
    _dirty_writer(True),
    _expect("consumer", GOOD, "the flag went out and the data stayed in the cache"),
    stale=("producer",),
    needs=("stale",),
)
