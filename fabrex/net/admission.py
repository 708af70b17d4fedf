# SPDX-License-Identifier: Apache-2.0
"""Admission: proving on a fresh connection that both sides hold the same token, before anything else is said.

client                                server
  {purpose, nonce}            ->
                              <-      {nonce}                 or {fabrex: version}, if that is another
  {proof of the token}        ->                   closes at once if it is wrong: who lacks the token gets nothing
                              <-      {proof of the token}

A proof is HMAC-SHA256 (the standard library's, over OpenSSL) of role, purpose and both nonces, so neither can be replayed nor
reflected. What follows is not encrypted and not authenticated frame by frame: on a network that others can write to, tunnel it.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import stat
import struct
from pathlib import Path
from typing import Any

import msgpack

from .._handle import lib
from ..errors import FabricDenied, InvalidArgument, LayoutMismatch
from .address import Address, is_local

VERSION = int(lib.FBX_WIRE_VERSION)
NONCE_BYTES = 32
SMALLEST_TOKEN = 16
GREETING_BYTES = 1024  # most that is read from who has proved nothing
MESSAGE_BYTES = 64 << 20
HELLO_S = 3.0


def read_token(path: str | os.PathLike[str] | None) -> bytes:
    """Return the token in a file; b"" without one.

    Raises:
        InvalidArgument: it cannot be read, is shorter than 16 bytes, or others than its owner may read it.
    """
    if path is None:
        return b""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            token = file.read(4096).strip()
    except OSError as error:
        why = f"cannot read the token in {os.fspath(path)}: {error.strerror or error}"
        raise InvalidArgument(why, hint=f"make one: (umask 077; openssl rand -hex 32 > {os.fspath(path)})") from None
    if mode & (stat.S_IRGRP | stat.S_IROTH | stat.S_IWGRP | stat.S_IWOTH):
        raise InvalidArgument(f"others may read the token in {os.fspath(path)}", hint=f"chmod 600 {os.fspath(path)}")
    if len(token) < SMALLEST_TOKEN:
        raise InvalidArgument(
            f"the token in {os.fspath(path)} has {len(token)} bytes, and at least {SMALLEST_TOKEN} are needed",
            hint=f"make one: (umask 077; openssl rand -hex 32 > {os.fspath(path)})",
        )
    return token


def make_token(path: str | os.PathLike[str]) -> bytes:
    """Write a new random token to `path`, readable by its owner only; returns it."""
    token = secrets.token_hex(32).encode()
    descriptor = os.open(Path(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(token + b"\n")
    return token


def need_token(address: Address, token: bytes, what: str) -> None:
    """Refuse any address beyond this machine without a token. A Unix socket is its owner's by its file mode."""
    if not token and not is_local(address):
        raise InvalidArgument(
            f"{what} {address[0]} needs a token: others could reach it",
            hint="make one with `(umask 077; openssl rand -hex 32 > F)`, copy it to each machine, and give --token-file F",
        )


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise ConnectionError("the connection ended")
        data += more
    return bytes(data)


def send_message(sock: socket.socket, message: Any) -> None:
    """Send one msgpack value, its length before it."""
    data = msgpack.packb(message)
    sock.sendall(struct.pack("<I", len(data)) + data)


def receive_message(sock: socket.socket, limit: int = MESSAGE_BYTES) -> Any:
    """Receive one msgpack value of at most `limit` bytes, and not a byte more.

    Raises:
        ConnectionError: the connection ended, or what came is no such value.
    """
    [size] = struct.unpack("<I", _exactly(sock, 4))
    if size > limit:
        raise ConnectionError(f"a message of {size} bytes where at most {limit} are due")
    try:
        return msgpack.unpackb(_exactly(sock, size), strict_map_key=False, max_ext_len=0)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ConnectionError(f"what came is no message: {error}") from None


def _proof(token: bytes, role: bytes, purpose: str, client: bytes, server: bytes) -> bytes:
    return hmac.digest(token, b"fabrex 1 " + role + b" " + purpose.encode() + b"\0" + client + server, "sha256")


def _nonce(message: Any) -> bytes:
    nonce = message.get("nonce") if isinstance(message, dict) else None
    if not isinstance(nonce, bytes) or len(nonce) != NONCE_BYTES:
        raise ConnectionError("no nonce where one is due")
    return nonce


def prove(sock: socket.socket, token: bytes, purpose: str) -> None:
    """Be the client: prove the token, and see that the other side has it too.

    Raises:
        FabricDenied: it does not take our token, or has not got it. LayoutMismatch: it is another version of fabrex.
        ConnectionError, TimeoutError.
    """
    mine = secrets.token_bytes(NONCE_BYTES)
    send_message(sock, {"fabrex": VERSION, "purpose": purpose, "nonce": mine})
    greeting = receive_message(sock, GREETING_BYTES)
    if isinstance(greeting, dict) and greeting.get("fabrex", VERSION) != VERSION:
        raise LayoutMismatch(
            f"the other side speaks version {str(greeting['fabrex'])[:20]} of the protocol between machines, this one {VERSION}",
            hint="install the same version of fabrex on every machine",
        )
    theirs = _nonce(greeting)
    send_message(sock, {"proof": _proof(token, b"client", purpose, mine, theirs)})
    try:
        answer = receive_message(sock, GREETING_BYTES)
    except ConnectionError:
        raise FabricDenied(
            "the other side ended the connection after our proof: it holds another token",
            hint="give the same --token-file on every machine",
        ) from None
    proof = answer.get("proof") if isinstance(answer, dict) else None
    if not isinstance(proof, bytes) or not hmac.compare_digest(proof, _proof(token, b"server", purpose, mine, theirs)):
        raise FabricDenied(
            "the other side cannot prove that it holds the token", hint="give the same --token-file on every machine"
        )


def admit(sock: socket.socket, token: bytes, purposes: tuple[str, ...]) -> str:
    """Be the server: let in who proves the token; returns what for.

    Raises:
        ConnectionError: nobody was let in. TimeoutError.
    """
    greeting = receive_message(sock, GREETING_BYTES)
    theirs = _nonce(greeting)
    purpose = greeting.get("purpose")
    if greeting.get("fabrex") != VERSION:
        send_message(sock, {"fabrex": VERSION})  # which it may say to whoever asks
        raise ConnectionError("a greeting of another version")
    if purpose not in purposes:
        raise ConnectionError("a greeting that is none of ours")
    mine = secrets.token_bytes(NONCE_BYTES)
    send_message(sock, {"nonce": mine})
    answer = receive_message(sock, GREETING_BYTES)
    proof = answer.get("proof") if isinstance(answer, dict) else None
    if not isinstance(proof, bytes) or not hmac.compare_digest(proof, _proof(token, b"client", str(purpose), theirs, mine)):
        raise ConnectionError("the token was not proved")
    send_message(sock, {"proof": _proof(token, b"server", str(purpose), theirs, mine)})
    return str(purpose)
