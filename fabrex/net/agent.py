# SPDX-License-Identifier: Apache-2.0
"""The agent of a machine: admits, connects, watches, and makes the changes that all machines make.

The coordinator's agent gives each change its number (order.py) and sends it to all members over their control connections, in
that order. A member makes them as they come, and says of each that it is made. Where its control connection breaks, or brings
another number than the next, it makes another, and goes on behind the last change that it made. One that the coordinator has given
up, or that cannot make a change, is cut off: for it all others are lost, and it is for them, so that nobody goes on with a state
that is not the fabric's. What a change is, and what follows from all of them, is in control.py.

Threads: one accepts connections (each is admitted on a thread of its own, so that a slow one delays nobody), one answers
processes of this machine that want a connection or a change, one for each other machine that is watched, two for each control
connection. Watching is a ping that the other side's gateway answers from C: a process that is busy in Python is not taken for dead.
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
from . import address as places
from .address import Address
from .admission import HELLO_S, admit, need_token, prove, read_token, receive_message, send_message
from .control import LOST, Member, Outcome, State, change_of, home_of, is_window, make, read_change
from .order import Line, Order

LOST_S = 1.5
"""A machine that has not answered for so long is lost."""
PING_S = 0.2
NODES_S = 0.1
CHANGE_S = 10.0
"""How long who asked for a change waits for all machines to make it."""
REJOIN_S = 0.6
"""A machine that was lost is so for this long at least: until every process that had connections to it has noticed."""
BEAT_S = 0.4
SILENT_S = 2.0
"""A control connection on which nothing has come for so long is broken, whatever TCP thinks of it: it is made anew."""
COMING_S = 1.0
"""How long a connection waits for the news that the machine it comes from has joined."""
GUESTS = 64
"""Connections that are being admitted at the same time; more wait in the listener's queue."""
LINGER_S = 0.5

_NOT_YET = 1 << 62
_NONSENSE = (OSError, KeyError, TypeError, ValueError, ArithmeticError, AttributeError, struct.error, FabricError)
"""What comes of a connection that breaks, and of whatever an admitted peer may say."""


class Agent:
    """One machine's part in a fabric on several.

    Attributes:
        machine: this machine's name.
        address: where this agent listens: (host, port), or the path of a Unix socket.
    """

    def __init__(self, fabric: Any, machine: str, token: bytes, listener: socket.socket) -> None:
        self.fabric = fabric
        self.machine = machine
        self.machines: list[str] = list(fabric.topology.machines)
        self.index = self.machines.index(machine)
        self.coordinates = self.index == 0
        name = listener.getsockname()
        self.address: Address = name if isinstance(name, str) else name[:2]
        self._token = token
        self._listener = listener
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._guests = threading.BoundedSemaphore(GUESTS)
        self._state = State(members={machine: Member(self.address, 0 if self.coordinates else _NOT_YET)})
        self._everywhere = 0  # all members have made all changes up to this one
        self._nodes = {m: [fabric._node_index(n) for n in there["nodes"]] for m, there in fabric.topology.machines.items()}
        self._joining: set[str] = set()
        self._order = Order(machine, self._state, self._make, self._told) if self.coordinates else None
        self._line: Line | None = None  # a member's to the coordinator
        self._asks: dict[int, tuple[threading.Event, list[tuple[Outcome, int]], dict[str, Any]]] = {}
        self._asked = 0
        self._outcomes: dict[int, Outcome] = {}  # of changes that not all are known to have made
        self._lost_since: dict[str, float] = {}
        self._cut = ""  # why this member was cut off
        self._ended = False  # the coordinator has said that it leaves
        self._where: Address | None = None  # the coordinator is, as this member was told
        self._reports: dict[str, Any] = {}  # what the others were told last of what happens here by itself
        self._watched: set[str] = set()
        self._changed = threading.Condition(self._lock)
        self._mine = [name for name in fabric.topology.machines[machine]["nodes"] if fabric.topology.nodes[name].kind != "switch"]
        path = ffi.new("char[]", 512)
        check(lib.fbx_agent_path(fabric._live(), path, 512))
        self._path = text(path)
        self._doors = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        _bind_path(self._doors, self._path)
        self._doors.listen(64)
        check(lib.fbx_gateway_start(fabric._live()))

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
            self._changed.notify_all()
        lines = list(self._order.lines().values()) if self._order else [self._line] if self._line else []
        for line in lines:
            line.close(last={"leaves": True})
        for line in lines:
            line.close(LINGER_S)
        for sock in (self._doors, *(line.sock for line in lines)):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        places.close(self._listener)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self._fail_asks("this machine's agent was closed")
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(2 * HELLO_S)

    @property
    def closed(self) -> bool:
        """Whether it has left."""
        return self._closing.is_set()

    @property
    def where(self) -> str:
        """The address as `fabricctl join` takes it."""
        return places.shown(self.address)

    @property
    def epoch(self) -> int:
        """Number of the last change of the fabric that this machine has made."""
        with self._lock:
            return self._state.epoch

    def state(self) -> dict[str, Any]:
        """Return what this machine holds of the fabric as a whole: the same on all machines with the same epoch."""
        with self._lock:
            return self._state.to_message()

    def wait_for(self, machines: list[str] | None = None, timeout: float | None = None) -> None:
        """Wait until these machines (all, if left out) are members, and every member knows it.

        Raises:
            PeerLost: not all came in time. InvalidArgument: the topology has no such machine.
        """
        for name in machines or ():
            if name not in self.machines:
                raise InvalidArgument(f"the topology has no machine {name!r}; it has {', '.join(self.machines)}")
        wanted = {self.machine, *(self.machines if machines is None else machines)}
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                members = self._state.members
                missing = sorted(wanted - set(members))
                if not missing and all(members[name].since <= self._everywhere for name in wanted):
                    return
                left = None if deadline is None else deadline - time.monotonic()
                gone = self.machines[0] not in members
                if self.closed or gone or (left is not None and left <= 0):
                    break
                self._changed.wait(0.5 if left is None else min(left, 0.5))
        if missing:
            why = f" ({self._cut or 'the coordinator is lost, so nobody can join any more'})" if gone else ""
            raise PeerLost(f"not all machines came: {', '.join(missing)} did not{why}", hint="start `fabricctl join` there")
        behind = ", ".join(self._order.behind()) if self._order else ""
        raise PeerLost(f"not all machines have heard yet that {', '.join(sorted(wanted))} are there{behind and ': '}{behind}")

    def is_member(self, machine: str) -> bool:
        """Whether that machine belongs to the fabric now."""
        with self._lock:
            return machine in self._state.members

    def wait_alone(self, timeout: float) -> None:
        """Wait until all other machines have left, but no longer than that."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while len(self._state.members) > 1 and time.monotonic() < deadline:
                self._changed.wait(0.1)

    def wait_over(self) -> str:
        """Wait a moment; returns why this machine's part is over, or "". The coordinator's loss is no reason: traffic goes on."""
        self._closing.wait(0.2)
        if self._cut:
            return self._no_coordinator()
        if self.closed:
            return "it was closed"
        return f"the coordinator, machine {self.machines[0]}, has ended it" if self._ended else ""

    @property
    def cut_off(self) -> bool:
        """Whether the others go on without this machine, which can only join anew."""
        return bool(self._cut)

    @property
    def alone(self) -> str:
        """Why nothing of the fabric as a whole can be changed any more; "" while it can."""
        return "" if self.is_member(self.machines[0]) else self._no_coordinator()

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
                places.prompt(sock)
            except OSError:
                self._guests.release()
                time.sleep(0.05)
                continue
            threading.Thread(target=self._guest, args=(sock,), name="fabrex guest", daemon=True).start()

    def _guest(self, sock: socket.socket) -> None:
        """Admit one connection, or drop it; nothing that it sends does more."""
        control: tuple[str, Line] | None = None
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
        except _NONSENSE:
            pass
        finally:
            self._guests.release()
            if control is None:
                sock.close()
        if control is not None:
            self._thread(self._hear_member, *control)

    def _hand_over(self, sock: socket.socket, request: Any) -> None:
        """A connection of a process of another machine: it is the gateway's from here on."""
        name, since = str(request["machine"]), int(request["since"])

        def is_known() -> bool:
            """Not one that was lost, and does not know it, while another came in its place."""
            member = self._state.members.get(name)
            return member is not None and member.since == since and name != self.machine

        # Who has heard of us earlier than we of them is a little early.
        with self._changed:
            self._changed.wait_for(lambda: is_known() or self.closed, COMING_S)
            known = is_known()
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
        """A process of this machine wants a connection to another machine, or a change."""
        with door:
            try:
                door.settimeout(HELLO_S)
                _, uid, _ = struct.unpack("3i", door.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                request = door.recv(4096)
                if uid not in (os.getuid(), 0):
                    return
                change = change_of(request)
                if change is not None:
                    outcome, epoch = self.change(change)
                    words = outcome.words.encode()[:255].decode(errors="ignore").encode()
                    door.send(struct.pack("<iIQ", outcome.status, 0, epoch) + words)
                    return
                if len(request) != 8 or request[:4] != b"FXAG":
                    return
                [index] = struct.unpack("<I", request[4:])
                with self._lock:
                    member = self._state.members.get(self.machines[index]) if index < len(self.machines) else None
                if member is None:
                    door.send(struct.pack("<I", 1))
                    return
                with self._connect(member.address, "data") as sock:
                    socket.send_fds(door, [struct.pack("<I", 0)], [sock.fileno()])
            except _NONSENSE:
                with contextlib.suppress(OSError):
                    door.send(struct.pack("<I", 2))

    def _connect(self, address: Address, purpose: str, **more: Any) -> socket.socket:
        need_token(address, self._token, "connecting to")
        sock = places.connect(address, 1.0)
        try:
            prove(sock, self._token, purpose)
            with self._lock:
                since = self._state.members[self.machine].since
            send_message(sock, {"machine": self.machine, "fabric": self._fabric_id(), "since": since, **more})
            answer = receive_message(sock, 4096)
            if not answer.get("ok"):
                raise _Refused(str(answer.get("error", "not admitted")))
            sock.settimeout(None)
            return sock
        except BaseException:
            sock.close()
            raise

    def _fabric_id(self) -> int:
        return int(self.fabric.fabric_id)

    # -- changes ------------------------------------------------------------------------------------------------------

    def change(self, change: Mapping[str, Any], timeout: float = CHANGE_S) -> tuple[Outcome, int]:
        """Have a change made by all machines; returns what came of it, and its number (0: it got none)."""
        done = threading.Event()
        came: list[tuple[Outcome, int]] = []

        def answer(outcome: Outcome, epoch: int) -> None:
            came.append((outcome, epoch))
            done.set()

        if self._order is not None:
            self._order.change(change, answer)
        else:
            with self._lock:
                self._asked += 1
                number = self._asked
                self._asks[number] = (done, came, dict(change))
                line = self._line if self.machines[0] in self._state.members else None
            if line is None:
                self._fail_asks(self._no_coordinator())
            else:
                line.put({"ask": number, "change": dict(change)})
        done.wait(timeout)
        if self._order is None:
            with self._lock:
                self._asks.pop(number, None)
        if came:
            return came[0]
        behind = ", ".join(self._order.behind()) if self._order else ""
        words = f"not all machines have said within {timeout:g} s that they made the change{behind and ': not '}{behind}"
        return Outcome(lib.FBX_E_COMPLETION_TIMEOUT, f"{words}; they make it as soon as they can, or are lost"), 0

    def _no_coordinator(self) -> str:
        if self._cut:
            return f"machine {self.machine} is cut off from the fabric ({self._cut}); end its part, and join again"
        at = f" at {places.shown(self._where)}" if self._where is not None else ""
        return (
            f"the coordinator, machine {self.machines[0]}{at}, is lost: links, windows of other machines and names cannot be "
            "changed any more, traffic goes on; to change something, make the fabric anew"
        )

    def _fail_asks(self, words: str) -> None:
        with self._lock:
            asks, self._asks = self._asks, {}
        for done, came, _ in asks.values():
            came.append((Outcome(lib.FBX_E_PEER_LOST, words, False), 0))
            done.set()

    def _make(self, change: Mapping[str, Any], epoch: int) -> Outcome:
        """Make a change here. One that is made is part of the state, and whoever waits for it looks again."""
        if self._order is not None and (home := home_of(self.fabric.topology, change)) and not self.is_member(home):
            return Outcome.lost(home)
        outcome = make(self.fabric, self.machine, change)
        if outcome.made:
            with self._changed:
                self._state.advance(change, epoch, self._nodes)
                self._changed.notify_all()
            self._tell_epoch()
        return outcome

    def _told(self, everywhere: int) -> None:
        """All members have made all changes up to that one."""
        with self._changed:
            if everywhere <= self._everywhere:
                return
            self._everywhere = everywhere
            for epoch in [epoch for epoch in self._outcomes if epoch <= everywhere]:
                del self._outcomes[epoch]
            self._changed.notify_all()
        self._tell_epoch()

    def _tell_epoch(self) -> None:
        """For `fabric.machines()`, in whichever process."""
        with self._lock:
            epoch, everywhere, members = self._state.epoch, self._everywhere, set(self._state.members)
        behind = self._order.behind() if self._order else dict.fromkeys(members, everywhere)
        with contextlib.suppress(FabricError):
            for index, name in enumerate(self.machines):
                if name == self.machine or name in members:
                    lib.fbx_machine_epoch(self.fabric._live(), index, epoch if name == self.machine else behind.get(name, epoch))

    # -- the coordinator's side ---------------------------------------------------------------------------------------

    def _take_in(self, sock: socket.socket, request: Mapping[str, Any]) -> tuple[str, Line] | None:
        """A machine joins: it makes its instance, and is a member once it says that it serves."""
        assert self._order is not None
        name, address = str(request["machine"]), places.taken(request["address"])
        if isinstance(address, tuple) and places.is_unspecified(address[0]):
            address = (sock.getpeername()[0], address[1])
        topology: Topology = self.fabric.topology
        if name not in self.machines or name == self.machine:
            known = ", ".join(self.machines[1:])
            send_message(sock, {"error": f"the topology has no machine {name!r} to join as; it has {known}"})
            return None
        with self._lock:
            taken = name in self._state.members or name in self._joining
            if not taken:
                self._joining.add(name)
        if taken:
            message = f"machine {name} is there already, or has been lost for less than {LOST_S:g} s"
            send_message(sock, {"error": message, "exists": True})
            return None
        try:
            if (left := self._lost_since.get(name, 0.0) + REJOIN_S - time.monotonic()) > 0:
                time.sleep(left)
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
            sock.settimeout(30.0)
            if not receive_message(sock, 4096).get("ready"):
                raise ConnectionError("it does not serve")
            sock.settimeout(2 * SILENT_S)
            line = Line(sock, self._thread)
            self._order.join(name, {"what": "join", "machine": name, "address": places.plain(address)}, line)
        finally:
            with self._lock:
                self._joining.discard(name)
        self._watch(name)
        return name, line

    def _take_back(self, sock: socket.socket, request: Mapping[str, Any]) -> tuple[str, Line] | None:
        """A member whose control connection broke: it goes on over this one."""
        assert self._order is not None
        name, epoch = str(request["machine"]), int(request["epoch"])
        sock.settimeout(2 * SILENT_S)
        line = Line(sock, self._thread)
        if request["fabric"] == self._fabric_id() and self._order.back(name, epoch, line):
            return name, line
        line.close(LINGER_S, {"error": "the coordinator has given it up"})
        return None

    def _hear_member(self, name: str, line: Line) -> None:
        """What a member says after it has joined. Whether it is lost is watched elsewhere: it may go on over another connection."""
        assert self._order is not None
        try:
            while not self.closed:
                message = receive_message(line.sock, 1 << 20)
                if not self._order.is_of(name, line):
                    break
                if "made" in message:
                    self._order.made(name, int(message["made"]), Outcome.from_message(message))
                elif "ask" in message:
                    number = int(message["ask"])
                    if number < 0 or number >> 63:
                        raise ValueError(f"{number} is no number of a request")
                    self._order.ask(name, number, read_change(message["change"], name))
                elif message.get("leaves"):
                    self._lose(name)
                    break
                else:
                    line.put({"beat": True})
        except _NONSENSE:
            pass
        finally:
            line.close(LINGER_S)
            line.sock.close()

    def _lose(self, name: str) -> None:
        """A machine is gone: its nodes are lost, here and, if this is the coordinator, on all others. It may join again."""
        if self._order is not None:
            self._lost_since[name] = time.monotonic()
            self._order.leave(name)
            return
        with self._changed:
            if self._state.members.pop(name, None) is None:
                return
            others = [other for other in self._state.members if other != self.machine]
            line = self._line
            self._changed.notify_all()
        with contextlib.suppress(FabricError):
            check(lib.fbx_machine_set(self.fabric._live(), self.machines.index(name), LOST))
        if name == self.machines[0] and not self.closed:
            # It may think that we are there; and nobody says any more who is lost.
            if line is not None:
                line.close(LINGER_S, {"leaves": True})
            self._fail_asks(self._no_coordinator())
            for other in others:
                self._watch(other)

    # -- a member's side ----------------------------------------------------------------------------------------------

    def _follow(self, line: Line) -> None:
        """Do what the coordinator says, until it is gone. Then nothing changes any more; traffic goes on."""
        coordinator = self.machines[0]
        following: Line | None = line
        while following is not None:
            cut = ""
            try:
                while not self.closed and not cut:
                    message = receive_message(following.sock)
                    if message.get("leaves"):
                        self._ended = True
                        self._lose(coordinator)
                        break
                    cut = str(message["cut"]) if "cut" in message else self._obey(message, following)
            except _NONSENSE:
                pass
            following.close(LINGER_S)
            following.sock.close()
            following = None
            if not self.closed and not cut and self.is_member(coordinator):
                following, cut = self._follow_again()
            if cut and not self.closed:
                self._cut = cut
                self._lose(coordinator)
                self._cut_off()

    def _follow_again(self) -> tuple[Line | None, str]:
        """The control connection broke, or is silent: make another, unless the coordinator is lost or has given us up."""
        if not self.epoch:
            return None, "the connection broke before this machine was a member"
        assert self._where is not None
        while not self._closing.wait(BEAT_S / 4):
            if not self.is_member(self.machines[0]):
                break
            try:
                sock = self._connect(self._where, "follow", epoch=self.epoch)
            except _Refused as error:
                return None, str(error)
            except (OSError, FabricError):  # a reset amid the admission looks like a denial
                continue
            sock.settimeout(SILENT_S)
            line = Line(sock, self._thread)
            with self._lock:
                self._line = line
                # What was said over the last one may not have arrived; saying it twice does nothing.
                outcomes, asks = sorted(self._outcomes.items()), dict(self._asks)
                self._reports = {}
            for epoch, outcome in outcomes:
                line.put({"made": epoch, "status": outcome.status, "words": outcome.words})
            for number, (_, _, change) in asks.items():
                line.put({"ask": number, "change": change})
            return line, ""
        return None, ""

    def _obey(self, message: Mapping[str, Any], line: Line) -> str:
        """Take one message of the coordinator's; returns why this machine cannot go on, or ""."""
        if "change" in message:
            epoch = int(message["epoch"])
            if epoch <= self._state.epoch:
                return ""  # over two connections
            if epoch != self._state.epoch + 1:
                raise ConnectionError(f"change {epoch} came after change {self._state.epoch}")
            change = read_change(message["change"])
            outcome = self._make(change, epoch)
            if not outcome.made:
                if not is_window(change):
                    return f"change {epoch} could not be made: {outcome.words}"
                with self._lock:
                    self._state.epoch = epoch  # it has failed for all, since nobody else has to make it
                self._tell_epoch()
            with self._lock:
                self._outcomes[epoch] = outcome
            line.put({"made": epoch, "status": outcome.status, "words": outcome.words})
        elif "everywhere" in message:
            self._told(int(message["everywhere"]))
        elif "answer" in message:
            with self._lock:
                done, came, _ = self._asks.get(int(message["answer"]), (None, [], {}))
            if done is not None and not came:
                came.append((Outcome.from_message(message), int(message["epoch"])))
                done.set()
        elif "state" in message:
            return self._begin(State.from_message(message["state"]), line)
        return ""

    def _begin(self, state: State, line: Line) -> str:
        """This machine is a member now: bring what is new here to where the others are."""
        if self._state.epoch or self.machine not in state.members:
            return "a state that this machine does not need"
        if self._where is not None:
            state.members[self.machines[0]].address = self._where  # as it is reached from here
        for change in state.changes():
            outcome = make(self.fabric, self.machine, change)
            if not outcome.made:
                return f"the state could not be made: {outcome.words}"
        for name in state.members:
            make(self.fabric, self.machine, {"what": "join", "machine": name})
            make(self.fabric, self.machine, {"what": "nodes", "machine": name, "lost": state.lost.get(name, [])})
        with self._changed:
            self._state = state
            self._outcomes[state.epoch] = Outcome()
            self._changed.notify_all()
        self._tell_epoch()
        line.sock.settimeout(SILENT_S)
        self._watch(self.machines[0])
        line.put({"made": state.epoch})
        return ""

    def _cut_off(self) -> None:
        """The others go on without this machine, so it must not go on with them."""
        with self._changed:
            others = [name for name in self._state.members if name != self.machine]
            self._state.members = {self.machine: self._state.members[self.machine]}
            self._changed.notify_all()
        with contextlib.suppress(FabricError):
            for name in others:
                check(lib.fbx_machine_set(self.fabric._live(), self.machines.index(name), LOST))

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
                    if name not in self._state.members:
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
        """Have numbered what happens here by itself: nodes die or come back, and processes program windows."""
        info = ffi.new("struct fbx_machine_info *")
        beaten = time.monotonic()
        while not self._closing.wait(NODES_S):
            lost = [name for name in self._mine if self.fabric.node_info(name)["state"] == "lost"]
            check(lib.fbx_machine_info(self.fabric._live(), self.index, info))
            self._report("lost", lost, [], {"what": "nodes", "machine": self.machine, "lost": lost})
            count = int(info.windows)
            self._report("windows", count, 0, {"what": "windows", "machine": self.machine, "count": count})
            now = time.monotonic()
            if now - beaten > BEAT_S:
                beaten = now
                with self._lock:
                    line = self._line
                if line is not None:
                    line.put({"beat": True})

    def _report(self, key: str, value: Any, at_first: Any, change: Mapping[str, Any]) -> None:
        """Ask for a change, unless that is known, and wait for nothing."""
        with self._lock:
            known = self._state.lost if key == "lost" else self._state.windows
            if self._reports.get(key, known.get(self.machine, at_first)) == value:
                return
            line = self._line if self._state.epoch else None
            if self._order is not None or line is not None:
                self._reports[key] = value
        if self._order is not None:
            self._order.change(change)
        elif line is not None:
            line.put({"ask": 0, "change": dict(change)})


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


def _listen(address: Address, token: bytes) -> socket.socket:
    need_token(address, token, "listening on")
    return places.listen(address)


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
        listen: HOST:PORT for the others; a port of 0 takes a free one (`fabric.agent.address`). Or unix:/path, for others
            that share that directory.
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
    if mine not in names:
        raise InvalidArgument(f"topology {described.name} has no machine {mine!r}", hint=f"it has {', '.join(names)}")
    if mine != names[0]:
        raise InvalidArgument(
            f"{mine} cannot make the fabric: the coordinator is the first machine, {names[0]}",
            hint=f"start it there, and run `fabricctl join HOST:PORT --machine {mine}` here",
        )
    token = read_token(token_file)
    sock = _listen(places.parse(listen), token)
    fabric = None
    try:
        fabric = Fabric.create(described, name, machine=mine, fabric_id=secrets.randbits(63) | 1, **settings)
        _await_nobody(fabric)
        return _serve(fabric, Agent(fabric, mine, token, sock))
    except BaseException:
        if fabric is not None:
            fabric.close()
        places.close(sock)
        raise


def _await_nobody(fabric: Any) -> None:
    """At first nobody else is there: their nodes are lost until they join."""
    for index in range(1, len(fabric.topology.machines)):
        check(lib.fbx_machine_set(fabric._live(), index, LOST))


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
        coordinator: HOST:PORT, or unix:/path, of the machine that made it.
        machine: a name under `machines:` in its topology.
        listen: where the other machines reach this one; the address that reaches the coordinator, if left out, or beside its
            Unix socket.
        advertise: where they reach it instead, if something stands between: a forwarded port, NAT, a tunnel.
        timeout: seconds to wait for the coordinator.
    Raises:
        FabricDenied: the token is another. FabricExists: that machine is there. PeerLost: nobody answers.
    """
    from ..fabric import Fabric

    place = places.parse(coordinator)
    told = places.parse(advertise) if advertise is not None else None
    if isinstance(told, tuple) and (places.is_unspecified(told[0]) or not told[1]):
        raise InvalidArgument(f"nobody reaches {advertise!r}", hint="advertise the address and port that the others connect to")
    token = read_token(token_file)
    need_token(place, token, "connecting to")
    deadline = time.monotonic() + timeout
    while True:
        try:
            control = places.connect(place, min(timeout, 2.0))
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
            mine: Address = _own(listen, control, place, machine)
            refused = None
            try:
                sock = _listen(mine, token)
                mine = sock.getsockname()
            except InvalidArgument as error:
                if listen is not None or not isinstance(mine, str):
                    raise
                refused = error  # somebody listens there: if it is that machine, the coordinator knows it
            mine = told or (mine if isinstance(mine, str) else mine[:2])
            if not isinstance(mine, str) and places.is_local(mine) and not places.is_local(place):
                hint = "give --listen (or --advertise) an address of this machine"
                raise InvalidArgument(f"the others cannot reach {mine[0]}", hint=hint)
            send_message(control, {"machine": machine, "address": places.plain(mine)})
            answer = receive_message(control)
        except (ConnectionError, TimeoutError) as error:
            if isinstance(error, FabricError):
                raise
            raise PeerLost(f"{coordinator} does not answer like a coordinator: {error}") from None
        if not answer.get("ok"):
            kind = FabricExists if answer.get("exists") else InvalidArgument
            hint = "choose another of the topology's machines, or end that one first"
            raise kind(str(answer.get("error", "refused")), hint=hint)
        if refused is not None:
            raise refused
        topology = Topology.from_dict(msgpack.unpackb(answer["topology"], strict_map_key=False))
        try:
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
        except FabricExists as error:
            hint = "machines that share a computer need a directory each: give another with --directory"
            raise FabricExists(error.message, hint=hint) from None
        for index, name in enumerate(topology.machines):
            if name != machine:
                check(lib.fbx_machine_set(fabric._live(), index, LOST))
        assert sock is not None
        agent = Agent(fabric, machine, token, sock)
        agent._where = place
        agent._state.members[agent.machines[0]] = Member(place, 0)
        control.settimeout(max(timeout, SILENT_S))
        agent._line = Line(control, agent._thread)
        _serve(fabric, agent)
        agent._line.put({"ready": True})
        agent._thread(agent._follow, agent._line)
        # Others know of us only now: the answer to that is the state of the fabric.
        agent.wait_for([agent.machines[0]], timeout)
        return fabric
    except BaseException:
        control.close()
        if fabric is not None:
            fabric.close()
        if sock is not None and (fabric is None or fabric.agent is None):
            places.close(sock)
        raise


def _own(listen: str | None, control: socket.socket, coordinator: Address, machine: str) -> Address:
    """Where a machine listens."""
    if listen is not None:
        return places.parse(listen)
    if isinstance(coordinator, str):
        return places.beside(coordinator, machine)
    return str(control.getsockname()[0]), 0
