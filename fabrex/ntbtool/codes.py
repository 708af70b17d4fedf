# SPDX-License-Identifier: Apache-2.0
"""Error numbers: what a driver would have returned for what went wrong here."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from .. import errors
from ..errors import FabricError

# The first that fits counts.
_ERRNOS: tuple[tuple[type[FabricError], int], ...] = (
    (errors.ClosedHandle, errno.ENODEV),
    (errors.FabricNotFound, errno.ENODEV),
    (errors.CorruptSegment, errno.ENODEV),
    (errors.PeerLost, errno.ENODEV),
    (errors.LinkDown, errno.ENOTCONN),
    (errors.ValueRangeError, errno.ERANGE),
    (errors.InvalidArgument, errno.EINVAL),
    (errors.WindowError, errno.EINVAL),
    (errors.AddressError, errno.EINVAL),
    (errors.OutOfFabricMemory, errno.ENOMEM),
    (errors.Busy, errno.EBUSY),
    (errors.FabricExists, errno.EBUSY),
    (errors.CompletionTimeout, errno.ETIMEDOUT),
    (errors.CompleterAbort, errno.EACCES),
    (errors.QueueFull, errno.EAGAIN),
)


def fail(code: int) -> NoReturn:
    """Raise an OSError."""
    raise OSError(code, os.strerror(code))


def errno_of(error: BaseException) -> int:
    """Return the error number that stands for an exception."""
    if (
        isinstance(error, OSError)
        and error.errno
        and (isinstance(error, errors.SystemRefused) or not isinstance(error, FabricError))
    ):
        return error.errno
    if isinstance(error, FabricError):
        return next((number for kind, number in _ERRNOS if isinstance(error, kind)), errno.EIO)
    return errno.ENOMEM if isinstance(error, MemoryError) else errno.EIO


@contextmanager
def translated() -> Iterator[None]:
    """Turn whatever goes wrong inside into an OSError."""
    try:
        yield
    except Exception as error:
        fail(errno_of(error))
