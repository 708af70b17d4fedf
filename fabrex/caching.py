# SPDX-License-Identifier: Apache-2.0
"""A node that caches fabric memory without coherence, as a processor does that maps a window write-back.

It keeps seeing old bytes until it invalidates, and its own stores stay invisible to peers until they are written back. When a
line is fetched anew or leaves by itself is nobody's promise: the seed decides. Atomics, DMA, NTB registers and operations of
`begin` go around the cache.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Final

from ._handle import lib
from .errors import InvalidArgument, WaitTimeout
from .node import COMPARE, Node, seconds_to_ps

if TYPE_CHECKING:
    from .fabric import Fabric

__all__ = ["CachingNode"]

LINE: Final = 64
_STALE = 7  # the kind of decision: whether a cached line is used again, and which one leaves
_BUS = 1 << 63
_SLOT = 40


class _Line:
    """One line: its bytes, and a bit for each that is valid and for each that is dirty."""

    __slots__ = ("data", "dirty", "valid")

    def __init__(self) -> None:
        self.data = bytearray(LINE)
        self.valid = 0
        self.dirty = 0


def _pieces(gva: int, size: int) -> list[tuple[int, int, int]]:
    """Return (line, first byte in it, bytes) of a range."""
    found = []
    while size > 0:
        base = gva & ~(LINE - 1)
        count = min(size, base + LINE - gva)
        found.append((base, gva - base, count))
        gva, size = gva + count, size - count
    return found


def _mask(first: int, count: int) -> int:
    return ((1 << count) - 1) << first


class CachingNode(Node):
    """A node with a cache of remote memory that nobody keeps coherent; made by `fabric.attach(name, stale=True)`.

    Same calls as `Node`; `invalidate` and `writeback` are what a program owes its peers.
    """

    def __init__(self, fabric: Fabric, name: str, kind: int = 2) -> None:
        super().__init__(fabric, name, kind)
        self._lines: dict[int, _Line] = {}
        nodes = list(fabric.topology.nodes.values())
        own = {slot for slot, node in enumerate((n for n in nodes for _ in n.memory), 1) if node.name == name}
        self._own = own | {sum(len(node.memory) for node in nodes) + 1 + [n.name for n in nodes].index(name)}

    def _cached(self, gva: int) -> bool:
        """Whether an address is remote memory; a node's own memory is coherent, and windows are mapped uncached."""
        return not gva & _BUS and gva >> _SLOT not in self._own

    def _choose(self, count: int) -> int:
        return int(lib.fbx_choose(self.fabric._live(), _STALE, count))

    def _step(self) -> None:
        """Something may leave by itself."""
        dirty = [base for base, line in self._lines.items() if line.dirty]
        if dirty and (leaves := self._choose(3 * len(dirty))) and leaves <= len(dirty):
            self._write_line(dirty[leaves - 1])

    def _write_line(self, base: int) -> None:
        """Post the dirty bytes of a line, in words where they are whole."""
        line = self._lines[base]
        dirty, line.dirty, first = line.dirty, 0, 0
        while first < LINE:
            if first % 8 == 0 and dirty >> first & 0xFF == 0xFF:
                super().store(base + first, int.from_bytes(line.data[first : first + 8], "little"))
                first += 8
                continue
            if dirty >> first & 1:
                super().store(base + first, line.data[first], size=1)
            first += 1

    def _fetch(self, base: int) -> _Line:
        """Read a line; bytes of ours that have not left stay as they are."""
        line = self._lines.setdefault(base, _Line())
        fresh: bytes = super().load(base, size=LINE)
        for i in range(LINE):
            if not line.dirty >> i & 1:
                line.data[i] = fresh[i]
        line.valid = _mask(0, LINE)
        return line

    def _look(self, gva: int, size: int) -> bytes:
        self._point()  # a hit asks nothing of the fabric, and yet takes its time
        self._step()
        out = bytearray()
        for base, first, count in _pieces(gva, size):
            line, wanted = self._lines.get(base), _mask(first, count)
            if line is None or line.valid & wanted != wanted or (line.dirty & wanted != wanted and not self._choose(4)):
                line = self._fetch(base)
            out += line.data[first : first + count]
        return bytes(out)

    def _change(self, gva: int, data: Any) -> None:
        self._point()
        self._step()
        view, done = memoryview(data).cast("B"), 0
        for base, first, count in _pieces(gva, len(view)):
            line = self._lines.setdefault(base, _Line())
            line.data[first : first + count] = view[done : done + count]
            line.valid |= _mask(first, count)
            line.dirty |= _mask(first, count)
            done += count
            if not self._choose(4):
                self._write_line(base)

    # -- what goes through the cache ----------------------------------------------------------------------------------

    def load(self, gva: int, /, size: int = 8, **attributes: Any) -> Any:
        """As `Node.load`; from the cache if the line is there."""
        gva, size = operator.index(gva), operator.index(size)
        if not self._cached(gva) or size not in (1, 2, 4, 8, 16, 32, 64) or gva % size:
            return super().load(gva, size, **attributes)
        found = self._look(gva, size)
        return int.from_bytes(found, "little") if size <= 8 else found

    def store(self, gva: int, value: Any, /, size: int = 8, **attributes: Any) -> None:
        """As `Node.store`; into the cache, from which the line leaves some time."""
        gva, size = operator.index(gva), operator.index(size)
        if not self._cached(gva) or size not in (1, 2, 4, 8, 16, 32, 64) or gva % size:
            super().store(gva, value, size, **attributes)
            return
        if isinstance(value, (bytes, bytearray, memoryview)):
            data = bytes(value)
            if len(data) != size:
                raise InvalidArgument(f"{len(data)} bytes for a store of {size}")
        else:
            data = operator.index(value).to_bytes(size, "little")
        self.estimate("store", gva, size)  # an address that is none says so now, not when the line leaves
        self._change(gva, data)

    def readinto(self, gva: int, array: Any, **attributes: Any) -> int:
        """As `Node.readinto`; from the cache, line by line."""
        view = memoryview(array).cast("B")
        if not self._cached(gva) or not len(view):
            return super().readinto(gva, array, **attributes)
        view[:] = self._look(operator.index(gva), len(view))
        return len(view)

    def write(self, gva: int, data: Any, **attributes: Any) -> int:
        """As `Node.write`; into the cache, line by line."""
        view = memoryview(data).cast("B")
        if not self._cached(gva) or not len(view):
            return super().write(gva, data, **attributes)
        self.estimate("write", gva, len(view))
        self._change(operator.index(gva), view)
        return len(view)

    def gather(self, gvas: Any, out: Any, size: int | None = None) -> None:
        """As `Node.gather`, through the cache."""
        addresses, view = list(gvas), memoryview(out).cast("B")
        each = len(view) // max(len(addresses), 1) if size is None else size
        for i, gva in enumerate(addresses):
            self.readinto(int(gva), view[i * each : (i + 1) * each])

    def scatter(self, gvas: Any, values: Any, size: int | None = None) -> None:
        """As `Node.scatter`, through the cache."""
        addresses, view = list(gvas), memoryview(values).cast("B")
        each = len(view) // max(len(addresses), 1) if size is None else size
        for i, gva in enumerate(addresses):
            self.write(int(gva), view[i * each : (i + 1) * each])

    def wait_until(self, gva: int, compare: str, value: int, timeout: float | None = None, *, size: int = 8) -> int:
        """As `Node.wait_until`: it looks at its cached copy until the line is fetched anew."""
        gva = operator.index(gva)
        if not self._cached(gva) or compare not in COMPARE or size not in (1, 2, 4, 8) or gva % size:
            return super().wait_until(gva, compare, value, timeout, size=size)
        deadline = None if timeout is None else self.fabric.now_ps + seconds_to_ps(timeout)
        while True:
            found = int(self.load(gva, size=size))
            if COMPARE[compare](found, value):
                return found
            if deadline is not None and self.fabric.now_ps >= deadline:
                raise WaitTimeout(
                    f"the cached value at {gva:#x} is {found} and was to be {compare} {value} within {timeout} s",
                    op="wait",
                    node=self.name,
                    gva=gva,
                )
            self._pointer()

    # -- what a program owes its peers --------------------------------------------------------------------------------

    def writeback(self, gva: int, size: int = LINE) -> None:
        """Let cached stores to a range leave, as posted writes in any order among themselves."""
        lines = [base for base, _, _ in _pieces(gva & ~(LINE - 1), size + gva % LINE)]
        waiting = [base for base in lines if base in self._lines and self._lines[base].dirty]
        while waiting:
            self._write_line(waiting.pop(self._choose(len(waiting))))

    def invalidate(self, gva: int, size: int = LINE) -> None:
        """Forget a range: later loads fetch what is there then. What was stored there is written back first."""
        self.writeback(gva, size)
        for base, _, _ in _pieces(gva & ~(LINE - 1), size + gva % LINE):
            self._lines.pop(base, None)

    def close(self) -> None:
        """Detach. Lines that were not written back are lost."""
        self._lines.clear()
        super().close()

    # -- what goes around it: our own bytes must be there first -------------------------------------------------------

    def _around(self, gva: int, size: int) -> None:
        if self._cached(gva):
            self.invalidate(gva, size)

    def fetch_add(self, gva: int, value: int, /, size: int = 8, **attributes: Any) -> int:
        """As `Node.fetch_add`, at the memory itself; this node's copy of the line goes."""
        self._around(gva, size)
        return super().fetch_add(gva, value, size, **attributes)

    def swap(self, gva: int, value: int, /, size: int = 8, **attributes: Any) -> int:
        """As `Node.swap`, at the memory itself; this node's copy of the line goes."""
        self._around(gva, size)
        return super().swap(gva, value, size, **attributes)

    def compare_swap(self, gva: int, expected: int, desired: int, /, size: int = 8, **attributes: Any) -> int:
        """As `Node.compare_swap`, at the memory itself; this node's copy of the line goes."""
        self._around(gva, size)
        return super().compare_swap(gva, expected, desired, size, **attributes)
