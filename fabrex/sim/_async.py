# SPDX-License-Identifier: Apache-2.0
"""`async` programs under the virtual clock: an event loop of the program's own, whose time is the fabric's.

`asyncio.sleep`, timeouts, queues, tasks and `await` on the fabric's operations work as ever. Where a loop would block in
select() the program waits for virtual time, or for something to change.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from ..node import Node

_CHANGE = 5
_NEVER = (1 << 64) - 1


class _Selector(selectors.BaseSelector):
    """Waits in virtual time; descriptors are looked at whenever something has happened."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._real = selectors.PollSelector()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        node, scheduler = self._node, self._node._scheduler
        now = node.fabric.now_ps
        deadline = _NEVER if timeout is None else now + max(round(timeout * 1e12), 0)
        ready = self._real.select(0)
        if not ready and deadline <= now:
            scheduler.point()
        while not ready and node.fabric.now_ps < deadline:
            scheduler.watch(node._address, _CHANGE, 0, deadline)
            ready = self._real.select(0)
        return ready


class _Loop(asyncio.SelectorEventLoop):
    """A loop whose clock is the fabric's."""

    def __init__(self, node: Node) -> None:
        self._fabric = node.fabric
        super().__init__(_Selector(node))
        self._clock_resolution = 1e-12

    def time(self) -> float:
        return self._fabric.now_ps / 1e12


def runner(program: Callable[[Node], Coroutine[Any, Any, Any]], after: list[Any], number: int) -> Callable[[Node], Any]:
    """Return a plain program that runs an async one in a loop of its own.

    `after[number]` is called whenever the program goes on: which loop runs is known to a thread, and programs share one.
    """

    def start(node: Node) -> Any:
        loop = _Loop(node)
        after[number] = _Again(loop)
        asyncio._set_running_loop(None)
        task = loop.create_task(program(node))
        try:
            value = loop.run_until_complete(task)
            _end_tasks(loop)
            return value
        except Exception:
            _end_tasks(loop)
            raise
        finally:
            after[number] = None
            for left in asyncio.all_tasks(loop):  # the run is over, and they with it
                left._log_destroy_pending = False  # type: ignore[attr-defined]
                left.get_coro().close()
            asyncio._set_running_loop(None)
            loop.close()

    return start


class _Again:
    """Called when the program goes on; also tells where its coroutines are."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    def __call__(self) -> None:
        asyncio._set_running_loop(self.loop)

    def frames(self) -> list[Any]:
        return [frame for task in asyncio.all_tasks(self.loop) for frame in task.get_stack()]


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """End what the program left behind, as asyncio.run would."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
