# SPDX-License-Identifier: Apache-2.0
"""Which node this process is, and how process addresses become global ones.

Programs that use NIXL name memory by process addresses, of their own and of others. Registration gives each range a global
address; an agent's metadata carries the table, and a peer looks its blocks up in it, ten thousand at a time.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

import numpy as np

from ..errors import AddressError, Busy, FabricError, InvalidArgument
from ..fabric import attach
from ..node import Node
from ..registered import Registered
from ._bindings import nixl_mem_t, nixlBackendError, nixlInvalidParamError, nixlNotFoundError

SUPPORTED = (nixl_mem_t.DRAM_SEG,)
Rows = np.ndarray[Any, Any]

_attached: dict[tuple[int, str, str], tuple[Node, int]] = {}
_lock = threading.Lock()


class Attachment:
    """The node of one or more agents of this process: attached by the first, detached after the last."""

    def __init__(self, node: Node | None = None) -> None:
        self._key: tuple[int, str, str] | None = None
        if node is not None:
            self.node = node
            return
        name, where = os.environ.get("FABREX_NODE"), os.environ.get("FABREX_FABRIC")
        if not name or not where:
            raise nixlBackendError(
                "no fabric: start the program with `fabricctl run --nixl TOPOLOGY -- COMMAND`, or set FABREX_FABRIC and FABREX_NODE"
            )
        key = (os.getpid(), where, name)
        with _lock:
            held, users = _attached.get(key, (None, 0))
            if held is None or held.closed:
                try:
                    held, users = attach(name, where), 0
                except FabricError as error:
                    raise nixlBackendError(str(error)) from error
            _attached[key] = (held, users + 1)
        self._key, self.node = key, held

    def close(self) -> None:
        """Detach, if this was the last user. Idempotent."""
        key, self._key = self._key, None
        if key is None or key[0] != os.getpid():
            return
        with _lock:
            node, users = _attached.get(key, (None, 0))
            if node is None or node is not self.node:
                return
            if users > 1:
                _attached[key] = (node, users - 1)
                return
            del _attached[key]
        node.close()
        node.fabric.close()


class Table:
    """Ranges of process addresses and the global addresses that they have."""

    def __init__(self, rows: list[list[int]] | None = None) -> None:
        # memory type, device, address, length, global address
        self._rows = sorted(rows or [], key=lambda row: row[2])
        self._sorted: dict[tuple[int, int], Rows] = {}
        for kind, device in {(row[0], row[1]) for row in self._rows}:
            chosen = [row[2:] for row in self._rows if row[0] == kind and row[1] == device]
            self._sorted[kind, device] = np.array(chosen, dtype=np.uint64).reshape(-1, 3)

    def rows(self) -> list[list[int]]:
        """Return the table as plain lists."""
        return self._rows

    def find(self, kind: int, descs: Rows) -> tuple[Rows, Rows]:
        """Return, for (address, length, device) rows, their global addresses and the number of the range each is in.

        Raises:
            nixlNotFoundError: a row is in none.
        """
        gvas, ranges = np.zeros(len(descs), dtype=np.uint64), np.zeros(len(descs), dtype=np.int64)
        for device in np.unique(descs[:, 2]).tolist():
            chosen = np.flatnonzero(descs[:, 2] == device)
            table = self._sorted.get((kind, device))
            if table is None:
                raise nixlNotFoundError(f"no {nixl_mem_t(kind).name} of device {device} is registered")
            address, length = descs[chosen, 0], descs[chosen, 1]
            at = np.searchsorted(table[:, 0], address, side="right") - 1
            safe = np.maximum(at, 0)
            inside = address - table[safe, 0]
            good = (at >= 0) & (inside <= table[safe, 1]) & (length <= table[safe, 1] - np.minimum(inside, table[safe, 1]))
            # Registrations may overlap, so an earlier, longer one may hold what the nearest does not.
            for i in np.flatnonzero(~good).tolist():
                first, size = int(address[i]), int(length[i])
                for j in range(len(table) - 1, -1, -1):
                    start, extent = int(table[j, 0]), int(table[j, 1])
                    if start <= first and first + size <= start + extent:
                        at[i], inside[i] = j, first - start
                        break
                else:
                    raise nixlNotFoundError(
                        f"{size} bytes at {first:#x} are in no registered memory; register them first, and exchange metadata after"
                    )
            gvas[chosen], ranges[chosen] = table[at, 2] + inside, at + (int(device) << 32)
        return gvas, ranges


class Registrations:
    """The registered memory of one agent."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._held: list[tuple[int, int, int, int, Registered]] = []  # type, device, address, length
        self.table = Table()

    def _rebuild(self) -> None:
        self.table = Table([[kind, device, address, length, held.gva] for kind, device, address, length, held in self._held])

    def add(self, kind: int, rows: list[tuple[int, int, int]]) -> None:
        """Register all, or none."""
        if kind not in SUPPORTED:
            raise nixlNotFoundError(f"no backend has {nixl_mem_t(kind).name}: here all memory is DRAM")
        made: list[tuple[int, int, int, int, Registered]] = []
        try:
            for address, length, device in rows:
                made.append((int(kind), device, address, length, self._node.register_address(address, length)))
        except FabricError as error:
            for *_, held in made:
                held.close()
            kind_of = nixlInvalidParamError if isinstance(error, (InvalidArgument, AddressError)) else nixlBackendError
            raise kind_of(str(error)) from error
        self._held += made
        self._rebuild()

    def remove(self, kind: int, rows: list[tuple[int, int, int]]) -> None:
        """Take all back, or none. What is under way there ends with an error."""
        chosen: list[int] = []
        for address, length, device in rows:
            wanted = (int(kind), device, address, length)
            for i, held in enumerate(self._held):
                if held[:4] == wanted and i not in chosen:
                    chosen.append(i)
                    break
            else:
                raise nixlNotFoundError(f"{length} bytes at {address:#x} are not registered")
        try:
            for i in chosen:
                self._held[i][4].close()
        except Busy as error:
            raise nixlBackendError(str(error)) from error
        finally:
            self._held = [held for held in self._held if not held[4].closed]
            self._rebuild()

    def close(self) -> None:
        """Take everything back."""
        for *_, held in self._held:
            with contextlib.suppress(FabricError):
                held.close()
        self._held.clear()
        self._rebuild()
