# SPDX-License-Identifier: Apache-2.0
"""Creating, finding and looking at fabrics."""

from __future__ import annotations

import os
import secrets
import weakref
from fractions import Fraction
from types import TracebackType
from typing import Any

import msgpack

from ._handle import SLICE_NS, FabricHandle, check, encoded, ffi, lib, text
from .errors import CorruptSegment, FabricNotFound, InvalidArgument, WaitTimeout
from .event import Events
from .jitter import table
from .link import Link, Links
from .listing import ORDERINGS, default_directory, fabrics, info_dict
from .memory import HANDLE_VERSION, Buffer
from .node import Node, seconds_to_ps
from .topology import Topology

__all__ = ["Fabric", "Link", "Links", "attach", "fabrics"]

_KINDS = {"host": 1, "accelerator": 2, "memory": 3, "switch": 4}
_PROFILES = {"fabrex": 0, "xeon-gen3": 1, "xeon-gen4": 2, "amd": 3, "idt": 4, "switchtec": 5, "epf": 6}
_ROLES = {"owner": 0, "client": 1, "any": 2}
_STATES = ("powered", "lost", "off")
_OPS = ("load", "store", "read", "write", "fetch_add", "swap", "compare_swap", "flush", "wait", "dma_read", "dma_write", "other")


class Fabric:
    """One named emulated domain, opened by this process.

    Made by `Fabric.create` (an owned fabric ends with its creator; a persistent one by `fabricctl down`) or `Fabric.open`.
    Pickles to a reopen.
    """

    def __init__(self, handle: FabricHandle, directory: str) -> None:
        self._handle = handle
        self.directory = directory
        size = ffi.new("uint64_t *")
        blob = lib.fbx_fabric_topology(handle.pointer, size)
        try:
            self.topology: Topology = Topology.from_dict(msgpack.unpackb(bytes(ffi.buffer(blob, size[0])), strict_map_key=False))
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            handle.close()
            raise CorruptSegment(f"the fabric's own description is damaged: {error}") from None
        info = self.info()
        self.name: str = info["name"]
        self.timing: bool = info["timing"]
        self.ordering: str = info["ordering"]
        self.links = Links(self)
        self._names = {name: i for i, name in enumerate(self.topology.nodes)}
        self._nodes: weakref.WeakSet[Node] = weakref.WeakSet()
        self.strict_errors: bool = info["strict_errors"]
        self.agent: Any = None  # of this machine, where this process is it
        self.fabric_id: int = info["fabric_id"]
        self._scheduler: Any = None  # of fabrex.sim, under the virtual clock

    # -- life ---------------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        topology: Topology | str | os.PathLike[str],
        name: str | None = None,
        *,
        persistent: bool = False,
        timing: bool | str | None = None,
        ordering: str | None = None,
        seed: int | None = None,
        strict_errors: bool = False,
        directory: str | None = None,
        machine: str | None = None,
        fabric_id: int = 0,
        dilation: int | float | str | Fraction | None = None,
    ) -> Fabric:
        """Make a fabric.

        A topology with `machines:` makes all of it here, as on one machine, unless `machine` says which part; see
        `Fabric.host` and `Fabric.join` for fabrics on several.

        Args:
            topology: a Topology, a preset's name, or a YAML file.
            name: by which others open it; a random one if left out.
            persistent: it outlives this process and ends by `fabricctl down`.
            timing: True or "on", False or "off"; the topology's if left out.
            ordering: "posted", "immediate" or "adversarial"; the topology's if left out.
            seed: of all that is random, the adversary's delays among it; the topology's if left out.
            strict_errors: posted writes raise what is known when they are issued.
            directory: of the segments' files; FABREX_DIRECTORY, or /dev/shm.
            machine: make only this machine's part; the rest is reached through an agent (`fabrex.net`).
            fabric_id: with `machine`: a random number, the same on all machines.
            dilation: the factor by which modelled time is stretched; "auto": so far that this machine can copy at the rate of
                the fastest link, measured now. The topology's if left out; `fabric.topology.dilation` says what it became.
        Raises:
            TopologyError, FabricExists, OutOfFabricMemory.
        See: fbx_fabric_create().
        """
        described = Topology.resolve(topology)
        timed = described.timing if timing is None else timing in (True, "on")
        if timing not in (None, True, False, "on", "off"):
            raise InvalidArgument(f"timing is on or off, not {timing!r}")
        if dilation is not None:
            described = described.override(dilation=dilation if isinstance(dilation, int) else str(dilation))
        if not described.dilation_num:
            from .dilation import automatic

            described = described.override(dilation=str(automatic(described) if timed else 1))
        order = ordering or described.ordering
        if order not in ORDERINGS:
            raise InvalidArgument(f"ordering is one of {', '.join(ORDERINGS)}, not {order!r}")
        place = directory or default_directory()
        called = name or f"{described.name[:40]}-{secrets.token_hex(4)}"
        flags = (lib.FBX_PERSISTENT if persistent else 0) | (lib.FBX_TIMING if timed else 0)
        return cls._make(described, called, place, flags, order, seed, strict_errors, machine, fabric_id)

    @classmethod
    def _make(
        cls,
        described: Topology,
        called: str,
        place: str,
        flags: int,
        order: str,
        seed: int | None,
        strict_errors: bool,
        machine: str | None = None,
        fabric_id: int = 0,
    ) -> Fabric:
        config, keep = _config(described, machine)
        config.fabric_id = fabric_id
        keep.append(ffi.new("char[]", encoded(called)))
        config.name = keep[-1]
        keep.append(ffi.new("char[]", os.fsencode(place)))
        config.directory = keep[-1]
        config.flags = (
            flags | (lib.FBX_AUTO_WINDOWS if described.windows == "auto" else 0) | (lib.FBX_STRICT if strict_errors else 0)
        )
        config.ordering = ORDERINGS[order]
        config.clock = lib.FBX_VIRTUAL if flags & lib.FBX_PRIVATE else lib.FBX_REAL
        config.seed = described.seed if seed is None else seed
        return cls(FabricHandle(lambda out: lib.fbx_fabric_create(config, out)), place)

    @classmethod
    def host(cls, topology: Topology | str | os.PathLike[str], name: str | None = None, **settings: Any) -> Fabric:
        """Make a fabric on several machines, as its coordinator. See `fabrex.net.host`."""
        from .net import host

        fabric: Fabric = host(topology, name, **settings)
        return fabric

    @classmethod
    def join(cls, coordinator: str, machine: str, **settings: Any) -> Fabric:
        """Join a fabric as one of its machines. See `fabrex.net.join`."""
        from .net import join

        fabric: Fabric = join(coordinator, machine, **settings)
        return fabric

    @classmethod
    def _private(cls, described: Topology, order: str, seed: int, strict_errors: bool) -> Fabric:
        """Make a fabric without files whose clock is virtual, for the programs of one thread of this process."""
        if order not in ORDERINGS:
            raise InvalidArgument(f"ordering is one of {', '.join(ORDERINGS)}, not {order!r}")
        return cls._make(described, "sim", "/dev/shm", lib.FBX_PRIVATE | lib.FBX_TIMING, order, seed, strict_errors)

    @classmethod
    def open(cls, name: str, directory: str | None = None, timeout: float = 0.0) -> Fabric:
        """Open a fabric that another process made.

        Args:
            timeout: seconds to wait for it to appear.
        Raises:
            FabricNotFound, LayoutMismatch, CorruptSegment, FabricDenied.
        """
        import time

        place = directory or default_directory()
        deadline = time.monotonic() + timeout
        while True:
            try:
                handle = FabricHandle(lambda out: lib.fbx_fabric_open(os.fsencode(place), encoded(name), out))
                return cls(handle, place)
            except FabricNotFound:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.005)

    def close(self) -> None:
        """Detach this process's nodes and end its session; an owned fabric ends with its creator's close. Idempotent."""
        for node in list(self._nodes):
            node.close()
        if self.agent is not None:
            self.agent.close()
        self._handle.close()

    @property
    def closed(self) -> bool:
        """Whether this handle is closed."""
        return self._handle.closed

    def __enter__(self) -> Fabric:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Fabric {self.name!r}: {self.topology.name}, {len(self.topology.nodes)} nodes{', closed' if self.closed else ''}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Fabric.open, (self.name, self.directory))

    @staticmethod
    def prune(directory: str | None = None) -> int:
        """Remove this user's fabrics whose life is over, and files that half-made ones left; returns how many."""
        return check(lib.fbx_fabric_prune(os.fsencode(directory or default_directory())))

    @staticmethod
    def destroy(name: str, directory: str | None = None, *, force: bool = False) -> None:
        """Take a fabric down by name.

        Raises:
            Busy: processes are attached and `force` is not given. FabricNotFound: there is none.
        """
        check(lib.fbx_fabric_destroy(os.fsencode(directory or default_directory()), encoded(name), int(force)))

    # -- nodes and memory ---------------------------------------------------------------------------------------------

    def attach(self, name: str, role: str = "any", *, stale: bool = False) -> Node:
        """Become node `name`.

        Args:
            role: "owner" (the process that is the node), "client", or "any": the owner if there is none.
            stale: it caches remote memory without coherence: see `fabrex.caching`.
        Raises:
            FabricNotFound: no such node. FabricExists: it has an owner. InvalidArgument: it is a switch.
        """
        if role not in _ROLES:
            raise InvalidArgument(f"role is one of {', '.join(_ROLES)}, not {role!r}")
        self._live()
        if stale:
            from .caching import CachingNode

            node: Node = CachingNode(self, name, _ROLES[role])
        else:
            node = Node(self, name, _ROLES[role])
        self._nodes.add(node)
        return node

    def gva(self, node: str, offset: int = 0) -> int:
        """Return the global address of `offset` in the fixed area of the node's first region (64 KiB, never handed out)."""
        if not 0 <= offset < 65536:
            raise InvalidArgument(f"offset {offset} lies outside the fixed area of 64 KiB")
        return ((self._region(node, None) + 1) << 40) + offset

    def region_gva(self, node: str, tier: str | None = None, offset: int = 0) -> int:
        """Return the global address of `offset` in a tier of a node's memory."""
        region = self._region_info(self._region(node, tier))
        if not 0 <= offset < region["bytes"]:
            raise InvalidArgument(f"offset {offset} lies outside {region['tier']} of {node} ({region['bytes']} bytes)")
        return int(region["gva"]) + offset

    def buffer(self, name: str, timeout: float | None = 0.0) -> Buffer:
        """Find a buffer by its name.

        Args:
            timeout: seconds to wait for it to appear; None waits for ever.
        Raises:
            FabricNotFound: it is not there (and none appeared in time: WaitTimeout, if a timeout was given).
        """
        record = ffi.new("struct fbx_buffer *")
        self._await_name(lambda: lib.fbx_buffer_find(self._live(), encoded(name), record), f"buffer {name!r}", timeout)
        return Buffer(self, None, record[0])

    def buffers(self) -> list[Buffer]:
        """Return all live buffers."""
        cursor, record, found = ffi.new("uint32_t *"), ffi.new("struct fbx_buffer *"), []
        while lib.fbx_buffer_list(self._live(), cursor, record) == 0:
            found.append(Buffer(self, None, record[0]))
        return found

    def from_handle(self, handle: bytes) -> Buffer:
        """Return the buffer of a handle made by `Buffer.handle` in any process.

        Raises:
            StaleHandle: it was freed, or is of another fabric. InvalidArgument: these bytes are no handle.
        """
        record = ffi.new("struct fbx_buffer *")
        self._live()
        try:
            version, *numbers, name = msgpack.unpackb(handle)
            if version != HANDLE_VERSION or len(numbers) != 6:
                raise ValueError(f"version {version}")
            record.instance, record.index, record.generation, record.region, record.offset, record.bytes = numbers
            record.name = encoded(name)[:63]
            info = self._region_info(record.region)
        except (ValueError, TypeError, OverflowError, AttributeError, FabricNotFound, msgpack.UnpackException) as error:
            raise InvalidArgument(f"these bytes are no handle of a buffer: {error}") from None
        check(lib.fbx_buffer_check(self._live(), record))
        record.gva = info["gva"] + record.offset
        record.node = info["node"]
        return Buffer(self, None, record[0])

    # -- names --------------------------------------------------------------------------------------------------------

    def put(self, key: str, value: bytes) -> None:
        """Store `value` (bytes, at most 16 MiB) under `key`, replacing what was there."""
        data = ffi.from_buffer("char[]", value)
        check(lib.fbx_put(self._live(), encoded(key), data, len(data)))
        self._point()

    def get(self, key: str, timeout: float | None = 0.0) -> bytes:
        """Return the value of `key`.

        Args:
            timeout: seconds to wait for it; None waits for ever.
        Raises:
            FabricNotFound, WaitTimeout.
        """
        size = ffi.new("uint64_t *")
        result = b""

        def attempt() -> int:
            nonlocal result
            room = 4096
            while True:
                out = ffi.new("char[]", room)
                size[0] = room
                code: int = lib.fbx_get(self._live(), encoded(key), out, size)
                if code == lib.FBX_E_NO_MEMORY and size[0] > room:
                    room = int(size[0])
                    continue
                if code == 0:
                    result = bytes(ffi.buffer(out, size[0]))
                return code

        self._await_name(attempt, f"value {key!r}", timeout)
        return result

    def _await_name(self, attempt: Any, what: str, timeout: float | None) -> None:
        deadline = None if timeout is None else self.now_ps + seconds_to_ps(timeout)
        while True:
            seen = lib.fbx_names_seen(self._live())
            code = attempt()
            if code != lib.FBX_E_NOT_FOUND:
                check(code)
                return
            if timeout == 0.0:
                check(code)
            if deadline is not None and self.now_ps >= deadline:
                raise WaitTimeout(f"no {what} appeared in fabric {self.name!r} within {timeout} s")
            if self._scheduler is not None and (node := self._any_node()) is not None:
                never = (1 << 64) - 1
                self._scheduler.watch(node._address, 3, seen, never if deadline is None else min(deadline, never))
            else:
                check(lib.fbx_names_wait(self._live(), seen, SLICE_NS))

    # -- looking ------------------------------------------------------------------------------------------------------

    @property
    def now_ps(self) -> int:
        """Fabric time, in ps since the fabric was made."""
        return int(lib.fbx_fabric_now(self._live()))

    def info(self) -> dict[str, Any]:
        """Return facts about the fabric as a whole."""
        out = ffi.new("struct fbx_fabric_info *")
        check(lib.fbx_fabric_info(self._handle.live(), out))
        return info_dict(out)

    def nodes(self) -> list[dict[str, Any]]:
        """Return facts about every node: kind, state, owner, counters."""
        return [self.node_info(name) for name in self.topology.nodes]

    def node_info(self, name: str) -> dict[str, Any]:
        """Return facts about one node."""
        out = ffi.new("struct fbx_node_info *")
        check(lib.fbx_node_info(self._live(), self._node_index(name), out))
        return {
            "name": name,
            "kind": self.topology.nodes[name].kind,
            "state": _STATES[out.state] if out.state < len(_STATES) else "damaged",
            "incarnation": int(out.incarnation),
            "owner_pid": int(out.owner_pid) or None,
            "clients": int(out.client_count),
            "windows": int(out.mw_count) + int(out.lut_count),
            "posted_dropped": int(out.posted_dropped),
            "delivered": int(out.delivered),
            "aer": {
                "correctable": int(out.aer_correctable),
                "nonfatal": int(out.aer_nonfatal),
                "fatal": int(out.aer_fatal),
            },
            "regions": [self._region_info(out.first_region + i) for i in range(out.region_count)],
        }

    def fidelity(self) -> dict[str, dict[str, Any]]:
        """Return, per kind of operation, how well modelled time was kept.

        Returns:
            kind -> count, late, late_fraction, preempted (late ones during which the processor was taken away), network (late
            ones for which the network took longer than what it stands for), failed, late_ps_max, late_ps_mean, bytes, histogram
            (lower bound in ps -> count).
        """
        report: dict[str, dict[str, Any]] = {}
        out = ffi.new("struct fbx_fidelity *")
        for kind, name in enumerate(_OPS):
            check(lib.fbx_fidelity(self._live(), kind, out))
            if not out.count:
                continue
            report[name] = {
                "count": int(out.count),
                "late": int(out.late),
                "late_fraction": out.late / out.count,
                "preempted": int(out.preempted),
                "network": int(out.network),
                "failed": int(out.failed),
                "late_ps_max": int(out.late_ps_max),
                "late_ps_mean": out.late_ps_total / out.late if out.late else 0.0,
                "bytes": int(out.bytes),
                "histogram": {1 << b: int(n) for b, n in enumerate(out.late_hist) if n},
            }
        return report

    @property
    def machine(self) -> str | None:
        """The machine that this instance is, by its name in the topology; None for a fabric on one machine."""
        return next((found["name"] for found in self.machines() if found["here"]), None)

    def machines(self) -> list[dict[str, Any]]:
        """Return facts about the machines of a fabric on several; none for a fabric on one.

        Returns:
            name, here, state ("up" or "lost"), nodes; connects, answers, late, gave_up: this process's machine with it; epoch:
            number of the last change of the fabric that it has made, or is known here to have made at least;
            clock_offset_ps, clock_bound_ns, clock_drift_ppb: its clock against ours, as its agent measured it, for reports.
        """
        out = ffi.new("struct fbx_machine_info *")
        found: list[dict[str, Any]] = []
        while lib.fbx_machine_info(self._live(), len(found), out) == 0:
            name = text(out.name)
            found.append({
                "name": name,
                "here": bool(out.here),
                "state": "lost" if out.state else "up",
                "nodes": list(self.topology.machines[name]["nodes"]),
                "connects": int(out.connects),
                "answers": int(out.frames),
                "late": int(out.late),
                "gave_up": int(out.gave_up),
                "epoch": int(out.epoch),
                "clock_offset_ps": int(out.clock_offset_ps) if out.clock_bound_ns else None,
                "clock_bound_ns": int(out.clock_bound_ns) or None,
                "clock_drift_ppb": int(out.clock_drift_ppb) if out.clock_bound_ns else None,
            })  # fmt: skip
        return found

    def events(self, since: int = 0, *, follow: bool = False, timeout: float | None = None) -> Events:
        """Return what has happened to the fabric: links, nodes, windows, lost writes, failed DMA, its end.

        The fabric keeps the last 1,024 events. Whoever is slower than that misses some, and is told how many (`Event.lost`).

        Args:
            since: number of the first event.
            follow: do not end at the last one, but wait for more until the fabric ends; sleeping costs no processor.
            timeout: with `follow`: seconds of real time (virtual, under that clock) after which it ends when nothing more has
                happened.
        """
        found = Events(self._handle, since, follow=follow, timeout=timeout)
        if self._scheduler is not None:
            found._wait = self._await_change
        return found

    def reap(self) -> int:
        """Look for processes that died and clean up after them now; returns how many."""
        return check(lib.fbx_fabric_reap(self._live()))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _live(self) -> Any:
        return self._handle.live()

    def _point(self) -> None:
        """Under the virtual clock: let others run whose turn it is."""
        if self._scheduler is not None and self._scheduler.current() >= 0:
            self._scheduler.point()

    def _await_change(self, deadline_ps: int | None) -> int:
        """Under the virtual clock: wait until something has happened; 0 at the deadline. Without one, what time it is."""
        if deadline_ps is None:
            return self.now_ps
        node = self._any_node()
        if node is None or self.now_ps >= deadline_ps:
            return 0
        self._scheduler.watch(node._address, 5, 0, deadline_ps)
        return 1

    def _any_node(self) -> Node | None:
        return next((node for node in list(self._nodes) if not node.closed), None)

    def _node_index(self, name: str) -> int:
        if name not in self._names:
            known = ", ".join(list(self._names)[:8])
            raise FabricNotFound(f"no node {name!r}; there are {known}{'…' if len(self._names) > 8 else ''}")
        return self._names[name]

    def _node_name(self, index: int) -> str:
        return list(self.topology.nodes)[index] if 0 <= index < len(self.topology.nodes) else f"node {index}"

    def _region_info(self, index: int) -> dict[str, Any]:
        out = ffi.new("struct fbx_region_info *")
        check(lib.fbx_region_info(self._live(), index, out))
        return {
            "tier": text(out.tier),
            "node": int(out.node),
            "bytes": int(out.bytes),
            "gva": int(out.gva),
            "bus": int(out.bus),
            "committed": int(out.committed),
            "allocated": int(out.allocated),
        }

    def _region(self, node: str, tier: str | None) -> int:
        out = ffi.new("struct fbx_node_info *")
        check(lib.fbx_node_info(self._live(), self._node_index(node), out))
        tiers = list(self.topology.nodes[node].memory)
        if not tiers:
            raise InvalidArgument(f"{node} has no memory")
        if tier is not None and tier not in tiers:
            raise InvalidArgument(f"{node} has no tier {tier!r}; it has {', '.join(tiers)}")
        return int(out.first_region) + (tiers.index(tier) if tier else 0)


def _config(topology: Topology, machine: str | None = None) -> tuple[Any, list[Any]]:
    """Return the core's description of a topology, and what must stay alive while it is used."""
    keep: list[Any] = []

    def string(value: str) -> Any:
        keep.append(ffi.new("char[]", value.encode()))
        return keep[-1]

    def distribution(jitter: Any) -> tuple[Any, int]:
        points = table(jitter)
        if not points:
            return ffi.NULL, 0
        keep.append(ffi.new("uint64_t[]", [number for point in points for number in point]))
        return keep[-1], len(points)

    machines: dict[str, int] = {}
    names = list(topology.machines)
    if machine is not None:
        if machine not in names:
            raise InvalidArgument(f"topology {topology.name} has no machine {machine!r}; it has {', '.join(names) or 'none'}")
        machines = {name: number for number, there in enumerate(topology.machines.values()) for name in there["nodes"]}
        missing = [name for name in topology.nodes if name not in machines]
        if missing:
            raise InvalidArgument(f"{', '.join(missing[:8])}: on no machine", hint="each node needs a place under `machines:`")
        if len(names) < 2:
            raise InvalidArgument("a fabric on one machine needs no `machine`")
    index = {name: i for i, name in enumerate(topology.nodes)}
    nodes = ffi.new("struct fbx_config_node[]", len(topology.nodes))
    tiers = [(index[node.name], memory) for node in topology.nodes.values() for memory in node.memory.values()]
    regions = ffi.new("struct fbx_config_region[]", max(len(tiers), 1))
    links = ffi.new("struct fbx_config_link[]", max(len(topology.links), 1))
    for to, node in zip(nodes, topology.nodes.values(), strict=True):
        to.name = string(node.name)
        to.kind = _KINDS[node.kind]
        to.profile = _PROFILES[node.ntb or "fabrex"]
        to.machine = machines.get(node.name, 0)
        to.access_bytes = node.pio.access_bytes
        to.dma_tags = node.dma.tags
        to.wc = node.pio.wc
        to.delay_ps = node.delay_ps
        to.pio_read_ps, to.pio_write_ps = node.pio.read_ps, node.pio.write_ps
        to.dma_setup_write_ps, to.dma_setup_read_ps = node.dma.setup_write_ps, node.dma.setup_read_ps
    for i, (node_index, memory) in enumerate(tiers):
        regions[i].node = node_index
        regions[i].tier = string(memory.name)
        regions[i].bytes = memory.size
        regions[i].latency_ps = memory.latency_ps
        regions[i].rate_bps = memory.rate_bps
        regions[i].jitter, regions[i].jitter_points = distribution(memory.jitter)
    for i, link in enumerate(topology.links.values()):
        to = links[i]
        to.name = string(link.name)
        to.node_a, to.node_b = index[link.a[0]], index[link.b[0]]
        to.port_a, to.port_b = string(link.a[1]), string(link.b[1])
        to.delay_ps = link.delay_ps
        to.jitter, to.jitter_points = distribution(link.jitter)
        # A link is reserved where its end is that is no switch: that end's traffic is what fills it.
        end = link.a[0] if topology.nodes[link.a[0]].kind != "switch" or topology.nodes[link.b[0]].kind == "switch" else link.b[0]
        to.home = machines.get(end, 0)
        if link.pcie is not None:
            p = link.pcie
            to.gen, to.lanes, to.mps, to.mrrs, to.rcb = p.gen, p.lanes, p.mps, p.mrrs, p.rcb
            to.tags = p.tags
            to.posted_credits_header, to.posted_credits_data = p.posted_credits_header, p.posted_credits_data
            to.nonposted_credits_header, to.nonposted_credits_data = p.nonposted_credits_header, p.nonposted_credits_data
            to.completion_credits_header, to.completion_credits_data = p.completion_credits_header, p.completion_credits_data
        elif link.ethernet is not None:
            to.kind = 1
            to.rate_bps, to.mtu, to.overhead_bytes = link.ethernet.rate_bps, link.ethernet.mtu, link.ethernet.overhead_bytes
    blob = msgpack.packb(topology.to_dict())
    config = ffi.new("struct fbx_config *")
    config.node_count, config.region_count, config.link_count = len(topology.nodes), len(tiers), len(topology.links)
    config.nodes, config.regions, config.links = nodes, regions, links
    if machine is not None:
        keep.append(ffi.new("char *[]", [string(name) for name in names]))
        config.machine, config.machine_count, config.machine_names = names.index(machine), len(names), keep[-1]
    config.dilation_num, config.dilation_den = topology.dilation_num, topology.dilation_den
    keep += [nodes, regions, links, ffi.from_buffer("char[]", blob), blob]
    config.topology = keep[-2]
    config.topology_bytes = len(blob)
    return config, keep


def attach(name: str | None = None, fabric: str | None = None, *, timeout: float = 10.0) -> Node:
    """Become the node that a launcher (`fabricctl run`) chose: FABREX_FABRIC and FABREX_NODE say which.

    Raises:
        InvalidArgument: no arguments, and no launcher.
    """
    where, who = fabric or os.environ.get("FABREX_FABRIC"), name or os.environ.get("FABREX_NODE")
    if not where or not who:
        raise InvalidArgument(
            "no launcher says which fabric and node this process is",
            hint="start it with `fabricctl run`, or set FABREX_FABRIC and FABREX_NODE",
        )
    return Fabric.open(where, timeout=timeout).attach(who)
