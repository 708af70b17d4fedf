# SPDX-License-Identifier: Apache-2.0
"""The agent of a machine: admits, connects, watches; and, on the coordinator's machine, keeps the list of members.

Threads: one accepts TCP connections (each is admitted on a thread of its own, so that a slow one delays nobody), one answers
processes of this machine that want a connection, one for each other machine that is watched. Watching is a ping that the other
side's gateway answers from C: a process that is busy in Python is not taken for dead.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from .._handle import check, ffi, lib, text
from ..errors import FabricError, FabricExists, InvalidArgument, PeerLost
from ..topology import Topology
from .admission import (
    HELLO_S,
    admit,
    is_loopback,
    need_token,
    parse_address,
    prove,
    read_token,
    receive_message,
    send_message,
)

LOST_S = 1.5
"""A machine that has not answered for so long is lost."""
PING_S = 0.2
NODES_S = 0.1
REJOIN_S = 0.6
"""A machine that was lost is so for this long at least: until every process that had connections to it has noticed."""
BEAT_S = 0.4
SILENT_S = 2.0
"""A control connection on which nothing has come for so long is broken, whatever TCP thinks of it: it is made anew."""
GUESTS = 64
"""Connections that are being admitted at the same time; more wait in the listener's queue."""
LINGER_S = 0.5

_UP, _LOST = 0, 1


class Agent:
    """One machine's part in a fabric on several.

    Attributes:
        machine: this machine's name.
        address: where this agent listens, (host, port).
    """

    def __init__(self, fabric: Any, machine: str, token: bytes, listener: socket.socket) -> None:
        self.fabric = fabric
        self.machine = machine
        self.machines: list[str] = list(fabric.topology.machines)
        self.index = self.machines.index(machine)
        self.coordinates = self.index == 0
        self.address: tuple[str, int] = listener.getsockname()[:2]
        self._token = token
        self._listener = listener
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._guests = threading.BoundedSemaphore(GUESTS)
        self._epoch = 0
        self._members: dict[str, tuple[str, int]] = {machine: self.address}  # who is up, and where
        self._lost_nodes: dict[str, list[str]] = {}
        self._controls: dict[str, socket.socket] = {}  # the coordinator's to members
        self._control: socket.socket | None = None  # a member's to the coordinator
        self._reached: tuple[str, int] | None = None  # where a member reaches the coordinator: where it joined
        self._lost_since: dict[str, float] = {}
        self._watched: set[str] = set()
        self._told: list[str] | None = []  # nodes of ours of which the others know that they are lost; None: it is told again
        self._changed = threading.Condition(self._lock)
        self._sending = threading.Lock()  # messages of several threads on one control connection do not mix
        self._mine = [name for name in fabric.topology.machines[machine]["nodes"] if fabric.topology.nodes[name].kind != "switch"]
        path = ffi.new("char[]", 512)
        check(lib.fbx_agent_path(fabric._live(), path, 512))
        self._path = text(path)
        self._doors = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        _bind_path(self._doors, self._path)
        self._doors.listen(64)
        check(lib.fbx_gateway_start(fabric._live()))
        listener.listen(64)

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve."""
        for run in (self._accept, self._doorman, self._look_at_nodes):
            self._thread(run)

    def close(self) -> None:
        """Leave: the others see this machine as lost."""
        if self._closing.is_set():
            return
        self._closing.set()
        with self._lock:
            open_ones = [*self._controls.values(), *([self._control] if self._control else [])]
            self._changed.notify_all()
        for sock in open_ones:
            with contextlib.suppress(OSError):
                sock.settimeout(LINGER_S)
                send_message(sock, {"leaves": True})
        for sock in (self._listener, self._doors, *open_ones):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(2 * HELLO_S)

    @property
    def closed(self) -> bool:
        """Whether it has left."""
        return self._closing.is_set()

    def wait_for(self, machines: list[str] | None = None, timeout: float | None = None) -> None:
        """Wait until these machines (all, if left out) are members.

        Raises:
            PeerLost: not all came in time.
        """
        wanted = set(self.machines if machines is None else machines)
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not wanted <= set(self._members):
                left = None if deadline is None else deadline - time.monotonic()
                if self.closed or (left is not None and left <= 0):
                    missing = ", ".join(sorted(wanted - set(self._members)))
                    raise PeerLost(f"not all machines came: {missing} did not", hint="start `fabricctl join` there")
                self._changed.wait(0.5 if left is None else min(left, 0.5))

    def is_member(self, machine: str) -> bool:
        """Whether that machine belongs to the fabric now."""
        with self._lock:
            return machine in self._members

    def wait_alone(self, timeout: float) -> None:
        """Wait until all other machines have left, but no longer than that."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while len(self._members) > 1 and time.monotonic() < deadline:
                self._changed.wait(0.1)

    def wait_gone(self) -> bool:
        """Wait a moment; returns whether the coordinator is lost, or this agent closed."""
        self._closing.wait(0.2)
        with self._lock:
            return self.closed or self.machines[0] not in self._members

    def _thread(self, run: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=self._guarded, args=(run, *arguments), name=f"fabrex {run.__name__}", daemon=True)
        with self._lock:
            self._threads = [other for other in self._threads if other.is_alive()]
            self._threads.append(thread)
        thread.start()

    def _guarded(self, run: Callable[..., None], *arguments: Any) -> None:
        try:
            run(*arguments)
        except (OSError, FabricError):
            if not self.closed and not self.fabric.closed:
                raise

    # -- connections --------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self.closed:
            self._guests.acquire()
            try:
                sock, _ = self._listener.accept()
            except OSError:
                self._guests.release()
                time.sleep(0.05)
                continue
            threading.Thread(target=self._guest, args=(sock,), name="fabrex guest", daemon=True).start()

    def _guest(self, sock: socket.socket) -> None:
        """Admit one connection, or drop it; nothing that it sends does more."""
        control = None
        try:
            sock.settimeout(HELLO_S)
            purpose = admit(sock, self._token, ("join", "data", "follow"))
            request = receive_message(sock, 4096)
            if purpose == "data":
                self._hand_over(sock, request)
            elif self.coordinates:
                control = (self._take_in if purpose == "join" else self._take_back)(sock, request)
            else:
                send_message(sock, {"error": f"{self.machine} is no coordinator; {self.machines[0]} is"})
        except (OSError, ConnectionError, KeyError, TypeError, ValueError, FabricError):
            pass
        finally:
            self._guests.release()
            if control is None:
                sock.close()
        if control is not None:
            self._thread(self._hear_member, control, sock)

    def _hand_over(self, sock: socket.socket, request: Any) -> None:
        """A connection of a process of another machine: it is the gateway's from here on."""
        name = request["machine"]
        with self._lock:
            known = name in self._members and name != self.machine
        if not known or request["fabric"] != self._fabric_id():
            send_message(sock, {"error": "not a member"})
            return
        send_message(sock, {"ok": True})
        sock.setblocking(False)
        check(lib.fbx_gateway_adopt(self.fabric._live(), sock.detach(), self.machines.index(name)))

    def _doorman(self) -> None:
        while not self.closed:
            try:
                door, _ = self._doors.accept()
            except OSError:
                return
            threading.Thread(target=self._open_door, args=(door,), name="fabrex door", daemon=True).start()

    def _open_door(self, door: socket.socket) -> None:
        """A process of this machine wants a connection to another machine."""
        with door:
            try:
                door.settimeout(HELLO_S)
                _, uid, _ = struct.unpack("3i", door.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                request = door.recv(8)
                if uid not in (os.getuid(), 0) or len(request) != 8 or request[:4] != b"FXAG":
                    return
                [index] = struct.unpack("<I", request[4:])
                with self._lock:
                    address = self._members.get(self.machines[index]) if index < len(self.machines) else None
                if address is None:
                    door.send(struct.pack("<I", 1))
                    return
                with self._connect(address, "data") as sock:
                    socket.send_fds(door, [struct.pack("<I", 0)], [sock.fileno()])
            except (OSError, ConnectionError, FabricError):
                with contextlib.suppress(OSError):
                    door.send(struct.pack("<I", 2))

    def _connect(self, address: tuple[str, int], purpose: str) -> socket.socket:
        need_token(address[0], self._token, "connecting to")
        sock = socket.create_connection(address, timeout=1.0)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            prove(sock, self._token, purpose)
            send_message(sock, {"machine": self.machine, "fabric": self._fabric_id()})
            if not receive_message(sock, 4096).get("ok"):
                raise _Refused("not admitted")
            sock.settimeout(None)
            return sock
        except BaseException:
            sock.close()
            raise

    def _fabric_id(self) -> int:
        return int(self.fabric.fabric_id)

    # -- membership: the coordinator's side ---------------------------------------------------------------------------

    def _take_in(self, sock: socket.socket, request: Mapping[str, Any]) -> str | None:
        name, host, port = str(request["machine"]), str(request["host"]), int(request["port"])
        topology: Topology = self.fabric.topology
        if name not in self.machines or name == self.machine:
            known = ", ".join(self.machines[1:])
            send_message(sock, {"error": f"the topology has no machine {name!r} to join as; it has {known}"})
            return None
        with self._lock:
            if name in self._members:
                taken = True
            else:
                taken = False
                self._members[name] = (host if not is_unspecified(host) else sock.getpeername()[0], port)
        if taken:
            send_message(sock, {"error": f"machine {name} is there already", "exists": True})
            return None
        if (left := self._lost_since.get(name, 0.0) + REJOIN_S - time.monotonic()) > 0:
            time.sleep(left)
        check(lib.fbx_machine_set(self.fabric._live(), self.machines.index(name), _UP))
        send_message(
            sock,
            {
                "ok": True,
                "name": self.fabric.name,
                "topology": msgpack.packb(topology.to_dict()),
                "fabric": self._fabric_id(),
                "timing": self.fabric.timing,
                "ordering": self.fabric.ordering,
                "strict": bool(self.fabric.strict_errors),
                "seed": self.fabric.info()["seed"],
                "machine": name,
            },
        )
        # The other side makes its instance now; it counts as a member once it says that it serves.
        sock.settimeout(30.0)
        try:
            if not receive_message(sock, 4096).get("ready"):
                raise ConnectionError
        except (OSError, ConnectionError):
            with self._lock:
                self._members.pop(name, None)
            raise
        sock.settimeout(HELLO_S)
        with self._lock:
            self._controls[name] = sock
            self._lost_nodes.pop(name, None)
        self._announce()
        self._watch(name)
        return name

    def _take_back(self, sock: socket.socket, request: Mapping[str, Any]) -> str | None:
        """A member whose control connection broke: it goes on over this one."""
        name = str(request["machine"])
        with self._lock:
            known = name in self._controls and request["fabric"] == self._fabric_id()
            before = self._controls.get(name)
            if known:
                sock.settimeout(HELLO_S)
                send_message(sock, {"ok": True})
                self._controls[name] = sock
        if not known:
            send_message(sock, {"error": f"{name} has been given up"})
            return None
        if before is not None:
            with contextlib.suppress(OSError):
                before.shutdown(socket.SHUT_RDWR)
        self._announce()
        return name

    def _send(self, sock: socket.socket, message: Any) -> None:
        """Say something on a control connection; one that takes nothing is broken, and its other side makes another."""
        with self._sending:
            try:
                send_message(sock, message)
            except OSError:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _announce(self) -> None:
        """Tell all members who is up, and which nodes are lost; each change has a number."""
        with self._lock:
            self._epoch += 1
            message = {
                "epoch": self._epoch,
                "members": {n: list(a) for n, a in self._members.items()},
                "lost": dict(self._lost_nodes),
            }
            controls = dict(self._controls)
            self._changed.notify_all()
        for sock in controls.values():
            self._send(sock, message)

    def _hear_member(self, name: str, sock: socket.socket) -> None:
        """What a member says after it has joined: which of its nodes are lost. Whether it is lost is watched elsewhere."""
        sock.settimeout(2 * SILENT_S)
        try:
            while not self.closed:
                message = receive_message(sock, 1 << 20)
                if not isinstance(message, dict):
                    raise ConnectionError("a message that is none of ours")
                if message.get("leaves"):
                    break
                if "lost" not in message:
                    self._send(sock, {"beat": True})
                    continue
                lost = [str(node) for node in message["lost"]]
                with self._lock:
                    self._lost_nodes[name] = lost
                self._apply_lost_nodes(name, lost)
                self._announce()
        except (OSError, ConnectionError, TypeError):
            sock.close()  # it makes another, if it is there
            return
        self._lose(name)

    def _lose(self, name: str) -> None:
        """A machine is gone: its nodes are lost, here and on all others. It may join again."""
        with self._lock:
            if name not in self._members:
                return
            self._members.pop(name)
            self._lost_since[name] = time.monotonic()
            sock = self._controls.pop(name, None)
            self._changed.notify_all()
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        with contextlib.suppress(FabricError):
            check(lib.fbx_machine_set(self.fabric._live(), self.machines.index(name), _LOST))
        if self.coordinates and not self.closed:
            self._announce()
        elif name == self.machines[0] and not self.closed:
            # Nobody says any more who is lost: see for ourselves.
            with self._lock:
                others = [other for other in self._members if other != self.machine]
            for other in others:
                self._watch(other)

    # -- membership: a member's side ----------------------------------------------------------------------------------

    def _follow(self, sock: socket.socket) -> None:
        """Do what the coordinator says, until it is gone. Then nothing changes any more; traffic goes on."""
        coordinator = self.machines[0]
        self._watch(coordinator)
        while True:
            try:
                sock.settimeout(SILENT_S)
                while not self.closed:
                    message = receive_message(sock)
                    if message.get("leaves"):
                        self._lose(coordinator)
                        break
                    if "epoch" in message:
                        self._obey(message)
            except (OSError, ConnectionError, KeyError, TypeError, ValueError, AttributeError):
                pass
            sock.close()
            again = self._follow_again()
            if again is None:
                return
            sock = again

    def _follow_again(self) -> socket.socket | None:
        """The control connection broke, or is silent: make another, unless the coordinator is lost or has given us up."""
        coordinator = self.machines[0]
        while not self._closing.wait(BEAT_S / 4):
            with self._lock:
                address = self._members.get(coordinator)
            if address is None:
                return None
            try:
                sock = self._connect(address, "follow")
            except _Refused:
                # Who does not want us back has counted us as lost: to us, all others are.
                self._obey({"epoch": self._epoch + 1, "members": {}, "lost": {}})
                return None
            except (OSError, ConnectionError, FabricError):  # a reset amid the admission looks like a denial
                continue
            with self._lock:
                self._control = sock
                self._told = None
            return sock
        return None

    def _obey(self, message: Mapping[str, Any]) -> None:
        members = {str(name): (str(a[0]), int(a[1])) for name, a in message["members"].items() if name in self.machines}
        epoch = int(message["epoch"])
        with self._lock:
            if epoch <= self._epoch:
                return
            self._epoch = epoch
            before = set(self._members)
            if self.machine not in members:
                members = {self.machine: self.address}  # we have been given up: the others are lost to us as well
            members[self.machine] = self.address
            if self._reached and self.machines[0] in members:
                # Where it joined, it is: what the coordinator takes for its address may be another network's, or any.
                members[self.machines[0]] = self._reached
            self._members = members
            self._changed.notify_all()
        for name in self.machines:
            if name == self.machine:
                continue
            if name in members and name not in before:
                check(lib.fbx_machine_set(self.fabric._live(), self.machines.index(name), _UP))
            elif name in before and name not in members:
                check(lib.fbx_machine_set(self.fabric._live(), self.machines.index(name), _LOST))
        for name in members:
            self._apply_lost_nodes(name, [str(node) for node in message["lost"].get(name, ())])

    # -- watching -----------------------------------------------------------------------------------------------------

    def _watch(self, name: str) -> None:
        with self._lock:
            if name in self._watched:
                return
            self._watched.add(name)
        self._thread(self._ping, name)

    def _ping(self, name: str) -> None:
        index = self.machines.index(name)
        heard = time.monotonic()
        theirs, trip = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        clock = _Clock()
        try:
            while not self._closing.wait(PING_S):
                with self._lock:
                    if name not in self._members:
                        return
                code = lib.fbx_machine_ping(self.fabric._live(), index, int(PING_S * 2e9), theirs, trip)
                now = time.monotonic()
                if code == 0:
                    heard = now
                    offset, bound, drift = clock.take(int(lib.fbx_fabric_now(self.fabric._live())), int(theirs[0]), int(trip[0]))
                    lib.fbx_machine_clock(self.fabric._live(), index, offset, min(bound, 0xFFFFFFFF), drift)
                elif now - heard > LOST_S:
                    self._lose(name)
                    return
        finally:
            with self._lock:
                self._watched.discard(name)

    def _look_at_nodes(self) -> None:
        """Tell when nodes of this machine die or come back."""
        beaten = time.monotonic()
        while not self._closing.wait(NODES_S):
            lost = [name for name in self._mine if self.fabric.node_info(name)["state"] == "lost"]
            now = time.monotonic()
            with self._lock:
                control = self._control
                changed, self._told = lost != self._told, lost
                if changed:
                    self._lost_nodes[self.machine] = lost
            if changed and self.coordinates:
                self._announce()
            elif control is not None and (changed or now - beaten > BEAT_S):
                self._send(control, {"lost": lost} if changed else {"beat": True})
                beaten = now

    def _apply_lost_nodes(self, name: str, lost: list[str]) -> None:
        if name == self.machine:
            return
        for node in self.fabric.topology.machines[name]["nodes"]:
            if self.fabric.topology.nodes[node].kind != "switch":
                check(lib.fbx_node_set(self.fabric._live(), self.fabric._node_index(node), int(node in lost)))


class _Refused(ConnectionError):
    """The other side lets us in, and wants nothing of us."""


class _Clock:
    """Another machine's clock against ours, from round trips; for reports, and nothing is ordered by it."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, int, int]] = deque(maxlen=64)  # (ours, offset, half the round trip)

    def take(self, now_ps: int, theirs_ps: int, trip_ps: int) -> tuple[int, int, int]:
        """Return offset (theirs - ours, ps), error bound (ns) and drift (parts per billion)."""
        self._seen.append((now_ps, theirs_ps - (now_ps - trip_ps // 2), trip_ps // 2))
        _, offset, half = min(self._seen, key=lambda sample: sample[2])
        drift = 0
        early, late = list(self._seen)[: len(self._seen) // 2], list(self._seen)[len(self._seen) // 2 :]
        if len(early) >= 4:
            a, b = min(early, key=lambda s: s[2]), min(late, key=lambda s: s[2])
            if b[0] > a[0]:
                drift = (b[1] - a[1]) * 1_000_000_000 // (b[0] - a[0])
        return offset, half // 1000 + 1, max(-(1 << 31), min(drift, (1 << 31) - 1))


def is_unspecified(host: str) -> bool:
    """Return whether an address means "any of mine"."""
    return host in ("", "0.0.0.0", "::")


def _bind_path(sock: socket.socket, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    mask = os.umask(0o177)
    try:
        if len(os.fsencode(path)) < 107:
            sock.bind(path)
            return
        folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
        try:
            sock.bind(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
        finally:
            os.close(folder)
    finally:
        os.umask(mask)


def _listen(listen: str, token: bytes) -> socket.socket:
    host, port = parse_address(listen)
    need_token(host, token, "listening on")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise InvalidArgument(f"cannot listen on {listen}: {error.strerror}", hint="choose another address or port") from None
    return sock


def host(
    topology: Topology | str | os.PathLike[str],
    name: str | None = None,
    *,
    machine: str | None = None,
    listen: str = "127.0.0.1:0",
    token_file: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Any:
    """Make a fabric on several machines, as its coordinator; returns this machine's Fabric, with `.agent`.

    Args:
        topology: one with `machines:`.
        machine: which of them this is; the coordinator's is the first.
        listen: HOST:PORT for the others; a port of 0 takes a free one (`fabric.agent.address`).
        token_file: a file with at least 16 secret bytes; needed for any address but loopback.
        settings: as for `Fabric.create`.
    Raises:
        InvalidArgument: no token for an address that others reach; a machine that is not the first.
    """
    from ..fabric import Fabric

    described = Topology.resolve(topology)
    names = list(described.machines)
    if not names:
        raise InvalidArgument(f"topology {described.name} has no `machines:`", hint="say which nodes are on which machine")
    mine = machine or names[0]
    if mine != names[0]:
        raise InvalidArgument(
            f"{mine} cannot make the fabric: the coordinator is the first machine, {names[0]}",
            hint=f"start it there, and run `fabricctl join HOST:PORT --machine {mine}` here",
        )
    token = read_token(token_file)
    sock = _listen(listen, token)
    try:
        fabric = Fabric.create(described, name, machine=mine, fabric_id=secrets.randbits(63) | 1, **settings)
        _await_nobody(fabric)
        return _serve(fabric, Agent(fabric, mine, token, sock))
    except BaseException:
        sock.close()
        raise


def _await_nobody(fabric: Any) -> None:
    """At first nobody else is there: their nodes are lost until they join."""
    for index in range(1, len(fabric.topology.machines)):
        check(lib.fbx_machine_set(fabric._live(), index, _LOST))


def _serve(fabric: Any, agent: Agent) -> Any:
    fabric.agent = agent
    agent.start()
    return fabric


def join(
    coordinator: str,
    machine: str,
    *,
    listen: str | None = None,
    advertise: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    directory: str | None = None,
    persistent: bool = False,
    timeout: float = 10.0,
) -> Any:
    """Join a fabric as one of its machines; returns this machine's Fabric, with `.agent`.

    Args:
        coordinator: HOST:PORT of the machine that made it.
        machine: a name under `machines:` in its topology.
        listen: where the other machines reach this one; the address that reaches the coordinator, if left out.
        advertise: where they reach it instead, if something stands between: a forwarded port, NAT, a tunnel.
        timeout: seconds to wait for the coordinator.
    Raises:
        FabricDenied: the token is another. FabricExists: that machine is there. PeerLost: nobody answers.
    """
    from ..fabric import Fabric

    place, port = parse_address(coordinator)
    told = parse_address(advertise) if advertise is not None else None
    if told is not None and (is_unspecified(told[0]) or not told[1]):
        raise InvalidArgument(f"nobody reaches {advertise!r}", hint="advertise the address and port that the others connect to")
    token = read_token(token_file)
    need_token(place, token, "connecting to")
    deadline = time.monotonic() + timeout
    while True:
        try:
            control = socket.create_connection((place, port), timeout=min(timeout, 2.0))
            break
        except OSError as error:
            if time.monotonic() >= deadline:
                raise PeerLost(
                    f"no coordinator answers at {coordinator}: {error}", hint="is `fabricctl up` running there?"
                ) from None
            time.sleep(0.05)
    sock = fabric = None
    try:
        control.settimeout(max(timeout, HELLO_S))
        try:
            prove(control, token, "join")
            own = control.getsockname()[0]
            sock = _listen(listen or (f"[{own}]:0" if ":" in own else f"{own}:0"), token)
            mine = told or sock.getsockname()
            if is_loopback(mine[0]) and not is_loopback(place):
                hint = "give --listen (or --advertise) an address of this machine"
                raise InvalidArgument(f"the others cannot reach {mine[0]}", hint=hint)
            send_message(control, {"machine": machine, "host": mine[0], "port": mine[1]})
            answer = receive_message(control)
        except (ConnectionError, TimeoutError) as error:
            if isinstance(error, FabricError):
                raise
            raise PeerLost(f"{coordinator} does not answer like a coordinator: {error}") from None
        if not answer.get("ok"):
            kind = FabricExists if answer.get("exists") else InvalidArgument
            raise kind(str(answer.get("error", "refused")))
        topology = Topology.from_dict(msgpack.unpackb(answer["topology"], strict_map_key=False))
        fabric = Fabric.create(
            topology,
            str(answer["name"]),
            machine=machine,
            fabric_id=int(answer["fabric"]),
            timing=bool(answer["timing"]),
            ordering=str(answer["ordering"]),
            strict_errors=bool(answer["strict"]),
            seed=int(answer["seed"]),
            directory=directory,
            persistent=persistent,
        )
        for index, name in enumerate(topology.machines):
            if index and name != machine:
                check(lib.fbx_machine_set(fabric._live(), index, _LOST))
        agent = Agent(fabric, machine, token, sock)
        agent._members[agent.machines[0]] = agent._reached = (place, port)
        agent._control = control
        _serve(fabric, agent)
        send_message(control, {"ready": True})
        agent._thread(agent._follow, control)
        # Others know of us only now: the answer to that is the first list of members.
        agent.wait_for([machine, agent.machines[0]], timeout)
        return fabric
    except BaseException:
        control.close()
        if fabric is not None:
            fabric.close()
        elif sock is not None:
            sock.close()
        raise
