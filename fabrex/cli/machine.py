# SPDX-License-Identifier: Apache-2.0
"""What this machine is, and what it can do at best: the facts beside every measurement.

Owns: facts and floors. Must not know: verdicts on them (doctor), tables.
"""

from __future__ import annotations

import itertools
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def _first(path: str, key: str) -> str:
    try:
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    except OSError:
        pass
    return ""


def text_of(path: str) -> str:
    """Return a small file's text without its last newline; empty if there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def processor() -> str:
    """The processor's name."""
    return _first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_quota() -> float | None:
    """Processors' worth of time that a control group allows, or None."""
    text = text_of("/sys/fs/cgroup/cpu.max").split()
    if len(text) == 2 and text[0].isdigit() and text[1].isdigit():
        return int(text[0]) / int(text[1])
    quota, period = text_of("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), text_of("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def facts(fabric: Any) -> dict[str, Any]:
    """Return what JSON says as `machine`; the clock's figures come from a fabric made here."""
    from .. import __version__

    info = fabric.info()
    return {
        "processor": processor(),
        "architecture": platform.machine(),
        "cores": cores(),
        "cpu_quota": cpu_quota(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "fabrex": __version__,
        "clocksource": text_of("/sys/devices/system/clocksource/clocksource0/current_clocksource") or None,
        "tick_hz": info["tick_hz"],
        "tick_cost_ns": info["tick_cost_ps"] / 1e3,
        "clock_step_ns": round(clock_step_ns(info["tick_hz"]), 3),
        "load_average": round(os.getloadavg()[0], 2),
        "directory": info["directory"],
        "measured_unix": int(time.time()),
    }


def clock_step_ns(tick_hz: int) -> float:
    """By how much the processor's counter moves at once: more than one tick on many virtual machines."""
    from .._handle import lib

    looks = [int(lib.fbx_ticks()) for _ in range(2000)]
    return math.gcd(*(b - a for a, b in itertools.pairwise(looks))) / tick_hz * 1e9


def line(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    quota = f" ({machine['cpu_quota']:g} by quota)" if machine["cpu_quota"] else ""
    return (
        f"{machine['processor']}, {machine['cores']} cores{quota}, Linux {machine['kernel']}, Python {machine['python']}, "
        f"clock {machine['tick_hz'] / 1e6:.0f} MHz at {machine['tick_cost_ns']:.0f} ns a look, load {machine['load_average']}"
    )


def copy_bps(size: int = 32 << 20, rounds: int = 4) -> float:
    """Bytes per second of the C library's copy between buffers that do not fit a cache, best of some."""
    source, target = memoryview(bytearray(os.urandom(4096) * (size // 4096))), memoryview(bytearray(size))
    best = float("inf")
    for _ in range(rounds):
        begin = time.perf_counter_ns()
        target[:] = source
        best = min(best, time.perf_counter_ns() - begin)
    return size / best * 1e9


def sleep_overrun_ns(rounds: int = 60) -> tuple[float, float]:
    """By how much a sleep of 200 us is too long: median and 99th percentile."""
    late = []
    for _ in range(rounds):
        begin = time.perf_counter_ns()
        time.sleep(200e-6)
        late.append(time.perf_counter_ns() - begin - 200_000)
    late.sort()
    return float(late[len(late) // 2]), float(late[int(len(late) * 0.99)])


def stolen_fraction(milliseconds: int = 200) -> tuple[float, float]:
    """How much of the time a spinning thread does not run: fraction, and the longest gap in ns."""
    begin = last = time.perf_counter_ns()
    lost = longest = 0
    while last - begin < milliseconds * 1_000_000:
        now = time.perf_counter_ns()
        if now - last > 5_000:
            lost += now - last
            longest = max(longest, now - last)
        last = now
    return lost / (last - begin), float(longest)


_PEER = """
import os, sys
import fabrex
node = fabrex.Fabric.open(sys.argv[1]).attach(sys.argv[2], role="client")
mine, theirs, count = int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
wait, store = node.wait_until, node.store
wait(mine, "==", 0, 30.0)
if sys.argv[7]:
    os.sched_setaffinity(0, {int(sys.argv[7])})
node.fabric.put(sys.argv[6], b"")
for i in range(1, count + 1):
    wait(mine, "==", i, 5.0)
    store(theirs, i)
node.flush()
"""


def package_root() -> str:
    """The directory from which this package is imported, for processes that must find the same one."""
    import fabrex

    return os.path.dirname(os.path.abspath(next(iter(fabrex.__path__))))


class Peer:
    """A second process that answers each store with a store."""

    def __init__(self, fabric: Any, node: str, mine: int, theirs: int, rounds: int, processor: str = "") -> None:
        key = f"peer-{os.urandom(6).hex()}"
        root = package_root()
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PEER, fabric.name, node, str(mine), str(theirs), str(rounds), key, processor],
            env={**os.environ, "FABREX_DIRECTORY": fabric.directory, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
        )
        try:
            fabric.get(key, timeout=5.0)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it, if it has not ended."""
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def pingpong(fabric: Any, node: Any, peer: str, here: int, there: int, rounds: int) -> list[int]:
    """Return round-trip times in ns of a store that another process, polling, answers with a store.

    Both processes are bound to a processor each, where there are two: left alone, the scheduler may put two that poll
    on one.

    Args:
        here, there: words of eight bytes near this node and near the peer, both zero.
    """
    free = sorted(os.sched_getaffinity(0))
    other = Peer(fabric, peer, there, here, rounds, str(free[-2]) if len(free) > 1 else "")
    try:
        wait, store, clock = node.wait_until, node.store, time.perf_counter_ns
        wait(here, "==", 0, 5.0)  # how many processors there are is looked up once: before there seems to be one
        os.sched_setaffinity(0, {free[-1]})
        times = []
        for i in range(1, rounds + 1):
            begin = clock()
            store(there, i)
            wait(here, "==", i, 5.0)
            times.append(clock() - begin)
        return times
    finally:
        os.sched_setaffinity(0, free)
        other.close()


def percentile(ordered: list[Any], fraction: float) -> float:
    """The value below which `fraction` of a sorted list lies."""
    return float(ordered[min(int(len(ordered) * fraction), len(ordered) - 1)]) if ordered else float("nan")
