# SPDX-License-Identifier: Apache-2.0
"""NIXL's Python agent, on the fabric: `nixl_agent` and `nixl_agent_config`.

Names, arguments, states and exceptions are those of NIXL 1.5, so that programs written for it run as they are. What moves the
bytes is the node's DMA engine; what they cost is the fabric's model.
"""

from __future__ import annotations

import contextlib
import operator
import pickle
import secrets
import sys
import weakref
from typing import Any

import numpy as np

from ..errors import FabricError, FabricNotFound
from ..node import Node
from . import _bindings as bind
from ._bindings import (
    DEFAULT_COMM_PORT,
    nixl_mem_t,
    nixl_thread_sync_t,
    nixl_xfer_op_t,
    nixlBackendError,
    nixlInvalidParamError,
    nixlMismatchError,
    nixlNoTelemetryError,
    nixlNotFoundError,
    nixlNotPostedError,
    nixlNotSupportedError,
    nixlRegDList,
    nixlRemoteDisconnectError,
    nixlRemoteDList,
    nixlRepostActiveError,
    nixlXferDList,
    nixlXferTelemetry,
)
from ._mail import NAME_LIMIT, Box, Lane, messages
from ._memory import Attachment, Registrations, Rows, Table
from ._metadata import FETCH, INVALIDATE, SEND, Listener, Metadata, directory_key, talk
from ._transfer import DONE, FAILED, IDLE, Engine, Log, Transfer, estimate, merge, usable
from .logging import get_logger

logger = get_logger(__name__)

PLUGINS = ["FABREX", "UCX"]
_agents: weakref.WeakSet[nixl_agent] = weakref.WeakSet()


def agents() -> list[nixl_agent]:
    """Return the agents of this process that are alive: an engine makes its own, and tests want to look at them."""
    return [agent for agent in _agents if not agent._closed]


nixl_backend_handle = int


def _text(name: Any) -> str:
    if isinstance(name, (bytes, bytearray)):
        return bytes(name).decode(errors="replace")
    if not isinstance(name, str):
        raise TypeError(f"an agent's name is text, not {type(name).__name__}")
    return name


class _Handle:
    __slots__ = ("__weakref__", "_agent", "_held", "_released")

    def __init__(self, agent: nixl_agent, held: Any) -> None:
        self._agent, self._held, self._released = agent, held, False

    @property
    def _handle(self) -> int:
        return id(self._held)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._handle:#x}, released={self._released})"

    def release(self) -> None:
        """Give it back. Idempotent."""
        self._released = True


class nixl_prepped_dlist_handle(_Handle):
    """A prepared list of descriptors, of one side."""

    __slots__ = ()


class nixl_xfer_handle(_Handle):
    """A transfer. Releasing one that is under way cancels it: nothing of it lands afterwards."""

    __slots__ = ()

    def release(self) -> None:
        """Cancel it if it is under way, and give it back. Idempotent."""
        if not self._released:
            self._agent._engine.cancel(self._held)
            self._held.released = True
            self._released = True

    def __del__(self) -> None:
        if not getattr(self, "_released", True):
            with contextlib.suppress(Exception):
                self.release()


class _Side:
    """A prepared list: where each descriptor is, and how long."""

    def __init__(self, agent: str, gvas: Rows, ranges: Rows, sizes: Rows) -> None:
        self.agent, self.gvas, self.ranges, self.sizes = agent, gvas, ranges, sizes


class _Remote:
    """What is known of another agent."""

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.table: Table = metadata.table()
        self.lane: Lane | None = None


class nixl_agent_config:
    """How an agent is to be.

    Args:
        enable_prog_thread: have a thread send notifications of transfers that nobody polls.
        enable_listen_thread: listen for other agents' metadata.
        listen_port: where; 0 lets the system choose (`agent.listen_port` says).
        capture_telemetry: keep what transfers took.
        num_threads: taken and unused; the node's `dma.channels` say how many transfers run at once.
        backends: "FABREX", or "UCX" for the same thing.
        sync_mode: taken and unused: an agent may be used from any thread.
    """

    def __init__(
        self,
        enable_prog_thread: bool = True,
        enable_listen_thread: bool = False,
        listen_port: int = DEFAULT_COMM_PORT,
        capture_telemetry: bool = False,
        num_threads: int = 0,
        backends: list[str] | None = None,
        sync_mode: nixl_thread_sync_t | None = None,
    ) -> None:
        if sync_mode is not None and not isinstance(sync_mode, nixl_thread_sync_t):
            raise TypeError(f"sync_mode must be a nixl_thread_sync_t (got {type(sync_mode).__name__!r})")
        self.backends = ["UCX"] if backends is None else backends
        self.enable_pthread = enable_prog_thread
        self.enable_listen = enable_listen_thread
        self.port = listen_port
        self.capture_telemetry = capture_telemetry
        self.num_threads = num_threads
        self.sync_mode = sync_mode


class nixl_agent:
    """An agent: registers memory, knows other agents, and moves blocks between them.

    Args:
        agent_name: of its own.
        nixl_conf: see `nixl_agent_config`.
        instantiate_all: create every backend there is.
        node: the node that it is on; that of FABREX_FABRIC and FABREX_NODE if left out (fabrex's own argument).
    """

    def __init__(
        self,
        agent_name: str,
        nixl_conf: nixl_agent_config | None = None,
        instantiate_all: bool = False,
        *,
        node: Node | None = None,
    ) -> None:
        self._closed = True
        self.name = _text(agent_name)
        if not self.name:
            raise ValueError("Agent needs a non-empty name")
        if len(self.name.encode()) > NAME_LIMIT:
            raise nixlInvalidParamError(f"the name of an agent has at most {NAME_LIMIT} bytes")
        if nixl_conf and instantiate_all:
            logger.warning("instantiate_all is ignored: the configuration says which backends there are")
            instantiate_all = False
        conf = nixl_conf or nixl_agent_config()
        self._telemetry = conf.capture_telemetry
        self.notifs: dict[str, list[bytes]] = {}
        self.backends: dict[str, int] = {}
        self.backend_mems: dict[str, list[str]] = {}
        self.backend_options: dict[str, dict[str, str]] = {}
        self.plugin_list = list(PLUGINS)
        self.nixl_mems = {
            "DRAM": bind.DRAM_SEG,
            "VRAM": bind.VRAM_SEG,
            "FILE": bind.FILE_SEG,
            "BLOCK": bind.BLK_SEG,
            "OBJ": bind.OBJ_SEG,
            "cpu": bind.DRAM_SEG,
            "cuda": bind.VRAM_SEG,
        }
        self.nixl_ops = {"WRITE": bind.NIXL_WRITE, "READ": bind.NIXL_READ}
        self._remotes: dict[str, _Remote] = {}
        self._wanted: dict[str, str] = {}  # agents looked for in the directory, and under which label
        self._session = secrets.randbits(63)
        self._loopback: Lane | None = None
        self._listener: Listener | None = None
        self._attachment = Attachment(node)
        try:
            self._node = self._attachment.node
            info = self._node.fabric.info()
            self._instance = int(info.get("instance", info.get("created_unix_ns", 0)))
            self._registrations = Registrations(self._node)
            self._box = Box(self._node)
            weak = weakref.ref(self)
            self._engine = Engine(self._node, _sender(weak), _pumper(weak), conf.enable_pthread or conf.capture_telemetry)
            self._engine.log = Log.from_environment(self.name, self._node.name)
            self._closed = False
            _agents.add(self)
            for backend in self.plugin_list if instantiate_all else conf.backends:
                if backend in self.plugin_list:
                    self.create_backend(backend)
                else:
                    logger.warning("backend %s is not there and is left out; there are %s", backend, ", ".join(PLUGINS))
            if conf.enable_listen:
                self._listener = Listener(conf.port, _answerer(weak))
        except FabricError as error:
            self.close()
            self._attachment.close()
            raise nixlBackendError(str(error)) from error
        except BaseException:
            self.close()
            self._attachment.close()
            raise
        logger.info("agent %s is on node %s of fabric %s", self.name, self._node.name, self._node.fabric.name)

    def __repr__(self) -> str:
        return f"<nixl_agent {self.name!r}{' (closed)' if self._closed else f' on {self._node.name}'}>"

    @property
    def node(self) -> Node:
        """The node that it is on."""
        return self._node

    def regions(self) -> list[tuple[int, int, int]]:
        """Return its registered memory: (address, bytes, global address) each."""
        return [(row[2], row[3], row[4]) for row in self._registrations.table.rows()]

    @property
    def listen_port(self) -> int:
        """Where it listens; 0 if it does not."""
        return self._listener.port if self._listener else 0

    def close(self) -> None:
        """End it: what is under way is cancelled, its memory taken back. Also done when the object dies. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._listener is not None:
            self._listener.close()
        self._engine.close()
        with contextlib.suppress(FabricError):
            for lane in [remote.lane for remote in self._remotes.values()] + [self._loopback]:
                if lane is not None:
                    lane.close()
        with contextlib.suppress(FabricError):
            self._registrations.close()
            self._box.close()
        self._attachment.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            with contextlib.suppress(Exception):
                self.close()

    # -- backends -----------------------------------------------------------------------------------------------------

    def get_plugin_list(self) -> list[str]:
        """Return the backends that there are."""
        return self.plugin_list

    def get_plugin_mem_types(self, backend: str) -> list[str]:
        """Return which memory a backend can move."""
        return ["DRAM_SEG"] if backend in self.plugin_list else []

    def get_plugin_params(self, backend: str) -> dict[str, str]:
        """Return a backend's parameters: there are none."""
        return {}

    def get_backend_mem_types(self, backend: str) -> list[str]:
        """Return which memory a created backend can move."""
        return self.backend_mems.get(backend, [])

    def get_backend_params(self, backend: str) -> dict[str, str]:
        """Return a created backend's parameters."""
        return self.backend_options.get(backend, {})

    def create_backend(self, backend: str, initParams: dict[str, str] | None = None) -> None:
        """Create a backend; raises nixlNotFoundError, or nixlInvalidParamError if it was."""
        if backend not in self.plugin_list:
            raise nixlNotFoundError(f"no backend {backend!r}; there are {', '.join(PLUGINS)}")
        if backend in self.backends:
            raise nixlInvalidParamError(f"backend {backend} was created already")
        self.backends[backend] = PLUGINS.index(backend) + 1
        self.backend_mems[backend] = ["DRAM_SEG"]
        self.backend_options[backend] = dict(initParams or {})

    def _chosen(self, backends: Any, remote: Metadata | None = None) -> str:
        """Return the first backend that all have."""
        wanted = [name for name in (backends or self.backends) if self.backends[name]]  # KeyError, as NIXL has it
        for name in wanted:
            if remote is None or name in remote.backends:
                return name
        raise nixlNotFoundError("no backend is common to both agents" if remote else "no backend was created")

    # -- memory -------------------------------------------------------------------------------------------------------

    def register_memory(self, reg_list: Any, mem_type: str | None = None, backends: Any = ()) -> nixlRegDList:
        """Register memory; returns the list for `deregister_memory`."""
        descs: nixlRegDList = self._given(self.get_reg_descs(reg_list, mem_type), nixlRegDList)
        self._chosen(backends)
        with self._engine.lock:
            self._live()
            self._registrations.add(descs.getType(), [row[:3] for row in descs])
        return descs

    def deregister_memory(self, dereg_list: nixlRegDList, backends: Any = ()) -> None:
        """Take it back; transfers that use it end with an error."""
        descs = self._given(dereg_list, nixlRegDList)
        self._chosen(backends)
        with self._engine.lock:
            self._live()
            self._registrations.remove(descs.getType(), [row[:3] for row in descs])

    def query_memory(self, reg_list: Any, backend: str, mem_type: str | None = None) -> list[dict[str, str] | None]:
        """Not supported for memory, as with NIXL's own network backends."""
        self._given(self.get_reg_descs(reg_list, mem_type), nixlRegDList)
        if backend not in self.backends:
            raise ValueError(f"Backend {backend!r} not found. Available backends: {list(self.backends)}")
        raise nixlNotSupportedError("memory of a fabric has nothing to be queried")

    # -- other agents -------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        if self._closed:
            raise nixlBackendError("the agent is closed")
        self._engine.check()

    def _remote(self, agent: Any) -> _Remote:
        name = _text(agent)
        found = self._remotes.get(name)
        if found is None:
            raise nixlNotFoundError(f"no agent {name!r} is known; give its metadata to add_remote_agent first")
        return found

    def _lane(self, agent: str) -> Lane:
        if agent == self.name:
            if self._loopback is None:
                self._loopback = Lane(self._node, self.name, self._box.gva)
            return self._loopback
        remote = self._remote(agent)
        if remote.lane is None:
            if not remote.metadata.box:
                raise nixlNotFoundError(
                    f"the metadata of {agent!r} does not say where notifications go; ask for inc_conn_info=True"
                )
            remote.lane = Lane(self._node, self.name, remote.metadata.box)
        return remote.lane

    def make_connection(self, remote_agent: str, backends: Any = ()) -> None:
        """Connect now, so that the first notification does not pay for it."""
        with self._engine.lock:
            self._live()
            self._chosen(backends, self._remote(remote_agent).metadata)
            self._lane(_text(remote_agent)).connect()

    def _own(self, rows: list[list[int]], box: int, partial: bool) -> bytes:
        fabric = self._node.fabric
        return Metadata(
            self.name, fabric.name, self._instance, self._node.name, box, self._session, list(self.backends), rows, partial
        ).pack()

    def get_agent_metadata(self) -> bytes:
        """Return what others need to know of this agent."""
        with self._engine.lock:
            self._live()
            return self._own(self._registrations.table.rows(), self._box.gva, False)

    def get_partial_agent_metadata(self, descs: nixlRegDList, inc_conn_info: bool = False, backends: Any = ()) -> bytes:
        """Return what others need to know of some of its memory."""
        given = self._given(descs, nixlRegDList)
        with self._engine.lock:
            self._live()
            self._chosen(backends)
            table = self._registrations.table.rows()
            rows = []
            for address, length, device, _ in given:
                wanted = [int(given.getType()), device, address, length]
                found = next((row for row in table if row[:4] == wanted), None)
                if found is None:
                    raise nixlNotFoundError(f"{length} bytes at {address:#x} are not registered")
                rows.append(found)
            return self._own(rows, self._box.gva if inc_conn_info else 0, True)

    def add_remote_agent(self, metadata: bytes) -> bytes:
        """Take another agent's metadata; returns its name, in bytes as NIXL does."""
        given = Metadata.unpack(metadata)
        with self._engine.lock:
            self._live()
            if given.agent == self.name and given.session == self._session:
                raise nixlInvalidParamError("this is the agent's own metadata")
            fabric = self._node.fabric
            if (given.fabric, given.instance) != (fabric.name, self._instance):
                raise nixlMismatchError(
                    f"agent {given.agent!r} is on another fabric ({given.fabric}); both must be started on the same one"
                )
            self._chosen((), given)
            known = self._remotes.get(given.agent)
            if known is not None and known.metadata.session == given.session:
                if given.partial:
                    rows = known.metadata.rows + [row for row in given.rows if row not in known.metadata.rows]
                    known.metadata.rows = rows
                    known.metadata.box = known.metadata.box or given.box
                else:
                    known.metadata = given
                known.table = known.metadata.table()
            else:
                if known is not None and known.lane is not None:
                    known.lane.close()
                self._remotes[given.agent] = _Remote(given)
        return given.agent.encode()

    def remove_remote_agent(self, agent: str) -> None:
        """Forget another agent."""
        with self._engine.lock:
            self._live()
            known = self._remotes.pop(_text(agent), None)
            if known is not None and known.lane is not None:
                known.lane.close()

    def check_remote_metadata(self, agent: str, descs: nixlXferDList | None = None) -> bool:
        """Return whether an agent, and its memory in `descs`, is known."""
        name = _text(agent)
        if name in self._wanted:
            self._look(name)
        known = self._remotes.get(name)
        if known is None:
            return False
        if descs is None or descs.isEmpty():
            return True
        try:
            known.table.find(descs.getType(), descs.rows)
        except nixlNotFoundError:
            return False
        return True

    def send_local_metadata(self, ip_addr: str = "", port: int = DEFAULT_COMM_PORT) -> None:
        """Send this agent's metadata to a listening agent; without an address, to the fabric's directory."""
        self._publish(self.get_agent_metadata(), ip_addr, port, "")

    def send_partial_agent_metadata(
        self,
        descs: nixlRegDList,
        inc_conn_info: bool = False,
        backends: Any = (),
        ip_addr: str = "",
        port: int = DEFAULT_COMM_PORT,
        label: str = "",
    ) -> None:
        """Send some of it, under a label if it goes to the directory."""
        self._publish(self.get_partial_agent_metadata(descs, inc_conn_info, backends), ip_addr, port, label)

    def _publish(self, data: bytes, address: str, port: int, label: str) -> None:
        if address:
            talk(address, port, SEND, data)
            return
        try:
            self._node.fabric.put(directory_key(label, self.name), data)
        except FabricError as error:
            raise nixlBackendError(str(error)) from error

    def fetch_remote_metadata(self, remote_agent: str, ip_addr: str = "", port: int = DEFAULT_COMM_PORT, label: str = "") -> None:
        """Ask an agent, or the directory, for metadata; `check_remote_metadata` says when it is there."""
        name = _text(remote_agent)
        if ip_addr:
            data = talk(ip_addr, port, FETCH, name.encode())
            if not data:
                raise nixlNotFoundError(f"the agent at {ip_addr}:{port} is not {name!r}")
            self.add_remote_agent(data)
            return
        self._wanted[name] = label
        self._look(name)

    def _look(self, name: str) -> None:
        try:
            data = self._node.fabric.get(directory_key(self._wanted[name], name))
        except FabricNotFound:
            return
        if data:
            self.add_remote_agent(data)
            self._wanted.pop(name, None)

    def invalidate_local_metadata(self, ip_addr: str = "", port: int = DEFAULT_COMM_PORT) -> None:
        """Take it back, from a listening agent or from the directory."""
        if ip_addr:
            talk(ip_addr, port, INVALIDATE, self.name.encode())
            return
        try:
            self._node.fabric.put(directory_key("", self.name), b"")
        except FabricError as error:
            raise nixlBackendError(str(error)) from error

    def _answer(self, kind: bytes, body: bytes) -> bytes:
        if kind == SEND:
            self.add_remote_agent(body)
        elif kind == FETCH and body.decode(errors="replace") == self.name:
            return self.get_agent_metadata()
        elif kind == INVALIDATE:
            self.remove_remote_agent(body.decode(errors="replace"))
        return b""

    # -- descriptors --------------------------------------------------------------------------------------------------

    @staticmethod
    def _given(descs: Any, kind: type) -> Any:
        if not isinstance(descs, kind):
            raise TypeError(f"a {kind.__name__} is needed, not {type(descs).__name__}")
        return descs

    def _list(self, descs: Any, mem_type: str | None, kind: type, other: type, width: int) -> Any:
        if isinstance(descs, kind):
            return descs
        if isinstance(descs, other):
            logger.error("this is a %s; a %s is needed", other.__name__, kind.__name__)
            return None
        tensors = _tensors(descs)
        if tensors is not None:
            rows = [_tensor_row(tensor) for tensor in tensors]
            if any(row is None for row in rows) or len({str(tensor.device) for tensor in tensors}) > 1:
                logger.error("tensors must be contiguous, and all on one device")
                return None
            memory = bind.DRAM_SEG if tensors[0].device.type == "cpu" else bind.VRAM_SEG
            return kind(memory, np.array(rows, dtype=np.uint64))
        is_array = isinstance(descs, np.ndarray)
        if not is_array and not isinstance(descs[0], tuple):
            return None
        if mem_type is None:
            logger.error("say which memory it is (mem_type) where it is not tensors")
            return None
        if descs.ndim != 2 or descs.shape[1] != 3 if is_array else len(descs[0]) != width:
            logger.error("descriptors have %d fields each (an array has shape (n, 3))", width)
            return None
        return kind(self.nixl_mems[mem_type], descs)

    def get_xfer_descs(self, descs: Any, mem_type: str | None = None) -> Any:
        """Return a list for transfers from tuples (address, length, device), an array of them, or tensors.

        None, with a line in the log, for what is none: tensors that are not contiguous among it.
        """
        return self._list(descs, mem_type, nixlXferDList, nixlRegDList, 3)

    def get_reg_descs(self, descs: Any, mem_type: str | None = None) -> Any:
        """Return a list for registration from tuples (address, length, device, meta), an array, or tensors."""
        return self._list(descs, mem_type, nixlRegDList, nixlXferDList, 4)

    def get_remote_descs(self, descs: Any, mem_type: str | None = None) -> Any:
        """Return a list of tuples (address, length, device, agent)."""
        if isinstance(descs, nixlRemoteDList):
            return descs
        if not isinstance(descs[0], tuple):
            return None
        if mem_type is None or len(descs[0]) != 4:
            logger.error("give tuples (address, length, device, agent) and say which memory it is")
            return None
        return nixlRemoteDList(self.nixl_mems[mem_type], descs)

    def get_serialized_descs(self, descs: Any) -> bytes:
        """Return a list as bytes (a pickle)."""
        return pickle.dumps(descs)

    def deserialize_descs(self, serialized_descs: bytes) -> Any:
        """Return the list of such bytes; only of those you trust, as always with pickles."""
        return pickle.loads(serialized_descs)

    # -- transfers ----------------------------------------------------------------------------------------------------

    def _side(self, agent: str, kind: nixl_mem_t, rows: Rows) -> _Side:
        """Look descriptors up: this agent's own for "" and its name, another's otherwise."""
        table = self._registrations.table if agent in ("", self.name) else self._remote(agent).table
        gvas, ranges = table.find(kind, rows)
        return _Side(agent, gvas, ranges, rows[:, 1])

    def prep_xfer_dlist(
        self, agent_name: str, xfer_list: Any, mem_type: str | None = None, backends: Any = ()
    ) -> nixl_prepped_dlist_handle:
        """Prepare a list for `make_prepped_xfer`.

        Args:
            agent_name: "NIXL_INIT_AGENT" or "" for the local side; an agent's name for the other side (its own: loopback).
            xfer_list: as for `get_xfer_descs`, or an array of shape (n, 5): (address, length, device, stride, count).
        """
        name = _text(agent_name)
        name = "" if name == "NIXL_INIT_AGENT" else name
        if isinstance(xfer_list, np.ndarray) and xfer_list.ndim == 2 and xfer_list.shape[1] == 5:
            if mem_type is None:
                raise ValueError("Please specify a mem type for strided descriptors")
            descs = nixlXferDList(self.nixl_mems[mem_type], _strided(xfer_list))
        else:
            descs = self._given(self.get_xfer_descs(xfer_list, mem_type), nixlXferDList)
        with self._engine.lock:
            self._live()
            self._chosen(backends, None if name in ("", self.name) else self._remote(name).metadata)
            return nixl_prepped_dlist_handle(self, self._side(name, descs.getType(), descs.rows))

    def make_prepped_xfer(
        self,
        operation: str,
        local_xfer_side: nixl_prepped_dlist_handle,
        local_indices: Any,
        remote_xfer_side: nixl_prepped_dlist_handle,
        remote_indices: Any,
        notif_msg: bytes = b"",
        backends: Any = (),
        skip_desc_merge: bool = False,
    ) -> nixl_xfer_handle:
        """Make a transfer of some of two prepared lists, by their indices."""
        op = self.nixl_ops[operation]
        local = usable(local_xfer_side, nixl_prepped_dlist_handle, "the local list")
        remote = usable(remote_xfer_side, nixl_prepped_dlist_handle, "the remote list")
        if local.agent or not remote.agent:
            raise nixlInvalidParamError(
                "the local list is one prepared for NIXL_INIT_AGENT, the remote list one for an agent's name"
            )
        mine, theirs = _indices(local_indices, len(local.gvas)), _indices(remote_indices, len(remote.gvas))
        if len(mine) != len(theirs) or not len(mine):
            raise nixlInvalidParamError(f"{len(mine)} local and {len(theirs)} remote descriptors")
        return self._make(
            op,
            remote.agent,
            _Side("", local.gvas[mine], local.ranges[mine], local.sizes[mine]),
            _Side(remote.agent, remote.gvas[theirs], remote.ranges[theirs], remote.sizes[theirs]),
            notif_msg,
            backends,
        )

    def initialize_xfer(
        self,
        operation: str,
        local_descs: nixlXferDList,
        remote_descs: nixlXferDList,
        remote_agent: str,
        notif_msg: bytes = b"",
        backends: Any = (),
    ) -> nixl_xfer_handle:
        """Make a transfer of two lists of the same length and sizes."""
        op = self.nixl_ops[operation]
        name = _text(remote_agent)
        mine, theirs = self._given(local_descs, nixlXferDList), self._given(remote_descs, nixlXferDList)
        if name != self.name:
            self._remote(name)
        if mine.descCount() != theirs.descCount():
            raise nixlInvalidParamError(f"{mine.descCount()} local and {theirs.descCount()} remote descriptors")
        with self._engine.lock:
            local = self._side("", mine.getType(), mine.rows)
            remote = self._side(name, theirs.getType(), theirs.rows)
        return self._make(op, name, local, remote, notif_msg, backends)

    def _make(self, op: nixl_xfer_op_t, agent: str, local: _Side, remote: _Side, notif_msg: Any, backends: Any) -> nixl_xfer_handle:
        self._live()
        self._chosen(backends, None if agent == self.name else self._remote(agent).metadata)
        wrong = np.flatnonzero(local.sizes != remote.sizes)
        if len(wrong):
            i = int(wrong[0])
            raise nixlInvalidParamError(f"descriptor {i} has {local.sizes[i]} bytes here and {remote.sizes[i]} there")
        pieces = merge(local.gvas, local.ranges, remote.gvas, remote.ranges, local.sizes)
        message = messages(notif_msg)
        return nixl_xfer_handle(self, Transfer(op, agent, *pieces, message or None))

    def _transfer(self, handle: Any) -> Transfer:
        found: Transfer = usable(handle, nixl_xfer_handle, "the transfer")
        return found

    def transfer(self, handle: nixl_xfer_handle, notif_msg: bytes = b"") -> str:
        """Start it; returns "DONE" if it was over at once, otherwise "PROC". What failed raises."""
        transfer = self._transfer(handle)
        message = messages(notif_msg) or transfer.notify
        with self._engine.lock:
            self._live()
            self._engine.progress()
            if transfer.active:
                raise nixlRepostActiveError("it is under way; wait until it is done")
            if transfer.agent != self.name:
                self._remote(transfer.agent)
            self._engine.post(transfer, message)
            return self._state(transfer)

    def check_xfer_state(self, handle: nixl_xfer_handle) -> str:
        """Return "DONE" or "PROC"; what failed raises: nixlRemoteDisconnectError, nixlBackendError, nixlNotPostedError."""
        transfer = self._transfer(handle)
        self._engine.progress()
        return self._state(transfer)

    @staticmethod
    def _state(transfer: Transfer) -> str:
        if transfer.state == IDLE:
            raise nixlNotPostedError("it has not been started")
        if transfer.state == FAILED:
            assert transfer.error is not None
            raise transfer.error.with_traceback(None)
        return "DONE" if transfer.state == DONE else "PROC"

    def estimate_xfer_cost(self, req_handle: nixl_xfer_handle) -> tuple[int, int, str]:
        """Return what the model gives the transfer on an idle fabric: microseconds, margin, and "ANALYTICAL_BACKEND"."""
        cost = self.estimate_xfer_ps(req_handle)
        micros = max((cost + 500_000) // 1_000_000, 1)
        return micros, max(micros // 10, 1), "ANALYTICAL_BACKEND"

    def estimate_xfer_ps(self, req_handle: nixl_xfer_handle) -> int:
        """Return the same in picoseconds (fabrex's own)."""
        transfer = self._transfer(req_handle)
        try:
            return estimate(self._node, transfer)
        except FabricError as error:
            raise nixlRemoteDisconnectError(str(error)) from error

    def get_xfer_telemetry(self, handle: nixl_xfer_handle) -> nixlXferTelemetry:
        """Return what a transfer took."""
        transfer = self._transfer(handle)
        self._engine.progress()
        if not self._telemetry or transfer.state != DONE:
            raise nixlNoTelemetryError(
                "it is not done" if self._telemetry else "make the agent with nixl_agent_config(capture_telemetry=True)"
            )
        return transfer.telemetry()

    def query_xfer_backend(self, handle: nixl_xfer_handle) -> str:
        """Return which backend moves it."""
        transfer = self._transfer(handle)
        return self._chosen((), None if transfer.agent == self.name else self._remote(transfer.agent).metadata)

    def release_xfer_handle(self, handle: nixl_xfer_handle) -> None:
        """Give a transfer back; one that is under way is cancelled."""
        handle.release()

    def release_dlist_handle(self, handle: nixl_prepped_dlist_handle) -> None:
        """Give a prepared list back."""
        handle.release()

    def prep_mem_view(self, dlist: Any, *, backends: Any = None) -> int:
        """Not supported: it is for kernels on a device."""
        raise nixlNotSupportedError("memory views are for a device's own kernels; there is no device here")

    def release_mem_view(self, mvh: int) -> None:
        """Not supported."""
        raise nixlNotSupportedError("memory views are for a device's own kernels; there is no device here")

    # -- notifications ------------------------------------------------------------------------------------------------

    def _send(self, agent: str, message: bytes) -> bool:
        lane = self._lane(agent)
        lane.send(message)
        return not lane.waits

    def _pump(self) -> bool:
        lanes = [remote.lane for remote in self._remotes.values()] + [self._loopback]
        for lane in lanes:
            if lane is not None and lane.waits:
                lane.pump()
        return not any(lane is not None and lane.waits for lane in lanes)

    def get_new_notifs(self, backends: Any = ()) -> dict[str, list[bytes]]:
        """Return what has come since the last call, by sender."""
        found: dict[str, list[bytes]] = {}
        self._receive(found, backends)
        return found

    def update_notifs(self, backends: Any = ()) -> dict[str, list[bytes]]:
        """Add what has come to `notifs`, and return that."""
        self._receive(self.notifs, backends)
        return self.notifs

    def _receive(self, into: dict[str, list[bytes]], backends: Any) -> None:
        self._chosen(backends)
        with self._engine.lock:
            self._live()
            self._engine.progress()
            with contextlib.suppress(nixlRemoteDisconnectError):
                self._pump()
            try:
                self._box.collect(into)
            except FabricError as error:
                raise nixlBackendError(str(error)) from error

    def check_remote_xfer_done(
        self, remote_agent_name: str, lookup_tag: bytes, backends: Any = (), tag_is_prefix: bool = True
    ) -> bool:
        """Return whether a notification with that tag has come from an agent; takes it out of `notifs`."""
        self.update_notifs(backends)
        tag, waiting = messages(lookup_tag), self.notifs.get(_text(remote_agent_name), [])
        for message in waiting:
            if message.startswith(tag) if tag_is_prefix else tag in message:
                waiting.remove(message)
                return True
        return False

    def send_notif(self, remote_agent_name: str, notif_msg: bytes, backend: str | None = None) -> None:
        """Send a notification by itself."""
        name, message = _text(remote_agent_name), messages(notif_msg)
        with self._engine.lock:
            self._live()
            self._chosen([backend] if backend is not None else ())
            if name != self.name:
                self._remote(name)
            self._send(name, message)


# The engine and the listener outlive nothing: they reach the agent through a weak reference.


def _sender(weak: weakref.ref[nixl_agent]) -> Any:
    def send(agent: str, message: bytes) -> bool:
        alive = weak()
        return alive is not None and alive._send(agent, message)

    return send


def _pumper(weak: weakref.ref[nixl_agent]) -> Any:
    def pump() -> bool:
        alive = weak()
        return alive is None or alive._pump()

    return pump


def _answerer(weak: weakref.ref[nixl_agent]) -> Any:
    def answer(kind: bytes, body: bytes) -> bytes:
        alive = weak()
        return b"" if alive is None else alive._answer(kind, body)

    return answer


def _tensors(descs: Any) -> list[Any] | None:
    """Return torch tensors as a list, None for anything else. torch is not imported for the question."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    if isinstance(descs, torch.Tensor):
        return [descs]
    if isinstance(descs, (list, tuple)) and descs and all(isinstance(d, torch.Tensor) for d in descs):
        return list(descs)
    return None


def _tensor_row(tensor: Any) -> tuple[int, int, int] | None:
    if not tensor.is_contiguous():
        return None
    device = max(tensor.get_device(), 0)
    return tensor.data_ptr(), tensor.numel() * tensor.element_size(), device


def _strided(array: Rows) -> Rows:
    """Spread (address, length, device, stride, count) rows out."""
    rows = []
    for address, length, device, stride, count in array.tolist():
        if count < 1 or (count > 1 and stride < length):
            raise nixlInvalidParamError(f"{count} blocks of {length} bytes, {stride} apart")
        at = address + stride * np.arange(count, dtype=np.uint64)
        rows.append(np.stack([at, np.full(count, length, np.uint64), np.full(count, device, np.uint64)], axis=1))
    return np.concatenate(rows).astype(np.uint64) if rows else np.zeros((0, 3), dtype=np.uint64)


def _indices(given: Any, count: int) -> Rows:
    indices = np.asarray(given if isinstance(given, np.ndarray) else [operator.index(i) for i in given], dtype=np.int64).ravel()
    if len(indices) and (indices.min() < 0 or indices.max() >= count):
        raise nixlInvalidParamError(f"indices run from 0 to {count - 1}")
    return indices


__all__ = [
    "DEFAULT_COMM_PORT",
    "nixl_agent",
    "nixl_agent_config",
    "nixl_backend_handle",
    "nixl_prepped_dlist_handle",
    "nixl_thread_sync_t",
    "nixl_xfer_handle",
]
