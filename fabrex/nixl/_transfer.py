# SPDX-License-Identifier: Apache-2.0
"""Transfers: lists of blocks as DMA, a notification behind them, and a thread that sees to it.

A READ pulls, a WRITE pushes and ends with a flush: DONE means that the bytes are where they belong. Then, and only after
success, the notification goes out. The thread is there for those who do not poll; it sleeps on the completions' descriptors.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..dma import Completion
from ..errors import Cancelled, CompletionTimeout, FabricError, LinkDown, PeerLost, QueueFull
from ..node import Node
from ._bindings import (
    nixl_xfer_op_t,
    nixlBackendError,
    nixlCancelledError,
    nixlInvalidParamError,
    nixlRemoteDisconnectError,
    nixlXferTelemetry,
)

IDLE, QUEUED, MOVING, NOTIFYING, DONE, FAILED = range(6)
Rows = np.ndarray[Any, Any]


def merge(local: Rows, local_ranges: Rows, remote: Rows, remote_ranges: Rows, sizes: Rows) -> tuple[Rows, Rows, Rows]:
    """Join neighbours that are neighbours on both sides, in the same registrations; drop empty pieces."""
    keep = sizes > 0
    local, remote, sizes = local[keep], remote[keep], sizes[keep]
    local_ranges, remote_ranges = local_ranges[keep], remote_ranges[keep]
    if len(sizes) < 2:
        return local, remote, sizes
    joined = (
        (local[1:] == local[:-1] + sizes[:-1])
        & (remote[1:] == remote[:-1] + sizes[:-1])
        & (local_ranges[1:] == local_ranges[:-1])
        & (remote_ranges[1:] == remote_ranges[:-1])
    )
    first = np.concatenate([[True], ~joined])
    starts = np.flatnonzero(first)
    return local[starts], remote[starts], np.add.reduceat(sizes, starts)


class Transfer:
    """A request: what to move, and how far it is."""

    def __init__(self, op: nixl_xfer_op_t, agent: str, local: Rows, remote: Rows, sizes: Rows, notify: bytes | None) -> None:
        self.op = op
        self.agent = agent
        self.local, self.remote, self.sizes = local, remote, sizes
        self.bytes = int(sizes.sum()) if len(sizes) else 0
        self.notify = notify
        self.message: bytes | None = None
        self.state = IDLE
        self.error: BaseException | None = None
        self.completion: Completion | None = None
        self.released = False
        self.posted_ps = self.issued_ps = self.seen_ps = self.modelled_ps = 0
        self.post_us = 0

    @property
    def active(self) -> bool:
        """Whether it is under way."""
        return self.state in (QUEUED, MOVING, NOTIFYING)

    def telemetry(self) -> nixlXferTelemetry:
        """Return what it took."""
        out = nixlXferTelemetry()
        out.startTime = self.posted_ps // 1_000_000
        out.postDuration = self.post_us
        out.measuredPs, out.modelledPs = self.seen_ps - self.posted_ps, self.modelled_ps
        out.xferDuration = max(out.measuredPs // 1_000_000, 1)
        out.totalBytes, out.descCount = self.bytes, len(self.sizes)
        return out


def estimate(node: Node, transfer: Transfer) -> int:
    """Return what the model gives a transfer on an idle fabric, in ps."""
    if not transfer.bytes:
        return 0
    gva = int(transfer.remote[0])
    if transfer.op == nixl_xfer_op_t.NIXL_READ:
        return int(node.estimate("dma_read", gva, transfer.bytes)["completes_ps"])
    # DONE comes after the flush.
    flush = node.estimate("load", gva & ~7, 8)["completes_ps"]
    return int(node.estimate("dma_write", gva, transfer.bytes)["completes_ps"] + flush)


class Log:
    """A line of JSON for each transfer that ends."""

    def __init__(self, path: str, agent: str, node: str) -> None:
        self._path, self._agent, self._node = path, agent, node

    @classmethod
    def from_environment(cls, agent: str, node: str) -> Log | None:
        """Return the log that FABREX_NIXL_LOG asks for."""
        path = os.environ.get("FABREX_NIXL_LOG")
        return cls(path, agent, node) if path else None

    def add(self, transfer: Transfer, estimated_ps: int) -> None:
        """Write it down."""
        line = {
            "agent": self._agent,
            "node": self._node,
            "to": transfer.agent,
            "op": transfer.op.name.removeprefix("NIXL_"),
            "bytes": transfer.bytes,
            "pieces": len(transfer.sizes),
            "posted_ps": transfer.posted_ps,
            "measured_ps": transfer.seen_ps - transfer.posted_ps if transfer.state == DONE else None,
            "modelled_ps": transfer.modelled_ps if transfer.state == DONE else None,
            "estimated_ps": estimated_ps,
            "error": None if transfer.error is None else f"{type(transfer.error).__name__}: {transfer.error}",
        }
        with open(self._path, "a", encoding="utf-8") as out:  # one write of less than a page: lines of processes do not mix
            out.write(json.dumps(line) + "\n")


class Engine:
    """All transfers of one agent.

    Args:
        send: sends a notification to an agent; returns False if it has to wait.
        pump: sends what waits, once more.
    """

    def __init__(self, node: Node, send: Callable[[str, bytes], bool], pump: Callable[[], bool], threaded: bool) -> None:
        self.lock = threading.RLock()
        self._node = node
        self._send, self._pump = send, pump
        self._active: list[Transfer] = []
        self._next_channel = 0
        self._pid = os.getpid()
        self.log: Log | None = None
        self._closed = False
        self._thread: threading.Thread | None = None
        self._threaded = threaded
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def post(self, transfer: Transfer, message: bytes | None) -> None:
        """Start it."""
        began = time.perf_counter()
        with self.lock:
            transfer.message = message
            transfer.error, transfer.completion = None, None
            transfer.posted_ps = self._node.fabric.now_ps
            transfer.state = QUEUED
            self._active.append(transfer)
            self._advance(transfer)
            if not transfer.active:
                self._active.remove(transfer)
            elif self._threaded:
                self._start()
        transfer.post_us = max(int((time.perf_counter() - began) * 1e6), 1)

    def _submit(self, transfer: Transfer) -> None:
        near, far, sizes = transfer.local.tolist(), transfer.remote.tolist(), transfer.sizes.tolist()
        reads = transfer.op == nixl_xfer_op_t.NIXL_READ
        pieces = list(zip(near, far, sizes, strict=True) if reads else zip(far, near, sizes, strict=True))
        channel, self._next_channel = self._next_channel, (self._next_channel + 1) % self._node.dma.channels
        transfer.completion = self._node.dma.copy_list(pieces, visible=not reads, channel=channel)
        transfer.state = MOVING

    def _advance(self, transfer: Transfer) -> None:
        """Take it as far as it goes now; never waits."""
        try:
            if transfer.state == QUEUED:
                with contextlib.suppress(QueueFull):
                    self._submit(transfer)
            if transfer.state == MOVING and transfer.completion is not None and transfer.completion.done():
                transfer.seen_ps = self._node.fabric.now_ps
                transfer.issued_ps = transfer.completion.issued_ps
                transfer.modelled_ps = max(transfer.completion.completes_ps - transfer.issued_ps, 0)
                transfer.completion.wait()
                transfer.completion = None
                transfer.state = NOTIFYING
                if transfer.message is not None and not self._send(transfer.agent, transfer.message):
                    return
                transfer.state = DONE
            elif transfer.state == NOTIFYING and self._pump():
                transfer.state = DONE
        except Exception as error:
            transfer.completion = None
            transfer.error = self._translated(error)
            transfer.state = FAILED
        if self.log is not None and not transfer.active:
            cost = 0
            with contextlib.suppress(FabricError):
                cost = estimate(self._node, transfer)
            with contextlib.suppress(OSError):
                self.log.add(transfer, cost)

    def _translated(self, error: Exception) -> Exception:
        if not isinstance(error, FabricError):
            return error
        if isinstance(error, Cancelled):
            kind: type[Exception] = nixlCancelledError
        elif isinstance(error, (PeerLost, LinkDown, CompletionTimeout)):
            kind = nixlRemoteDisconnectError
        else:
            kind = nixlBackendError
        translated = kind(str(error))
        translated.__cause__ = error
        return translated

    def progress(self) -> None:
        """Take everything as far as it goes now."""
        with self.lock:
            for transfer in self._active:
                self._advance(transfer)
            self._active = [transfer for transfer in self._active if transfer.active]

    def cancel(self, transfer: Transfer) -> None:
        """End it; nothing of it lands after the return."""
        with self.lock:
            if transfer.completion is not None:
                try:
                    transfer.completion.cancel()
                except FabricError as error:
                    raise nixlBackendError(str(error)) from error
                transfer.completion = None
            if transfer.active:
                transfer.state, transfer.error = FAILED, nixlCancelledError("it was released while it was under way")
            if transfer in self._active:
                self._active.remove(transfer)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="fabrex-nixl", daemon=True)
            self._thread.start()
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        while not self._closed:
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            with self.lock:
                self.progress()
                limit: int | None = None
                for transfer in self._active:
                    if transfer.state != MOVING or transfer.completion is None:
                        limit = 1  # a full queue, or a full ring
                        continue
                    try:
                        poll.register(transfer.completion.fileno(), select.POLLIN)
                    except FabricError:
                        limit = 1
            poll.poll(limit)
            with contextlib.suppress(BlockingIOError, OSError):
                os.eventfd_read(self._wake)

    def check(self) -> None:
        """Raise if this is another process than the one that made it."""
        if self._closed or self._pid != os.getpid():
            raise nixlBackendError("the agent is closed" if self._closed else "the agent was made before fork; make one here")

    def close(self) -> None:
        """Cancel all and end the thread. Idempotent."""
        if self._closed or self._pid != os.getpid():
            return
        with self.lock:
            for transfer in list(self._active):
                with contextlib.suppress(nixlBackendError):
                    self.cancel(transfer)
            self._closed = True
        os.eventfd_write(self._wake, 1)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)
        if self._thread is None or not self._thread.is_alive():
            os.close(self._wake)


def usable(handle: Any, kind: Any, what: str) -> Any:
    """Return what a handle stands for; raises nixlInvalidParamError if it was released."""
    if not isinstance(handle, kind):
        raise TypeError(f"{what} is expected, not {type(handle).__name__}")
    if handle._released:
        raise nixlInvalidParamError(f"{what} was released")
    return handle._held
