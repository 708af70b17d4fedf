# SPDX-License-Identifier: Apache-2.0
"""The abstract machine: what a fabric may do next, from any state, by the rules and nothing else.

No time, no queues, no links: a state is memory, where each program stands, the writes that are not yet visible, the requests
that are not yet answered and the DMA operations that are not yet done. Each write carries the set of writes that it must stay
behind, computed by `_rules.waits` when it is issued. What may happen next is a list of actions of processes:

    ("P", i)         program i executes its next call
    ("R", op, k)     word k of a read or atomic is sampled at its target
    ("D", write)     a posted write becomes visible
    ("F", i)         the flush of program i has pushed everything and turns around
    ("S", op, k)     a DMA engine samples word k of its source
    ("L", op, k)     a DMA engine issues word k (or, at home, lets it land)
    ("V", op)        a DMA engine's closing flush turns around
    ("E", h, word)   a cache line of a caching node leaves
    ("T", i)         a wait of program i times out, which happens only when nothing else can

What a call's answer pushes before it (rule D2a) is a *gate*: the set of writes that must be visible before the program goes on.

Every action has an *access*: the objects that it reads and writes. Two actions whose accesses do not conflict commute; the
search relies on that and on the *footprint* of a process, all that it may still come to access. Objects are words of memory
(their addresses), and tuples for everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

from . import _rules
from ._rules import ATOMIC, COMPLETION, POSTED, READ, Tlp

Access = tuple[frozenset[Any], frozenset[Any]]
Action = tuple[Any, ...]
NOTHING: frozenset[Any] = frozenset()
NEVER = object()  # the answer of a request that cannot be executed yet
WORD = (1 << 64) - 1


class Handle(NamedTuple):
    """One handle of a node: a requester. `key` tells handles apart; `requester` is (node, function)."""

    key: tuple[int, int]
    node: int
    requester: tuple[int, ...]
    wc: bool
    stale: bool


class Thrown(NamedTuple):
    """The answer of a call that raises."""

    name: str
    text: str


class Piece(NamedTuple):
    """One write of at most 8 aligned bytes on its way. `rank` says when its issuer issued it."""

    tlp: Tlp
    obj: Any
    how: str
    mask: int
    value: Any
    handle: tuple[int, int]
    dirty: bool = False  # it comes out of a cache


def changed(old: Any, how: str, mask: int, value: Any) -> Any:
    """Return an object's value after a write."""
    if how == "set":
        return (old & ~mask) | (value & mask)
    bits, masked, told = old or (0, 0, 0)
    if how == "db_set":
        return (bits | value, masked, told & ~value)
    if how == "db_clear":
        return (bits & ~value, masked, told & ~value)
    if how == "db_mask":
        return (bits, masked | value, told)
    if how == "db_unmask":
        return (bits, masked & ~value, told & ~(bits & masked & value))
    raise AssertionError(how)


class Request:
    """What a program wants next.

    Attributes:
        kind: what the machine does with it.
        handle: whose.
        text, where: for people: the call, and the program's file and line.
        own: access of executing it.
        future: all that it may access, what it sets going included.
        Others by kind; see `Machine._step`.
    """

    answer: Any
    cond: Any
    how: Any
    number: Any
    pieces: Any
    target: Any
    tlp: Any
    words: Any

    __slots__ = (
        "answer",
        "cond",
        "ended",
        "future",
        "handle",
        "how",
        "kind",
        "number",
        "own",
        "pieces",
        "target",
        "text",
        "tlp",
        "where",
        "words",
    )

    def __init__(self, kind: str, handle: Handle, text: str, **fields: Any) -> None:
        self.kind, self.handle, self.text, self.where = kind, handle, text, ""
        self.own: Access = (NOTHING, NOTHING)
        self.future: Access = (NOTHING, NOTHING)
        self.answer = self.cond = self.how = self.number = self.pieces = self.target = self.tlp = self.words = None
        self.ended = False
        for name, value in fields.items():
            setattr(self, name, value)

    def access(self, reads: Iterable[Any] = (), writes: Iterable[Any] = ()) -> Request:
        """Set what executing it reads and writes."""
        self.own = (frozenset(reads), frozenset(writes))
        self.future = (self.future[0] | self.own[0], self.future[1] | self.own[1])
        return self

    def later(self, reads: Iterable[Any] = (), writes: Iterable[Any] = ()) -> Request:
        """Set what it sets going."""
        self.future = (self.future[0] | frozenset(reads), self.future[1] | frozenset(writes))
        return self

    def same_as(self, other: Request) -> bool:
        """Return whether a replay came to the same call."""
        return self.kind == other.kind and self.text == other.text and self.own == other.own


def issue_objects(tlp: Tlp) -> tuple[Any, Any]:
    """Return the objects that issuing a posted write changes: its stream, and all streams between the two nodes."""
    return ("i", tlp.source, tlp.target, tlp.path, tlp.tc), ("I", tlp.source, tlp.target)


def answer_objects(tlp: Tlp) -> tuple[Any, Any]:
    """Return the objects that decide what an answer pushes: its stream's order of issue, and the target's own buffers."""
    return ("i", tlp.target, tlp.source, tlp.path, tlp.tc), ("n", tlp.target)


def stream_object(source: int, target: int, path: int, tc: int) -> Any:
    """Return the object of one stream's order of issue."""
    return ("i", source, target, path, tc)


def line_object(handle: tuple[int, int], word: int) -> Any:
    """Return the object of one write-combining buffer."""
    return ("w", handle, word >> 6)


class Ask:
    """A read or atomic under way. Immutable. `told`: its program has been told that it is complete."""

    __slots__ = ("behind", "gate", "left", "program", "request", "told", "values")

    def __init__(
        self,
        request: Request,
        program: int,
        left: tuple[int, ...],
        behind: frozenset[Any],
        values: tuple[Any, ...],
        gate: frozenset[Any],
        told: bool = False,
    ) -> None:
        self.request, self.program, self.left, self.behind, self.values, self.gate = request, program, left, behind, values, gate
        self.told = told

    def key(self) -> Hashable:
        """Return what tells two states of it apart."""
        return (self.left, self.behind, self.values, self.gate, self.told)


class Transfer:
    """A DMA operation. Immutable.

    Attributes:
        words: per word None (not sampled), (value, gate), or True (issued).
        behind: what the requests of a pull must stay behind; None before it starts.
        flush: what its closing flush pushes; None until it begins.
        gate: what must be visible before it is complete.
        complete: whether it has issued everything (and turned its flush around).
        fenced: what a fence before its submission put it behind.
        told: whether its program has been told that it is complete.
    """

    __slots__ = ("behind", "complete", "fenced", "flush", "gate", "request", "told", "words")

    def __init__(
        self,
        request: Request,
        words: tuple[Any, ...],
        behind: frozenset[Any] | None,
        flush: frozenset[Any] | None,
        gate: frozenset[Any],
        complete: bool,
        fenced: frozenset[Any],
        told: bool = False,
    ) -> None:
        self.request, self.words, self.behind, self.flush, self.gate = request, words, behind, flush, gate
        self.complete, self.fenced, self.told = complete, fenced, told

    def key(self) -> Hashable:
        """Return what tells two states of it apart."""
        return (self.words, self.behind, self.flush, self.gate, self.complete, self.fenced, self.told)

    def but(self, **changes: Any) -> Transfer:
        """Return a changed copy."""
        values = {name: getattr(self, name) for name in self.__slots__} | changes
        return Transfer(**values)


READY, BUSY, DONE, FLUSHING = 0, 1, 2, 3


class State:
    """One state. Dictionaries are copied before they change."""

    __slots__ = ("asks", "dirty", "dmas", "fenced", "mem", "open", "pieces", "progs", "seen", "used")

    def __init__(self) -> None:
        self.mem: dict[Any, Any] = {}
        self.progs: list[tuple[Any, frozenset[Any], int, Any]] = []  # history, gate, phase, what a flush is behind
        self.pieces: dict[Any, tuple[Piece, frozenset[Any]]] = {}
        self.asks: dict[Any, Ask] = {}
        self.dmas: dict[Any, Transfer] = {}
        self.open: dict[Any, frozenset[Any]] = {}  # handle -> writes that may still sit in its write-combining buffers
        self.fenced: dict[Any, frozenset[Any]] = {}  # handle -> writes before its last fence
        self.used: frozenset[Any] = NOTHING  # (handle, node, target, path, class) of posted writes
        self.seen: dict[Any, tuple[int, ...]] = {}  # (node, word) -> what a caching node may still see there
        self.dirty: dict[Any, tuple[int, int]] = {}  # (handle, word) -> mask, value in its cache

    def copy(self) -> State:
        """Return a copy that can be changed."""
        new = State.__new__(State)
        new.mem, new.progs, new.pieces = self.mem.copy(), self.progs.copy(), self.pieces.copy()
        new.asks, new.dmas, new.open, new.fenced = self.asks.copy(), self.dmas.copy(), self.open.copy(), self.fenced.copy()
        new.used, new.seen, new.dirty = self.used, self.seen.copy(), self.dirty.copy()
        return new

    def key(self) -> Hashable:
        """Return what tells two states apart."""
        return (
            tuple((history.number, gate, phase, flush) for history, gate, phase, flush in self.progs),
            frozenset(self.mem.items()),
            frozenset((pid, piece.value, behind) for pid, (piece, behind) in self.pieces.items()),
            frozenset((op, ask.key()) for op, ask in self.asks.items()),
            frozenset((op, dma.key()) for op, dma in self.dmas.items()),
            frozenset(self.open.items()),
            frozenset(self.fenced.items()),
            frozenset(self.seen.items()),
            frozenset(self.dirty.items()),
        )


class Process(NamedTuple):
    """A process of a state.

    Attributes:
        name: its action.
        choices: how many ways the action can go now; 0 if it is not possible now.
        access: of the action.
        future: of everything that the process may still do.
        needs: if it is not possible now: names of processes of which one must act before it can be; None: anybody who
            writes what it reads.
    """

    name: Action
    choices: int
    access: Access
    future: Access
    needs: tuple[Action, ...] | None


def _conflict(a: Access, b: Access) -> bool:
    return not (a[1].isdisjoint(b[0]) and a[1].isdisjoint(b[1]) and a[0].isdisjoint(b[1]))


class Machine:
    """The machine for some programs. `stale` are the indices of caching nodes; `owner_of` maps a word to its node."""

    def __init__(self, programs: list[Any], stale: frozenset[int], owner_of: Callable[[Any], int]) -> None:
        self.programs = programs
        self.stale = stale
        self.owner_of = owner_of

    def initial(self) -> State:
        """Return the state in which no program has done anything."""
        state = State()
        for program in self.programs:
            history = program.root
            state.progs.append((history, NOTHING, DONE if history.finished else READY, None))
        return state

    # -- what may happen ----------------------------------------------------------------------------------------------

    def processes(self, state: State) -> list[Process]:
        """Return every process that may still act."""
        found: list[Process] = []
        for i, (history, gate, phase, flush) in enumerate(state.progs):
            if phase == DONE:
                continue
            request, future = history.request, history.footprint
            name: Action = ("P", i)
            if phase == FLUSHING:
                pushed = request.own
                found.append(Process(("F", i), 0 if flush else 1, pushed, future, tuple(("D", pid) for pid in flush) or None))
            elif phase == BUSY:
                op = (i, history.depth)
                left = state.asks[op].left
                found.append(Process(name, 0, request.own, future, tuple(("R", op, k) for k in left)))
            elif gate:
                found.append(Process(name, 0, request.own, future, tuple(("D", pid) for pid in gate)))
            else:
                choices, needs = self._possible(state, request)
                found.append(Process(name, choices, request.own, future, needs))
        for op, ask in state.asks.items():
            for k in ask.left:
                found.append(self._sample_process(state, op, ask, k))
        polled = self._polled(state)
        for pid, (piece, behind) in state.pieces.items():
            writes = frozenset((piece.obj,)) | polled.get(pid, NOTHING)
            if any(pid in held for held in state.open.values()):
                writes |= {line_object(piece.handle, piece.obj), ("n", piece.tlp.source)}
            access: Access = (NOTHING, writes)
            needs_d = None if not behind else (("D", next(iter(behind))),)
            found.append(Process(("D", pid), 0 if behind else 1, access, access, needs_d))
        for op, dma in state.dmas.items():
            if not dma.complete:
                found += self._dma_processes(state, op, dma)
        for handle, word in state.dirty:
            found.append(self._evict_process(handle, word))
        return found

    def _polled(self, state: State) -> dict[Any, frozenset[Any]]:
        """Return what a write's becoming visible also changes: operations whose completion it holds up."""
        polled: dict[Any, frozenset[Any]] = {}
        for op, ask in state.asks.items():
            for pid in ask.gate:
                polled[pid] = polled.get(pid, NOTHING) | {("op", op)}
        for op, dma in state.dmas.items():
            for pid in dma.gate:
                polled[pid] = polled.get(pid, NOTHING) | {("op", op)}
        return polled

    def _possible(self, state: State, request: Request) -> tuple[int, tuple[Action, ...] | None]:
        kind = request.kind
        if kind == "local":
            return (0 if request.answer(state.mem) is NEVER else 1), None
        if kind == "finish":
            ask = state.asks[request.target]
            if ask.left:
                return 0, tuple(("R", request.target, k) for k in ask.left)
            return (0, tuple(("D", pid) for pid in ask.gate)) if ask.gate else (1, None)
        if kind == "await":
            dma = state.dmas[request.target]
            if not dma.complete:
                return 0, self._dma_next(request.target, dma)
            return (0, tuple(("D", pid) for pid in dma.gate)) if dma.gate else (1, None)
        if kind in ("ready", "poll") and self._returned(state, request) and not self._told(state, request):
            return 2, None  # the news of it is there, or still on its way (A5: writes may pass completions)
        return 1, None

    def _returned(self, state: State, request: Request) -> bool:
        if request.kind == "ready":
            ask = state.asks[request.target]
            return not ask.left and not ask.gate
        dma = state.dmas[request.target]
        return dma.complete and not dma.gate

    def _told(self, state: State, request: Request) -> bool:
        table: dict[Any, Any] = state.asks if request.kind == "ready" else state.dmas
        return bool(table[request.target].told)

    def _sample_process(self, state: State, op: Any, ask: Ask, k: int) -> Process:
        request = ask.request
        obj, change, reads_cache = request.pieces[k]
        writes: set[Any] = {("op", op)} if request.ended else set()
        reads: set[Any] = {obj}
        if change is not None:
            writes.add(obj)
        if request.handle.stale:
            writes.add(("y", request.handle.node, obj))
        tlp = request.tlp
        if tlp is not None:
            reads.update(answer_objects(tlp))
        choices, needs = 1, None
        if reads_cache:
            choices = len(self._versions(state, request.handle, obj))
        if ask.behind:
            choices, needs = 0, (("D", next(iter(ask.behind))),)
        elif request.cond is not None and not request.cond(state.mem.get(obj, 0)):
            choices = 0
        access = (frozenset(reads), frozenset(writes))
        return Process(("R", op, k), choices, access, access, needs)

    def _dma_next(self, op: Any, dma: Transfer) -> tuple[Action, ...]:
        if dma.flush is not None:
            return (("V", op),)
        return (("L", op, next(k for k, word in enumerate(dma.words) if word is not True)),)

    def _dma_processes(self, state: State, op: Any, dma: Transfer) -> list[Process]:
        request = dma.request
        future = (request.future[0], request.future[1] | {("op", op)})
        if dma.flush is not None:
            tlp = request.tlp
            access: Access = (frozenset((("I", tlp.target, tlp.source), ("n", tlp.target))), frozenset((("op", op),)))
            needs: tuple[Action, ...] = tuple(("D", pid) for pid in dma.flush)
            return [Process(("V", op), 0 if needs else 1, access, access, needs or None)]
        if dma.behind is None:  # waits for the operation before it in its channel
            before = self._channel(state, request)[0]
            return [Process(("L", op, 0), 0, request.own, future, self._dma_next(before, state.dmas[before]))]
        found = []
        previous: int | None = None
        for k, word in enumerate(dma.words):
            if word is True:
                continue
            source, target = request.words[k]
            if word is None:
                reads = {source[0]}
                if source[3] is not None:
                    ask = source[3]
                    reads.update(answer_objects(ask))
                access = (frozenset(reads), NOTHING)
                behind = bool(source[3] is not None and dma.behind)
                first = (("D", next(iter(dma.behind))),) if behind else None
                found.append(Process(("S", op, k), 0 if behind else 1, access, access, first))
            tlp = target[0]
            reads, writes = {("n", request.handle.node)}, {("op", op)}
            if tlp is None:
                writes.add(target[1])
            else:
                writes.update(issue_objects(tlp))
            access = (frozenset(reads), frozenset(writes))
            waits: tuple[Action, ...] | None = None
            if word is None:
                waits = (("S", op, k),)
            elif word[1]:
                waits = tuple(("D", pid) for pid in word[1])
            elif previous is not None and (tlp is not None or k == request.number):
                waits = (("L", op, previous),)
            found.append(Process(("L", op, k), 1 if waits is None else 0, access, future, waits))
            previous = k
        return found

    def _evict_process(self, handle: Handle, word: Any) -> Process:
        target = self.owner_of(word)
        tlp = Tlp(POSTED, handle.node, target, 0, 0, False, False, handle.requester)
        writes = {("y", handle.node, word), word, *issue_objects(tlp)}
        access: Access = (NOTHING, frozenset(writes))
        return Process(("E", handle, word), 1, access, access, None)

    # -- what happens -------------------------------------------------------------------------------------------------

    def fire(self, state: State, action: Action, choice: int) -> State:
        """Return the state after an action."""
        new = state.copy()
        kind = action[0]
        if kind == "P":
            self._step(new, action[1], choice)
        elif kind == "D":
            self._deliver(new, action[1])
        elif kind == "R":
            self._sample(new, action[1], action[2], choice)
        elif kind == "F":
            self._turn(new, action[1])
        elif kind == "S":
            self._fetch(new, action[1], action[2])
        elif kind == "L":
            self._land(new, action[1], action[2])
        elif kind == "V":
            dma = new.dmas[action[1]]
            tlp = dma.request.tlp
            self._completed(new, action[1], dma.but(gate=self._pushed(new, [(tlp.path, tlp.tc)], tlp.target, tlp.source)))
        elif kind == "E":
            self._write_back(new, action[1], [action[2]])
        elif kind == "T":
            history = new.progs[action[1]][0]
            new.asks.pop((action[1], history.depth), None)
            self._advance(new, action[1], Thrown("WaitTimeout", history.request.text))
        else:
            raise AssertionError(action)
        return new

    def timeouts(self, state: State) -> list[Action]:
        """Return the waits with a timeout of a state in which nothing else can happen."""
        return [("T", i) for i, (history, _, phase, _) in enumerate(state.progs) if phase in (READY, BUSY) and history.request.how]

    def _advance(self, state: State, i: int, result: Any, gate: frozenset[Any] = NOTHING) -> None:
        history = self.programs[i].after(state.progs[i][0], result)
        state.progs[i] = (history, gate, DONE if history.finished else READY, None)

    def _step(self, state: State, i: int, choice: int) -> None:
        history = state.progs[i][0]
        request = history.request
        handle, kind, op = request.handle, request.kind, (i, history.depth)
        if kind == "local":
            result, changes = request.answer(state.mem)
            for obj, value in changes.items():
                self._change(state, obj, value)
            self._advance(state, i, result)
        elif kind == "post":
            if not request.how:  # not through a write-combining buffer: it drains them
                self._drain(state, handle)
            gate = self._issue_all(state, op, request)
            self._advance(state, i, request.answer, gate)
        elif kind == "cached":
            for obj, mask, value in request.words:
                had, old = state.dirty.get((handle, obj), (0, 0))
                state.dirty[(handle, obj)] = (had | mask, (old & ~mask) | (value & mask))
            self._advance(state, i, request.answer)
        elif kind in ("ask", "begin"):
            self._drain(state, handle)
            tlp = request.tlp
            behind = NOTHING if tlp is None else self._behind(state, tlp, handle, NOTHING)
            left = tuple(range(len(request.pieces)))
            state.asks[op] = Ask(request, i, left, behind, (None,) * len(left), NOTHING)
            if kind == "ask":
                state.progs[i] = (history, NOTHING, BUSY, None)
            else:
                self._advance(state, i, op)
        elif kind == "drain":
            self._drain(state, handle)
            self._advance(state, i, None)
        elif kind == "fence":
            self._drain(state, handle)
            state.fenced[handle.key] = state.fenced.get(handle.key, NOTHING) | self._issued_by(state, handle)
            self._advance(state, i, None)
        elif kind == "flush":
            self._drain(state, handle)
            targets = self._flushed(state, request)
            held = frozenset().union(*state.open.values())
            behind = frozenset(
                pid
                for pid, (piece, _) in state.pieces.items()
                if piece.tlp.source == handle.node and piece.tlp.target in targets and pid not in held
            )
            state.progs[i] = (history, NOTHING, FLUSHING, behind)
        elif kind == "submit":
            self._drain(state, handle)
            words = tuple((None if source[0] is not None else (source[2], NOTHING)) for source, _ in request.words)
            state.dmas[op] = Transfer(request, words, None, None, NOTHING, False, state.fenced.get(handle.key, NOTHING))
            self._start(state, request)
            self._advance(state, i, op)
        elif kind == "poll":
            dma = state.dmas[request.target]
            landed = sum(dma.request.pieces[k] for k, word in enumerate(dma.words) if word is True)
            done = self._returned(state, request) and (dma.told or choice == 0)
            if done and not dma.told:
                state.dmas[request.target] = dma.but(told=True)
            self._advance(state, i, (done, landed))
        elif kind == "await":
            self._advance(state, i, None)
        elif kind == "finish":
            ask = state.asks[request.target]
            self._advance(state, i, ask.request.answer(ask.values))
        elif kind == "ready":
            ask = state.asks[request.target]
            done = self._returned(state, request) and (ask.told or choice == 0)
            if done and not ask.told:
                state.asks[request.target] = Ask(ask.request, ask.program, ask.left, ask.behind, ask.values, ask.gate, True)
            self._advance(state, i, done)
        elif kind == "writeback":
            self._write_back(state, handle, [word for word in request.words if (handle, word) in state.dirty])
            if request.how:  # invalidate
                for word in request.words:
                    if not self._own_under_way(state, handle.node, word):
                        state.seen[(handle.node, word)] = (state.mem.get(word, 0),)
            self._advance(state, i, None)
        else:
            raise AssertionError(kind)

    def _drain(self, state: State, handle: Handle) -> None:
        state.open.pop(handle.key, None)

    def _behind(
        self, state: State, tlp: Tlp, handle: Handle, mine: frozenset[Any], obj: Any = None, op: Any = None
    ) -> frozenset[Any]:
        """Return the writes that a packet issued now must stay behind.

        Args:
            mine: writes in the issuer's own write-combining buffers. It waits for those to its own word `obj` only, and for
                those of its own call `op` to the same line.
        """
        pieces = state.pieces
        held = mine  # has not left for the link
        for key, others in state.open.items():
            if key != handle.key:
                held = held | others
        wanted = {
            pid
            for pid, (piece, _) in pieces.items()
            if _rules.waits(tlp, piece.tlp) and (pid not in held or (pid in mine and self._together(pid, piece, obj, op)))
        }
        if len(wanted) > 1:  # what another one of them waits for need not be named
            for pid in list(wanted):
                if pid in wanted:
                    wanted -= pieces[pid][1]
        return frozenset(wanted)

    def _together(self, pid: Any, piece: Piece, obj: Any, op: Any) -> bool:
        return obj is not None and (piece.obj == obj or (pid[:2] == op and piece.obj >> 6 == obj >> 6))

    def _issue_all(self, state: State, op: Any, request: Request) -> frozenset[Any]:
        """Issue the words of a posted write; returns the gate of a write to the node's own memory."""
        handle = request.handle
        mine = state.open.get(handle.key, NOTHING) if request.how else NOTHING
        fenced = state.fenced.get(handle.key, NOTHING)
        gate: set[Any] = set()
        previous: frozenset[Any] = NOTHING
        for k, (tlp, obj, how, mask, value) in enumerate(request.words):
            pid = (*op, k)
            piece = Piece(tlp, obj, how, mask, value, handle.key)
            if request.number == "home":  # at once, one word after the other
                behind: frozenset[Any] = previous
                previous = frozenset((pid,))
                gate.add(pid)
            else:
                behind = self._behind(state, tlp, handle, mine, obj, op) | fenced
            state.pieces[pid] = (piece, behind)
            if request.how == "wc":
                mine = mine | {pid}
        if request.number != "home":
            tlp = request.words[0][0]
            state.used = state.used | {(handle.key, tlp.source, tlp.target, tlp.path, tlp.tc)}
        if request.how == "wc":
            if mine:
                state.open[handle.key] = mine
            else:
                state.open.pop(handle.key, None)
        return frozenset(gate)

    def _issued_by(self, state: State, handle: Handle) -> frozenset[Any]:
        """Return the handle's writes under way, those of unfinished DMA operations left out."""
        under_way = {op for op, dma in state.dmas.items() if not dma.complete}
        return frozenset(pid for pid, (piece, _) in state.pieces.items() if piece.handle == handle.key and pid[:2] not in under_way)

    def _flushed(self, state: State, request: Request) -> set[int]:
        if request.target is not None:
            return {request.target}
        return {target for key, _, target, _, _ in state.used if key == request.handle.key}

    def _turn(self, state: State, i: int) -> None:
        """A flush has pushed all writes and comes back: it pushes what travels the same way."""
        request = state.progs[i][0].request
        node = request.handle.node
        gate: frozenset[Any] = NOTHING
        for target in self._flushed(state, request):
            ways = [(path, tc) for _, source, to, path, tc in state.used if source == node and to == target] or [(0, 0)]
            gate |= self._pushed(state, ways, target, node)
        self._advance(state, i, None, gate)

    def _pushed(self, state: State, ways: list[tuple[int, int]], source: int, target: int) -> frozenset[Any]:
        """Return what plain completions from `source` to `target` push on these ways."""
        found = NOTHING
        for path, tc in ways:
            found |= self._gate(state, Tlp(COMPLETION, source, target, path, tc, False, False, (source, 0)))
        return found

    def _gate(self, state: State, completion: Tlp) -> frozenset[Any]:
        held = frozenset().union(*state.open.values()) if state.open else NOTHING
        return frozenset(pid for pid, (piece, _) in state.pieces.items() if pid not in held and _rules.waits(completion, piece.tlp))

    def _answer_gate(self, state: State, tlp: Tlp | None) -> frozenset[Any]:
        if tlp is None:
            return NOTHING
        return self._gate(state, Tlp(COMPLETION, tlp.target, tlp.source, tlp.path, tlp.tc, tlp.ro, tlp.ido, (tlp.target, 0)))

    def _change(self, state: State, obj: Any, value: Any) -> None:
        """Let an object have a value, and caching nodes remember what it was."""
        old = state.mem.get(obj, 0)
        if old == value:
            return
        state.mem[obj] = value
        if self.stale and isinstance(obj, int):
            for node in self.stale:
                if node != self.owner_of(obj) and not self._own_under_way(state, node, obj):
                    known = state.seen.get((node, obj), (old,))
                    if known[-1] != value:
                        state.seen[(node, obj)] = (*known, value)

    def _own_under_way(self, state: State, node: int, word: Any) -> bool:
        """Whether a caching node's own store to a word is in its cache or on its way."""
        return any(handle.node == node and at == word for handle, at in state.dirty) or any(
            piece.dirty and piece.tlp.source == node and piece.obj == word for piece, _ in state.pieces.values()
        )

    def _deliver(self, state: State, pid: Any) -> None:
        piece, _ = state.pieces.pop(pid)
        self._change(state, piece.obj, changed(state.mem.get(piece.obj, 0), piece.how, piece.mask, piece.value))
        for other, (its, behind) in state.pieces.items():
            if pid in behind:
                state.pieces[other] = (its, behind - {pid})
        for op, ask in state.asks.items():
            if pid in ask.behind or pid in ask.gate:
                state.asks[op] = Ask(ask.request, ask.program, ask.left, ask.behind - {pid}, ask.values, ask.gate - {pid}, ask.told)
        for i, (history, gate, phase, flush) in enumerate(state.progs):
            if pid in gate or (flush and pid in flush):
                state.progs[i] = (history, gate - {pid}, phase, flush - {pid} if flush is not None else None)
        for op, dma in state.dmas.items():
            changes: dict[str, Any] = {}
            for name in ("behind", "flush", "gate", "fenced"):
                held = getattr(dma, name)
                if held and pid in held:
                    changes[name] = held - {pid}
            if any(word is not None and word is not True and pid in word[1] for word in dma.words):
                changes["words"] = tuple(word if word is None or word is True else (word[0], word[1] - {pid}) for word in dma.words)
            if changes:
                state.dmas[op] = dma.but(**changes)
        for table in (state.open, state.fenced):
            for key, held in list(table.items()):
                if pid in held:
                    gone = {pid}
                    if table is state.open:  # its buffer has left, with what was in it before
                        gone |= self._line_before(state, held, pid, piece)
                    if len(held) == len(gone):
                        del table[key]
                    else:
                        table[key] = held - gone

    def _line_before(self, state: State, held: frozenset[Any], pid: Any, piece: Piece) -> set[Any]:
        return {other for other in held if other < pid and state.pieces[other][0].obj >> 6 == piece.obj >> 6}

    def _versions(self, state: State, handle: Handle, word: Any) -> tuple[int, ...]:
        """Return what a caching node may see in a word, oldest first."""
        own = state.dirty.get((handle, word))
        known = state.seen.get((handle.node, word), (state.mem.get(word, 0),))
        if own is None:
            return known
        mask, value = own
        if mask == WORD:
            return (value,)
        merged: list[int] = []
        for version in known:
            both = (version & ~mask) | (value & mask)
            if not merged or merged[-1] != both:
                merged.append(both)
        return tuple(merged)

    def _sample(self, state: State, op: Any, k: int, choice: int) -> None:
        ask = state.asks[op]
        request = ask.request
        obj, change, reads_cache = request.pieces[k]
        if reads_cache:
            value: Any = self._versions(state, request.handle, obj)[choice]
            known = state.seen.get((request.handle.node, obj))
            if known is not None and (request.handle, obj) not in state.dirty:
                state.seen[(request.handle.node, obj)] = known[choice:]
        else:
            value = state.mem.get(obj, 0)
            if change is not None:
                value, after = change(value)
                if after is not None:
                    self._change(state, obj, after)
            if request.handle.stale and isinstance(obj, int) and not self._own_under_way(state, request.handle.node, obj):
                state.seen[(request.handle.node, obj)] = (state.mem.get(obj, 0),)
        values = (*ask.values[:k], value, *ask.values[k + 1 :])
        left = tuple(j for j in ask.left if j != k)
        gate = NOTHING if left else self._answer_gate(state, request.tlp)
        if not left and request.kind == "ask":
            del state.asks[op]
            self._advance(state, ask.program, request.answer(values), gate)
        else:
            state.asks[op] = Ask(request, ask.program, left, ask.behind, values, gate)

    # -- DMA ----------------------------------------------------------------------------------------------------------

    def _channel(self, state: State, request: Request) -> list[Any]:
        """Return the unfinished operations of a request's channel, in order."""
        return sorted(
            op
            for op, dma in state.dmas.items()
            if not dma.complete and dma.request.handle.key == request.handle.key and dma.request.how == request.how
        )

    def _start(self, state: State, request: Request) -> None:
        waiting = self._channel(state, request)
        if not waiting:
            return
        op = waiting[0]
        dma = state.dmas[op]
        if dma.behind is not None:
            return
        behind: frozenset[Any] = NOTHING
        for tlp in {source[3] for source, _ in dma.request.words if source[3] is not None}:
            behind |= self._behind(state, tlp, dma.request.handle, NOTHING)
        state.dmas[op] = dma.but(behind=behind)
        if not dma.words:
            self._completed(state, op, state.dmas[op])

    def _fetch(self, state: State, op: Any, k: int) -> None:
        dma = state.dmas[op]
        obj, shift, _, tlp = dma.request.words[k][0]
        value = state.mem.get(obj, 0) >> shift if shift >= 0 else state.mem.get(obj, 0) << -shift
        words = (*dma.words[:k], (value & WORD, self._answer_gate(state, tlp)), *dma.words[k + 1 :])
        state.dmas[op] = dma.but(words=words)

    def _land(self, state: State, op: Any, k: int) -> None:
        dma = state.dmas[op]
        request = dma.request
        tlp, obj, how, mask = request.words[k][1]
        value = dma.words[k][0]
        if tlp is None:
            self._change(state, obj, changed(state.mem.get(obj, 0), how, mask, value))
        else:
            behind = self._behind(state, tlp, request.handle, NOTHING) | (dma.fenced & frozenset(state.pieces))
            pid = (*op, k)
            state.pieces[pid] = (Piece(tlp, obj, how, mask, value & mask, request.handle.key), behind)
            state.used = state.used | {(request.handle.key, tlp.source, tlp.target, tlp.path, tlp.tc)}
        words = (*dma.words[:k], True, *dma.words[k + 1 :])
        dma = dma.but(words=words)
        state.dmas[op] = dma
        if any(word is not True for word in words):
            return
        if request.ended and request.tlp is not None:  # visible=True: a read on its path and class
            flush = request.tlp._replace(kind=READ, ro=False, ido=False)
            state.dmas[op] = dma.but(flush=self._behind(state, flush, request.handle, NOTHING))
        else:
            self._completed(state, op, dma)

    def _completed(self, state: State, op: Any, dma: Transfer) -> None:
        state.dmas[op] = dma.but(complete=True, behind=NOTHING, flush=None, fenced=NOTHING)
        self._start(state, dma.request)

    # -- caches -------------------------------------------------------------------------------------------------------

    def _write_back(self, state: State, handle: Handle, words: list[Any]) -> None:
        before = state.pieces.copy()
        fenced = state.fenced.get(handle.key, NOTHING)
        for word in words:
            mask, value = state.dirty.pop((handle, word))
            tlp = Tlp(POSTED, handle.node, self.owner_of(word), 0, 0, False, False, handle.requester)
            number = 1 + max((pid[3] for pid in state.pieces if pid[0] == "E" and pid[1:3] == (handle.key, word)), default=0)
            probe = State.__new__(State)  # lines leave in any order: each is behind what was there before all of them
            probe.pieces, probe.open = before, state.open
            behind = self._behind(probe, tlp, handle, NOTHING) | fenced
            state.pieces[("E", handle.key, word, number)] = (Piece(tlp, word, "set", mask, value, handle.key, True), behind)
            state.used = state.used | {(handle.key, tlp.source, tlp.target, 0, 0)}
            merged = (state.mem.get(word, 0) & ~mask) | (value & mask)
            state.seen[(handle.node, word)] = (merged,)


__all__ = [
    "ATOMIC",
    "DONE",
    "NEVER",
    "POSTED",
    "READ",
    "WORD",
    "Handle",
    "Machine",
    "Piece",
    "Process",
    "Request",
    "State",
    "Thrown",
    "answer_objects",
    "issue_objects",
    "line_object",
    "stream_object",
]
