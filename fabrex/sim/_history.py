# SPDX-License-Identifier: Apache-2.0
"""Programs under the exhaustive clock, as trees of histories.

A program is a plain function of `node`. It runs in a greenlet; each call of the fabric hands a request out and waits for its
answer. What a program does next depends only on the answers that it got, so the search does not keep programs but *histories*:
a tree in which each node is a request and each branch an answer. A program is run only to grow the tree; where the greenlet at
hand stands elsewhere, a new one is fed the answers again. A program that only waits in a loop comes back to where it was: its
history then leads back instead of growing.

Knows requests as things to hand out, and nothing of what is in them.
"""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Callable
from typing import Any

from ..errors import FabricError
from ._machine import Request


class Raised(tuple[str, str]):
    """What a program returned that raised: the exception's name and its text."""

    __slots__ = ()

    def __new__(cls, name: str, text: str = "") -> Raised:
        return super().__new__(cls, (name, text))

    def __repr__(self) -> str:
        return f"Raised({self[0]!r}, {self[1]!r})"


class Stuck(str):
    """What a program returned that waits for ever: the call that it is in."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Stuck({str(self)!r})"


class NotRepeatable(FabricError):
    """A program did something else although it got the same answers: it depends on more than the fabric."""


def frozen(value: Any) -> Any:
    """Return a hashable form of what a program returned."""
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return value if isinstance(value, (Raised, Stuck)) else tuple(frozen(item) for item in value)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, dict):
        return tuple(sorted((frozen(key), frozen(item)) for key, item in value.items()))
    if isinstance(value, (set, frozenset)):
        return frozenset(frozen(item) for item in value)
    if hasattr(value, "tolist"):
        return frozen(value.tolist())
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value


class Standing:
    """Base of what a program may hold of the fabric: `_standing` is equal as long as nothing has changed about it."""

    def _standing(self) -> Any:
        raise NotImplementedError


class History:
    """Where a program stands: the answers that it got, and what it wants next.

    Attributes:
        number: tells histories of one exploration apart.
        depth: calls made before.
        request: the next call, or None.
        finished, returned: whether it has ended, and with what.
        footprint: everything that may be accessed from here on, as far as the tree is known.
    """

    __slots__ = ("answer", "children", "depth", "finished", "footprint", "number", "parent", "request", "returned", "state")

    def __init__(self, number: int, parent: History | None, answer: Any) -> None:
        self.number, self.parent, self.answer = number, parent, answer
        self.depth: int = parent.depth + 1 if parent is not None else 0
        self.children: dict[Any, History] = {}
        self.request: Any = None
        self.finished, self.returned = False, None
        self.footprint: Any = (frozenset(), frozenset())
        self.state: Any = None


class Program:
    """One node's program and the tree of its histories."""

    def __init__(self, index: int, name: str, function: Callable[[Any], Any], attach: Callable[[Program], Any]) -> None:
        self.index, self.name, self.function, self.attach = index, name, function, attach
        self.grown = 0  # histories found since somebody looked
        self._greenlet: Any = None
        self._node: Any = None
        self._at: History | None = None
        self._count = 0
        self.root = self._new(None, None)
        self._restart()
        started: Any = self._greenlet
        self._note(self.root, started.switch())

    def _new(self, parent: History | None, answer: Any) -> History:
        self._count += 1
        self.grown += 1
        return History(self._count, parent, answer)

    def _restart(self) -> None:
        from greenlet import greenlet

        self.close()
        self._node = self.attach(self)
        node, function = self._node, self.function

        def body() -> Any:
            try:
                returned = function(node)
                if hasattr(returned, "__await__") or hasattr(returned, "send"):
                    returned = _finish(returned)
                return ("returned", frozen(returned))
            except Exception as error:
                return ("returned", Raised(type(error).__name__, str(error)))

        self._greenlet = greenlet(body)

    def close(self) -> None:
        """End the greenlet; what the program does while it is unwound has no effect."""
        if self._greenlet is not None and not self._greenlet.dead and self._greenlet:
            self._node._dead = True
            self._greenlet.throw()
        self._greenlet = None
        self._at = None

    def _note(self, history: History, outcome: Any) -> None:
        if isinstance(outcome, Request):
            history.request = outcome
            history.footprint = outcome.future
            history.state = self._node._stack
            self._at = history
        else:
            history.finished, history.returned = True, outcome[1]
            self._at = None

    def after(self, history: History, answer: Any) -> History:
        """Return where the program stands after an answer."""
        child = history.children.get(answer)
        if child is None:
            if self._at is not history:
                self._replay(history)
            child = self._new(history, answer)
            self._note(child, self._greenlet.switch(answer))
            again = _turn_before(child)
            if again is not None:
                child = self._at = again
            history.children[answer] = child
        return child

    def _replay(self, history: History) -> None:
        path = []
        at: History | None = history
        while at is not None:
            path.append(at)
            at = at.parent
        self._restart()
        got = self._greenlet.switch()
        for step in reversed(path):
            if step.parent is not None:
                got = self._greenlet.switch(step.answer)
            if not isinstance(got, Request) or not got.same_as(step.request):
                now = got.text if isinstance(got, Request) else "an end"
                raise NotRepeatable(
                    f"{self.name} came to {now} where it had come to {step.request.text}, with the same answers",
                    node=self.name,
                    hint="a program under explore() depends on nothing but the fabric: no time, no chance, no shared objects",
                )
        self._at = history

    def verify(self) -> None:
        """Run the longest of its histories once more: it must come to the same calls. Raises NotRepeatable."""
        deepest, stack = self.root, [self.root]
        while stack:
            history = stack.pop()
            if history.depth > deepest.depth and history.request is not None:
                deepest = history
            stack += [child for child in history.children.values() if child.parent is history]
        if deepest.request is not None:
            self._replay(deepest)

    def refresh(self) -> None:
        """Bring all footprints up to what the tree knows now."""
        order, stack = [], [self.root]
        while stack:
            history = stack.pop()
            order.append(history)
            stack += [child for child in history.children.values() if child.parent is history]
        changed = True
        while changed:  # once, or more often where loops lead back
            changed = False
            for history in reversed(order):
                if history.request is None:
                    continue
                reads, writes = history.footprint
                for child in history.children.values():
                    if not (child.footprint[0] <= reads and child.footprint[1] <= writes):
                        reads, writes = reads | child.footprint[0], writes | child.footprint[1]
                        history.footprint = (reads, writes)
                        changed = True
        self.grown = 0


LOOPING = {"local", "ask", "poll", "ready"}  # calls that leave nothing under way behind


def _turn_before(history: History) -> History | None:
    """Return an earlier history in which the program was as it is now, if it is in a loop that waits for something.

    It was, if its frames and their variables are the same and it came here twice by the same calls with the same answers: the
    first turn of a loop may still remember what was before it in the middle of an expression.
    """
    if history.state is None or history.request is None:
        return None
    turn: list[Any] = []
    at = history
    first: History | None = None
    while at.parent is not None and at.parent.state is not None and at.parent.request.kind in LOOPING:
        turn.append((at.answer, at.parent.state, at.parent.request.text))
        at = at.parent
        if at.state == history.state and at.request.same_as(history.request):
            first = at
            break
    if first is None:
        return None
    for answer, state, text in turn:
        if at.parent is None or at.parent.request.kind not in LOOPING:
            return None
        if at.answer != answer or at.parent.state != state or at.parent.request.text != text:
            return None
        at = at.parent
    return first


def _finish(coroutine: Any) -> Any:
    """Run a coroutine to its end: what it awaits has been answered when it comes back."""
    try:
        while True:
            coroutine.send(None)
    except StopIteration as stop:
        return stop.value


def frames() -> list[Any]:
    """Return the frames of the program that made a call, innermost first."""
    here = __file__.rpartition("/")[0]
    frame: Any = sys._getframe(2)
    found = []
    while frame is not None:
        if not frame.f_code.co_filename.startswith(here):
            found.append(frame)
        frame = frame.f_back
    return found


def fingerprint(calls: list[Any]) -> Any:
    """Return where a program stands: the same again means that it is in a loop that changed nothing. None if it cannot be known."""
    found = []
    for frame in calls:
        if any(start <= frame.f_lasti < end for start, end in _iterations(frame.f_code)):
            return None  # how far an iteration has come is nowhere to be seen
        known = []
        for name, value in frame.f_locals.items():
            simple = _simple(value)
            if simple is None:
                return None
            known.append((name, simple))
        found.append((frame.f_code, frame.f_lasti, tuple(known)))
    return tuple(found)


@functools.cache
def _iterations(code: Any) -> tuple[tuple[int, int], ...]:
    """Return the parts of a code object that are inside `for`."""
    return tuple((each.offset, each.argval) for each in dis.get_instructions(code) if each.opname == "FOR_ITER")


def _simple(value: Any) -> Any:
    """Return something that is equal for values that are and stay the same, or None."""
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return (type(value), value)
    if isinstance(value, (tuple, frozenset)):
        parts = tuple(_simple(item) for item in value)
        return None if None in parts else (type(value), parts)
    if isinstance(value, Standing):
        return (type(value), value._standing())
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type)):
        return (type(value), id(value))
    if isinstance(value, types.MethodType):
        return _simple(value.__self__) and (value.__func__, _simple(value.__self__))
    return None


__all__ = ["History", "NotRepeatable", "Program", "Raised", "Standing", "Stuck", "fingerprint", "frames", "frozen"]
