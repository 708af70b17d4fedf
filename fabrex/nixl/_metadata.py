# SPDX-License-Identifier: Apache-2.0
"""What agents tell each other: names, addresses and the table of registered memory, as bytes.

Anybody may hand over anything as metadata, so every field is checked before use. The network exchange is one short TCP
conversation; without an address the fabric's own directory is the central server.
"""

from __future__ import annotations

import dataclasses
import hashlib
import socket
import socketserver
import struct
import threading
from collections.abc import Callable
from typing import Any

import msgpack

from ._bindings import nixlBackendError, nixlMismatchError
from ._memory import Table

MAGIC = b"fabrex-nixl\n"
VERSION = 1
ADDRESS_LIMIT = 1 << 64
MESSAGE_LIMIT = 64 << 20


@dataclasses.dataclass
class Metadata:
    """What one agent says of itself.

    Attributes:
        box: where notifications go; 0 where partial metadata leaves that out.
        session: which life of the agent it is.
        partial: it is to be added to what is known, not to replace it.
    """

    agent: str
    fabric: str
    instance: int
    node: str
    box: int
    session: int
    backends: list[str]
    rows: list[list[int]]
    partial: bool = False

    def pack(self) -> bytes:
        """Return it as bytes."""
        fields = dataclasses.astuple(self)
        body: bytes = msgpack.packb(fields)
        return MAGIC + struct.pack("<I", VERSION) + hashlib.sha256(body).digest()[:8] + body

    @classmethod
    def unpack(cls, data: Any) -> Metadata:
        """Read it; raises nixlMismatchError for anything else."""
        try:
            data = data.encode("latin-1") if isinstance(data, str) else bytes(data)
        except (TypeError, ValueError):
            raise TypeError(f"metadata is bytes, not {type(data).__name__}") from None
        if not data.startswith(MAGIC) or len(data) < len(MAGIC) + 12:
            raise nixlMismatchError("this is no metadata of a fabrex agent; both sides must use fabrex.nixl")
        at = len(MAGIC)
        [version] = struct.unpack_from("<I", data, at)
        if version != VERSION:
            raise nixlMismatchError(
                f"metadata of version {version}; this is version {VERSION}: install the same fabrex on both sides"
            )
        body = data[at + 12 :]
        if hashlib.sha256(body).digest()[:8] != data[at + 4 : at + 12]:
            raise nixlMismatchError("the metadata is damaged or cut short")
        try:
            fields = msgpack.unpackb(body)
            made = cls(*fields)
            made._check()
        except nixlMismatchError:
            raise
        except Exception as error:
            raise nixlMismatchError(f"the metadata is damaged: {error}") from None
        return made

    def _check(self) -> None:
        texts = [self.agent, self.fabric, self.node, *self.backends]
        numbers = [self.instance, self.box, self.session, *(value for row in self.rows for value in row)]
        if not all(isinstance(text, str) for text in texts) or not self.agent:
            raise nixlMismatchError("the metadata is damaged: names")
        if not all(isinstance(n, int) and 0 <= n < ADDRESS_LIMIT for n in numbers) or any(len(row) != 5 for row in self.rows):
            raise nixlMismatchError("the metadata is damaged: addresses")
        if any(row[2] + row[3] > ADDRESS_LIMIT or row[4] + row[3] > ADDRESS_LIMIT for row in self.rows):
            raise nixlMismatchError("the metadata is damaged: ranges")

    def table(self) -> Table:
        """Return its registered memory."""
        return Table(self.rows)


def directory_key(label: str, agent: str) -> str:
    """Return the key under which an agent's metadata stands in the fabric's directory."""
    return "nixl-" + hashlib.sha256(f"{label}\0{agent}".encode()).hexdigest()[:40]


# -- over the network -------------------------------------------------------------------------------------------------

SEND, FETCH, INVALIDATE = b"S", b"F", b"I"


def _receive(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(size - len(data), 1 << 20))
        if not part:
            raise ConnectionError("the conversation ended early")
        data += part
    return bytes(data)


def _read(connection: socket.socket) -> tuple[bytes, bytes]:
    kind, size = struct.unpack("<cI", _receive(connection, 5))
    if size > MESSAGE_LIMIT:
        raise ConnectionError(f"a message of {size} bytes")
    return kind, _receive(connection, size)


def talk(address: str, port: int, kind: bytes, body: bytes) -> bytes:
    """Say one thing to an agent's listener and return its answer."""
    try:
        with socket.create_connection((address, port), timeout=10) as connection:
            connection.sendall(struct.pack("<cI", kind, len(body)) + body)
            return _read(connection)[1]
    except OSError as error:
        raise nixlBackendError(f"no agent listens at {address}:{port} ({error}); make it with enable_listen_thread=True") from None


class Listener:
    """Answers `talk` in a thread of its own."""

    def __init__(self, port: int, answer: Callable[[bytes, bytes], bytes]) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.settimeout(10)
                try:
                    kind, body = _read(self.request)
                    reply = answer(kind, body)
                    self.request.sendall(struct.pack("<cI", kind, len(reply)) + reply)
                except Exception:  # what a peer says must not end the listener
                    return

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        try:
            self._server = Server(("", port), Handler)
        except (OSError, OverflowError) as error:
            raise nixlBackendError(f"port {port} cannot be listened on: {error}") from None
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="fabrex-nixl-listen", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
