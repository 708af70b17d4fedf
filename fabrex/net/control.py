# SPDX-License-Identifier: Apache-2.0
"""What all machines of a fabric agree on, and the numbered changes of it.

A change is a dict that goes over control connections as it is:

    {"what": "join", "machine": name, "address": address}
    {"what": "leave", "machine": name}
    {"what": "nodes", "machine": name, "lost": [names]}         which of its nodes have no living owner
    {"what": "windows", "machine": name, "count": n}            its processes have programmed windows, n times by now
    {"what": "core", "kind": k, "index": i, "keys": mask, "values": [16 numbers]}       struct fbx_change, see fabrex.h

`State` is what follows from all of them up to a number, the *epoch*. Whoever joins is given it whole.

Owns: the state and its form on the wire, making one change on one machine. Must not know: connections, who gives numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .._handle import ffi, lib, text
from ..topology import Topology
from .address import Address, plain, taken

__all__ = ["Member", "Outcome", "State", "change_of", "home_of", "is_window", "make", "read_change"]

UP, LOST = 0, 1
WORDS = 16
_DOOR = struct.Struct(f"<4s3I{WORDS}Q")
_WINDOWS = (lib.FBX_CHANGE_WINDOW, lib.FBX_CHANGE_WINDOW_CLEAR)


@dataclass
class Member:
    """A machine that is up: where it is, and the number of the change by which it came."""

    address: Address
    since: int


@dataclass
class Outcome:
    """What came of a change on one machine.

    Attributes:
        status, words: of the core.
        made: whether it is part of the state now.
        home: the machine that alone makes it; "" if all do.
    """

    status: int = 0
    words: str = ""
    made: bool = True
    home: str = ""

    @classmethod
    def lost(cls, home: str) -> Outcome:
        """Of a change that nobody made, or may have made, because who alone makes it is lost."""
        return cls(lib.FBX_E_PEER_LOST, f"machine {home} is lost, and what was to be changed with it", False)

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Outcome:
        """Read it; what is no such thing raises ValueError, TypeError or OverflowError."""
        status = int(message.get("status", 0))
        if not -(1 << 31) <= status < 1 << 31:
            raise ValueError(f"{status} is no status")
        return cls(status, str(message.get("words", "")), bool(message.get("made", True)))


@dataclass
class State:
    """The fabric as a whole, beside what its topology says.

    Attributes:
        epoch: number of the last change in it.
        members: machines that are up.
        lost: machine -> its nodes without a living owner.
        down: links that are down. values: link -> key -> what it is set to. closed: nodes whose NTB is disabled.
        windows: machine -> how many changes of windows its processes have made, as far as they have a number.
    """

    epoch: int = 0
    members: dict[str, Member] = field(default_factory=dict)
    lost: dict[str, list[str]] = field(default_factory=dict)
    down: set[int] = field(default_factory=set)
    values: dict[int, dict[int, int]] = field(default_factory=dict)
    closed: set[int] = field(default_factory=set)
    windows: dict[str, int] = field(default_factory=dict)

    def advance(self, change: Mapping[str, Any], epoch: int, nodes: Mapping[str, list[int]]) -> None:
        """Take a change that was made. `nodes`: indices of each machine's nodes."""
        what, name = change["what"], change.get("machine", "")
        if what == "join":
            self.members[name] = Member(taken(change["address"]), epoch)
        elif what == "leave":
            self.members.pop(name, None)
            self.lost.pop(name, None)
            self.windows.pop(name, None)
            self.closed -= set(nodes[name])  # its devices are gone; what joins in its place brings new ones
        elif what == "nodes":
            self.lost[name] = list(change["lost"])
        elif what == "windows":
            self.windows[name] = change["count"]
        elif change["kind"] == lib.FBX_CHANGE_LINK:
            (self.down.discard if change["values"][0] else self.down.add)(change["index"])
        elif change["kind"] == lib.FBX_CHANGE_NTB:
            (self.closed.add if change["values"][0] else self.closed.discard)(change["index"])
        elif change["kind"] == lib.FBX_CHANGE_CONFIGURE:
            if not change["keys"]:
                self.values.pop(change["index"], None)
            for key in range(WORDS):
                if change["keys"] >> key & 1:
                    self.values.setdefault(change["index"], {})[key] = change["values"][key]
        self.epoch = epoch

    def changes(self) -> list[dict[str, Any]]:
        """What brings a fabric that is new to this state, members and their nodes aside."""

        def core(kind: int, index: int, values: Mapping[int, int], keys: int = 0) -> dict[str, Any]:
            row = [values.get(key, 0) for key in range(WORDS)]
            return {"what": "core", "kind": kind, "index": index, "keys": keys, "values": row}

        return [
            *(core(lib.FBX_CHANGE_CONFIGURE, i, v, sum(1 << key for key in v)) for i, v in sorted(self.values.items())),
            *(core(lib.FBX_CHANGE_LINK, i, {0: 0}) for i in sorted(self.down)),
            *(core(lib.FBX_CHANGE_NTB, i, {0: 1}) for i in sorted(self.closed)),
        ]

    def to_message(self) -> dict[str, Any]:
        """For the wire."""
        return {
            "epoch": self.epoch,
            "members": {name: [plain(member.address), member.since] for name, member in self.members.items()},
            "lost": self.lost,
            "down": sorted(self.down),
            "values": self.values,
            "closed": sorted(self.closed),
            "windows": self.windows,
        }

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> State:
        """Read it; what is no such thing raises ValueError, TypeError, KeyError or AttributeError."""
        return cls(
            int(message["epoch"]),
            {str(name): Member(taken(address), int(since)) for name, (address, since) in message["members"].items()},
            {str(name): [str(node) for node in lost] for name, lost in message["lost"].items()},
            {int(i) for i in message["down"]},
            {int(i): {int(key): int(value) for key, value in v.items()} for i, v in message["values"].items()},
            {int(i) for i in message["closed"]},
            {str(name): int(count) for name, count in message["windows"].items()},
        )


def read_change(change: Any, machine: str | None = None) -> dict[str, Any]:
    """Bound what came over a connection. `machine`: only what that one may ask for.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it is no change.
    """
    what = change["what"]
    if what == "core":
        kind, index, keys = (int(change[key]) for key in ("kind", "index", "keys"))
        values = [int(value) for value in change["values"]]
        if len(values) != WORDS or min(kind, index, keys, *values) < 0 or max(kind, index, keys) >> 32 or max(values) >> 64:
            raise ValueError("these are no values of a change")
        return {"what": what, "kind": kind, "index": index, "keys": keys, "values": values}
    if machine is not None and (what not in ("nodes", "windows") or change["machine"] != machine):
        raise ValueError(f"{machine} may not ask for that")
    name = str(change["machine"])
    if what == "join":
        return {"what": what, "machine": name, "address": plain(taken(change["address"]))}
    if what == "nodes":
        return {"what": what, "machine": name, "lost": [str(node) for node in change["lost"]]}
    if what == "windows":
        count = int(change["count"])
        if count < 0 or count >> 64:
            raise ValueError("this is no count")
        return {"what": what, "machine": name, "count": count}
    if what != "leave":
        raise ValueError(f"{what!r} is no change")
    return {"what": what, "machine": name}


def change_of(request: bytes) -> dict[str, Any] | None:
    """Return the change that a process asked for at the door; None if it asked for none."""
    if len(request) != _DOOR.size or request[:4] != b"FXCH":
        return None
    _, kind, index, keys, *values = _DOOR.unpack(request)
    return {"what": "core", "kind": kind, "index": index, "keys": keys, "values": values}


def make(fabric: Any, mine: str, change: Mapping[str, Any]) -> Outcome:
    """Make a change on this machine, `mine`."""
    what = change["what"]
    pointer, topology = fabric._live(), fabric.topology
    if what == "core":
        if change["kind"] in _WINDOWS:
            home = home_of(topology, change)
            if home and home != mine:
                return Outcome(home=home)  # used, and set, where the node is at home
        made = ffi.new("int *")
        request = ffi.new("struct fbx_change *")
        request.what, request.index, request.keys = change["kind"], change["index"], change["keys"]
        request.value = change["values"]
        return _outcome(lib.fbx_change_make(pointer, request, made), bool(made[0]))
    index = list(topology.machines).index(change["machine"])
    if change["machine"] == mine:
        return Outcome()
    status = 0
    if what in ("join", "leave"):
        status = lib.fbx_machine_set(pointer, index, UP if what == "join" else LOST)
        if what == "leave":
            for node in topology.machines[change["machine"]]["nodes"]:
                ntb = ffi.new("struct fbx_change *")
                ntb.what, ntb.index = lib.FBX_CHANGE_NTB, fabric._node_index(node)
                status = status or lib.fbx_change_make(pointer, ntb, ffi.new("int *"))
    elif what == "nodes":
        for node in topology.machines[change["machine"]]["nodes"]:
            if topology.nodes[node].kind != "switch":
                status = lib.fbx_node_set(pointer, fabric._node_index(node), int(node in change["lost"])) or status
    return _outcome(status, True)  # who is up is a fact; what could not be told of it somebody stopped holds up


def _outcome(status: int, made: bool) -> Outcome:
    last = lib.fbx_last_error()
    return Outcome(status, text(last.text) if status and last.code == status else "", made or not status)


def is_window(change: Mapping[str, Any]) -> bool:
    """Whether it concerns one machine only, and may fail there without anybody else being wrong."""
    return change["what"] == "core" and change["kind"] in _WINDOWS


def home_of(topology: Topology, change: Mapping[str, Any]) -> str:
    """The machine that alone makes a change, that of the window's node; "" if all do."""
    if not is_window(change) or change["index"] >= len(topology.nodes):
        return ""
    return topology.machine_of(list(topology.nodes)[change["index"]]) or ""
