# SPDX-License-Identifier: Apache-2.0
"""The standard library's clocks, chance and threads, caught while programs run under the virtual clock.

Functions of modules are replaced for the time of the run, in their modules and in the globals of the programs, where
`from time import sleep` has put them. Only the thread that runs the programs is refused; others get what they asked for.
"""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from ._errors import NotDeterministic

_NOW = "node.now_ps, or node.fabric.now_ps: the fabric's time"
_SLEEP = "node.sleep(seconds): it takes fabric time"
_CHANCE = "node.random: a random.Random that follows from the seed"
_THREADS = "more programs: fabrex.sim.run takes several for one node, as a list; async programs have tasks"

_CLOCKS = ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time", "process_time_ns",
           "thread_time", "thread_time_ns", "clock_gettime", "clock_gettime_ns", "localtime", "gmtime", "ctime")  # fmt: skip
_WITH_ARGUMENT = {"localtime", "gmtime", "ctime"}  # harmless if they are told the time
_CHANCES = ("random", "randint", "randrange", "uniform", "choice", "choices", "shuffle", "sample", "getrandbits", "randbytes",
            "gauss", "normalvariate", "expovariate", "betavariate", "triangular", "seed")  # fmt: skip
_SECRETS = ("token_bytes", "token_hex", "token_urlsafe", "randbelow", "randbits", "choice")

_active = False
_thread_id = 0
_table: dict[int, Any] | None = None
_places: list[tuple[Any, str, Any, Any]] = []


def _refusing(name: str, original: Any, instead: str, *, unless_told: bool = False) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        if not _active or _thread.get_ident() != _thread_id or (unless_told and args and args[0] is not None):
            return original(*args, **kwargs)
        raise NotDeterministic(
            f"{name}() was called by a program under the virtual clock: the same seed would not give the same run. Use {instead}."
        )

    refuse.__name__ = getattr(original, "__name__", name)
    refuse.__wrapped__ = original  # type: ignore[attr-defined]
    return refuse


def _datetimes() -> list[tuple[Any, str, Any, Any]]:
    import datetime as module

    found: list[tuple[Any, str, Any, Any]] = []
    for name, methods in (("datetime", ("now", "utcnow", "today")), ("date", ("today",))):
        original = getattr(module, name)

        class Meta(type):
            _original = original

            def __instancecheck__(cls, value: object) -> bool:
                return isinstance(value, cls._original)

            def __subclasscheck__(cls, kind: type) -> bool:
                return issubclass(kind, cls._original)

            def __call__(cls, *args: Any, **kwargs: Any) -> Any:
                return cls._original(*args, **kwargs)

        body = {m: staticmethod(_refusing(f"datetime.{name}.{m}", getattr(original, m), _NOW)) for m in methods}
        found.append((module, name, original, Meta(name, (original,), body)))
    return found


def _prepare() -> None:
    """Find what is replaced by what, once for each process."""
    global _table
    import os
    import random
    import time
    import uuid

    def add(module: Any, name: str, called: str, instead: str, **how: Any) -> None:
        original = getattr(module, name, None)
        if original is not None:
            _places.append((module, name, original, _refusing(called, original, instead, **how)))

    for name in _CLOCKS:
        add(time, name, f"time.{name}", _NOW, unless_told=name in _WITH_ARGUMENT)
    add(time, "sleep", "time.sleep", _SLEEP)
    for name in _CHANCES:
        add(random, name, f"random.{name}", _CHANCE)
    add(os, "urandom", "os.urandom", _CHANCE)
    add(os, "getrandom", "os.getrandom", _CHANCE)
    add(random, "_urandom", "os.urandom", _CHANCE)
    for name in ("uuid1", "uuid4"):
        add(uuid, name, f"uuid.{name}", f"{_CHANCE}: uuid.UUID(int=node.random.getrandbits(128))")
    import secrets

    for name in _SECRETS:
        add(secrets, name, f"secrets.{name}", _CHANCE)
    add(threading.Thread, "start", "threading.Thread.start", _THREADS)
    add(_thread, "start_new_thread", "_thread.start_new_thread", _THREADS)
    add(os, "fork", "os.fork", _THREADS)

    original_random = random.Random

    class Random(original_random):  # type: ignore[misc, valid-type]
        """random.Random that wants a seed."""

        def __init__(self, x: Any = None) -> None:
            if x is None and _active and _thread.get_ident() == _thread_id:
                raise NotDeterministic(f"random.Random() without a seed takes one from the machine. Use {_CHANCE}.")
            super().__init__(x)

    _places.append((random, "Random", original_random, Random))
    _places.extend(_datetimes())
    _table = {id(original): replacement for _, _, original, replacement in _places}


_known: dict[int, tuple[Any, int, list[str]]] = {}


def _taken(space: dict[str, Any]) -> list[str]:
    """Return the names in a program's globals that hold something that is replaced."""
    assert _table is not None
    key = id(space)
    found = _known.get(key)
    if found is not None and found[0] is space and found[1] == len(space):
        return found[2]
    names = [name for name, value in space.items() if id(value) in _table]
    _known[key] = (space, len(space), names)
    return names


class Guard:
    """While it is entered, what is not deterministic is refused to this thread's programs."""

    def __init__(self, programs: Iterable[Callable[..., Any]]) -> None:
        if _table is None:
            _prepare()
        self._spaces: list[tuple[dict[str, Any], list[str]]] = []
        seen: set[int] = set()
        for program in programs:
            space = getattr(_inner(program), "__globals__", None)
            if space is None or id(space) in seen or space is sys.modules.get("fabrex.sim._guard", sys).__dict__:
                continue
            seen.add(id(space))
            names = _taken(space)
            if names:
                self._spaces.append((space, names))
        self._undo: list[tuple[dict[str, Any], str, Any]] = []

    def __enter__(self) -> Guard:
        global _active, _thread_id
        assert _table is not None
        _thread_id = _thread.get_ident()
        _active = True
        for module, name, _, replacement in _places:
            setattr(module, name, replacement)
        for space, names in self._spaces:
            for name in names:
                value = space.get(name)
                if id(value) in _table:
                    self._undo.append((space, name, value))
                    space[name] = _table[id(value)]
        return self

    def __exit__(self, *_: object) -> None:
        global _active
        _active = False
        for module, name, original, _replacement in _places:
            setattr(module, name, original)
        for space, name, value in self._undo:
            space[name] = value
        self._undo.clear()


class Allowed:
    """Inside a run, for the library's own work: nothing is refused."""

    def __enter__(self) -> None:
        global _active
        self._was = _active
        _active = False

    def __exit__(self, *_: object) -> None:
        global _active
        _active = self._was


def _inner(program: Any) -> Any:
    """Return the function inside partials, bound methods and wrappers."""
    for _ in range(16):
        inner = getattr(program, "__wrapped__", None) or getattr(program, "func", None) or getattr(program, "__func__", None)
        if inner is None:
            break
        program = inner
    if not hasattr(program, "__globals__") and not isinstance(program, type):
        program = type(program).__dict__.get("__call__", program)
    return program
