# SPDX-License-Identifier: Apache-2.0
"""The exhaustive clock: every schedule and every legal reordering of small programs.

The search walks the states of the abstract machine (`_machine`), each once. Two reductions keep it small and lose no outcome:

- **Merging.** States that are equal are one, whatever led there.
- **Stubborn sets.** Of the processes that could act, only a set C is followed in a state, such that whatever the others do
  meanwhile neither conflicts with the next actions of C nor makes them possible (Valmari; Godefroid). All states in which
  nothing can happen any more are still reached, and outcomes are read off those.

Whether others may conflict depends on what programs *will* do, which nobody knows of a plain function. The tree of histories
found so far stands in for it: the search assumes that it is complete, and starts again with the larger tree if it turns out
that it was not. The last pass finds nothing new, and then its assumption was true: a program that could do something unknown
would have come to the point before it in that very pass, since a program that stands still at an unknown call is a state in
which nothing happens, too.

States are taken in the order of how many writes were passed on the way to them. For the witness of an outcome the search is made
again without reduction, if it is small enough: then the witness has no reordering that it does not need.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import FabricNotFound, InvalidArgument
from ..topology import Topology
from . import _rules
from ._history import NotRepeatable, Program, Raised, Stuck
from ._machine import DONE, Action, Machine, Process, State, _conflict
from ._model import Node, World

Function = Callable[[Any], Any]
WALKS = 12  # random runs that let the tree of histories grow before the first pass
WITNESS_STATES, WITNESS_SECONDS = 20_000, 5.0  # for a search for ways with few reorderings


@dataclass(frozen=True)
class Pass:
    """One thing that happened before another, though one might have thought otherwise, and the rule that allows it."""

    late: str
    early: str
    rule: str
    how: str = "went before"

    def __str__(self) -> str:
        return f"{self.late} {self.how} {self.early}: {self.rule}, {_rules.RULES[self.rule]}"


@dataclass(frozen=True)
class Witness:
    """How an outcome comes about.

    Attributes:
        outcome: what the programs returned.
        steps: what happened, in order, in words.
        passes: what went before what, and by which rule; empty if nothing was reordered.
        rules: the rules of `passes`.
    """

    outcome: tuple[Any, ...]
    steps: tuple[str, ...]
    passes: tuple[Pass, ...]

    @property
    def rules(self) -> frozenset[str]:
        """The rules by which something went before something else."""
        return frozenset(each.rule for each in self.passes)

    def __str__(self) -> str:
        lines = [f"outcome {self.outcome!r}"]
        lines += [f"  {number:3}. {step}" for number, step in enumerate(self.steps, 1)]
        lines += [f"  because {each}" for each in self.passes] or ["  with nothing reordered"]
        return "\n".join(lines)


@dataclass
class Exploration:
    """What `explore` found.

    Attributes:
        outcomes: every possible tuple of returned values, nodes in name order. `Raised` stands for a program that raised,
            `Stuck` for one that waits for ever.
        nodes: the names in that order.
        complete: whether everything was explored; otherwise `bound` says what stopped it, and there may be more outcomes.
        states, actions, passes, seconds: the work that it took.
    """

    nodes: tuple[str, ...]
    outcomes: set[tuple[Any, ...]] = field(default_factory=set)
    bound: str | None = None
    states: int = 0
    actions: int = 0
    passes: int = 0
    seconds: float = 0.0
    _paths: dict[tuple[Any, ...], list[tuple[Action, int]]] = field(default_factory=dict, repr=False)
    _search: Any = field(default=None, repr=False)
    _best: bool = field(default=False, repr=False)

    @property
    def complete(self) -> bool:
        """Whether every schedule and reordering was explored."""
        return self.bound is None

    @property
    def bounded(self) -> bool:
        """Whether a bound ended it early."""
        return self.bound is not None

    def witness(self, outcome: tuple[Any, ...]) -> Witness:
        """Return how an outcome comes about, with as few reorderings as any way to it (if a short search finds that)."""
        if outcome not in self._paths:
            raise KeyError(f"{outcome!r} is no outcome of this exploration")
        if not self._best:
            self._paths |= self._search.shortest(self.outcomes)
            self._best = True
        return _Story(self._search.machine, self._search.world, self._search.names).tell(outcome, self._paths[outcome])

    def __str__(self) -> str:
        end = "everything explored" if self.complete else f"stopped at {self.bound}"
        return f"{len(self.outcomes)} outcomes of {', '.join(self.nodes)}; {self.states} states, {end}"


def explore(
    topology: Any,
    programs: Mapping[str, Function | Iterable[Function]],
    *,
    stale: bool | Collection[str] = False,
    reduce: bool = True,
    max_states: int = 200_000,
    max_steps: int = 400,
    seconds: float = 60.0,
) -> Exploration:
    """Walk every schedule and every legal reordering of small programs.

    Args:
        topology: a Topology, a preset's name, or a YAML file. Of time it says nothing here; `pio: {wc: true}` makes a node's
            stores write-combining, and links make paths.
        programs: node -> a function of `node` (or a list of them: the first is the node's owner, the others are clients), the same
            as for the other clocks. It must depend on the fabric only. What several of a node return is a tuple in the outcome.
        stale: nodes that cache remote memory without coherence; True for all.
        reduce: False follows every process in every state: slower, the same outcomes.
        max_states, max_steps, seconds: bounds: states, calls of one program, time. Where one is hit, `bound` says so.
    Returns:
        An Exploration.
    Raises:
        InvalidArgument, FabricNotFound: a node that is none, or has no program to run.
        NotRepeatable: a program depends on more than the fabric.
    """
    described = Topology.resolve(topology)
    if described.windows != "auto":
        raise InvalidArgument("windows: manual is not explored", hint="use windows: auto")
    listed = _listed(programs)
    for name in (*programs, *(stale if not isinstance(stale, bool) else ())):
        if name not in described.nodes:
            raise FabricNotFound(f"no node {name!r}; there are {', '.join(list(described.nodes)[:8])}")
        if described.nodes[name].is_switch:
            raise InvalidArgument(f"{name} is a switch, which runs no program")
    cachers = frozenset(described.nodes if stale is True else stale or ())
    world = World(described, cachers, len(listed))
    search = _Search(world, listed, reduce, max_states, max_steps, time.monotonic() + seconds)
    started = time.monotonic()
    try:
        found = search.run()
        for program in search.programs:
            program.verify()
    finally:
        search.close()
    found.seconds = time.monotonic() - started
    found._search = search
    return found


def _listed(programs: Any) -> list[tuple[str, Function, int]]:
    """Return (node, program, its number there), nodes in name order; a lone program has number -1."""
    if not isinstance(programs, Mapping) or not programs:
        raise InvalidArgument("programs is a dict: node name -> function of the node, at least one")
    found: list[tuple[str, Function, int]] = []
    for name in sorted(programs):
        value = programs[name]
        for number, program in enumerate([value] if callable(value) else list(value)):
            if not callable(program):
                raise InvalidArgument(f"the program of {name} is no function: {program!r}")
            found.append((name, program, -1 if callable(value) else number))
    return found


class _Bound(Exception):
    """A bound was hit."""


class _Search:
    def __init__(
        self,
        world: World,
        listed: list[tuple[str, Function, int]],
        reduce: bool,
        max_states: int,
        max_steps: int,
        deadline: float,
    ) -> None:
        self.world, self.reduce = world, reduce
        self.places = [(name, number) for name, _, number in listed]
        self.names = [name if number < 0 else f"{name}[{number}]" for name, number in self.places]
        self.max_states, self.max_steps, self.deadline = max_states, max_steps, deadline
        self.programs: list[Program] = []
        for i, (name, program, number) in enumerate(listed):
            self.programs.append(Program(i, name, program, self._attach(name, number)))
        stale = frozenset(world.index[name] for name in world.stale)
        self.machine = Machine(self.programs, stale, world.owner_of)
        self.states = self.actions = 0
        self.longest = False

    def _attach(self, name: str, number: int) -> Callable[[Program], Node]:
        return lambda program: Node(self.world, name, program.index, client=max(number, 0))

    def close(self) -> None:
        for program in self.programs:
            program.close()

    def run(self) -> Exploration:
        found = Exploration(tuple(dict.fromkeys(name for name, _ in self.places)))
        try:
            if self.reduce:
                self._walk_at_random()
            while True:
                for program in self.programs:
                    program.refresh()
                found.passes += 1
                self._pass(found, self.reduce, self.max_states)
                if not any(program.grown for program in self.programs) or not self.reduce:
                    break
        except _Bound as bound:
            found.bound = str(bound)
        if self.longest and found.bound is None:
            found.bound = f"max_steps={self.max_steps}"
        found.states, found.actions = self.states, self.actions
        return found

    def _walk_at_random(self) -> None:
        """Let the tree of histories grow, so that the first pass assumes little that is not so."""
        for seed in range(WALKS):
            prng, state = random.Random(seed), self.machine.initial()
            for _ in range(10 * self.max_steps):
                possible = self._possible(self.machine.processes(state), state)
                if not possible:
                    break
                action, choices = possible[prng.randrange(len(possible))]
                state = self.machine.fire(state, action, prng.randrange(choices))
                if any(history.depth >= self.max_steps for history, _, _, _ in state.progs):
                    break

    def _possible(self, processes: list[Process], state: State) -> list[tuple[Action, int]]:
        possible = [(each.name, each.choices) for each in processes if each.choices]
        return possible or [(action, 1) for action in self.machine.timeouts(state)]

    def shortest(self, outcomes: set[tuple[Any, ...]]) -> dict[tuple[Any, ...], list[tuple[Action, int]]]:
        """Return ways to outcomes with as few reorderings as any: a search without reduction, that is bounded.

        The reduced search follows a reordering where that leaves it fewer actions, needed or not.
        """
        found = Exploration(())
        self.deadline = time.monotonic() + WITNESS_SECONDS
        try:
            self._pass(found, False, WITNESS_STATES, wanted=set(outcomes))
        except _Bound:
            pass
        finally:
            self.close()
        return found._paths

    def _pass(self, found: Exploration, reduce: bool, max_states: int, wanted: set[tuple[Any, ...]] | None = None) -> bool:
        """Explore once with what is known; returns False if it ended early because everything wanted was found."""
        machine = self.machine
        start = machine.initial()
        least: dict[Any, int] = {start.key(): 0}  # state -> writes passed on the best way to it
        came: list[tuple[int, Action | None, int]] = [(-1, None, 0)]
        queue: list[tuple[int, int, Any, State]] = [(0, 0, start.key(), start)]
        ends: dict[tuple[Any, ...], int] = {}
        count = 0

        def end(outcome: tuple[Any, ...], number: int) -> bool:
            ends.setdefault(outcome, number)
            if wanted is not None:
                wanted.discard(outcome)
            return wanted is not None and not wanted

        while queue:
            cost, number, key, state = heapq.heappop(queue)
            if least[key] < cost:
                continue  # a better way was found meanwhile
            if all(phase == DONE for _, _, phase, _ in state.progs):
                if end(self._outcome([history.returned for history, _, _, _ in state.progs]), number):
                    break
                continue
            if any(history.depth >= self.max_steps for history, _, phase, _ in state.progs if phase != DONE):
                self.longest = True
                continue
            processes = machine.processes(state)
            chosen = self._chosen(processes) if reduce else processes
            actions = [(each.name, each.choices) for each in chosen if each.choices]
            if not actions:
                actions = [(action, 1) for action in machine.timeouts(state)]
                if not actions:
                    if end(self._outcome(_stuck(state)), number):
                        break
                    continue
            for action, choices in actions:
                price = cost + self._price(state, action)
                for choice in range(choices):
                    after = machine.fire(state, action, choice)
                    self.actions += 1
                    key = after.key()
                    if least.get(key, price + 1) <= price:
                        continue
                    least[key] = price
                    came.append((number, action, choice))
                    heapq.heappush(queue, (price, len(came) - 1, key, after))
            count += 1
            self.states += 1
            if count >= max_states:
                self._close_pass(found, ends, came)
                raise _Bound(f"max_states={max_states}")
            if not count % 64 and time.monotonic() > self.deadline:
                self._close_pass(found, ends, came)
                raise _Bound("seconds")
        self._close_pass(found, ends, came)
        return True

    def _outcome(self, returned: list[Any]) -> tuple[Any, ...]:
        """Return an outcome from what each program returned: those of one node together."""
        found: list[Any] = []
        for (_, number), value in zip(self.places, returned, strict=True):
            if number <= 0:
                found.append(value if number < 0 else (value,))
            else:
                found[-1] = (*found[-1], value)
        return tuple(found)

    def _close_pass(self, found: Exploration, ends: dict[tuple[Any, ...], int], came: list[tuple[int, Action | None, int]]) -> None:
        for outcome, number in ends.items():
            if outcome not in found.outcomes:
                found.outcomes.add(outcome)
                path: list[tuple[Action, int]] = []
                while number > 0:
                    number, action, choice = came[number]
                    assert action is not None
                    path.append((action, choice))
                found._paths[outcome] = path[::-1]

    def _price(self, state: State, action: Action) -> int:
        """Return how many earlier writes of its node an action goes before."""
        if action[0] != "D":
            return 0
        piece, _ = state.pieces[action[1]]
        return sum(
            1 for pid, (other, _) in state.pieces.items() if other.tlp.source == piece.tlp.source and _before(pid, action[1])
        )

    def _chosen(self, processes: list[Process]) -> list[Process]:
        """Return a stubborn set with few actions."""
        able = [i for i, each in enumerate(processes) if each.choices]
        if len(able) <= 1:
            return processes
        names = {each.name: i for i, each in enumerate(processes)}
        best: list[int] | None = None
        least = len(able) + 1
        for seed in able:
            members, todo, actions = {seed}, [seed], 0
            while todo:
                each = processes[todo.pop()]
                if each.choices:
                    actions += each.choices
                    if actions >= least:
                        break
                elif each.needs is not None:
                    wanted = names.get(each.needs[0])
                    for name in each.needs:  # one of them is enough: prefer what is there already
                        if names.get(name) in members:
                            wanted = names[name]
                    assert wanted is not None, (each, "needs what is not there")
                    if wanted not in members:
                        members.add(wanted)
                        todo.append(wanted)
                    continue
                access = each.access
                for i, other in enumerate(processes):
                    if i not in members and _conflict(access, other.future):
                        members.add(i)
                        todo.append(i)
            else:
                if actions < least:
                    best, least = sorted(members), actions
                    if least == 1:
                        break
        return processes if best is None else [processes[i] for i in best]


def _before(a: Any, b: Any) -> bool:
    """Whether write `a` was issued before `b` by the same program."""
    return type(a[0]) is type(b[0]) and a < b


def _stuck(state: State) -> list[Any]:
    return [history.returned if phase == DONE else Stuck(history.request.text) for history, _, phase, _ in state.progs]


class _Story:
    """Tells a path through the states in words."""

    def __init__(self, machine: Machine, world: World, names: list[str]) -> None:
        self.machine, self.world, self.names = machine, world, names
        self.said: dict[Any, str] = {}  # operation -> the call that began it
        self.sources: dict[Any, Any] = {}  # word of a DMA operation -> what its source held when it was submitted
        self.sampled: dict[Any, dict[int, Any]] = {}  # read -> what its words held when they were sampled
        self.visible: set[Any] = set()  # writes

    def tell(self, outcome: tuple[Any, ...], path: list[tuple[Action, int]]) -> Witness:
        """Return the witness of an outcome."""
        state = self.machine.initial()
        steps: list[str] = []
        passes: list[Pass] = []
        for action, choice in path:
            steps.append(self._step(state, action, choice))
            passes += self._passes(state, action)
            state = self.machine.fire(state, action, choice)
        return Witness(outcome, tuple(steps), tuple(dict.fromkeys(passes)))

    def _say(self, obj: Any) -> str:
        if isinstance(obj, int):
            return self.world.say(obj)
        if obj[0] == "db":
            return f"{self.world.names[obj[1]]}:doorbell"
        return f"{self.world.names[obj[1]]}:scratchpad {obj[2]}"

    def _write(self, pid: Any, piece: Any) -> str:
        if pid[0] == "E":
            return f"cached store to {self._say(piece.obj)}"
        return f"{self.said.get(pid[:2], 'write')} [{self._say(piece.obj)}]"

    def _step(self, state: State, action: Action, choice: int) -> str:
        kind, which = action[0], action[1]
        if kind == "P":
            history = state.progs[which][0]
            line = history.request.where.rpartition("/")[2]
            call = f"{self.names[which]}: {history.request.text}"
            self.said[(which, history.depth)] = call
            return f"{call}  ({line})"
        if kind == "T":
            return f"{self.names[which]}: {state.progs[which][0].request.text} times out"
        if kind == "F":
            return f"{self.names[which]}: {state.progs[which][0].request.text} has pushed everything and returns"
        if kind == "D":
            return f"visible: {self._write(which, state.pieces[which][0])}"
        if kind == "R":
            ask = state.asks[which]
            obj = ask.request.pieces[action[2]][0]
            cached = f", version {choice} in its cache" if ask.request.pieces[action[2]][2] else ""
            return f"sampled: {self.said.get(which, ask.request.text)} [{self._say(obj)}{cached}]"
        if kind == "E":
            return f"{self.world.names[which.node]}'s cache writes {self._say(action[2])} back"
        call = self.said.get(which, "DMA")
        if kind == "V":
            return f"{call}: has pushed everything and is complete"
        words = state.dmas[which].request.words[action[2]]
        if kind == "S":
            return f"{call}: the engine reads {self._say(words[0][0])}"
        return f"{call}: the engine writes {self._say(words[1][1])}"

    def _passes(self, state: State, action: Action) -> list[Pass]:
        """Return what is worth telling of an action: what it goes before, and what it does not see."""
        kind, which = action[0], action[1]
        if kind == "D":
            return self._overtakes(state, which)
        if kind == "L":
            return self._issues(state, which, action[2])
        if kind == "S":
            word = state.dmas[which].request.words[action[2]][0][0]
            found = self._looks(state, self.said.get(which, "DMA"), word, None)
            if state.mem.get(word, 0) != self.sources.get((which, action[2])):
                found.append(
                    Pass(self.said.get(which, "DMA"), self.world.say(word), "M1", "read its source after a later write to")
                )
            return found
        if kind == "R":
            return self._samples(state, which, action[2])
        if kind != "P":
            return []
        history = state.progs[which][0]
        request, found = history.request, []
        if request.kind == "submit":
            for k, (source, _) in enumerate(request.words):
                if source[0] is not None:
                    self.sources[((which, history.depth), k)] = state.mem.get(source[0], 0)
        if request.kind == "local":
            said = f"{self.names[which]}: {request.text}"
            for obj in request.own[0]:
                if isinstance(obj, int) or obj[0] in ("db", "spad"):
                    found += self._looks(state, said, obj, None)
            for obj in request.own[1]:
                for pid, (other, _) in state.pieces.items():
                    if other.obj == obj and isinstance(obj, int) and other.tlp.source != other.tlp.target:
                        found.append(
                            Pass(said, self._write(pid, other), "V1", "wrote before it was visible, and is overwritten by,")
                        )
        return found

    def _overtakes(self, state: State, which: Any) -> list[Pass]:
        piece, _ = state.pieces[which]
        said, found = self._write(which, piece), []
        for pid, (other, _) in state.pieces.items():
            if other.tlp.source != piece.tlp.source or not _before(pid, which) or other.tlp.source == other.tlp.target:
                continue
            rule = _rules.passed_by(piece.tlp, other.tlp)
            if rule == "A2b":
                rule = self._why(state, pid, other, which, piece)
            found.append(Pass(said, self._write(pid, other), rule))
        for op, ask in state.asks.items():
            tlp, begun = ask.request.tlp, ask.request.kind == "begin" and ask.left and _before((*op, 0), which)
            if tlp is not None and begun and tlp.source == piece.tlp.source:
                rule = ("A4" if tlp.kind == _rules.ATOMIC else "A3") if tlp.target == piece.tlp.target else "P2"
                found.append(Pass(said, self.said.get(op, ask.request.text), rule))
        for op, dma in state.dmas.items():
            earlier = dma.request.handle.key == piece.handle and _before((*op, 0), which) and op != which[:2]
            if earlier and not dma.complete and any(word is not True for word in dma.words):
                found.append(Pass(said, self.said.get(op, "DMA"), "M5" if which[:2] in state.dmas else "M1"))
        self.visible.add(which)
        return found

    def _issues(self, state: State, which: Any, k: int) -> list[Pass]:
        """An engine's word that lands at home, where nothing delivers it."""
        if state.dmas[which].request.words[k][1][0] is not None:
            return []
        earlier = [
            op
            for op, dma in state.dmas.items()
            if op < which and not dma.complete and dma.request.handle.key == state.dmas[which].request.handle.key
        ]
        return [Pass(self.said.get(which, "DMA"), self.said.get(op, "DMA"), "M5") for op in earlier]

    def _samples(self, state: State, which: Any, k: int) -> list[Pass]:
        ask = state.asks[which]
        request, said = ask.request, self.said.get(which, ask.request.text)
        obj, _, cached = request.pieces[k]
        found = self._looks(state, said, obj, request.tlp)
        if cached:
            if len(self.machine._versions(state, request.handle, obj)) > 1:
                found.append(Pass(said, f"what {self._say(obj)} holds by now", "S1", "may see something older than"))
            return found
        if request.pieces[k][1] is not None and request.tlp is not None:
            for pid, (other, _) in state.pieces.items():
                if other.tlp.source == request.tlp.source and _before(pid, (*which, 0)):
                    found.append(Pass(said, self._write(pid, other), _rules.passed_by(request.tlp, other.tlp)))
        seen = self.sampled.setdefault(which, {})
        for word, value in seen.items():
            if state.mem.get(request.pieces[word][0], 0) != value:
                found.append(
                    Pass(
                        said,
                        self._say(request.pieces[word][0]),
                        "G3",
                        f"samples {self._say(obj)} after, and at another time than,",
                    )
                )
        seen[k] = state.mem.get(obj, 0)
        return found

    def _looks(self, state: State, said: str, obj: Any, tlp: Any) -> list[Pass]:
        """Return the writes to an object that have been issued, and that who looks at it now does not see."""
        found = []
        for pid, (other, _) in state.pieces.items():
            if other.obj != obj or other.tlp.source == other.tlp.target:
                continue
            if tlp is not None and other.tlp.source == tlp.source:
                found.append(Pass(said, self._write(pid, other), _rules.passed_by(tlp, other.tlp)))
            elif any(seen[:2] == pid[:2] for seen in self.visible):
                found.append(Pass(said, self._write(pid, other), "G1", "looked between the words of"))
            else:
                found.append(Pass(said, self._write(pid, other), "V1", "looked before it was visible:"))
        for handle, word in state.dirty:
            if word == obj:
                found.append(
                    Pass(said, f"{self.world.names[handle.node]}'s cached store to {self._say(word)}", "S2", "looked before")
                )
        for op, dma in state.dmas.items():
            if any(word is not True and to[1] == obj for word, (_, to) in zip(dma.words, dma.request.words, strict=True)):
                found.append(Pass(said, self.said.get(op, "DMA"), "M1", "looked before"))
        return found

    def _why(self, state: State, pid: Any, other: Any, late: Any, piece: Any) -> str:
        """Return the rule by which a write passes one of its own stream."""
        if pid[:2] == late[:2]:
            return "A2b" if piece.tlp.ro else "G2"
        if piece.dirty or other.dirty:
            return "S2"
        if piece.tlp.ro or (piece.tlp.ido and piece.tlp.requester != other.tlp.requester):
            return "A2b"
        return "W1" if pid[:2] not in state.dmas and late[:2] not in state.dmas else "M1"


__all__ = ["Exploration", "NotRepeatable", "Pass", "Raised", "Stuck", "Witness", "explore"]
