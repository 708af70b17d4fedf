# SPDX-License-Identifier: Apache-2.0
"""Where agents listen: `HOST:PORT`, or `unix:/path` among machines that share a directory, as containers of one host may.

Owns: addresses as text, as values, on the wire; making sockets of them. Must not know: who may use them.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from typing import Any

from ..errors import InvalidArgument

__all__ = [
    "Address",
    "beside",
    "close",
    "connect",
    "is_local",
    "is_unspecified",
    "listen",
    "parse",
    "plain",
    "prompt",
    "shown",
    "taken",
]

Address = tuple[str, int] | str
"""Host and port, or the path of a Unix socket."""

_SCHEME = "unix:"
_LONGEST = 107  # bytes of a path in struct sockaddr_un
_WAITING = 64  # connections that nobody has accepted yet


def parse(text: str) -> Address:
    """Return the address that `HOST:PORT`, `[HOST]:PORT` or `unix:/path` means."""
    if text.startswith(_SCHEME):
        path = text.removeprefix(_SCHEME)
        if not os.path.isabs(path) or "\0" in path or path.endswith("/"):
            raise InvalidArgument(f"{text!r} is no address", hint="write unix: and the whole path, as in unix:/run/lab/fabric")
        if len(os.fsencode(path)) > _LONGEST - 16:  # other machines' names go behind it
            raise InvalidArgument(f"{text!r} is too long for a Unix socket", hint=f"choose a path of at most {_LONGEST - 16} bytes")
        return path
    head, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535 or not head:
        raise InvalidArgument(f"{text!r} is no address", hint="write HOST:PORT, as in 127.0.0.1:4711 or [::1]:4711, or unix:/path")
    return head.strip("[]"), int(port)


def shown(address: Address) -> str:
    """The text that `parse` reads."""
    if isinstance(address, str):
        return _SCHEME + address
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def plain(address: Address) -> Any:
    """For the wire."""
    return _SCHEME + address if isinstance(address, str) else list(address)


def taken(value: Any) -> Address:
    """From the wire; what is no address raises ValueError or TypeError."""
    if isinstance(value, str):
        return parse(value)
    host, port = value
    if not 0 <= int(port) <= 65535:
        raise ValueError(f"{port} is no port")
    return str(host), int(port)


def is_local(address: Address) -> bool:
    """Return whether only this machine, or who shares the socket's directory with it, can reach that address."""
    if isinstance(address, str):
        return True
    try:
        return ipaddress.ip_address(address[0].split("%")[0]).is_loopback
    except ValueError:
        return address[0] == "localhost"


def is_unspecified(host: str) -> bool:
    """Return whether a host means "any of mine"."""
    return host in ("", "0.0.0.0", "::")


def beside(path: str, machine: str) -> str:
    """Where a machine listens whose coordinator is at `path`, if nothing else was said."""
    return f"{path}.{machine}"


def connect(address: Address, timeout: float) -> socket.socket:
    """Return a connection; OSError if there is none, or no such host could be."""
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock
    try:
        sock = socket.create_connection(address, timeout=timeout)
    except UnicodeError:
        raise OSError(f"{address[0]!r} is no name of a host") from None
    prompt(sock)
    return sock


def prompt(sock: socket.socket) -> None:
    """Let messages leave at once: two small ones behind each other would wait for an acknowledgement otherwise."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def listen(address: Address) -> socket.socket:
    """Return a socket that listens. That of a path can be used by this user alone (mode 0600); a dead one that lies there is
    replaced, which is why none lies there without listening for longer than it takes.

    Raises:
        InvalidArgument: it cannot be.
    """
    unix = isinstance(address, str)
    family = socket.AF_UNIX if unix else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if isinstance(address, str):
            _remove_dead(address)
            mask = os.umask(0o177)
            try:
                sock.bind(address)
            finally:
                os.umask(mask)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        sock.listen(_WAITING)
    except (OSError, UnicodeError) as error:
        sock.close()
        why = getattr(error, "strerror", None) or error
        hint = "choose another address or port"
        if isinstance(address, str):
            taken_by = getattr(error, "errno", None) == errno.EADDRINUSE
            hint = "end who listens there, or choose another path" if taken_by else "is its directory there, and yours?"
            if len(os.fsencode(address)) > _LONGEST:
                hint = f"choose a path of at most {_LONGEST} bytes with --listen"
        raise InvalidArgument(f"cannot listen on {shown(address)}: {why}", hint=hint) from None
    return sock


def close(sock: socket.socket) -> None:
    """End what `listen` made, and its file."""
    path: object = None
    with contextlib.suppress(OSError):
        path = sock.getsockname()
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
    if isinstance(path, str) and path:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _remove_dead(path: str) -> None:
    """Remove a socket's file that nobody listens at any more."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.closing(probe), contextlib.suppress(FileNotFoundError):
        try:
            probe.settimeout(1.0)
            probe.connect(path)
        except ConnectionRefusedError:
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
        except TimeoutError:
            pass
