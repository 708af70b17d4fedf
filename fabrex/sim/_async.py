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
    """Return a plain program that runs an async one in a loop of its own."""

    def start(node: Node) -> Any:
        loop = _Loop(node)

        def again() -> None:
            asyncio._set_running_loop(loop)

        after[number] = again
        asyncio._set_running_loop(None)
        try:
            return loop.run_until_complete(_whole(program(node)))
        finally:
            after[number] = None
            asyncio._set_running_loop(None)
            loop.close()

    return start


async def _whole(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run it, then end what it left behind, as asyncio.run would."""
    try:
        return await coroutine
    finally:
        me = asyncio.current_task()
        left = [task for task in asyncio.all_tasks() if task is not me]
        for task in left:
            task.cancel()
        if left:
            await asyncio.gather(*left, return_exceptions=True)
