# SPDX-License-Identifier: Apache-2.0
"""`fabrex.sim.run`: node programs under the virtual clock, in one thread, each a greenlet."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .._handle import check, lib
from ..errors import InvalidArgument
from ..node import Node
from ._errors import Deadlock, LimitReached
from ._guard import Guard
from ._pool import OURS, Simulation, discard, give_back, take
from ._trace import Trace

__all__ = ["Result", "run"]

Program = Callable[[Node], Any]
_COMPARE = ("==", "!=", "<", "<=", ">", ">=")
_OPS = ("load", "store", "read", "write", "fetch_add", "swap", "compare_swap", "flush")
_running = False


class Result:
    """What came of a run.

    Attributes:
        returned: node -> what its program returned (a list, if it had several).
        error: the first exception that a program raised (`run` raises it, unless told otherwise), or a Deadlock, or None.
        failed: the node whose program raised it, or None.
        trace: what happened. trace_hash: its digest, equal for equal seeds on every machine.
        now_ps: virtual time when all was quiet. ended_ps: when the last program ended. events: how many events there were.
        seed, ordering: as given.
        decisions: decisions of the seed that were not harmless; logged only if asked for.
    """

    def __init__(self, seed: int, ordering: str) -> None:
        self.seed = seed
        self.ordering = ordering
        self.returned: dict[str, Any] = {}
        self.error: BaseException | None = None
        self.failed: str | None = None
        self.trace: Trace
        self.now_ps = self.ended_ps = 0
        self.events = 0
        self.decisions: list[tuple[int, int, int, int, int]] = []

    @property
    def trace_hash(self) -> str:
        """Digest of the whole trace."""
        return self.trace.hash

    def __repr__(self) -> str:
        state = f"{type(self.error).__name__} in {self.failed}" if self.error is not None else "ended"
        return f"<Result of seed {self.seed}, {self.ordering}: {state} at {self.now_ps} ps>"


def _greenlets() -> Any:
    try:
        import greenlet
    except ImportError:
        raise ImportError("fabrex.sim.run needs greenlet, which switches between programs: pip install greenlet") from None
    return greenlet


def _listed(programs: Mapping[str, Program | Iterable[Program]]) -> list[tuple[str, Program, bool]]:
    """Return (node, program, is it one of several) in the order of the mapping."""
    if not isinstance(programs, Mapping) or not programs:
        raise InvalidArgument("programs is a dict: node name -> function of the node, at least one")
    found: list[tuple[str, Program, bool]] = []
    for node, value in programs.items():
        several = not callable(value)
        for program in value if several else (value,):  # type: ignore[union-attr]
            if not callable(program):
                raise InvalidArgument(f"the program of {node} is no function: {program!r}")
            found.append((node, program, several))
    return found


def run(
    topology: Any,
    programs: Mapping[str, Program | Iterable[Program]],
    *,
    ordering: str | None = None,
    seed: int = 0,
    strict_errors: bool = False,
    step: float = 10e-9,
    limit: float | None = 1000.0,
    limit_events: int | None = None,
    stalls: bool | None = None,
    lines: bool = True,
    raises: bool = True,
    decisions: list[tuple[int, int, int]] | None = None,
    log: bool = False,
    stale: bool | Iterable[str] = (),
) -> Result:
    """Run node programs under the virtual clock; the same seed gives the same run, bit for bit.

    Every operation lets other programs run; time jumps when all wait. Programs are the same plain functions that would run in
    processes of their own, or `async` ones.

    Args:
        topology: a Topology, a preset's name, or a YAML file.
        programs: node -> function that takes the attached Node (or a list of them: the first is the node's owner, the others
            are clients). Nodes without a program are powered and nobody.
        ordering: "posted", "immediate" or "adversarial"; the topology's if left out.
        seed: of everything that is decided.
        strict_errors: posted writes raise what is known when they are issued.
        step: seconds that an operation costs its program at least: a loop that polls lets time pass.
        limit, limit_events: seconds of virtual time, and events, after which the run is given up; None: no limit.
        stalls: keep programs from the processor now and then, as the seed says; by default under "adversarial".
        lines: note the program's line of each operation.
        raises: raise what a program raised, or Deadlock; otherwise it is in the result.
        decisions: (kind, key, value): these decisions and no others; everything else takes its harmless course.
        log: note the decisions of the seed that were not harmless.
        stale: nodes that cache remote memory without coherence; True for all.
    Returns:
        A Result.
    Raises:
        Whatever a program raises first. Deadlock: all wait, and nothing can happen any more. LimitReached. NotDeterministic: a
        program asked the machine for time, chance or a thread. InvalidArgument, FabricNotFound: no such node.
    """
    global _running
    greenlet = _greenlets()
    listed = _listed(programs)
    if _running:
        raise InvalidArgument("a program under the virtual clock cannot run another simulation inside")
    if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise InvalidArgument(f"a seed is an int of 64 bits, not {seed!r}")
    if isinstance(topology, os.PathLike):
        topology = os.fspath(topology)
    caching = set(programs) if stale is True else set(stale or ())
    if unknown := caching - set(programs):
        raise InvalidArgument(f"{', '.join(sorted(unknown))}: no program, so there is nothing that caches")
    simulation, key, given = take(topology, ordering, strict_errors)
    result = Result(seed, simulation.ordering)
    usable = False
    _running = True
    try:
        simulation.reset(
            seed,
            int(step * 1e12),
            0 if limit is None else int(limit * 1e12),
            limit_events or 0,
            simulation.ordering == "adversarial" if stalls is None else stalls,
        )
        simulation.plan(decisions, log=log)
        guard = Guard(program for _, program, _ in listed)
        nodes: list[Node] = []
        held: list[int] = []
        try:
            taken: set[str] = set()
            for name, _, _ in listed:
                nodes.append(simulation.fabric.attach(name, "client" if name in taken else "owner", stale=name in caching))
                taken.add(name)
                held.append(sys.getrefcount(nodes[-1]))
            _Run(simulation, greenlet, listed, list(nodes), result).go(guard)
            result.now_ps = simulation.fabric.now_ps
            result.events = int(lib.fbx_sim_events(simulation.pointer))
            result.trace = simulation.trace()
            if log:
                result.decisions = simulation.decisions()
        finally:
            _close_all(simulation)
            for i, count in enumerate(held):
                # A node and its parts hold one another. Where nobody else holds it, it need not wait for the collector.
                if sys.getrefcount(nodes[i]) <= count:
                    nodes[i].__dict__.clear()
            nodes.clear()
        usable = True
    finally:
        _running = False
        if usable:
            give_back(simulation, key, given)
        else:
            discard(simulation)
    if raises and result.error is not None:
        if hasattr(result.error, "__dict__"):
            result.error.__dict__.setdefault("simulation", result)
        raise result.error
    return result


def _close_all(simulation: Simulation) -> None:
    for node in simulation.fabric._nodes:
        node.close()


class _Run:
    """The programs of one run and what switches between them."""

    def __init__(
        self, simulation: Simulation, greenlet: Any, listed: list[tuple[str, Program, bool]], nodes: list[Node], result: Result
    ) -> None:
        self.simulation = simulation
        self.greenlet = greenlet
        self.listed = listed
        self.nodes = nodes
        self.result = result
        self.values: list[Any] = [None] * len(listed)

    def body(self, number: int) -> Callable[[], None]:
        name, program, _ = self.listed[number]
        node, scheduler, result = self.nodes[number], self.simulation.scheduler, self.result
        dies = self.greenlet.GreenletExit
        if inspect.iscoroutinefunction(program) or inspect.iscoroutinefunction(getattr(program, "__call__", None)):  # noqa: B004
            from ._async import runner

            program = runner(program, self.after, number)

        def start() -> None:
            try:
                self.values[number] = program(node)
            except dies:
                pass
            except BaseException as error:
                if result.error is None:
                    result.error, result.failed = error, name
            result.ended_ps = max(result.ended_ps, self.simulation.fabric.now_ps)
            scheduler.exit()

        return start

    def go(self, guard: Guard) -> None:
        greenlet, simulation, result = self.greenlet, self.simulation, self.result
        scheduler = simulation.scheduler
        hub = greenlet.getcurrent()
        self.after: list[Any] = [None] * len(self.listed)
        programs = [greenlet.greenlet(self.body(i), hub) for i in range(len(self.listed))]
        switches = [program.switch for program in programs]
        scheduler.start(switches, self.after, hub.switch, simulation.sites, simulation.site_of, True)
        for node in self.nodes:
            check(lib.fbx_sim_spawn(simulation.pointer, node._handle.pointer))
        ended: int | None = None
        try:
            with guard:
                while result.error is None:
                    ended = scheduler.next()
                    if ended >= 0:
                        ended = switches[ended]()
                    if ended is not None:
                        break
                if result.error is None and ended is not None and ended != lib.FBX_SIM_DONE:
                    self.explain(ended, programs)
        finally:
            for program in programs:
                if not program.dead:
                    program.throw(greenlet.GreenletExit)
            scheduler.start([], [], None, {}, None, False)
        # What is under way still arrives: the trace tells of writes that came too late.
        lib.fbx_sim_stop(simulation.pointer)
        if ended != lib.FBX_SIM_LIMIT:
            scheduler.next()
        for (name, _, several), value in zip(self.listed, self.values, strict=True):
            if several:
                result.returned.setdefault(name, []).append(value)
            else:
                result.returned[name] = value

    # -- why it ended -------------------------------------------------------------------------------------------------

    def explain(self, ended: int, programs: list[Any]) -> None:
        """Say why the run cannot go on: who waits for what."""
        waits: dict[str, str] = {}
        for number, (name, _, _) in enumerate(self.listed):
            if not programs[number].dead:
                called = name if name not in waits else f"{name} (program {number})"
                waits[called] = self.waits_for(number, programs[number])
        told = "\n".join(f"  {name}: {what}" for name, what in waits.items())
        if ended == lib.FBX_SIM_DEADLOCK:
            at = self.simulation.fabric.now_ps / 1000
            message = f"deadlock at {at:.3f} ns of virtual time: all wait, nothing can happen.\n{told}"
            self.result.error = Deadlock(message, waits)
        else:
            message = f"the limit is reached at {self.simulation.fabric.now_ps / 1e12:.9f} s of virtual time.\n{told}"
            self.result.error = LimitReached(message)
        self.result.failed = next(iter(waits), None)

    def waits_for(self, number: int, program: Any) -> str:
        record = self.simulation.look(number)
        node = self.listed[number][0]
        where = self.simulation.where(int(record.gva), node)
        what = "runs"
        if record.what == lib.FBX_SIM_MEMORY:
            what = f"waits until {where} {_COMPARE[record.compare]} {record.value}; it is {record.last}"
        elif record.what == lib.FBX_SIM_EVENTS:
            what = "waits for an event of its NTB (doorbell, message, link)"
        elif record.what == lib.FBX_SIM_NAMES:
            what = "waits for others: a barrier, a value of put(), or a named buffer"
        elif record.what == lib.FBX_SIM_DMA:
            what = "waits for its DMA"
        elif record.what == lib.FBX_SIM_CHANGE:
            what = "awaits something that nobody brings"
        elif record.what == lib.FBX_SIM_SLEEP:
            what = f"sleeps until {record.next_ps} ps"
        elif record.state == lib.FBX_SIM_OPERATES:
            what = f"has a {_OPS[record.op_kind] if record.op_kind < len(_OPS) else 'operation'} of {where} under way"
        again = self.after[number]
        line = _line(program.gr_frame, again.frames() if again is not None else [])
        return f"{what}, since {record.since_ps / 1000:.3f} ns{f', at {line}' if line else ''}"


def _line(frame: Any, others: list[Any]) -> str:
    """Return where a suspended program is, outside this library; `others` are its coroutines' frames."""
    import linecache

    frames = list(others)
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    for frame in frames:
        if not frame.f_code.co_filename.startswith(OURS):
            name, number = frame.f_code.co_filename, frame.f_lineno
            text = linecache.getline(name, number).strip()
            return f"{os.path.basename(name)}:{number}{f': {text}' if text else ''}"
    return ""
