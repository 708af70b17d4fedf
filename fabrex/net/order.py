# SPDX-License-Identifier: Apache-2.0
"""The coordinator's order of changes: their numbers, and who has made which.

One change at a time is numbered, made on the coordinator's machine, and put on the way to all others; what comes back of it is
awaited by nobody: whoever asked is answered when the last machine has said that it made it, or was lost.

Connections break, and their members go on over others: changes are kept until all have made them, and sent again from the first
that a member lacks. What a member asked for is remembered, so that asking again asks for nothing more.

Owns: numbers, and what is on its way. Must not know: what changes are, how a machine is reached.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .admission import send_message
from .control import Outcome, State

__all__ = ["Line", "Order"]

LINGER_S = 0.5
MOST_WAITING = 100_000
"""Messages that may wait for a connection; one with more is broken."""
REMEMBERED = 4096
"""Requests of a member whose answers are kept, in case that these were lost with their connection."""


class Line:
    """What is sent over one control connection, in order, by a thread: who does not read keeps nobody else waiting.

    A connection that breaks, takes nothing, or whose other side is too far behind, is shut down: whoever reads it notices.
    """

    def __init__(self, sock: socket.socket, start: Callable[[Callable[[], None]], None]) -> None:
        self.sock = sock
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._closing = False
        start(self._send)

    def put(self, message: Any) -> None:
        """Send it when all that was put before is sent."""
        if self._closing:
            return
        if self._queue.qsize() > MOST_WAITING:
            self._shut()
        self._queue.put(message)

    def close(self, wait: float = 0.0, last: Any = None) -> None:
        """Send `last`, and end the connection once that is sent or `wait` seconds have passed."""
        if last is not None:
            self.put(last)
        self._closing = True
        self._queue.put(None)
        if wait:
            self._ended.wait(wait)
            self._shut()

    def _shut(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def _send(self) -> None:
        try:
            while (message := self._queue.get()) is not None:
                send_message(self.sock, message)
        except OSError:
            pass
        finally:
            self._shut()
            self._ended.set()


@dataclass
class Pending:
    """A change that is not made everywhere yet."""

    waiting: set[str]
    outcome: Outcome
    answer: Callable[[Outcome, int], None] | None


class Order:
    """The coordinator's: gives changes their numbers, has them made on all machines, and knows who has made which.

    Args:
        state: the coordinator's own.
        make: makes a change here, and takes it into `state`.
        told: called when all have made all changes up to a number.
    """

    def __init__(
        self, mine: str, state: State, make: Callable[[Mapping[str, Any], int], Outcome], told: Callable[[int], None]
    ) -> None:
        self._mine, self._state, self._make, self._told = mine, state, make, told
        self._turn = threading.RLock()  # one change at a time is made here and sent to all
        self._lock = threading.Lock()
        self._lines: dict[str, Line] = {}
        self._made: dict[str, int] = {}
        self._pending: dict[int, Pending] = {}
        self._log: dict[int, dict[str, Any]] = {}  # messages with changes that somebody may lack
        self._asked: dict[str, dict[int, Any]] = {}  # member -> request -> answer; None: it is under way
        self._numbered = 0
        self._everywhere = 0

    def change(self, change: Mapping[str, Any], answer: Callable[[Outcome, int], None] | None = None) -> None:
        """Give a change the next number, make it here, and have it made by all others. `answer` is called when that is done.

        What cannot be made here gets no number: nobody else has to undo it.
        """
        with self._turn:
            self._number(change, answer)
        self._settle()

    def join(self, name: str, change: Mapping[str, Any], line: Line) -> None:
        """A machine comes: the others hear of it, and it is given all there is."""
        with self._turn:
            self._number(change, None, name, line)
        self._settle()

    def back(self, name: str, epoch: int, line: Line) -> bool:
        """A member that has made all changes up to that one goes on over another connection; False: it cannot."""
        with self._turn, self._lock:
            before = self._lines.get(name)
            missing = range(epoch + 1, self._state.epoch + 1)
            if before is None or epoch < self._made[name] or epoch > self._state.epoch or any(e not in self._log for e in missing):
                return False
            self._lines[name] = line
            line.put({"ok": True})
            for number in missing:
                line.put(self._log[number])
            line.put({"everywhere": self._everywhere})
        before.close()
        return True

    def ask(self, name: str, number: int, change: Mapping[str, Any]) -> None:
        """A member asks for a change, by a number of its own; 0: it wants no answer. Once, however often it says so."""
        with self._lock:
            line = self._lines.get(name)
            if line is None:
                return  # it was given up meanwhile
            asked = self._asked.setdefault(name, {})
            if number in asked:
                if asked[number] is not None:
                    line.put(asked[number])
                return
            if number:
                asked[number] = None
                for old in list(asked)[: max(len(asked) - REMEMBERED, 0)]:
                    if asked[old] is not None:
                        del asked[old]

        def answer(outcome: Outcome, epoch: int) -> None:
            message = {"answer": number, "status": outcome.status, "words": outcome.words, "made": outcome.made, "epoch": epoch}
            with self._lock:
                if self._asked.get(name) is asked and name in self._lines:  # and not one that came in its place
                    asked[number] = message
                    self._lines[name].put(message)

        self.change(change, answer if number else None)

    def leave(self, name: str) -> None:
        """A machine is gone, whatever the reason. Nothing happens if it was gone already."""
        with self._turn:
            with self._lock:
                line = self._lines.pop(name, None)
                self._made.pop(name, None)
                self._asked.pop(name, None)
                if line is None:
                    return
                for pending in self._pending.values():
                    if name in pending.waiting and pending.outcome.home == name:
                        pending.outcome = Outcome.lost(name)
                    pending.waiting.discard(name)
            line.close(LINGER_S, {"cut": "the coordinator has given it up"})
            self._number({"what": "leave", "machine": name}, None)
        self._settle()

    def made(self, name: str, epoch: int, outcome: Outcome) -> None:
        """A machine has made a change. It may say so twice, over two connections."""
        with self._lock:
            if name in self._made and epoch <= self._made[name]:
                return
            if name not in self._made or epoch != self._made[name] + 1 or epoch > self._state.epoch:
                raise ValueError(f"{name} says that it made change {epoch}")
            self._made[name] = epoch
            pending = self._pending.get(epoch)
            if pending is not None:
                pending.waiting.discard(name)
                if outcome.status and not pending.outcome.status:
                    pending.outcome = outcome
        self._settle()

    def behind(self) -> dict[str, int]:
        """Who has not made all changes yet, and how far it is."""
        with self._lock:
            return {name: epoch for name, epoch in self._made.items() if epoch < self._state.epoch}

    def is_of(self, name: str, line: Line) -> bool:
        """Whether that member's connection is this one, and not an earlier one."""
        with self._lock:
            return self._lines.get(name) is line

    def lines(self) -> dict[str, Line]:
        """The connections to members."""
        with self._lock:
            return dict(self._lines)

    def _number(
        self, change: Mapping[str, Any], answer: Callable[[Outcome, int], None] | None, name: str = "", line: Line | None = None
    ) -> None:
        epoch = self._state.epoch + 1
        outcome = self._make(change, epoch)
        if not outcome.made:
            if answer is not None:
                answer(outcome, 0)
            return
        with self._lock:
            if line is not None:
                self._lines[name] = line
                self._made[name] = epoch - 1
            lines = dict(self._lines)
            self._numbered = epoch
            self._pending[epoch] = Pending(set(lines), outcome, answer)
            self._log[epoch] = message = {"epoch": epoch, "change": dict(change)}
        for other in lines.values():
            other.put({"state": self._state.to_message()} if other is line else message)

    def _settle(self) -> None:
        """Answer what is done; and tell all how far everybody is."""
        with self._lock:
            done = [(epoch, self._pending[epoch]) for epoch in sorted(self._pending) if not self._pending[epoch].waiting]
            for epoch, _ in done:
                del self._pending[epoch]
            everywhere = min(self._made.values(), default=self._numbered)
            lines = list(self._lines.values()) if everywhere > self._everywhere else []
            self._everywhere = max(self._everywhere, everywhere)
            for epoch in [epoch for epoch in self._log if epoch <= self._everywhere]:
                del self._log[epoch]
            for line in lines:
                line.put({"everywhere": self._everywhere})
            reached = self._everywhere
        self._told(reached)
        for epoch, pending in done:
            if pending.answer is not None:
                pending.answer(pending.outcome, epoch)
