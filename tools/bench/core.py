# SPDX-License-Identifier: Apache-2.0
"""What the core claims, measured on this machine: per claim the target, what was reached, its spread, and whether it holds.

    python tools/bench/core.py                      everything, two minutes or so
    python tools/bench/core.py --only cost,delay    some groups
    python tools/bench/core.py --json --repeat 9

It reports and never fails: the status is 0 whatever was reached. Within a group, what is compared is measured in turn, and
figures are medians over repetitions. Tails are the machine's as much as the emulator's: rows with timing on say how many late
operations had lost their processor meanwhile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "peers"), str(HERE.parents[1])]

import common  # noqa: E402
from common import Missing, Samples, note  # noqa: E402

LOAD, STORE, WAIT = 0, 1, 8  # enum fbx_op_kind
DELAYS_NS = (150, 250, 500, 1000, 2000, 5000, 10000)


class Report:
    """Rows as they come."""

    def __init__(self, quiet: bool) -> None:
        self.rows: list[dict[str, Any]] = []
        self._quiet = quiet

    def add(
        self,
        group: str,
        claim: str,
        samples: Sequence[float],
        target: float,
        unit: str = "ns",
        at_least: bool = False,
        remark: str = "",
    ) -> None:
        """Add a row: the median of `samples` against `target`."""
        facts = common.summary(samples)
        reached = float(facts["median"])  # type: ignore[arg-type]
        passed = reached >= target if at_least else reached <= target
        self.rows.append({"group": group, "claim": claim, "target": round(target, 4), "at_least": at_least, "unit": unit,
                          "reached": reached, "pass": passed, "remark": remark, **facts})  # fmt: skip
        if not self._quiet:
            sign = ">=" if at_least else "<="
            note(f"  {'ok  ' if passed else 'MISS'} {claim}: {_figure(reached, unit)} ({sign} {_figure(target, unit)})")

    def skip(self, group: str, claim: str, why: str) -> None:
        """Add a row that could not be measured."""
        self.rows.append({"group": group, "claim": claim, "pass": None, "remark": why})
        if not self._quiet:
            note(f"  skip {claim}: {why}")


def _figure(value: float, unit: str) -> str:
    if unit == "ns":
        return common.ns(value)
    if unit == "%":
        return f"{value:.1f} %"
    return f"{value:.3f} {unit}".rstrip()


def _bench(node: Any, kind: int, gvas: Sequence[int], count: int, samples: bool = False) -> Any:
    """Return ns of one operation, or every operation's."""
    from fabrex._handle import check, ffi, lib

    addresses, total = ffi.new("uint64_t[]", list(gvas)), ffi.new("uint64_t *")
    each = ffi.new("uint64_t[]", count) if samples else ffi.NULL
    check(lib.fbx_bench(node._pointer(), kind, addresses, len(gvas), 8, count, each, total), node)
    return [value / 1e3 for value in each] if samples else float(total[0]) / count / 1e3


def _slices(measure: Callable[[], float], slices: int = 15) -> float:
    return statistics.median(measure() for _ in range(slices))


def _python(call: Callable[..., Any], arguments: tuple[Any, ...], count: int) -> float:
    begin = time.perf_counter_ns()
    for _ in repeat(None, count):
        call(*arguments)
    return (time.perf_counter_ns() - begin) / count


def _preempted(made: Any, kind: str, before: dict[str, Any] | None = None) -> str:
    facts, old = made.fidelity().get(kind), (before or {}).get(kind, {})
    if not facts:
        return ""
    late, away = facts["late"] - old.get("late", 0), facts["preempted"] - old.get("preempted", 0)
    count = facts["count"] - old.get("count", 0)
    return f"{late} of {count} late, {away} of them without a processor"


def _pair(delay_ns: float | None = None, **changes: Any) -> Any:
    """The pair; with `delay_ns`, links and memory such that a load takes that long."""
    import fabrex

    pair = fabrex.Topology.preset("fabrex-pair")
    if delay_ns is None:
        return pair.override(changes) if changes else pair
    zero = {"nodes.sw0.delay": "0ns", "nodes.host*.memory.dram.latency": "0ns", "links.*.delay": "0ns"}
    with common.fabric(pair.override(zero | changes)) as made, made.attach("host0") as node:
        least = node.estimate("load", made.gva("host1"), 8)["completes_ps"]
    rest = round(delay_ns * 1000) - least
    if rest < 0:
        raise ValueError(f"{delay_ns} ns is less than the packets take")
    way = rest // 8  # half of it in the four passages of a link, half in the memory
    set_to = {"links.*.delay": f"{way}ps", "nodes.host*.memory.dram.latency": f"{rest - 4 * way}ps"}
    return pair.override(zero | changes | set_to)


# -- what a call costs ------------------------------------------------------------------------------------------------


def cost(report: Report, rounds: int) -> None:
    """Scalar operations without time, beside UCX and OpenSHMEM; Python; a gather; issuing a posted store."""
    import run as peers

    sources: dict[str, Callable[[], Any]] = {"ucx": peers._ucx, "shmem": peers._shmem}
    own, samples, skipped = peers._Fabrex(), Samples(), {}
    try:
        sources["fabrex"] = own
        for _ in common.rounds(rounds):
            for name, source in sources.items():
                if name not in skipped:
                    try:
                        samples.add(source())
                    except Missing as error:
                        skipped[name] = str(error)
    finally:
        own.close()
    for op, target, others in (
        ("load", 8, ("ucp_get", "shmem_long_g")),
        ("store", 8, ("ucp_put", "shmem_long_p")),
        ("fetch_add", 10, ("ucp_fetch_add", "shmem_long_fadd")),
    ):
        mine = samples.get(op)
        report.add("cost", f"{op}, C, 8 bytes", mine, target)
        for other in others:
            theirs = samples.get(other)
            if theirs:
                pairs = [a / b for a, b in zip(mine, theirs, strict=False)]
                report.add("cost", f"{op} / {other}", pairs, 0.5, "", remark=f"{other} takes {statistics.median(theirs):.1f} ns")
            else:
                why = skipped.get("ucx" if other.startswith("ucp") else "shmem", "not measured")
                report.skip("cost", f"{op} / {other}", why)
    report.add("cost", "gather of 4,096, each", samples.get("gather"), 12)
    endless = statistics.median(samples.get("posted_store_sustained"))
    remark = f"without end, with the delivery: {endless:.0f} ns"
    report.add("cost", "posted store, timing on, to issue", samples.get("posted_store"), 60, remark=remark)
    load, empty = samples.get("python_load"), samples.get("python_empty")
    report.add("cost", "Python node.load", load, 60)
    report.add("cost", "Python node.load / empty call", [a / b for a, b in zip(load, empty, strict=True)], 3, "")


# -- modelled time ----------------------------------------------------------------------------------------------------


def _step_ns(made: Any) -> float:
    """The least that the clock moves between two looks that differ."""
    from fabrex._handle import lib

    pointer, seen = made._live(), []
    for _ in range(2000):
        a = lib.fbx_fabric_now(pointer)
        b = lib.fbx_fabric_now(pointer)
        if b > a:
            seen.append(b - a)
    ticks = [lib.fbx_ticks() for _ in range(5000)]
    steps = [b - a for a, b in pairwise(ticks) if b > a]
    from math import gcd

    return max(gcd(*steps) / made.info()["tick_hz"] * 1e9, made.info()["tick_cost_ps"] / 1e3)


def delay(report: Report, rounds: int) -> None:
    """Loads from C at requested latencies."""
    for wanted in DELAYS_NS:
        medians, tails, step, remark = [], [], 0.0, ""
        with common.fabric(_pair(wanted)) as made, made.attach("host0") as node:
            gva = made.gva("host1", 64)
            step = _step_ns(made)
            asked = node.estimate("load", gva, 8)["completes_ps"] / 1e3
            _bench(node, LOAD, [gva], 2000)
            before = made.fidelity()
            for _ in common.rounds(rounds):
                values = _bench(node, LOAD, [gva], min(20_000, int(2e7 / wanted)), samples=True)
                medians.append(abs(statistics.median(values) - asked))
                tails.append(common.percentile(values, 0.99))
            remark = _preempted(made, "load", before)
        limit = max(0.02 * asked, step)
        report.add("delay", f"load of {wanted} ns: median off by", medians, limit, remark=f"clock step {step:.1f} ns")
        report.add("delay", f"load of {wanted} ns: p99", tails, asked * 1.1 + 20, remark=remark)


@contextmanager
def _busy_thread() -> Iterator[None]:
    stop = False

    def work() -> None:
        n = 0
        while not stop:
            n += 1

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop = True
        thread.join()


@contextmanager
def _alone() -> Iterator[None]:
    yield


def python(report: Report, rounds: int) -> None:
    """Loads from Python at requested latencies, alone and beside a thread that computes."""
    clock = time.perf_counter_ns
    for wanted in (250, 1000, 5000):
        with common.fabric(_pair(wanted)) as made, made.attach("host0") as node:
            gva, load = made.gva("host1", 64), node.load
            for words, around in (("", _alone), (", beside a busy thread", _busy_thread)):
                offs = []
                for _ in common.rounds(rounds):
                    with around():
                        empty, values = [], []
                        for _ in repeat(None, 2000):
                            a = clock()
                            empty.append(clock() - a)
                            a = clock()
                            load(gva)
                            values.append(clock() - a)
                    offs.append(abs(statistics.median(values) - statistics.median(empty) - wanted) / wanted * 100)
                report.add("python", f"Python load of {wanted} ns{words}: median off by", offs, 10 if wanted < 1000 else 3, "%")


def _passed(watch: list[str], send: list[str], how: str, least: int) -> list[float]:
    """Run a watcher and a sender, and return the median time in between, if `least` were seen undisturbed."""
    watcher = common.start(watch, -1)
    assert watcher.stdout
    watcher.stdout.readline()
    sender = common.start(send, 0)
    away = {stamp for _, stamp, _ in common.lines(sender.communicate(timeout=60)[0])}
    try:
        out, _ = watcher.communicate(timeout=40)
    except subprocess.TimeoutExpired:
        watcher.kill()
        out, _ = watcher.communicate()
    found = [value for name, stamp, value in common.lines(out) if name == how and stamp not in away]
    return [statistics.median(found)] if len(found) > least else []


def oneway(report: Report, rounds: int) -> None:
    """A store, until a polling process at the other node has seen it; against a flag in shared memory, in the same run."""
    program = common.ops()
    count = 4000
    for wanted in (None, 1500):
        floors, seen, by_wait = [], [], []
        with common.fabric(_pair(wanted)) as made, made.attach("host0", role="client") as node:
            gva = made.gva("host1", 128)
            modelled = node.estimate("store", gva, 8)["arrives_ps"] / 1e3
            node.store(gva, 0)
            node.flush()
            for _ in common.rounds(rounds):
                for how, values in (("raw", floors), ("api", seen), ("wait", by_wait)):
                    gap = int(modelled) + 3000
                    way = "raw" if how == "raw" else "api"
                    watch = common.words(program, "poll", made, "host1", gva, count, how)
                    send = common.words(program, "send", made, "host0", gva, count, way, gap)
                    values += _passed(watch, send, how, count // 20)
        if not floors:
            report.skip("oneway", "store to a polling process", "two processes do not get to run at once here")
            continue
        floor = statistics.median(floors)
        words = f"floor of the machine {floor:.0f} ns, modelled {modelled:.0f} ns"
        limit = max(modelled, floor) + 60
        for values, means in ((seen, "fbx_load"), (by_wait, "fbx_wait_until")):
            if values:
                report.add("oneway", f"store to a process polling with {means}, {modelled:.0f} ns", values, limit, remark=words)
            else:
                report.skip("oneway", f"store to a process polling with {means}", "the watcher saw nothing")


def doorbell(report: Report, rounds: int) -> None:
    """A doorbell, until a process that waits for it, or polls, has it; against a bare futex, and a flag, in the same run."""
    program, kinds = common.ops(), ("futex", "wait", "raw", "poll", "events")
    for wanted in (None, 1500):
        seen: dict[str, list[float]] = {kind: [] for kind in kinds}
        with common.fabric(_pair(wanted)) as made, made.attach("host0", role="client") as node:
            gva = made.gva("host1", 128)
            modelled = node.estimate("store", gva, 8)["arrives_ps"] / 1e3
            for _ in common.rounds(rounds):
                for how in kinds:
                    # A waiter looks for a while before it sleeps; here it must have gone to sleep.
                    count, gap = (1500, 300_000) if how in ("futex", "wait") else (4000, int(modelled) + 3000)
                    begin, ring = ("poll", "send") if how == "raw" else ("bell", "ring")
                    watch = common.words(program, begin, made, "host1", gva, count, how)
                    send = common.words(program, ring, made, "host0", gva, count, how, gap)
                    seen[how] += _passed(watch, send, how, count // 20)
        if not all(seen.values()):
            report.skip("doorbell", f"doorbell of {modelled:.0f} ns", "two processes do not get to run at once here")
            continue
        wake, floor = statistics.median(seen["futex"]), statistics.median(seen["raw"])
        pairs = [a / b for a, b in zip(seen["wait"], seen["futex"], strict=False)]
        words = f"{statistics.median(seen['wait']):.0f} ns of which {modelled:.0f} ns are modelled; futex {wake:.0f} ns"
        report.add("doorbell", f"doorbell of {modelled:.0f} ns to a waiting process / bare futex", pairs, 1.5, "", remark=words)
        words = f"floor of the machine {floor:.0f} ns, modelled {modelled:.0f} ns"
        for how, means in (("poll", "fbx_db_read"), ("events", "fbx_ntb_wait_event")):
            claim = f"doorbell to a process polling with {means}, {modelled:.0f} ns"
            report.add("doorbell", claim, seen[how], max(modelled, floor) + 60, remark=words)


# -- shared links -----------------------------------------------------------------------------------------------------


def _pushers(
    made: Any, count: int, bytes_each: int, seconds: float, command: str = "push"
) -> tuple[list[subprocess.Popen[str]], int]:
    program, started = common.ops(), []
    gva = made.region_gva("host1", offset=1 << 20)
    start = made.now_ps + int((1.0 + 0.1 * count) * 1e12)
    for i in range(count):
        words = common.words(program, command, made, "host0", gva + i * (4 << 20), bytes_each, start, int(seconds * 1e9))
        started.append(common.start(words, -1 if count == 1 else None))
    return started, start


def fair(report: Report, rounds: int) -> None:
    """Eight processes that push through one link share its rate. The link is slow enough for any machine to keep up."""
    slow = {"links.host0:ntb0-sw0:p0.pcie.gen": 1, "links.host0:ntb0-sw0:p0.pcie.lanes": 1}
    shares, fairness, size = [], [], 64 << 10
    with common.fabric(_pair(**slow)) as made, made.attach("host0", role="client") as node:
        wire = node.estimate("write", made.region_gva("host1", offset=1 << 20), size)["wire_bytes"]
        rate = made.links["host0:ntb0-sw0:p0"].info()["rate_bps"] / 8e9 * size / wire  # payload bytes per ns
        for _ in common.rounds(max(rounds // 2, 2)):
            started, _ = _pushers(made, 8, size, 1.0)
            rates = []
            for process in started:
                out, _ = process.communicate(timeout=60)
                rates += [size_ / value for name, size_, value in common.lines(out) if name == "pushed"]
            if len(rates) == 8:
                shares.append(abs(sum(rates) / rate - 1) * 100)
                fairness.append(sum(rates) ** 2 / (8 * sum(r * r for r in rates)))
    if not shares:
        report.skip("fair", "eight processes through one link", "they did not end")
        return
    remark = f"modelled {rate * 1e3:.1f} MB/s of payload"
    report.add("fair", "eight processes through one link: sum of rates off by", shares, 2, "%", remark=remark)
    report.add("fair", "the same: Jain's index", fairness, 0.99, "", at_least=True)


# -- DMA ----------------------------------------------------------------------------------------------------------------


def dma(report: Report, rounds: int) -> None:
    """DMA without injected time, beside memcpy between the same memory; what a descriptor costs."""
    sizes = {1 << 20: 0.85, 4 << 20: 0.85, 16 << 20: 1.3, 64 << 20: 1.3}
    samples = Samples()
    with common.fabric(_pair(), timing=False, ordering="immediate") as made, made.attach("host0", role="client") as node:
        far, near = node.alloc(64 << 20, on="host1"), node.alloc(64)
        for _ in common.rounds(rounds):
            samples.add(common.said(common.words(common.ops(), "plain", made, "host0", far.gva, 1)))
            for _ in range(50):
                begin = time.perf_counter_ns()
                under_way = [node.dma.copy(far.gva, near.gva, 8) for _ in range(50)]
                samples.add([("python", 8, (time.perf_counter_ns() - begin) / 50)])
                for completion in under_way:
                    completion.wait()
    for size, target in sizes.items():
        ratios = [b / a for a, b in zip(samples.get("dma", size), samples.get("memcpy_shared", size), strict=True)]
        report.add("dma", f"DMA of {common.size(size)}: speed of memcpy's", ratios, target, "", at_least=True)
    report.add("dma", "submission of a descriptor, from C", samples.get("dma_submit"), 100)
    report.add("dma", "submission of a descriptor, from Python", samples.get("python"), 500)
    rates = [1e3 / ns for ns in samples.get("dma_queue")]
    report.add("dma", "descriptors of one channel, millions a second", rates, 4, "", at_least=True)


def _dma_rate(node: Any, dst: int, src: int, size: int, count: int) -> float:
    """Bytes a ns of fabric time, four descriptors at a time."""
    from fabrex._handle import check, ffi, lib

    d, total = ffi.new("struct fbx_dma *", {"dst": dst, "src": src, "bytes": size}), ffi.new("uint64_t *")
    check(lib.fbx_bench_dma(node._pointer(), d, 4, count, ffi.NULL, total), node)
    return float(size * count / total[0] * 1e3)


def rate(report: Report, rounds: int) -> None:
    """Injected rates by DMA against the arithmetic of the link, alone and contended, and what time dilation brings back."""
    import fabrex

    def link(**changes: Any) -> dict[str, Any]:
        return {f"links.*.pcie.{key}": value for key, value in changes.items()}

    floors: dict[tuple[str, int], float] = {}
    for gen, lanes, dilation in ((6, 16, 1), (3, 4, 1), (3, 8, 1), (4, 16, 1), (6, 16, 16)):
        model = fabrex.pcie.Link(gen=gen, lanes=lanes, mps=256, mrrs=512)
        topology = _pair(**link(gen=gen, lanes=lanes), dilation=dilation, **{"nodes.host*.dma.tags": 256})
        with common.fabric(topology) as made, made.attach("host0") as node:
            far, near = node.alloc(4 << 20, on="host1"), node.alloc(4 << 20)
            for buffer in (far, near):
                node.view(buffer.gva, buffer.size)[:] = bytes(buffer.size)
            for size in (64 << 10, 1 << 20, 4 << 20):
                ways = {"write": (far.gva, near.gva, model.write_bps(size)), "read": (near.gva, far.gva, model.read_bps(size))}
                for kind, (dst, src, bps) in ways.items():
                    # A descriptor follows the one before it: the first byte's way, which the estimate of eight has, then the rate.
                    first = node.estimate(f"dma_{kind}", far.gva, 8)["completes_ps"] / 1e3
                    asked = size / (first + (size - 8) * 8e9 / bps)
                    count = max(int(2e6 / dilation * asked / size), 6)
                    # Short slices, and the least disturbed of them: a processor that was away moves nothing.
                    reached = []
                    for _ in common.rounds(rounds):
                        slices = [_dma_rate(node, dst, src, size, count) for _ in range(20)]
                        reached.append(min(slices, key=lambda found, asked=asked: abs(found - asked)))
                    words = f"Gen{gen} x{lanes}" + (f", dilated {dilation} times" if dilation > 1 else "")
                    words += f", DMA {kind} of {common.size(size)}: off by"
                    if gen == 6 and dilation == 1:
                        floors[kind, size] = statistics.median(reached)
                    if asked > floors[kind, size] * dilation:
                        floor = f"{asked:.1f} GB/s, and this machine moves {floors[kind, size]:.1f} with nothing to wait for"
                        report.skip("rate", words, f"no claim: {floor}")
                        continue
                    off = [abs(found / asked - 1) * 100 for found in reached]
                    report.add("rate", words, off, 1, "%", remark=f"{asked:.2f} GB/s")
    slow = {"links.host0:ntb0-sw0:p0.pcie.gen": 1, "links.host0:ntb0-sw0:p0.pcie.lanes": 1}
    shares, fairness = [], []
    with common.fabric(_pair(**slow)) as made:
        asked = fabrex.pcie.Link(gen=1, lanes=1, mps=256, mrrs=512).write_bps(64 << 10) / 8e9
        for _ in common.rounds(max(rounds // 2, 2)):
            started, _ = _pushers(made, 4, 64 << 10, 1.0, "dma")
            said = [common.lines(process.communicate(timeout=60)[0]) for process in started]
            rates = [size / ns for lines in said for name, size, ns in lines if name == "pushed" and ns > 0]
            if len(rates) == 4:
                shares.append(abs(sum(rates) / asked - 1) * 100)
                fairness.append(sum(rates) ** 2 / (4 * sum(r * r for r in rates)))
    if not shares:
        report.skip("rate", "four processes' DMA through one link", "they did not end")
        return
    report.add(
        "rate", "four processes' DMA through one link: sum of rates off by", shares, 1, "%", remark=f"{asked * 1e3:.1f} MB/s"
    )
    report.add("rate", "the same: Jain's index", fairness, 0.99, "", at_least=True)


def arbitration(report: Report, rounds: int) -> None:
    """A load beside bulk waits, on average, for half of the packet that is on the wire, and no longer."""
    for gen, lanes in ((1, 1), (3, 1)):
        claim = f"load beside bulk, gen{gen} x{lanes}: off from waiting for half a packet"
        link, first, loads = "links.host0:ntb0-sw0:p0.pcie.", "host0:ntb0-sw0:p0", 5000
        expected, beside, alone, used = [], [], [], []
        slow = _pair(**{link + "gen": gen, link + "lanes": lanes})
        with common.fabric(slow) as made, made.attach("host0", role="client") as node:
            gva = made.gva("host1", 64)
            rate = made.links[first].info()["rate_bps"] / 8e12  # bytes per ps
            idle = node.estimate("load", gva, 8)["completes_ps"] / 1e3
            packet = (64 + 24) / rate / 1e3  # of a write: 64 bytes from a write-combining buffer, and its header
            for _ in common.rounds(rounds):
                os.sched_setaffinity(0, {common.CPUS[0]})
                alone.append(statistics.fmean(_trimmed(_bench(node, LOAD, [gva], 2000, samples=True))))
                started, start = _pushers(made, 1, 256 << 10, 0.5)
                while made.now_ps < start + 100_000_000_000:
                    time.sleep(0.01)
                before, begin = made.links[first].info()["bytes"][0], made.now_ps
                values = _bench(node, LOAD, [gva], loads, samples=True)
                took = made.now_ps - begin
                bulk = (made.links[first].info()["bytes"][0] - before - loads * 24) / rate / took
                os.sched_setaffinity(0, common.CPUS)
                for process in started:
                    process.communicate(timeout=60)
                # Without a processor for each of the two there is no bulk while a load is under way.
                if bulk > 0.7:
                    used.append(min(bulk, 1.0))
                    beside.append(statistics.fmean(_trimmed(values)))
                    expected.append(idle + used[-1] * packet / 2)
        if not beside:
            report.skip("arbitration", claim, "two processes do not get to run at once here")
            continue
        off = [abs(value / wanted - 1) * 100 for value, wanted in zip(beside, expected, strict=True)]
        mean, wanted, idle = (statistics.median(values) for values in (beside, expected, alone))
        remark = f"mean {mean:.0f} ns, expected {wanted:.0f} ns; alone {idle:.0f} ns; a packet takes {packet:.0f} ns"
        report.add("arbitration", claim, off, 10, "%", remark=f"{remark}, bulk uses {statistics.median(used):.0%}")


def _trimmed(values: list[float]) -> list[float]:
    """Without the last hundredth, which are the machine's interruptions."""
    return sorted(values)[: int(len(values) * 0.99)]


# -- size -------------------------------------------------------------------------------------------------------------


def scale(report: Report, rounds: int) -> None:
    """1,024 nodes and 65,536 windows: how long until they are up, and what an operation costs then."""
    import fabrex
    from fabrex._handle import check, lib

    hosts, each = 1024, 64
    text = f"""
fabrex: 1
name: large
nodes:
  host: {{kind: host, count: {hosts}, memory: {{dram: 1GiB}}}}
  sw0: {{kind: switch, delay: 105ns}}
links:
  - {{endpoints: ['host*:ntb0', 'sw0:p*'], pcie: {{gen: 4, lanes: 16}}, delay: 5ns}}
windows: manual
ordering: immediate
timing: off
"""
    ups, in_large, in_pair, program = [], [], [], common.ops()
    chases: dict[int, Samples] = {1: Samples(), 16: Samples()}
    for round_ in common.rounds(max(rounds // 2, 3)):
        begin = time.perf_counter()
        with common.fabric(fabrex.Topology.loads(text)) as made:
            pointer = made._live()
            for index in range(hosts):
                for widx in range(each):
                    peer = (index + 1 + widx) % hosts
                    check(lib.fbx_mw_set_trans(pointer, index, widx, peer, 0, 1 << 30, 3, 1))
            ups.append(time.perf_counter() - begin)
            if round_:
                continue
            for widx in range(each, hosts - 1):
                check(lib.fbx_mw_set_trans(pointer, 0, widx, widx + 1, 0, 1 << 30, 3, 1))
            with (
                common.fabric(_pair(), timing=False, ordering="immediate") as small,
                made.attach("host0") as node,
                small.attach("host0") as other,
            ):
                far, near = made.gva("host700", 64), small.gva("host1", 64)
                node.store(far, 1)
                other.store(near, 1)
                for _ in common.rounds(rounds):
                    for where, gva, into in ((node, far, in_large), (other, near, in_pair)):
                        _bench(where, LOAD, [gva], 10_000)
                        into.append(_slices(lambda where=where, gva=gva: _bench(where, LOAD, [gva], 20_000)))
            for _ in common.rounds(rounds):
                for per_peer, samples in chases.items():
                    samples.add(common.said(common.words(program, "chase", made, "host0", 0, 1, hosts - 1, per_peer)))
    report.add("scale", f"{hosts} nodes, {hosts * each} windows: until up", ups, 5, "s")
    pairs = [a / b for a, b in zip(in_large, in_pair, strict=True)]
    remark = f"{statistics.median(in_large):.2f} ns, {statistics.median(in_pair):.2f} ns"
    report.add("scale", "repeated load there / in a pair", pairs, 1.05, "", remark=remark)
    for per_peer, samples in chases.items():
        count = (hosts - 1) * per_peer
        api, bare = samples.get("chase_api", count * 64), samples.get("chase_bare", count * 64)
        if not api:
            report.skip("scale", "random loads / bare chase", "not measured")
            continue
        pairs = [a / b for a, b in zip(api, bare, strict=True)]
        report.add("scale", f"random loads over {hosts - 1} peers, {count} lines / bare chase of them", pairs, 1.3, "",
                   remark=f"{statistics.median(api):.1f} ns, {statistics.median(bare):.1f} ns")  # fmt: skip


GROUPS: dict[str, Callable[[Report, int], None]] = {
    "cost": cost,
    "delay": delay,
    "python": python,
    "oneway": oneway,
    "doorbell": doorbell,
    "fair": fair,
    "arbitration": arbitration,
    "dma": dma,
    "rate": rate,
    "scale": scale,
}


def _table(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        if row["pass"] is None:
            cells.append([row["claim"], "-", "-", "-", "skip", row["remark"]])
            continue
        sign = ">=" if row["at_least"] else "<="
        target, reached, low, high = (_figure(row[key], row["unit"]) for key in ("target", "reached", "p25", "p75"))
        verdict = "pass" if row["pass"] else "MISS"
        cells.append([row["claim"], f"{sign} {target}", reached, f"{low} .. {high}", verdict, row["remark"]])
    width = max((len(cell[5]) for cell in cells), default=0)
    for cell in cells:
        cell[5] = cell[5].ljust(width)
    return common.table(["CLAIM", "TARGET", "REACHED", "QUARTILES", "", "REMARK".ljust(width)], cells)


def main(arguments: list[str] | None = None) -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="the claims of the core, measured here")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--only", metavar="GROUPS", help=f"some of {','.join(GROUPS)}")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="repetitions (default %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="nothing on standard error")
    parser.add_argument(
        "--settle", type=float, default=0.0, metavar="S", help="wait up to S seconds for a quiet machine before each repetition"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw reached / target to an SVG or PNG file")
    given = parser.parse_args(arguments)
    if given.repeat < 1:
        parser.error("--repeat is at least 1")
    common.SETTLE = given.settle
    report = Report(given.quiet or given.json)
    with common.Watch() as watch:
        for name in common.chosen(given.only, list(GROUPS), parser.error):
            if not (given.quiet or given.json):
                note(f"{name}: {(GROUPS[name].__doc__ or '').splitlines()[0]}")
            try:
                GROUPS[name](report, given.repeat)
            except Missing as error:
                report.skip(name, name, str(error))
    with common.fabric(_pair()) as made:
        facts = common.machine_facts(made)
    if given.plot:
        done = [row for row in report.rows if row["pass"] is not None and row["target"]]
        bars = [(row["claim"], *(row[key] / row["target"] for key in ("reached", "p25", "p75"))) for row in done]
        try:
            common.bars(given.plot, "reached / target (1: the target)", bars, "", [1.0] * len(bars))
        except Missing as error:
            note(str(error))
    if given.json:
        common.document("core", facts, report.rows, repetitions=given.repeat, disturbance=watch.facts())
        return 0
    print(common.machine_line(facts))
    print(watch.line())
    print()
    print(_table(report.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
