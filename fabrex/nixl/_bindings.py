# SPDX-License-Identifier: Apache-2.0
"""What NIXL's compiled module holds: statuses, exceptions, and lists of descriptors.

A list is a NumPy array of (address, length, device) rows: an engine hands over tens of thousands of blocks at once. Names are
NIXL's, so that programs find them.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

DEFAULT_COMM_PORT = 8888
NIXL_INIT_AGENT = ""
HAVE_UCX_GPU_DEVICE_API = False


class _Named(enum.IntEnum):
    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


class nixl_mem_t(_Named):
    """Where memory is."""

    DRAM_SEG = 0
    VRAM_SEG = 1
    BLK_SEG = 2
    OBJ_SEG = 3
    FILE_SEG = 4


class nixl_xfer_op_t(_Named):
    """Direction of a transfer."""

    NIXL_READ = 0
    NIXL_WRITE = 1


class nixl_cost_t(_Named):
    """How a cost was estimated."""

    NIXL_COST_ANALYTICAL_BACKEND = 0


class nixl_thread_sync_t(_Named):
    """How an agent is protected from threads; here every agent is, whatever is asked for."""

    NIXL_THREAD_SYNC_NONE = 0
    NIXL_THREAD_SYNC_STRICT = 1
    NIXL_THREAD_SYNC_RW = 2
    NIXL_THREAD_SYNC_DEFAULT = 0


class nixl_status_t(_Named):
    """State of a transfer, or what went wrong."""

    NIXL_IN_PROG = 1
    NIXL_SUCCESS = 0
    NIXL_ERR_NOT_POSTED = -1
    NIXL_ERR_INVALID_PARAM = -2
    NIXL_ERR_BACKEND = -3
    NIXL_ERR_NOT_FOUND = -4
    NIXL_ERR_MISMATCH = -5
    NIXL_ERR_NOT_ALLOWED = -6
    NIXL_ERR_REPOST_ACTIVE = -7
    NIXL_ERR_UNKNOWN = -8
    NIXL_ERR_NOT_SUPPORTED = -9


DRAM_SEG, VRAM_SEG, BLK_SEG, OBJ_SEG, FILE_SEG = nixl_mem_t
NIXL_READ, NIXL_WRITE = nixl_xfer_op_t
NIXL_COST_ANALYTICAL_BACKEND = nixl_cost_t.NIXL_COST_ANALYTICAL_BACKEND
NIXL_THREAD_SYNC_NONE = nixl_thread_sync_t.NIXL_THREAD_SYNC_NONE
NIXL_THREAD_SYNC_STRICT = nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
NIXL_THREAD_SYNC_RW = nixl_thread_sync_t.NIXL_THREAD_SYNC_RW
NIXL_THREAD_SYNC_DEFAULT = nixl_thread_sync_t.NIXL_THREAD_SYNC_DEFAULT
NIXL_IN_PROG = nixl_status_t.NIXL_IN_PROG
NIXL_SUCCESS = nixl_status_t.NIXL_SUCCESS
NIXL_ERR_NOT_POSTED = nixl_status_t.NIXL_ERR_NOT_POSTED
NIXL_ERR_INVALID_PARAM = nixl_status_t.NIXL_ERR_INVALID_PARAM
NIXL_ERR_BACKEND = nixl_status_t.NIXL_ERR_BACKEND
NIXL_ERR_NOT_FOUND = nixl_status_t.NIXL_ERR_NOT_FOUND
NIXL_ERR_MISMATCH = nixl_status_t.NIXL_ERR_MISMATCH
NIXL_ERR_NOT_ALLOWED = nixl_status_t.NIXL_ERR_NOT_ALLOWED
NIXL_ERR_REPOST_ACTIVE = nixl_status_t.NIXL_ERR_REPOST_ACTIVE
NIXL_ERR_UNKNOWN = nixl_status_t.NIXL_ERR_UNKNOWN
NIXL_ERR_NOT_SUPPORTED = nixl_status_t.NIXL_ERR_NOT_SUPPORTED


class _Failure(Exception):
    """Base of NIXL's exceptions here: the status, then what to do about it."""

    status = "NIXL_ERR_UNKNOWN"

    def __init__(self, why: str = "") -> None:
        super().__init__(f"{self.status}: {why}" if why else self.status)


class nixlNotPostedError(_Failure):
    """The transfer has not been started."""

    status = "NIXL_ERR_NOT_POSTED"


class nixlInvalidParamError(_Failure):
    """Arguments that no operation has."""

    status = "NIXL_ERR_INVALID_PARAM"


class nixlBackendError(_Failure):
    """The fabric refused, or failed."""

    status = "NIXL_ERR_BACKEND"


class nixlNotFoundError(_Failure):
    """No such agent, memory or backend."""

    status = "NIXL_ERR_NOT_FOUND"


class nixlMismatchError(_Failure):
    """Metadata that is damaged, of another version, or of another fabric."""

    status = "NIXL_ERR_MISMATCH"


class nixlNotAllowedError(_Failure):
    """Not permitted in this state."""

    status = "NIXL_ERR_NOT_ALLOWED"


class nixlRepostActiveError(_Failure):
    """The transfer is under way."""

    status = "NIXL_ERR_REPOST_ACTIVE"


class nixlUnknownError(_Failure):
    """Nobody knows."""


class nixlNotSupportedError(_Failure):
    """This backend does not do that."""

    status = "NIXL_ERR_NOT_SUPPORTED"


class nixlRemoteDisconnectError(_Failure):
    """The other agent, or the way to it, is gone."""

    status = "NIXL_ERR_REMOTE_DISCONNECT"


class nixlCancelledError(_Failure):
    """The transfer was cancelled."""

    status = "NIXL_ERR_CANCELED"


class nixlNoTelemetryError(_Failure):
    """Telemetry is off, or there is none yet."""

    status = "NIXL_ERR_NO_TELEMETRY"


def _memory(kind: Any) -> nixl_mem_t:
    try:
        return nixl_mem_t(kind)
    except ValueError:
        raise TypeError(f"{kind!r} is no nixl_mem_t") from None


def _rows(descs: Any) -> np.ndarray[Any, Any]:
    """Return (n, 3) rows of uint64 from an array or an iterable of tuples."""
    if isinstance(descs, np.ndarray):
        if descs.ndim != 2 or descs.shape[1] != 3:
            raise ValueError(f"descriptors are an array of shape (n, 3), not {descs.shape}")
        if descs.dtype.kind not in "ui" or (descs.dtype.kind == "i" and descs.size and descs.min() < 0):
            raise ValueError("addresses, lengths and devices are unsigned integers")
        return descs.astype(np.uint64)
    rows = np.empty((len(descs), 3), dtype=np.uint64)
    for i, row in enumerate(descs):
        rows[i] = _triple(row)
    return rows


def _triple(row: Any) -> tuple[int, int, int]:
    if not isinstance(row, tuple) or len(row) != 3:
        raise TypeError(f"a descriptor is a tuple (address, length, device), not {row!r}")
    address, length, device = (operator.index(value) for value in row)
    if min(address, length, device) < 0 or max(address, length, device) >= 1 << 64:
        raise TypeError(f"{row!r}: addresses, lengths and devices are unsigned integers of 64 bits")
    return address, length, device


class nixlXferDList:
    """Descriptors of a transfer: (address, length, device) each.

    Args:
        type: where all of it is.
        descs: how many rows of zeros to begin with, or an array of shape (n, 3), or a list of tuples.
    """

    def __init__(self, type: Any, descs: Any = 0, init_size: int | None = None) -> None:
        self._type = _memory(type)
        count = init_size if init_size is not None else descs if isinstance(descs, int) else None
        self.rows = np.zeros((operator.index(count), 3), dtype=np.uint64) if count is not None else _rows(descs)

    def getType(self) -> nixl_mem_t:
        """Return where the memory is."""
        return self._type

    def descCount(self) -> int:
        """Return the number of descriptors."""
        return len(self.rows)

    def isEmpty(self) -> bool:
        """Return whether there are none."""
        return not len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def _at(self, index: Any) -> int:
        at = operator.index(index)
        if not 0 <= at < len(self.rows):
            raise IndexError("Index is out of range")
        return at

    def __getitem__(self, index: Any) -> tuple[int, int, int]:
        address, length, device = self.rows[self._at(index)].tolist()
        return address, length, device

    def __setitem__(self, index: Any, row: tuple[int, int, int]) -> None:
        self.rows[self._at(index)] = _triple(row)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return (tuple(row) for row in self.rows.tolist())

    def addDesc(self, row: tuple[int, int, int]) -> None:
        """Append a descriptor."""
        self.rows = np.concatenate([self.rows, np.array([_triple(row)], dtype=np.uint64)])

    append = addDesc

    def index(self, row: tuple[int, int, int]) -> int:
        """Return where a descriptor is; raises nixlNotFoundError."""
        found = np.flatnonzero((self.rows == np.array(_triple(row), dtype=np.uint64)).all(axis=1))
        if not len(found):
            raise nixlNotFoundError(f"{row!r} is not in the list")
        return int(found[0])

    def remDesc(self, index: Any) -> None:
        """Remove a descriptor."""
        self.rows = np.delete(self.rows, self._at(index), axis=0)

    def clear(self) -> None:
        """Remove all."""
        self.rows = self.rows[:0]

    def print(self) -> None:
        """Print the list."""
        print(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, nixlXferDList):
            return NotImplemented
        return self._type == other._type and self.rows.shape == other.rows.shape and bool((self.rows == other.rows).all())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.descCount()} in {self._type.name}>"

    def __getstate__(self) -> tuple[int, bytes]:
        return int(self._type), self.rows.astype("<u8").tobytes()

    def __setstate__(self, state: tuple[int, bytes]) -> None:
        self._type = _memory(state[0])
        self.rows = np.frombuffer(state[1], dtype="<u8").astype(np.uint64).reshape(-1, 3)


class _TupleList:
    """A list whose descriptors carry something besides numbers."""

    def __init__(self, type: Any, descs: Any = 0, init_size: int | None = None) -> None:
        self._type = _memory(type)
        count = init_size if init_size is not None else descs if isinstance(descs, int) else None
        self._descs: list[tuple[int, int, int, Any]]
        if count is not None:
            self._descs = [self._clean((0, 0, 0, ""))] * operator.index(count)
        elif isinstance(descs, np.ndarray):
            self._descs = [self._clean((*row, "")) for row in _rows(descs).tolist()]
        else:
            self._descs = [self._clean(row) for row in descs]

    @staticmethod
    def _clean(row: Any) -> tuple[int, int, int, Any]:
        raise NotImplementedError

    def getType(self) -> nixl_mem_t:
        """Return where the memory is."""
        return self._type

    def descCount(self) -> int:
        """Return the number of descriptors."""
        return len(self._descs)

    def isEmpty(self) -> bool:
        """Return whether there are none."""
        return not self._descs

    def __len__(self) -> int:
        return len(self._descs)

    def _at(self, index: Any) -> int:
        at = operator.index(index)
        if not 0 <= at < len(self._descs):
            raise IndexError("Index is out of range")
        return at

    def __getitem__(self, index: Any) -> tuple[int, int, int, Any]:
        return self._descs[self._at(index)]

    def __setitem__(self, index: Any, row: Any) -> None:
        self._descs[self._at(index)] = self._clean(row)

    def __iter__(self) -> Iterator[tuple[int, int, int, Any]]:
        return iter(list(self._descs))

    def addDesc(self, row: Any) -> None:
        """Append a descriptor."""
        self._descs.append(self._clean(row))

    append = addDesc

    def remDesc(self, index: Any) -> None:
        """Remove a descriptor."""
        del self._descs[self._at(index)]

    def clear(self) -> None:
        """Remove all."""
        self._descs.clear()

    def print(self) -> None:
        """Print the list."""
        print(self)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._type == other._type and self._descs == other._descs

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.descCount()} in {self._type.name}>"

    def __getstate__(self) -> tuple[int, list[tuple[int, int, int, Any]]]:
        return int(self._type), self._descs

    def __setstate__(self, state: tuple[int, Iterable[Any]]) -> None:
        self._type = _memory(state[0])
        self._descs = [self._clean(tuple(row)) for row in state[1]]


class nixlRegDList(_TupleList):
    """Descriptors of memory to register: (address, length, device, meta), meta in bytes."""

    @staticmethod
    def _clean(row: Any) -> tuple[int, int, int, bytes]:
        if not isinstance(row, tuple) or len(row) != 4:
            raise TypeError(f"a descriptor is a tuple (address, length, device, meta), not {row!r}")
        meta = row[3].encode() if isinstance(row[3], str) else bytes(row[3])
        return (*_triple(row[:3]), meta)

    def index(self, row: tuple[int, int, int]) -> int:
        """Return where a descriptor is; raises nixlNotFoundError."""
        wanted = _triple(tuple(row[:3]))
        for i, mine in enumerate(self._descs):
            if mine[:3] == wanted:
                return i
        raise nixlNotFoundError(f"{row!r} is not in the list")

    def trim(self) -> nixlXferDList:
        """Return the same without meta."""
        return nixlXferDList(self._type, [row[:3] for row in self._descs])


class nixlRemoteDList(_TupleList):
    """Descriptors of several agents: (address, length, device, agent)."""

    @staticmethod
    def _clean(row: Any) -> tuple[int, int, int, str]:
        if not isinstance(row, tuple) or len(row) != 4:
            raise TypeError(f"a descriptor is a tuple (address, length, device, agent), not {row!r}")
        return (*_triple(row[:3]), row[3].decode() if isinstance(row[3], bytes) else str(row[3]))


class nixlXferTelemetry:
    """What a transfer took, in microseconds, as NIXL has it; in picoseconds of the model's below.

    Attributes:
        startTime: when it was posted, fabric time.
        postDuration: how long posting took.
        xferDuration: from posting until it was seen to be complete: measured.
        totalBytes: bytes moved.
        descCount: descriptors, after neighbours were merged.
        modelledPs: what the timing model gave the same transfer, in ps (fabrex's own).
    """

    def __init__(self) -> None:
        self.startTime = self.postDuration = self.xferDuration = self.totalBytes = self.descCount = 0
        self.modelledPs = self.measuredPs = 0

    def __repr__(self) -> str:
        return f"<nixlXferTelemetry: {self.totalBytes} bytes in {self.descCount} pieces, {self.xferDuration} us>"
