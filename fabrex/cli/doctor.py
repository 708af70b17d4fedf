# SPDX-License-Identifier: Apache-2.0
"""`fabricctl doctor`: what this machine can do for a fabric, and how to mend what is weak.

Owns: verdicts and remedies. Must not know: how bench measures.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import machine, output
from .machine import percentile, text_of
from .output import document, emit

OK, WEAK, BAD = "ok", "weak", "bad"


@dataclass
class Check:
    """One finding.

    Attributes:
        name, value: what, and how it is here, for people.
        verdict: "ok", "weak" (works, less exactly) or "bad" (something will not work).
        number, unit: the figure behind the value, where there is one.
        remedy: how to mend it.
    """

    name: str
    value: str
    verdict: str = OK
    number: float | None = None
    unit: str | None = None
    remedy: str = ""


def _processors() -> Check:
    usable, quota = machine.cores(), machine.cpu_quota()
    effective = min(usable, quota) if quota else float(usable)
    value = f"{usable} usable" + (f", quota {quota:g}" if quota else "") + f" ({machine.processor()})"
    if effective >= 4:
        return Check("processors", value, OK, effective, "cores")
    remedy = "every polling process wants a processor of its own; run fewer at once, or with --timing off"
    return Check("processors", value, WEAK if effective >= 2 else BAD, effective, "cores", remedy)


def _load() -> Check:
    load, usable = os.getloadavg()[0], machine.cores()
    busy = load > 0.7 * usable
    remedy = "measure on a quiet machine; other programs make operations late" if busy else ""
    return Check("load", f"{load:.2f} on {usable} processors", WEAK if busy else OK, load, None, remedy)


def _clock(info: dict[str, Any]) -> Check:
    source = text_of("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    cost = info["tick_cost_ps"] / 1e3
    value = f"{info['tick_hz'] / 1e6:.0f} MHz, {cost:.1f} ns a look (kernel's source: {source or 'unknown'})"
    if source and source not in ("tsc", "arch_sys_counter"):
        remedy = "the kernel does not trust the processor's counter; on a virtual machine, let the host offer an invariant TSC"
        return Check("clock", value, WEAK, cost, "ns", remedy)
    remedy = "reading the counter is slow: it is probably trapped by a hypervisor" if cost > 60 else ""
    return Check("clock", value, WEAK if cost > 60 else OK, cost, "ns", remedy)


def _shared_memory(directory: str) -> Check:
    try:
        status = os.statvfs(directory)
    except OSError as error:
        remedy = "set FABREX_DIRECTORY to a directory that exists"
        return Check("shared memory", f"{directory}: {error.strerror}", BAD, remedy=remedy)
    size, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    value = f"{directory}: {output.size(free)} free of {output.size(size)}"
    if free < 64 << 20:
        remedy = "docker run --shm-size=2g, or mount -o remount,size=2g /dev/shm, or FABREX_DIRECTORY on a disk"
        return Check("shared memory", value, BAD, free, "bytes", remedy)
    if free < 1 << 30:
        remedy = "larger buffers need more: docker run --shm-size=4g, or FABREX_DIRECTORY on a disk"
        return Check("shared memory", value, WEAK, free, "bytes", remedy)
    return Check("shared memory", value, OK, free, "bytes")


def _memory() -> Check:
    lines = text_of("/proc/meminfo").splitlines()
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 0)
    limit_text, used_text = text_of("/sys/fs/cgroup/memory.max"), text_of("/sys/fs/cgroup/memory.current")
    value = f"{output.size(free)} available"
    if limit_text.isdigit() and used_text.isdigit():
        left = int(limit_text) - int(used_text)
        value += f", {output.size(left)} by the control group"
        free = min(free, left)
    if free > 1 << 30:
        return Check("memory", value, OK, free, "bytes")
    return Check("memory", value, WEAK, free, "bytes", "committed fabric memory is machine memory: end fabrics that are not needed")


def _membarrier() -> Check:
    numbers = {"x86_64": 324, "aarch64": 283}
    number = numbers.get(os.uname().machine)
    commands = ctypes.CDLL(None, use_errno=True).syscall(number, 0, 0) if number else -1
    expedited = commands > 0 and commands & (1 << 1 | 1 << 2)  # global expedited, and its registration
    if expedited:
        return Check("membarrier", "expedited")
    remedy = "the kernel or a seccomp profile refuses it; each operation pays for a fence of its own instead (some 5 ns)"
    return Check("membarrier", "not available", WEAK, remedy=remedy)


def _fallocate(directory: str) -> Check:
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            os.posix_fallocate(file.fileno(), 0, 1 << 20)
    except OSError as error:
        remedy = "memory cannot be committed there; use /dev/shm or a directory on ext4, xfs or tmpfs"
        return Check("fallocate", f"{directory}: {error.strerror}", BAD, remedy=remedy)
    return Check("fallocate", "works")


def _limits() -> list[Check]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    space, _ = resource.getrlimit(resource.RLIMIT_AS)

    def shown(value: int) -> str:
        return "unlimited" if value == resource.RLIM_INFINITY else str(value)

    checks = [
        Check("open files", shown(files), OK if files < 0 or files >= 256 else WEAK, files,
              remedy="" if files < 0 or files >= 256 else "ulimit -n 1024"),
        Check("processes", shown(processes), OK if processes < 0 or processes >= 256 else WEAK, processes,
              remedy="" if processes < 0 or processes >= 256 else "ulimit -u 4096"),
        Check("locked memory", shown(locked) if locked < 0 else output.size(locked)),
    ]  # fmt: skip
    if space != resource.RLIM_INFINITY:
        remedy = "regions are mapped whole, however large: ulimit -v unlimited"
        checks.append(Check("address space", output.size(space), BAD if space < 8 << 30 else WEAK, space, "bytes", remedy))
    return checks


def _copy() -> Check:
    speed = machine.copy_bps()
    remedy = "modelled rates above this come out late; stretch time with the topology's `dilation`" if speed < 8e9 else ""
    return Check("copy", f"{output.rate(speed)} (one processor)", WEAK if speed < 8e9 else OK, speed, "bytes/s", remedy)


def _spin(fabric: Any, node: Any, gva: int) -> Check:
    from .._handle import check, ffi, lib

    gvas, samples, total = ffi.new("uint64_t[]", [gva]), ffi.new("uint64_t[]", 5000), ffi.new("uint64_t *")
    check(lib.fbx_bench(node._pointer(), 0, gvas, 1, 8, 500, samples, total))
    check(lib.fbx_bench(node._pointer(), 0, gvas, 1, 8, 5000, samples, total))
    asked = node.estimate("load", gva, 8)["completes_ps"]
    off = sorted((int(sample) - asked) / 1e3 for sample in samples)
    p50, p99 = percentile(off, 0.5), percentile(off, 0.99)
    value = f"a load of {asked / 1e3:.0f} ns is off by {p50:+.0f} ns, 99 % by at most {p99:+.0f} ns"
    poor = abs(p50) > 100 or p99 > 2000
    remedy = "other work takes the processor away: pin processes (taskset), fewer of them, or a quiet machine" if poor else ""
    return Check("spin accuracy", value, WEAK if poor else OK, p50, "ns", remedy)


def _cross(fabric: Any, node: Any, far: int, near: int) -> Check:
    times = sorted(value / 2 for value in machine.pingpong(fabric, node, "host1", near, far, 2000)[200:])
    p50, p99 = percentile(times, 0.5), percentile(times, 0.99)
    value = f"{output.nanoseconds(p50)} one way through Python, 99 % within {output.nanoseconds(p99)}"
    slow = p50 > 5000
    remedy = "the two processes share a processor, or a hypervisor stops one: give the machine more processors" if slow else ""
    return Check("process to process", value, WEAK if slow else OK, p50, "ns", remedy)


def _wake() -> Check:
    p50, p99 = machine.sleep_overrun_ns()
    value = f"a sleep is {output.nanoseconds(p50)} too long, 99 % at most {output.nanoseconds(p99)}"
    slow = p50 > 150_000
    remedy = "long waits sleep first and may end late: use a kernel with high-resolution timers, and less load" if slow else ""
    return Check("wake-up", value, WEAK if slow else OK, p50, "ns", remedy)


def _steal() -> Check:
    fraction, longest = machine.stolen_fraction()
    value = f"{100 * fraction:.2g} % of a spinning thread's time, at most {output.nanoseconds(longest)} at once"
    much = fraction > 0.02 or longest > 5e6
    remedy = "something else runs on these processors; such operations are late and counted as preempted" if much else ""
    return Check("taken away", value, WEAK if much else OK, fraction, "fraction", remedy)


def _measured(directory: str) -> tuple[list[Check], dict[str, Any]]:
    from ..fabric import Fabric

    with Fabric.create("fabrex-pair", timing=True) as fabric:
        node = fabric.attach("host0")
        far, near = node.alloc(4096, on="host1"), node.alloc(4096)
        checks = [_clock(fabric.info()), _spin(fabric, node, far.gva)]
        facts = machine.facts(fabric)
    with Fabric.create("fabrex-pair", timing=False) as fabric:
        node = fabric.attach("host0")
        far, near = node.alloc(4096, on="host1"), node.alloc(4096)
        checks.append(_cross(fabric, node, far.gva, near.gva))
    return checks, facts


def doctor(arguments: Any) -> int:
    """`doctor`: every check, even after one that failed; 1 if something will not work."""
    from ..errors import FabricError
    from ..listing import default_directory

    directory = default_directory()
    checks: list[Check] = []
    facts: dict[str, Any] = {"processor": machine.processor(), "cores": machine.cores()}
    simple: tuple[Callable[[], Check | list[Check]], ...] = (
        _processors, _load, lambda: _shared_memory(directory), _memory, _membarrier, lambda: _fallocate(directory), _limits,
        _copy, _wake, _steal,
    )  # fmt: skip
    for look in simple:
        found = look()
        checks += found if isinstance(found, list) else [found]
    try:
        measured, facts = _measured(directory)
        checks[1:1] = measured
    except (FabricError, OSError) as error:
        checks.insert(1, Check("a fabric", "cannot be made", BAD, remedy=str(error)))
    bad = any(check.verdict == BAD for check in checks)
    if arguments.json:
        document("doctor", machine=facts, checks=[check.__dict__ for check in checks], ok=not bad)
        return output.FAILURE if bad else output.OK
    marks = {OK: "ok  ", WEAK: "weak", BAD: "BAD "}
    paint = {OK: "32", WEAK: "33", BAD: "31"}
    colour = output.tty(sys.stdout)
    widest = max(len(check.name) for check in checks)
    for check in checks:
        line = output.fit(f"{marks[check.verdict]}  {check.name:<{widest}}  {check.value}")
        emit(f"\x1b[{paint[check.verdict]}m{line[:4]}\x1b[0m{line[4:]}" if colour else line)
        if check.remedy:
            emit(output.wrapped(check.remedy, " " * (widest + 8)))
    weak = sum(check.verdict == WEAK for check in checks)
    if bad:
        emit("\nSome of it will not work here.")
    else:
        emit(f"\nIt works here; {output.count(weak, 'weakness', 'weaknesses')}." if weak else "\nAll is well.")
    return output.FAILURE if bad else output.OK
