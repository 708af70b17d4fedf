# SPDX-License-Identifier: Apache-2.0
"""What can go wrong on a fabric, as exceptions.

Every one derives from the builtin that people already catch::

    FabricError                        .code .op .node .gva .hint .injected; pickles
    ├─ LinkDown(ConnectionError)       a link on the way is down
    ├─ PeerLost(ConnectionError)       the process that was the peer died
    ├─ CompletionTimeout(TimeoutError) the fabric gave no answer
    ├─ WaitTimeout(TimeoutError)       what you waited for did not happen
    ├─ UnsupportedRequest              the completer cannot do this
    ├─ CompleterAbort(PermissionError) the window or the completer forbids it
    ├─ PoisonedData                    the data is marked as damaged
    ├─ AddressError(ValueError)        outside every region, or leaving one
    │  ├─ AlignmentError               a size or an address that no access has
    │  └─ NoWindow                     no window of this node reaches it
    ├─ WindowError(ValueError)         the device profile does not allow this window
    ├─ ValueRangeError(OverflowError)  a value that does not fit its size
    ├─ InvalidArgument(ValueError)     any other argument outside what is allowed
    ├─ TopologyError(ValueError)       .errors: every problem of a description at once
    ├─ FabricNotFound(FileNotFoundError)
    ├─ FabricExists(FileExistsError)
    ├─ FabricDenied(PermissionError)   it belongs to another user
    ├─ OutOfFabricMemory(MemoryError)
    ├─ QueueFull
    ├─ Cancelled                       cancel() ended it
    ├─ Busy                            someone is in the way and does not move
    ├─ LayoutMismatch                  made by another version
    ├─ CorruptSegment                  truncated or damaged shared memory
    ├─ StaleHandle(LookupError)        a handle of a freed buffer
    ├─ SystemRefused(OSError)          the operating system said no
    └─ ClosedHandle(ValueError)        closed by you, or inherited through fork
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "AddressError",
    "AlignmentError",
    "Busy",
    "Cancelled",
    "ClosedHandle",
    "CompleterAbort",
    "CompletionTimeout",
    "CorruptSegment",
    "FabricDenied",
    "FabricError",
    "FabricExists",
    "FabricNotFound",
    "InvalidArgument",
    "LayoutMismatch",
    "LinkDown",
    "NoWindow",
    "OutOfFabricMemory",
    "PeerLost",
    "PoisonedData",
    "QueueFull",
    "StaleHandle",
    "SystemRefused",
    "TopologyError",
    "UnsupportedRequest",
    "ValueRangeError",
    "WaitTimeout",
    "WindowError",
]


class FabricError(Exception):
    """Base of all that fabrex raises.

    Attributes:
        code: name of the core's error code, such as ``"LINK_DOWN"``.
        op: the operation ("load", "write"…) or None.
        node: the node whose handle was used, or None.
        gva: the global address, or None.
        hint: what to do about it.
        injected: True if a fault plan caused it.
    """

    code: str = "FABRIC"
    hint: str = ""

    def __init__(
        self,
        message: str = "",
        *,
        op: str | None = None,
        node: str | None = None,
        gva: int | None = None,
        hint: str | None = None,
        injected: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.op = op
        self.node = node
        self.gva = gva
        self.injected = injected
        if hint is not None:
            self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint and self.message else self.message or self.hint

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, dict(self.__dict__)))


def _rebuild(kind: type[FabricError], message: str, state: dict[str, Any]) -> FabricError:
    error = kind(message)
    error.__dict__.update(state)
    return error


class LinkDown(FabricError, ConnectionError):
    """A link on the way is down."""


class PeerLost(FabricError, ConnectionError):
    """The process that was the peer node died."""


class CompletionTimeout(FabricError, TimeoutError):
    """The fabric gave no completion in time."""


class WaitTimeout(FabricError, TimeoutError):
    """What was waited for did not happen in the time that the caller gave."""


class UnsupportedRequest(FabricError):
    """The completer does not support the request."""


class CompleterAbort(FabricError, PermissionError):
    """The window or the completer does not permit the access."""


class PoisonedData(FabricError):
    """The data is marked as damaged."""


class AddressError(FabricError, ValueError):
    """The address is in no region, or the range leaves its region or window."""


class AlignmentError(AddressError):
    """A load, store or atomic of a size or alignment that no access has."""


class NoWindow(AddressError):
    """No window of this node reaches the address."""


class WindowError(FabricError, ValueError):
    """The device profile does not allow this window."""


class ValueRangeError(FabricError, OverflowError):
    """A value that does not fit the size of the access."""


class InvalidArgument(FabricError, ValueError):
    """An argument outside what is allowed."""


class TopologyError(FabricError, ValueError):
    """The description of a fabric is wrong; `.errors` lists every problem found."""

    def __init__(self, message: str = "", errors: Sequence[Any] = (), **details: Any) -> None:
        super().__init__(message, **details)
        self.errors = list(errors)


class FabricNotFound(FabricError, FileNotFoundError):
    """No such fabric, node or name."""


class FabricExists(FabricError, FileExistsError):
    """The name is taken."""


class FabricDenied(FabricError, PermissionError):
    """The fabric belongs to another user."""


class OutOfFabricMemory(FabricError, MemoryError):
    """Too little memory: of the region, of the shared-memory file system, or of the machine."""


class QueueFull(FabricError):
    """The queue is full and its target does not drain it."""


class Cancelled(FabricError):
    """The operation was ended by `cancel()`."""


class Busy(FabricError):
    """Another process holds on to it, or is stopped in the middle of an operation."""


class LayoutMismatch(FabricError):
    """The fabric was made by another version of fabrex."""


class CorruptSegment(FabricError):
    """The shared memory is truncated or damaged."""


class StaleHandle(FabricError, LookupError):
    """The handle is of a buffer that was freed."""


class SystemRefused(FabricError, OSError):
    """The operating system refused."""


class ClosedHandle(FabricError, ValueError):
    """The handle was closed, or belongs to the process before fork."""


# The core's codes and their classes: total both ways, which a test checks against the core's own table.
BY_CODE: dict[str, type[FabricError]] = {
    "LINK_DOWN": LinkDown,
    "PEER_LOST": PeerLost,
    "COMPLETION_TIMEOUT": CompletionTimeout,
    "WAIT_TIMEOUT": WaitTimeout,
    "UNSUPPORTED": UnsupportedRequest,
    "ABORT": CompleterAbort,
    "POISONED": PoisonedData,
    "ADDRESS": AddressError,
    "TOPOLOGY": TopologyError,
    "NOT_FOUND": FabricNotFound,
    "EXISTS": FabricExists,
    "NO_MEMORY": OutOfFabricMemory,
    "QUEUE_FULL": QueueFull,
    "LAYOUT": LayoutMismatch,
    "CLOSED": ClosedHandle,
    "ALIGNMENT": AlignmentError,
    "VALUE": ValueRangeError,
    "BUSY": Busy,
    "DENIED": FabricDenied,
    "WINDOW": WindowError,
    "INVALID": InvalidArgument,
    "SYSTEM": SystemRefused,
    "CORRUPT": CorruptSegment,
    "NO_WINDOW": NoWindow,
    "STALE": StaleHandle,
    "AGAIN": WaitTimeout,
    "NAME": InvalidArgument,
    "CANCELLED": Cancelled,
}
