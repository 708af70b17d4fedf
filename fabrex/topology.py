# SPDX-License-Identifier: Apache-2.0
"""What a fabric consists of: nodes, their memory, the links between them, and how it is to behave.

A `Topology` is immutable and complete: counts are expanded, defaults applied, every quantity is an integer in base units
(bytes, picoseconds, bits per second). It comes from a YAML file, a preset, a plain dict or Python objects, and all
four ways end in the same checks, which collect every problem before they raise one `TopologyError`.

The file format is described in docs/reference/topology.md.

Owns: the data model, its validation, the file format's meaning. Must not know: shared memory, clocks, the compiled core.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from . import _yaml
from .errors import TopologyError
from .jitter import problem
from .units import UnitError, format_rate, format_size, format_time, parse_rate, parse_size, parse_time

if TYPE_CHECKING:
    from fractions import Fraction

    from typing_extensions import Self

__all__ = [
    "FORMAT_VERSION",
    "KINDS",
    "NTB_PROFILES",
    "ORDERINGS",
    "Dma",
    "EthernetParams",
    "Link",
    "Memory",
    "Node",
    "PcieParams",
    "Pio",
    "Problem",
    "Topology",
    "TopologyBuilder",
    "TopologyError",
]

#: The version of the file format that this package reads and writes: the `fabrex:` key.
FORMAT_VERSION: Final = 1

KINDS: Final = ("host", "accelerator", "memory", "switch")
NTB_PROFILES: Final = ("fabrex", "switchtec", "xeon-gen3", "xeon-gen4", "amd", "idt", "epf")
ORDERINGS: Final = ("posted", "immediate", "adversarial")
WINDOWS: Final = ("auto", "manual")
STATUSES: Final = ("claimed", "measured", "modelled")
DISTRIBUTIONS: Final = ("uniform", "normal", "exponential", "empirical")

MAX_NODES: Final = 4096
MAX_TIERS: Final = 16
MAX_LINKS: Final = 65536
MAX_SHOWN: Final = 50  # problems in a message; all of them are in `.errors`
MIN_TIER_BYTES: Final = 128 * 2**10  # twice the fixed area of 64 KiB at the start of each region
MAX_TIER_BYTES: Final = 16 * 2**40
TIER_ALIGN_BYTES: Final = 4096
MAX_DELAY_PS: Final = 3600 * 10**12  # one hour; more is a slip of the unit

LANES: Final = (1, 2, 4, 8, 12, 16, 32)
GENERATIONS: Final = (1, 2, 3, 4, 5, 6)
PAYLOADS: Final = (128, 256, 512, 1024, 2048, 4096)
ACCESS_BYTES: Final = (1, 2, 4, 8, 16, 32, 64)

#: Bits per second and lane after encoding, as (numerator, denominator). Gen1-2: 8b/10b; Gen3-5: 128b/130b; Gen6: 236 TLP
#: bytes of each 256-byte FLIT. Source: PCI Express Base Specification, physical layer.
_LANE_BPS: Final[Mapping[int, tuple[int, int]]] = {
    1: (2_500_000_000 * 8, 10),
    2: (5_000_000_000 * 8, 10),
    3: (8_000_000_000 * 128, 130),
    4: (16_000_000_000 * 128, 130),
    5: (32_000_000_000 * 128, 130),
    6: (64_000_000_000 * 236, 256),
}

_NAME: Final = re.compile(r"[a-z][a-z0-9_.-]{0,62}\Z", re.ASCII)
_LINK_NAME: Final = re.compile(r"[a-z][a-z0-9_.:-]{0,254}\Z", re.ASCII)
_NAME_RULE: Final = "allowed: 1 to 63 characters of a-z 0-9 _ . - beginning with a letter"
_PATTERN: Final = re.compile(r"([a-z][a-z0-9_.-]*)(?:(\*)|\[([0-9]{1,5})-([0-9]{1,5})\])([a-z0-9_.-]*)\Z", re.ASCII)

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a topology.

    Attributes:
        message: what is wrong and what is allowed.
        line, column: place in the file, from 1; None when the topology did not come from text.
        path: the key, such as `nodes.host0.memory.dram` or `links[2].pcie.lanes`; empty for the document itself.
    """

    message: str
    line: int | None = None
    column: int | None = None
    path: str = ""

    def __str__(self) -> str:
        place = f"line {self.line}, column {self.column}: " if self.line is not None else ""
        return f"{place}{self.path + ': ' if self.path else ''}{self.message}"


class FrozenDict(dict[_K, _V]):
    """A dict that cannot be changed, so that a topology can be shared, hashed and pickled without copies."""

    __slots__ = ()

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a topology cannot be changed; Topology.override() returns a changed copy")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (dict(self),))


@dataclass(frozen=True)
class Memory:
    """One tier of a node's memory.

    Attributes:
        name: the tier, such as `dram`, `sram`, `hbm`, `lpddr`.
        size: bytes; a multiple of 4 KiB from 128 KiB to 16 TiB.
        latency_ps: access time of the tier as completer.
        rate_bps: bits per second that the tier can deliver or accept; 0 is unlimited.
        jitter: of the latency; a distribution as a dict with times in `_ps`, or None.
    """

    name: str
    size: int
    latency_ps: int = 0
    rate_bps: int = 0
    jitter: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.jitter is not None and not isinstance(self.jitter, FrozenDict):
            object.__setattr__(self, "jitter", FrozenDict(self.jitter))


@dataclass(frozen=True)
class Pio:
    """How a node's CPU issues loads and stores.

    Attributes:
        access_bytes: width of one read request of a bulk PIO read; one is outstanding at a time.
        read_ps, write_ps: fixed requester overhead of each read and each write.
        wc: whether window mappings are write-combining unless they say otherwise.
    """

    access_bytes: int = 8
    read_ps: int = 0
    write_ps: int = 0
    wc: bool = False


@dataclass(frozen=True)
class Dma:
    """A node's DMA engine.

    Attributes:
        channels: descriptors processed at the same time.
        tags: read requests outstanding in each channel.
        setup_write_ps, setup_read_ps: fixed cost of one descriptor that pushes, or pulls, data.
    """

    channels: int = 1
    tags: int = 32
    setup_write_ps: int = 0
    setup_read_ps: int = 0


@dataclass(frozen=True)
class PcieParams:
    """A PCIe link. Payload sizes are bytes; data credits are units of 16 bytes; a credit count of 0 is infinite.

    The credit defaults are estimates (64 headers and 16 KiB of posted data; completions infinite, as the specification
    demands of endpoints and root complexes); real ports differ widely.
    """

    gen: int
    lanes: int
    mps: int = 256
    mrrs: int = 512
    rcb: int = 64
    tags: int = 32
    posted_credits_header: int = 64
    posted_credits_data: int = 1024
    nonposted_credits_header: int = 64
    nonposted_credits_data: int = 64
    completion_credits_header: int = 0
    completion_credits_data: int = 0

    @property
    def raw_bps(self) -> int:
        """Bits per second and direction after line encoding, before TLP and DLLP overhead; rounded down."""
        numerator, denominator = _LANE_BPS[self.gen]
        return self.lanes * numerator // denominator


@dataclass(frozen=True)
class EthernetParams:
    """An Ethernet link, or another framed one.

    Attributes:
        rate_bps: bits per second and direction.
        mtu: payload bytes of one frame.
        overhead_bytes: what each frame costs besides its payload. 38 is preamble 8, header 14, check sequence 4 and
            gap 12 (IEEE 802.3).
    """

    rate_bps: int
    mtu: int = 1500
    overhead_bytes: int = 38

    @property
    def raw_bps(self) -> int:
        """Bits per second and direction, framing included."""
        return self.rate_bps


@dataclass(frozen=True)
class Node:
    """A host, accelerator, memory box or switch.

    Attributes:
        name: unique in the fabric.
        kind: one of `KINDS`.
        memory: tiers in order. Sizes given as text (`"1GiB"`) or bytes become `Memory` objects.
        ntb: device profile, one of `NTB_PROFILES`; None for a switch, which has no NTB of its own.
        delay_ps: cut-through delay of a switch; 0 for all others.
        pio, dma: the requester side of hosts and accelerators.
        index: position in the topology; set by `Topology`.
    """

    name: str
    kind: str = "host"
    memory: Mapping[str, Memory] = field(default_factory=FrozenDict)
    ntb: str | None = None
    delay_ps: int = 0
    pio: Pio = Pio()
    dma: Dma = Dma()
    index: int = -1

    def __post_init__(self) -> None:
        tiers: dict[str, Memory] = {}
        given: Any = self.memory
        if not isinstance(given, Mapping):
            given = {tier.name: tier for tier in given}
        for tier, value in given.items():
            if isinstance(value, str):
                value = Memory(tier, parse_size(value))
            elif not isinstance(value, Memory):
                value = Memory(tier, value)
            tiers[tier] = value
        object.__setattr__(self, "memory", FrozenDict(tiers))
        if self.ntb is None and self.kind != "switch":
            object.__setattr__(self, "ntb", "fabrex")

    @property
    def is_switch(self) -> bool:
        """Whether the node only forwards."""
        return self.kind == "switch"


@dataclass(frozen=True)
class Link:
    """A full-duplex link between two ports.

    Attributes:
        a, b: (node, port); the text `"host0:ntb0"` is accepted.
        pcie, ethernet: exactly one of the two is set.
        delay_ps: propagation, one way.
        jitter: of the delay; a distribution as a dict with times in `_ps`, or None.
        name: `host0:ntb0-sw0:p0` unless given.
        index: position in the topology; set by `Topology`.
    """

    a: tuple[str, str]
    b: tuple[str, str]
    pcie: PcieParams | None = None
    ethernet: EthernetParams | None = None
    delay_ps: int = 0
    jitter: Mapping[str, Any] | None = None
    name: str = ""
    index: int = -1

    def __post_init__(self) -> None:
        for side in ("a", "b"):
            end: Any = getattr(self, side)
            if isinstance(end, str):
                node, _, port = end.partition(":")
                end = (node, port)
            object.__setattr__(self, side, tuple(end))
        if not self.name:
            object.__setattr__(self, "name", _default_link_name(self.a, self.b))
        if self.jitter is not None and not isinstance(self.jitter, FrozenDict):
            object.__setattr__(self, "jitter", FrozenDict(self.jitter))

    @property
    def raw_bps(self) -> int:
        """Bits per second and direction on the wire after line encoding."""
        if self.pcie is not None:
            return self.pcie.raw_bps
        return self.ethernet.raw_bps if self.ethernet is not None else 0

    def other(self, node: str) -> tuple[str, str]:
        """The (node, port) at the end that is not `node`.

        Raises:
            ValueError: `node` is at neither end.
        """
        if node == self.a[0]:
            return self.b
        if node == self.b[0]:
            return self.a
        raise ValueError(f"{node} is not an end of {self.name}")


def _default_link_name(a: tuple[str, str], b: tuple[str, str]) -> str:
    return f"{a[0]}:{a[1]}-{b[0]}:{b[1]}"


@dataclass(frozen=True, init=False, repr=False)
class Topology:
    """A checked, complete, immutable description of a fabric.

    Equality covers everything except `source`. `Topology(...)` takes Python objects (or dicts as in the file); see
    also `load`, `loads`, `preset`, `from_dict`, `resolve` and `builder`.

    Attributes:
        name: the fabric's default name.
        nodes: by name, in file order, counts expanded.
        links: by name, in file order.
        windows: `auto` (all memory is reachable) or `manual` (nothing is, until software programs windows).
        ordering: one of `ORDERINGS`.
        timing: whether modelled time is injected.
        seed: 64-bit seed of all random choices.
        dilation_num, dilation_den: the factor by which modelled time is stretched, in lowest terms; 0/1 is `auto`.
        machines: placement: name -> {"nodes": tuple of node names, "address": str}; the first one's is the coordinator.
        status: how far to trust the constants: `claimed`, `measured` or `modelled`.
        notes: free text.
        source: where the topology came from, for messages.
    """

    name: str
    nodes: Mapping[str, Node]
    links: Mapping[str, Link]
    windows: str
    ordering: str
    timing: bool
    seed: int
    dilation_num: int
    dilation_den: int
    machines: Mapping[str, Mapping[str, Any]]
    status: str
    notes: str
    source: str = field(compare=False)

    def __init__(
        self,
        name: str,
        nodes: Iterable[Node] | Mapping[str, Any] = (),
        links: Iterable[Link | Mapping[str, Any]] | Mapping[str, Link] = (),
        *,
        windows: str = "auto",
        ordering: str = "posted",
        timing: bool = True,
        seed: int = 0,
        dilation: int | str | Fraction = 1,
        machines: Mapping[str, Any] | None = None,
        status: str = "modelled",
        notes: str = "",
        source: str = "<python>",
    ) -> None:
        """Check Python objects and make a topology of them.

        Args:
            nodes: `Node` objects, or a mapping from names to dicts as in the file.
            links: `Link` objects or dicts as in the file, in order.
        Raises:
            TopologyError: with every problem in `.errors`.
        """
        named = nodes.items() if isinstance(nodes, Mapping) else [(node.name, node) for node in nodes]
        node_documents: dict[str, Any] = {}
        for key, node in named:
            if key in node_documents:
                _raise(source, [Problem("this node name is given twice", path=f"nodes.{key}")])
            node_documents[key] = _node_document(node, full=False) if isinstance(node, Node) else node
        listed = links.values() if isinstance(links, Mapping) else links
        document: dict[str, Any] = {
            "fabrex": FORMAT_VERSION,
            "name": name,
            "nodes": node_documents,
            "links": [_link_document(link, full=False) if isinstance(link, Link) else link for link in listed],
            "windows": windows,
            "ordering": ordering,
            "timing": timing,
            "seed": seed,
            "dilation": dilation,
            "status": status,
            "notes": notes,
        }
        if machines:
            document["machines"] = machines
        self._fill(_build(*_yaml.from_python(document), source))

    def _fill(self, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            object.__setattr__(self, key, value)

    @classmethod
    def _make(cls, tree: _yaml.Tree | None, faults: list[_yaml.Fault], source: str) -> Self:
        topology = object.__new__(cls)
        topology._fill(_build(tree, faults, source))
        return topology

    # Ways in

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The topology in a YAML file.

        Raises:
            OSError: the file cannot be read.
            TopologyError: with every problem, its line and column, in `.errors`.
        """
        source = os.fspath(path)
        with open(source, "rb") as file:
            data = file.read(_yaml.MAX_BYTES + 1)
        text, fault = _yaml.decode(data)
        if text is None:
            return cls._make(None, [fault] if fault else [], source)
        return cls._make(*_yaml.parse(text), source)

    @classmethod
    def loads(cls, text: str, source: str = "<string>") -> Self:
        """The topology in YAML text; `source` stands for the file's name in messages.

        Raises:
            TopologyError: with every problem, its line and column, in `.errors`.
        """
        return cls._make(*_yaml.parse(text), source)

    @classmethod
    def preset(cls, name: str) -> Self:
        """One of the topologies that come with the package; `fabrex.presets.names()` lists them.

        Raises:
            TopologyError: there is no such preset.
        """
        from . import presets

        if name not in presets.names():
            known = ", ".join(presets.names())
            _raise("preset", [Problem(f"no preset is named {name!r}{_hint(name, presets.names())}; presets: {known}")])
        return cls.loads(presets.text(name), f"preset {name}")

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], source: str = "<dict>") -> Self:
        """The topology in a dict of the file's structure.

        Raises:
            TopologyError: with every problem in `.errors`; they have paths but no lines.
        """
        return cls._make(*_yaml.from_python(document), source)

    @classmethod
    def resolve(cls, argument: Topology | Mapping[str, Any] | str | os.PathLike[str]) -> Topology:
        """The topology that an argument stands for: itself, a dict, a preset's name or a file's path.

        Text with a directory separator or ending in `.yaml` or `.yml` is a path; other text is a preset if there is one
        of that name, and a path otherwise.

        Raises:
            OSError: the file cannot be read.
            TopologyError: there is neither such a preset nor such a file, or it has problems.
        """
        if isinstance(argument, Topology):
            return argument
        if isinstance(argument, Mapping):
            return cls.from_dict(argument)
        if not isinstance(argument, str):
            return cls.load(argument)
        if os.sep in argument or argument.endswith((".yaml", ".yml")):
            return cls.load(argument)
        from . import presets

        if argument in presets.names():
            return cls.preset(argument)
        if os.path.isfile(argument):
            return cls.load(argument)
        hint = _hint(argument, presets.names())
        message = f"{argument!r} is neither a preset nor a file{hint}; presets: {', '.join(presets.names())}"
        _raise("topology", [Problem(message)])

    @staticmethod
    def builder(name: str, **settings: Any) -> TopologyBuilder:
        """A `TopologyBuilder` for a topology in Python with units as text; `settings` are top-level keys of the file."""
        return TopologyBuilder(name, **settings)

    # Ways out

    def to_dict(self) -> dict[str, Any]:
        """The file's structure, counts expanded and defaults left out; `from_dict` gives an equal topology."""
        return self._document(full=False)

    def to_yaml(self) -> str:
        """A file that `loads` reads back as an equal topology."""
        document = self.to_dict()
        lines = []
        for key, value in document.items():
            if key in ("nodes", "machines"):
                lines.append(f"{key}:")
                lines.extend(f"  {_scalar(name)}: {_flow(inner)}" for name, inner in value.items())
            elif key == "links":
                lines.append("links:")
                lines.extend(f"  - {_flow(inner)}" for inner in value)
            else:
                lines.append(f"{key}: {_flow(value)}")
        return "\n".join(lines) + "\n"

    def digest(self) -> str:
        """SHA-256, in hex, of everything that the fabric's behaviour depends on: all but `source`, `status`, `notes`.

        The same on every machine and in every process; it changes when the set of parameters grows.
        """
        import hashlib
        import json
        from dataclasses import asdict

        settings = (
            self.name,
            self.windows,
            self.ordering,
            self.timing,
            self.seed,
            self.dilation_num,
            self.dilation_den,
        )
        content = [
            FORMAT_VERSION,
            settings,
            [asdict(node) for node in self.nodes.values()],
            [list(node.memory) for node in self.nodes.values()],
            [asdict(link) for link in self.links.values()],
            list(self.links),
            self.machines,
        ]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    def override(self, changes: Mapping[str, Any] | Iterable[str] = (), /, **settings: Any) -> Topology:
        """A copy with some values changed and everything checked again.

        A key is a top-level key (`timing`, `ordering`, ...) or `nodes.NAME.KEY...`, `links.NAME.KEY...`. NAME may hold
        `*` for any characters, and then changes all that match. A mapping is merged into what is there; a lone size for a
        tier keeps its latency and rate; None (or empty text) takes the key away, so that its default returns.

        Args:
            changes: key to value, or an iterable of `"key=value"` as on a command line. Values that are text are read
                as in the file.
            settings: further top-level keys, as in `topology.override(ordering="adversarial", seed=7)`.
        Raises:
            TopologyError: a key that matches nothing, or a result that is not valid.

        >>> Topology.preset("fabrex-pair").override({"links.host0:ntb0-sw0:p0.delay": "500ns"})  # doctest: +SKIP
        """
        pairs: list[tuple[str, Any]] = []
        problems: list[Problem] = []
        if isinstance(changes, str):
            changes = [changes]
        if isinstance(changes, Mapping):
            pairs.extend(changes.items())
        else:
            for text in changes:
                key, separator, value = text.partition("=")
                if not separator:
                    problems.append(Problem(f"{text!r} has no value; write KEY=VALUE"))
                else:
                    pairs.append((key.strip(), value.strip()))
        pairs.extend(settings.items())
        document = self._document(full=True)
        nodes = document["nodes"]
        links = {link["name"]: link for link in document.get("links", ())}
        machines = document.get("machines", {})
        for key, value in pairs:
            head, _, rest = key.partition(".")
            try:
                value = _override_value(value)
                if head in ("nodes", "links", "machines"):
                    named = {"nodes": nodes, "links": links, "machines": machines}[head]
                    for target, keys in _override_targets(head, rest, named):
                        _override_set(target, keys, value)
                elif rest or head in ("fabrex", "defaults"):
                    reason = "; defaults have been applied: set the value on links.* or nodes.*" if head == "defaults" else ""
                    problems.append(Problem(f"this key cannot be set{reason}", path=key))
                elif value is None:
                    document.pop(head, None)
                else:
                    document[head] = value
            except ValueError as error:
                problems.append(Problem(str(error), path=key))
        for name, node in nodes.items():
            # A node that was given another machine leaves the list of the one that it was on.
            if isinstance(node, dict) and node.get("machine"):
                for other, machine in machines.items():
                    if other != node["machine"] and isinstance(machine, dict) and name in (machine.get("nodes") or ()):
                        machine["nodes"].remove(name)
        source = self.source + (" with " + ", ".join(key for key, _ in pairs) if pairs else "")
        if problems:
            _raise(source, problems)
        return type(self).from_dict(document, source)

    # Looking around

    @property
    def dilation(self) -> Fraction:
        """The factor by which modelled time is stretched."""
        from fractions import Fraction

        return Fraction(self.dilation_num, self.dilation_den)

    def machine_of(self, node: str) -> str | None:
        """The machine that a node is placed on; None if it has no place.

        Raises:
            KeyError: there is no such node.
        """
        self.nodes[node]
        return next((name for name, machine in self.machines.items() if node in machine["nodes"]), None)

    def links_of(self, node: str) -> list[Link]:
        """The links that end on `node`, in order.

        Raises:
            KeyError: there is no such node.
        """
        self.nodes[node]
        return [link for link in self.links.values() if node in (link.a[0], link.b[0])]

    def of_kind(self, *kinds: str) -> list[Node]:
        """The nodes of these kinds, in order."""
        return [node for node in self.nodes.values() if node.kind in kinds]

    def reachable(self, node: str) -> list[str]:
        """Names of the other nodes, switches excluded, to which a route leads; routes pass only through switches.

        Raises:
            KeyError: there is no such node.
        """
        self.nodes[node]
        ends = [(link.a[0], link.b[0]) for link in self.links.values()]
        masks = _reach_masks(self.nodes, ends)
        names = [name for name, other in self.nodes.items() if not other.is_switch]
        if self.nodes[node].is_switch:
            raise ValueError(f"{node} is a switch: nothing starts or ends there")
        return [name for position, name in enumerate(names) if masks[node] >> position & 1 and name != node]

    def __repr__(self) -> str:
        return f"<Topology {self.name!r}: nodes={len(self.nodes)} links={len(self.links)} from {self.source}>"

    def _document(self, *, full: bool) -> dict[str, Any]:
        document: dict[str, Any] = {"fabrex": FORMAT_VERSION, "name": self.name}
        if self.status != "modelled" or full:
            document["status"] = self.status
        if self.notes or full:
            document["notes"] = self.notes
        document["nodes"] = {name: _node_document(node, full=full) for name, node in self.nodes.items()}
        if self.links:
            document["links"] = [_link_document(link, full=full) for link in self.links.values()]
        document["windows"] = self.windows
        document["ordering"] = self.ordering
        document["timing"] = "on" if self.timing else "off"
        if self.seed or full:
            document["seed"] = self.seed
        if (self.dilation_num, self.dilation_den) != (1, 1) or full:
            ratio = f"{self.dilation_num}/{self.dilation_den}"
            document["dilation"] = "auto" if not self.dilation_num else self.dilation_num if self.dilation_den == 1 else ratio
        if self.machines:
            document["machines"] = {
                name: {"nodes": list(machine["nodes"]), "address": machine["address"]} for name, machine in self.machines.items()
            }
        return document


class TopologyBuilder:
    """A topology step by step, with units as text; nothing is checked before `build`.

    >>> Topology.builder("pair").host("h0", dram="1GiB").host("h1", dram="1GiB").link(
    ...     "h0:ntb0", "h1:ntb0", pcie={"gen": 4, "lanes": 16}, delay="5ns").build()
    <Topology 'pair': nodes=2 links=1 from <builder>>
    """

    def __init__(self, name: str, **settings: Any) -> None:
        self._document: dict[str, Any] = {"fabrex": FORMAT_VERSION, "name": name, "nodes": {}, "links": [], **settings}
        self._repeated: list[Problem] = []

    def node(self, name: str, kind: str, **keys: Any) -> TopologyBuilder:
        """Add a node; `keys` are those of the file (`memory`, `count`, `delay`, `ntb`, `pio`, `dma`, `machine`)."""
        if name in self._document["nodes"]:
            self._repeated.append(Problem("this node name is given twice", path=f"nodes.{name}"))
        self._document["nodes"][name] = {"kind": kind, **keys}
        return self

    def host(self, name: str, *, count: int | None = None, **tiers: Any) -> TopologyBuilder:
        """Add a host with these memory tiers: `host("h0", dram="1GiB")`."""
        return self._with_memory(name, "host", count, tiers)

    def accelerator(self, name: str, *, count: int | None = None, **tiers: Any) -> TopologyBuilder:
        """Add an accelerator with these memory tiers."""
        return self._with_memory(name, "accelerator", count, tiers)

    def memory(self, name: str, *, count: int | None = None, **tiers: Any) -> TopologyBuilder:
        """Add a memory box with these tiers."""
        return self._with_memory(name, "memory", count, tiers)

    def switch(self, name: str, *, count: int | None = None, delay: str | None = None) -> TopologyBuilder:
        """Add a switch with this cut-through delay."""
        return self.node(name, "switch", **_given(count=count, delay=delay))

    def link(self, a: str, b: str, **keys: Any) -> TopologyBuilder:
        """Add a link; `keys` are those of the file (`pcie`, `ethernet`, `delay`, `name`, `jitter`)."""
        self._document["links"].append({"endpoints": [a, b], **keys})
        return self

    def build(self) -> Topology:
        """The topology.

        Raises:
            TopologyError: with every problem in `.errors`.
        """
        if self._repeated:
            _raise("<builder>", self._repeated)
        return Topology.from_dict(self._document, "<builder>")

    def _with_memory(self, name: str, kind: str, count: int | None, tiers: dict[str, Any]) -> TopologyBuilder:
        return self.node(name, kind, **_given(count=count, memory=tiers or None))


def _given(**keys: Any) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if value is not None}


# Problems


def _raise(source: str, problems: list[Problem]) -> NoReturn:
    problems = sorted(problems, key=lambda problem: (problem.line or 0, problem.column or 0))
    if len(problems) == 1:
        message = f"{source}: {problems[0]}"
    else:
        shown = [str(problem) for problem in problems[:MAX_SHOWN]]
        if len(problems) > MAX_SHOWN:
            shown.append(f"and {len(problems) - MAX_SHOWN} more")
        message = "\n  ".join([f"{source}: {len(problems)} problems", *shown])
    raise TopologyError(message, errors=problems)


def _hint(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest of the known words, or nothing."""
    import difflib

    candidates = list(known)
    if len(candidates) > 2000 or len(word) > 80:
        return ""
    near = difflib.get_close_matches(word.lower(), candidates, n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _some(names: Iterable[str], limit: int = 8) -> str:
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


# The tree's meaning


@dataclass(frozen=True)
class _RawLink:
    """A link entry before expansion: the two endpoints as written, and everything else."""

    tree: _yaml.Tree
    path: str
    ends: tuple[tuple[str, str], tuple[str, str]]
    end_trees: tuple[_yaml.Tree, _yaml.Tree]
    values: dict[str, Any]
    name: str | None
    name_tree: _yaml.Tree | None


_Reader = Callable[["_Checker", _yaml.Tree, str], Any]


def _integer(low: int, high: int, what: str = "a whole number") -> _Reader:
    def read(checker: _Checker, tree: _yaml.Tree, path: str) -> int | None:
        value = checker.whole(tree, path, what)
        if value is not None and not low <= value <= high:
            checker.add(tree, path, f"{value} is out of range; allowed: {low} to {high}")
            return None
        return value

    return read


def _one_of(allowed: tuple[int, ...], what: str) -> _Reader:
    def read(checker: _Checker, tree: _yaml.Tree, path: str) -> int | None:
        value = checker.whole(tree, path, what)
        if value is not None and value not in allowed:
            checker.add(tree, path, f"{value} is not {what}; allowed: {', '.join(map(str, allowed))}")
            return None
        return value

    return read


def _quantity(parse: Callable[[str], int], low: int, high: int, render: Callable[[int], str]) -> _Reader:
    def read(checker: _Checker, tree: _yaml.Tree, path: str) -> int | None:
        if not isinstance(tree, _yaml.Scalar) or tree.value is None or isinstance(tree.value, bool):
            checker.add(tree, path, f"expected a quantity with its unit, not {_describe(tree)}")
            return None
        try:
            value = parse(tree.text)
        except UnitError as error:
            checker.add(tree, path, str(error))
            return None
        if not low <= value <= high:
            checker.add(tree, path, f"{tree.text} is out of range; allowed: {render(low)} to {render(high)}")
            return None
        return value

    return read


def _choice(allowed: tuple[str, ...]) -> _Reader:
    def read(checker: _Checker, tree: _yaml.Tree, path: str) -> str | None:
        if isinstance(tree, _yaml.Scalar) and isinstance(tree.value, str):
            if tree.value in allowed:
                return tree.value
            checker.add(tree, path, f"unknown value {tree.value!r}{_hint(tree.value, allowed)}; allowed: {', '.join(allowed)}")
            return None
        checker.add(tree, path, f"expected one of {', '.join(allowed)}, not {_describe(tree)}")
        return None

    return read


def _boolean(checker: _Checker, tree: _yaml.Tree, path: str) -> bool | None:
    if isinstance(tree, _yaml.Scalar) and isinstance(tree.value, bool):
        return tree.value
    checker.add(tree, path, f"expected true or false, not {_describe(tree)}")
    return None


def _switchable(checker: _Checker, tree: _yaml.Tree, path: str) -> bool | None:
    if isinstance(tree, _yaml.Scalar):
        if isinstance(tree.value, bool):
            return tree.value
        if tree.value in ("on", "off"):
            return tree.value == "on"
    checker.add(tree, path, f"expected on or off, not {_describe(tree)}")
    return None


def _text(checker: _Checker, tree: _yaml.Tree, path: str) -> str | None:
    if isinstance(tree, _yaml.Scalar) and isinstance(tree.value, str):
        return tree.value
    checker.add(tree, path, f"expected text, not {_describe(tree)}")
    return None


def _name(checker: _Checker, tree: _yaml.Tree, path: str) -> str | None:
    text = _text(checker, tree, path)
    if text is not None and not _NAME.match(text):
        checker.add(tree, path, _bad_name(text))
        return None
    return text


def _bad_name(text: str) -> str:
    lowered = text.lower()
    hint = f" (did you mean {lowered!r}?)" if lowered != text and _NAME.match(lowered) else ""
    return f"{text[:80]!r} is not a name{hint}; {_NAME_RULE}"


def _describe(tree: _yaml.Tree) -> str:
    if isinstance(tree, _yaml.Mapping):
        return "a mapping"
    if isinstance(tree, _yaml.Sequence):
        return "a list"
    if tree.value is None:
        return "nothing"
    if isinstance(tree.value, bool):
        return f"the boolean {tree.text}"
    if isinstance(tree.value, str):
        return f"the text {tree.text[:40]!r}"
    return f"the number {tree.text[:40]}"


_time: Final = _quantity(parse_time, 0, MAX_DELAY_PS, format_time)
_rate: Final = _quantity(parse_rate, 1, 2**63 - 1, format_rate)

_TIER_SPEC: Final[Mapping[str, _Reader]] = {
    "size": _quantity(parse_size, MIN_TIER_BYTES, MAX_TIER_BYTES, format_size),
    "latency": _time,
    "rate": _rate,
    "jitter": lambda checker, tree, path: checker.read_jitter(tree, path),
}
_PIO_SPEC: Final[Mapping[str, _Reader]] = {
    "access_bytes": _one_of(ACCESS_BYTES, "an access width"),
    "read": _time,
    "write": _time,
    "wc": _boolean,
}
_DMA_SPEC: Final[Mapping[str, _Reader]] = {
    "channels": _integer(1, 64),
    "tags": _integer(1, 1024),
    "setup_write": _time,
    "setup_read": _time,
}
_PCIE_SPEC: Final[Mapping[str, _Reader]] = {
    "gen": _one_of(GENERATIONS, "a PCIe generation"),
    "lanes": _one_of(LANES, "a lane count"),
    "mps": _one_of(PAYLOADS, "a maximum payload size"),
    "mrrs": _one_of(PAYLOADS, "a maximum read request size"),
    "rcb": _one_of((64, 128), "a read completion boundary"),
    "tags": _integer(1, 1024),
    # With scaled flow control a port advertises up to 127 * 16 headers and 2047 * 16 data units.
    "posted_credits_header": _integer(0, 2032),
    "posted_credits_data": _integer(0, 32752),
    "nonposted_credits_header": _integer(0, 2032),
    "nonposted_credits_data": _integer(0, 32752),
    "completion_credits_header": _integer(0, 2032),
    "completion_credits_data": _integer(0, 32752),
}
_ETHERNET_SPEC: Final[Mapping[str, _Reader]] = {
    "rate": _rate,
    "mtu": _integer(64, 65535),
    "overhead_bytes": _integer(0, 1024),
}
_JITTER_SPEC: Final[Mapping[str, _Reader]] = {
    "distribution": _choice(DISTRIBUTIONS),
    "min": _time,
    "max": _time,
    "mean": _time,
    "deviation": _time,
    "points": lambda checker, tree, path: checker.points(tree, path),
}
_NODE_KEYS: Final = ("kind", "count", "memory", "ntb", "delay", "pio", "dma", "machine")
_LINK_KEYS: Final = ("endpoints", "name", "pcie", "ethernet", "delay", "jitter")
_DEFAULT_KEYS: Final = ("pcie", "ethernet", "delay", "memory", "ntb", "pio", "dma", "nodes")
_TOP_KEYS: Final = (
    "fabrex",
    "name",
    "status",
    "notes",
    "defaults",
    "nodes",
    "links",
    "windows",
    "ordering",
    "timing",
    "seed",
    "dilation",
    "machines",
)
_RENAMED: Final[Mapping[str, str]] = {
    "read": "read_ps",
    "write": "write_ps",
    "setup_read": "setup_read_ps",
    "setup_write": "setup_write_ps",
    "latency": "latency_ps",
    "rate": "rate_bps",
}


def _build(tree: _yaml.Tree | None, faults: list[_yaml.Fault], source: str) -> dict[str, Any]:
    """The values of a `Topology` from a tree; raises `TopologyError` with everything found."""
    checker = _Checker()
    checker.problems.extend(Problem(fault.message, fault.line, fault.column) for fault in faults)
    values = checker.document(tree) if tree is not None else {}
    if checker.problems:
        _raise(source, checker.problems)
    values["source"] = source
    return values


class _Checker:
    """One pass over one document. Readers report to `problems` and return None for what they could not read."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._reported: set[tuple[int, str]] = set()
        self._defaults: dict[str, _yaml.Tree] = {}
        self._kind_defaults: dict[str, dict[str, _yaml.Tree]] = {}
        self._node_trees: dict[str, _yaml.Tree] = {}
        self._machine_trees: dict[str, tuple[str, _yaml.Tree, str]] = {}  # node -> its `machine`, and where that stands
        self._overflow = False

    def add(self, tree: _yaml.Tree | None, path: str, message: str) -> None:
        """Report a problem once per value and message: a bad default is not repeated for each of its users."""
        key = (id(tree), message)
        if tree is not None:
            if key in self._reported:
                return
            self._reported.add(key)
            self.problems.append(Problem(message, tree.line, tree.column, path))
        else:
            self.problems.append(Problem(message, path=path))

    # Small readers

    def whole(self, tree: _yaml.Tree, path: str, what: str) -> int | None:
        if isinstance(tree, _yaml.Scalar) and isinstance(tree.value, int) and not isinstance(tree.value, bool):
            return tree.value
        self.add(tree, path, f"expected {what}, not {_describe(tree)}")
        return None

    def entries(self, tree: _yaml.Tree, path: str, known: Iterable[str]) -> dict[str, _yaml.Tree]:
        """The members of a mapping with known keys; reports the unknown ones."""
        allowed = tuple(known)
        found: dict[str, _yaml.Tree] = {}
        for key, value in self.members(tree, path):
            if key.text in allowed:
                found[key.text] = value
            else:
                shown = key.text[:60]
                message = f"unknown key {shown!r}{_hint(shown, allowed)}; allowed: {', '.join(allowed)}"
                self.add(key, _join(path, shown), message)
        return found

    def members(self, tree: _yaml.Tree, path: str) -> Iterator[tuple[_yaml.Scalar, _yaml.Tree]]:
        """Key and value of each member of a mapping; reports anything that is not one."""
        if not isinstance(tree, _yaml.Mapping):
            self.add(tree, path, f"expected a mapping, not {_describe(tree)}")
            return
        yield from tree.entries

    def items(self, tree: _yaml.Tree, path: str) -> tuple[_yaml.Tree, ...]:
        if not isinstance(tree, _yaml.Sequence):
            self.add(tree, path, f"expected a list, not {_describe(tree)}")
            return ()
        return tree.items

    def group(self, trees: Mapping[str, _yaml.Tree], path: str, spec: Mapping[str, _Reader]) -> tuple[dict[str, Any], bool]:
        """Values of a group of parameters, and whether all of them could be read."""
        values = {key: spec[key](self, tree, _join(path, key)) for key, tree in trees.items()}
        return {key: value for key, value in values.items() if value is not None}, None not in values.values()

    def merged(self, base: _yaml.Tree | None, own: _yaml.Tree | None, path: str, spec: Iterable[str]) -> dict[str, _yaml.Tree]:
        """Members of a default mapping, replaced one by one by those of the item itself."""
        known = tuple(spec)
        result = self.entries(base, path, known) if base is not None else {}
        result.update(self.entries(own, path, known) if own is not None else {})
        return result

    def points(self, tree: _yaml.Tree, path: str) -> FrozenDict[str, int] | None:
        values: dict[str, int] = {}
        for key, value in self.members(tree, path):
            if not re.match(r"p[0-9]{1,2}(\.[0-9]{1,6})?\Z|p100\Z", key.text, re.ASCII):
                self.add(key, _join(path, key.text), f"{key.text[:40]!r} is not a percentile; write p50, p99, p99.9")
                continue
            time = _time(self, value, _join(path, key.text))
            if time is not None:
                values[key.text] = time
        return FrozenDict(values)

    # The document

    def document(self, tree: _yaml.Tree) -> dict[str, Any]:
        if not isinstance(tree, _yaml.Mapping):
            self.add(tree, "", f"expected a mapping with the keys fabrex, name, nodes and links, not {_describe(tree)}")
            return {}
        version = next((value for key, value in tree.entries if key.text == "fabrex"), None)
        if version is None:
            self.add(tree, "fabrex", f"the version of the file format is missing; write fabrex: {FORMAT_VERSION}")
        else:
            number = self.whole(version, "fabrex", f"the version of the file format, {FORMAT_VERSION}")
            if number is not None and number > FORMAT_VERSION:
                # Everything else may have changed its meaning; one message says more than many.
                message = f"the file uses version {number} of the file format; this fabrex reads version {FORMAT_VERSION}"
                self.add(version, "fabrex", message + " and has to be upgraded")
                return {}
            if number is not None and number < 1:
                self.add(version, "fabrex", f"there is no version {number} of the file format; write fabrex: 1")
        top = self.entries(tree, "", _TOP_KEYS)
        values: dict[str, Any] = {
            "name": "",
            "windows": "auto",
            "ordering": "posted",
            "timing": True,
            "seed": 0,
            "dilation_num": 1,
            "dilation_den": 1,
            "machines": FrozenDict(),
            "status": "modelled",
            "notes": "",
        }
        if "name" not in top:
            self.add(tree, "name", "the topology has no name; write name: my-fabric")
        readers: dict[str, _Reader] = {
            "name": _name,
            "status": _choice(STATUSES),
            "notes": _text,
            "windows": _choice(WINDOWS),
            "ordering": _choice(ORDERINGS),
            "timing": _switchable,
            "seed": _integer(0, 2**64 - 1),
        }
        for key, reader in readers.items():
            if key in top:
                value = reader(self, top[key], key)
                if value is not None:
                    values[key] = value
        if "dilation" in top:
            values["dilation_num"], values["dilation_den"] = self._dilation(top["dilation"])
        if "defaults" in top:
            self._read_defaults(top["defaults"])
        nodes: dict[str, Node] = {}
        if "nodes" not in top:
            self.add(tree, "nodes", "the topology has no nodes")
        else:
            nodes = self._read_nodes(top["nodes"])
            if not nodes and not self.problems:
                self.add(top["nodes"], "nodes", "the topology has no nodes")
        links, complete = self._read_links(top["links"], nodes) if "links" in top else ({}, True)
        if complete and nodes and not self._overflow:
            self._check_connected(nodes, [(link.a[0], link.b[0]) for link in links.values()], values["windows"])
        if "machines" in top or self._machine_trees:
            values["machines"] = self._read_machines(top.get("machines"), nodes)
        values["nodes"] = FrozenDict(nodes)
        values["links"] = FrozenDict(links)
        return values

    def _dilation(self, tree: _yaml.Tree) -> tuple[int, int]:
        match = None
        if isinstance(tree, _yaml.Scalar) and tree.value == "auto":
            return 0, 1
        if isinstance(tree, _yaml.Scalar) and not isinstance(tree.value, bool):
            match = re.match(r"([0-9]{1,9})(?:\.([0-9]{1,9})|/([0-9]{1,9}))?\Z", tree.text, re.ASCII)
        if match is None:
            self.add(tree, "dilation", f"expected a factor such as 10, 2.5 or 3/2, or auto, not {_describe(tree)}")
            return 1, 1
        whole, decimals, below = match.groups()
        numerator, denominator = int(whole + (decimals or "")), int(below or 1) * 10 ** len(decimals or "")
        if denominator == 0 or not denominator <= 10**6 * numerator or not numerator <= 10**6 * denominator:
            self.add(tree, "dilation", f"{tree.text} is out of range; allowed: 1/1000000 to 1000000")  # type: ignore[union-attr]
            return 1, 1
        import math

        divisor = math.gcd(numerator, denominator)
        return numerator // divisor, denominator // divisor

    def _read_defaults(self, tree: _yaml.Tree) -> None:
        self._defaults = self.entries(tree, "defaults", _DEFAULT_KEYS)
        for key, spec in (("pcie", _PCIE_SPEC), ("ethernet", _ETHERNET_SPEC), ("pio", _PIO_SPEC), ("dma", _DMA_SPEC)):
            if key in self._defaults:
                self.group(self.entries(self._defaults[key], f"defaults.{key}", spec), f"defaults.{key}", spec)
        if "delay" in self._defaults:
            _time(self, self._defaults["delay"], "defaults.delay")
        if "ntb" in self._defaults:
            _choice(NTB_PROFILES)(self, self._defaults["ntb"], "defaults.ntb")
        if "memory" in self._defaults:
            for tier, value in self.members(self._defaults["memory"], "defaults.memory"):
                path = f"defaults.memory.{tier.text}"
                self.group(self.entries(value, path, _TIER_SPEC), path, _TIER_SPEC)
        if "nodes" in self._defaults:
            for kind, value in self.entries(self._defaults["nodes"], "defaults.nodes", KINDS).items():
                path = f"defaults.nodes.{kind}"
                allowed = ("delay",) if kind == "switch" else ("memory", "ntb", "pio", "dma")
                self._kind_defaults[kind] = self.entries(value, path, allowed)

    # Nodes

    def _read_nodes(self, tree: _yaml.Tree) -> dict[str, Node]:
        nodes: dict[str, Node] = {}
        total = 0
        for key, value in self.members(tree, "nodes"):
            path = _join("nodes", key.text)
            if not _NAME.match(key.text):
                self.add(key, path, _bad_name(key.text))
            own = self.entries(value, path, _NODE_KEYS)
            count = None
            if "count" in own:
                count = _integer(1, MAX_NODES)(self, own["count"], f"{path}.count") or 1
            names = [key.text] if count is None else [f"{key.text}{number}" for number in range(count)]
            total += len(names)
            if total > MAX_NODES:
                self.add(key, path, f"more than {MAX_NODES} nodes")
                self._overflow = True
                return nodes
            if count is not None and _NAME.match(key.text) and not _NAME.match(names[-1]):
                self.add(key, path, f"{names[-1]!r} is longer than 63 characters")
            machine = _text(self, own["machine"], f"{path}.machine") if "machine" in own else None
            template = self._read_node(key, own, path) if isinstance(value, _yaml.Mapping) else Node(key.text)
            for name in names:
                if name in nodes:
                    origin = self._node_trees[name]
                    where = f" on line {origin.line}" if origin.line else ""
                    self.add(key, path, f"the name {name!r} is taken by the node{where}")
                    continue
                self._node_trees[name] = key
                if machine is not None:
                    number = name.removeprefix(key.text) if count is not None else ""
                    there = machine[:-1] + number if machine.endswith("*") and number else machine
                    self._machine_trees[name] = (there, own["machine"], f"{path}.machine")
                nodes[name] = Node(
                    name,
                    template.kind,
                    template.memory,
                    template.ntb,
                    template.delay_ps,
                    template.pio,
                    template.dma,
                    len(nodes),
                )
        return nodes

    def _read_node(self, key: _yaml.Scalar, own: dict[str, _yaml.Tree], path: str) -> Node:
        kind = None
        if "kind" not in own:
            self.add(key, path, f"the node has no kind; allowed: {', '.join(KINDS)}")
        else:
            kind = _choice(KINDS)(self, own["kind"], f"{path}.kind")
        base = self._kind_defaults.get(kind or "", {})
        delay = 0
        delay_tree = own.get("delay")
        if kind is not None and kind != "switch" and delay_tree is not None:
            message = f"only a switch has a delay, and this is of kind {kind}; use a link's delay or a tier's latency"
            self.add(delay_tree, f"{path}.delay", message)
        elif (delay_tree or base.get("delay")) is not None:
            delay = _time(self, delay_tree or base["delay"], f"{path}.delay") or 0
        ntb: str | None = None
        if kind == "switch":
            for forbidden in ("memory", "ntb", "pio", "dma"):
                if forbidden in own:
                    self.add(own[forbidden], f"{path}.{forbidden}", f"a switch has no {forbidden}")
            return Node(key.text, "switch", delay_ps=delay)
        ntb_tree = own.get("ntb") or base.get("ntb") or self._defaults.get("ntb")
        if ntb_tree is not None:
            ntb = _choice(NTB_PROFILES)(self, ntb_tree, f"{path}.ntb")
        memory_tree = own.get("memory") or base.get("memory")
        memory = self._read_memory(memory_tree, f"{path}.memory") if memory_tree is not None else {}
        if kind == "memory":
            for forbidden in ("pio", "dma"):
                if forbidden in own:
                    message = f"a memory box issues nothing and has no {forbidden}"
                    self.add(own[forbidden], f"{path}.{forbidden}", message)
            if memory_tree is None:
                self.add(key, f"{path}.memory", "a memory box needs memory, such as memory: {dram: 1TiB}")
            return Node(key.text, "memory", memory, ntb)
        pio = self._requester("pio", own, base, path, _PIO_SPEC)
        dma = self._requester("dma", own, base, path, _DMA_SPEC)
        return Node(key.text, kind or "host", memory, ntb, 0, Pio(**pio), Dma(**dma))

    def _requester(
        self,
        what: str,
        own: Mapping[str, _yaml.Tree],
        base: Mapping[str, _yaml.Tree],
        path: str,
        spec: Mapping[str, _Reader],
    ) -> dict[str, Any]:
        trees: dict[str, _yaml.Tree] = {}
        for layer in (self._defaults, base, own):
            if what in layer:
                trees.update(self.entries(layer[what], f"{path}.{what}", spec))
        values, _ = self.group(trees, f"{path}.{what}", spec)
        return {_RENAMED.get(key, key): value for key, value in values.items()}

    def _read_memory(self, tree: _yaml.Tree, path: str) -> dict[str, Memory]:
        defaults: dict[str, _yaml.Tree] = {}
        if isinstance(self._defaults.get("memory"), _yaml.Mapping):
            defaults = {key.text: value for key, value in self.members(self._defaults["memory"], "defaults.memory")}
        tiers: dict[str, Memory] = {}
        for key, value in self.members(tree, path):
            tier, place = key.text, _join(path, key.text)
            if not _NAME.match(tier):
                self.add(key, place, _bad_name(tier))
            if len(tiers) == MAX_TIERS:
                self.add(key, place, f"more than {MAX_TIERS} memory tiers")
                break
            trees = self.merged(defaults.get(tier), None, place, _TIER_SPEC)
            if isinstance(value, _yaml.Scalar):
                trees["size"] = value
            else:
                trees.update(self.entries(value, place, _TIER_SPEC))
            size_path = place if trees.get("size") is value else f"{place}.size"
            size = _TIER_SPEC["size"](self, trees["size"], size_path) if "size" in trees else None
            if "size" not in trees:
                self.add(value, place, "the tier has no size, such as size: 1GiB")
            elif size is not None and size % TIER_ALIGN_BYTES:
                self.add(trees["size"], size_path, self._misaligned(trees["size"], size))
            rest, _ = self.group({k: v for k, v in trees.items() if k != "size"}, place, _TIER_SPEC)
            tiers[tier] = Memory(tier, size or MIN_TIER_BYTES, **{_RENAMED.get(k, k): v for k, v in rest.items()})
        return tiers

    @staticmethod
    def _misaligned(tree: _yaml.Tree, size: int) -> str:
        text = tree.text if isinstance(tree, _yaml.Scalar) else ""
        hint = ""
        for decimal, binary in (("KB", "KiB"), ("MB", "MiB"), ("GB", "GiB"), ("TB", "TiB")):
            if text.endswith(decimal) and parse_size(text.replace(decimal, binary)) % TIER_ALIGN_BYTES == 0:
                hint = f" (did you mean {text.replace(decimal, binary)}?)"
        return f"{text} is not a multiple of 4KiB{hint}"

    # Links

    def _read_links(self, tree: _yaml.Tree, nodes: dict[str, Node]) -> tuple[dict[str, Link], bool]:
        """Links by name, and whether the endpoints of all of them are known."""
        complete = isinstance(tree, _yaml.Sequence)
        raws: list[tuple[_RawLink, list[tuple[str, str]], list[tuple[str, str]]]] = []
        for position, item in enumerate(self.items(tree, "links")):
            raw = self._read_link(item, f"links[{position}]")
            if raw is None:
                complete = False
                continue
            sides = [self._expand(raw, side, nodes) for side in (0, 1)]
            if sides[0] is None or sides[1] is None:
                complete = False
                continue
            left, right = sides[0], sides[1]
            if len(left) == 1 or len(right) == 1:
                width = max(len(left), len(right))
                left, right = (left * width if len(left) == 1 else left), (right * width if len(right) == 1 else right)
            elif len(left) != len(right):
                message = f"{raw.ends[0][0]!r} stands for {len(left)} nodes and {raw.ends[1][0]!r} for {len(right)}"
                self.add(raw.end_trees[1], f"{raw.path}.endpoints", message + "; they are paired one to one")
                complete = False
                continue
            raws.append((raw, left, right))
        taken = {end for _, left, right in raws for end in (*left, *right) if not end[1].endswith("*")}
        links: dict[str, Link] = {}
        ports: dict[tuple[str, str], tuple[str, _yaml.Tree]] = {}
        next_free: dict[tuple[str, str], int] = {}
        for raw, left, right in raws:
            for number, pair in enumerate(zip(left, right, strict=True)):
                if len(links) >= MAX_LINKS:
                    self.add(raw.tree, raw.path, f"more than {MAX_LINKS} links")
                    return links, False
                a, b = (self._assign(end, taken, next_free) for end in pair)
                name = raw.name or _default_link_name(a, b)
                if raw.name and len(left) > 1:
                    name = raw.name.replace("*", str(number))
                self._check_link(raw, name, (a, b), links, ports)
                if name not in links:
                    links[name] = Link(a, b, name=name, index=len(links), **raw.values)
        return links, complete

    def _check_link(
        self,
        raw: _RawLink,
        name: str,
        ends: tuple[tuple[str, str], tuple[str, str]],
        links: Mapping[str, Link],
        ports: dict[tuple[str, str], tuple[str, _yaml.Tree]],
    ) -> None:
        if ends[0][0] == ends[1][0]:
            self.add(raw.tree, f"{raw.path}.endpoints", f"the link joins {ends[0][0]} to itself")
            return
        repeated = False
        for side, end in enumerate(ends):
            if end in ports:
                other, tree = ports[end]
                where = f" on line {tree.line}" if tree.line else ""
                message = f"the port {end[0]}:{end[1]} is used twice; first by the link {other}{where}"
                self.add(raw.end_trees[side], f"{raw.path}.endpoints", message)
                repeated = True
            else:
                ports[end] = (name, raw.tree)
        if name in links and not repeated:
            hint = "; put a * into the name, which becomes 0, 1, 2, ..." if raw.name and "*" not in raw.name else ""
            self.add(raw.name_tree or raw.tree, f"{raw.path}.name", f"two links are named {name!r}{hint}")

    @staticmethod
    def _assign(end: tuple[str, str], taken: set[tuple[str, str]], next_free: dict[tuple[str, str], int]) -> tuple[str, str]:
        """The port that an endpoint stands for: for `p*`, the first of p0, p1, ... that nothing else names."""
        node, port = end
        if not port.endswith("*"):
            return end
        number = next_free.get(end, 0)
        while (node, f"{port[:-1]}{number}") in taken:
            number += 1
        next_free[end] = number + 1
        return node, f"{port[:-1]}{number}"

    def _read_link(self, tree: _yaml.Tree, path: str) -> _RawLink | None:
        if isinstance(tree, _yaml.Mapping) and tree.line is None:  # without lines, a name says more than a number
            given = next((value for key, value in tree.entries if key.text == "name"), None)
            if isinstance(given, _yaml.Scalar) and isinstance(given.value, str):
                path = f"links.{given.value[:80]}"
        found = self.entries(tree, path, _LINK_KEYS)
        if not isinstance(tree, _yaml.Mapping):
            return None
        name = None
        if "name" in found:
            name = _text(self, found["name"], f"{path}.name")
            if name is not None and not _LINK_NAME.match(name.replace("*", "0")):
                message = f"{name[:80]!r} is not a link's name; allowed: up to 255 characters of a-z 0-9 _ . : -"
                self.add(found["name"], f"{path}.name", message + " beginning with a letter")
                name = None
        values: dict[str, Any] = {"pcie": None, "ethernet": None, "delay_ps": 0, "jitter": None}
        delay = found.get("delay") or self._defaults.get("delay")
        if delay is not None:
            values["delay_ps"] = _time(self, delay, f"{path}.delay") or 0
        if "jitter" in found:
            values["jitter"] = self.read_jitter(found["jitter"], f"{path}.jitter")
        self._read_medium(tree, found, path, values)
        if "endpoints" not in found:
            self.add(tree, f"{path}.endpoints", "the link has no endpoints, such as endpoints: [host0:ntb0, sw0:p0]")
            return None
        items = self.items(found["endpoints"], f"{path}.endpoints")
        if len(items) != 2:
            if isinstance(found["endpoints"], _yaml.Sequence):
                self.add(found["endpoints"], f"{path}.endpoints", f"a link has two endpoints, not {len(items)}")
            return None
        ends = [self._read_end(item, f"{path}.endpoints[{position}]") for position, item in enumerate(items)]
        if ends[0] is None or ends[1] is None:
            return None
        return _RawLink(tree, path, (ends[0], ends[1]), (items[0], items[1]), values, name, found.get("name"))

    def _read_medium(self, tree: _yaml.Tree, found: Mapping[str, _yaml.Tree], path: str, values: dict[str, Any]) -> None:
        """Exactly one of pcie and ethernet, from the link or from the defaults."""
        own = [medium for medium in ("pcie", "ethernet") if medium in found]
        chosen = own or [medium for medium in ("pcie", "ethernet") if medium in self._defaults]
        if len(chosen) != 1:
            if own:
                self.add(found["ethernet"], f"{path}.ethernet", "a link is either pcie or ethernet, not both")
            elif chosen:
                self.add(tree, path, "the defaults have both pcie and ethernet; the link has to name one: pcie: {}")
            else:
                self.add(tree, path, "the link is neither pcie nor ethernet; write pcie: {gen: 4, lanes: 16}")
            return
        medium = chosen[0]
        spec = _PCIE_SPEC if medium == "pcie" else _ETHERNET_SPEC
        trees = self.merged(self._defaults.get(medium), found.get(medium), f"{path}.{medium}", spec)
        group, _ = self.group(trees, f"{path}.{medium}", spec)
        needed = ("gen", "lanes") if medium == "pcie" else ("rate",)
        missing = [key for key in needed if key not in trees]
        present = found.get(medium, tree)
        if missing:
            if isinstance(present, _yaml.Mapping):
                example = "pcie: {gen: 4, lanes: 16}" if medium == "pcie" else "ethernet: {rate: 400Gb/s}"
                message = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing, as in {example}"
                self.add(present, f"{path}.{medium}", message)
            return
        if any(key not in group for key in needed):
            return
        if medium == "ethernet":
            values["ethernet"] = EthernetParams(**{_RENAMED.get(key, key): value for key, value in group.items()})
            return
        pcie = PcieParams(**group)
        if pcie.posted_credits_data and pcie.posted_credits_data * 16 < pcie.mps:
            place = trees.get("posted_credits_data") or trees.get("mps") or present
            message = f"{pcie.posted_credits_data} posted data credits of 16 bytes do not hold one payload of {pcie.mps} bytes"
            self.add(place, f"{path}.pcie", f"{message}; allowed: 0 (infinite) or at least {pcie.mps // 16}")
        values["pcie"] = pcie

    def read_jitter(self, tree: _yaml.Tree, path: str) -> FrozenDict[str, Any] | None:
        """A distribution, with times in `_ps`."""
        found = self.entries(tree, path, _JITTER_SPEC)
        if "distribution" not in found and isinstance(tree, _yaml.Mapping):
            self.add(tree, path, f"distribution is missing; allowed: {', '.join(DISTRIBUTIONS)}")
        values, _ = self.group(found, path, _JITTER_SPEC)
        plain = ("distribution", "points")
        jitter = FrozenDict({key if key in plain else f"{key}_ps": value for key, value in values.items()})
        wrong = problem(jitter) if len(values) == len(found) else None
        if wrong:
            self.add(tree, path, wrong)
        return jitter

    def _read_end(self, tree: _yaml.Tree, path: str) -> tuple[str, str] | None:
        text = _text(self, tree, path)
        if text is None:
            return None
        node, separator, port = text.partition(":")
        if not separator or not node or not port:
            self.add(tree, path, f"{text[:80]!r} is not an endpoint; write NODE:PORT, such as host0:ntb0")
            return None
        if not _NAME.match(node) and not _PATTERN.match(node):
            self.add(tree, path, f"{_bad_name(node)}, or a pattern such as gpu* or gpu[0-7]")
            return None
        if not _NAME.match(port.removesuffix("*")):
            self.add(tree, path, f"port {_bad_name(port)}, with * at the end for the next free number")
            return None
        return node, port

    def _expand(self, raw: _RawLink, side: int, nodes: Mapping[str, Node]) -> list[tuple[str, str]] | None:
        """The (node, port) pairs that an endpoint stands for; ports may still end in `*`."""
        pattern, port = raw.ends[side]
        tree, path = raw.end_trees[side], f"{raw.path}.endpoints[{side}]"
        names = self.select(pattern, nodes, tree, path)
        return None if names is None else [(name, port) for name in names]

    def select(self, pattern: str, nodes: Mapping[str, Node], tree: _yaml.Tree, path: str) -> list[str] | None:
        """Names that `gpu3`, `gpu*` or `gpu[0-7]` stands for; None, and a report, if there is none."""
        match = _PATTERN.match(pattern)
        if match is None:
            if pattern in nodes:
                return [pattern]
            several = sum(1 for name in nodes if re.match(re.escape(pattern) + r"[0-9]+\Z", name))
            hint = f" ({several} nodes are; write {pattern}0 or {pattern}*)" if several else _hint(pattern, nodes)
            self.add(tree, path, f"no node is named {pattern!r}{hint}; nodes: {_some(nodes)}")
            return None
        before, star, low, high, after = match.groups()
        if star:
            numbered = re.compile(re.escape(before) + "[0-9]+" + re.escape(after) + r"\Z", re.ASCII)
            names = [name for name in nodes if numbered.match(name)]
            if not names:
                self.add(tree, path, f"{pattern!r} stands for no node; nodes: {_some(nodes)}")
                return None
            return names
        if int(low) > int(high):
            self.add(tree, path, f"{pattern!r} counts down; write [{high}-{low}]")
            return None
        names = [f"{before}{number}{after}" for number in range(int(low), int(high) + 1)]
        absent = [name for name in names if name not in nodes]
        if absent:
            self.add(tree, path, f"{pattern!r} stands for nodes that do not exist: {_some(absent)}")
            return None
        return names

    # The whole

    def _check_connected(self, nodes: Mapping[str, Node], ends: list[tuple[str, str]], windows: str) -> None:
        if len(nodes) < 2:
            return
        linked = {name for pair in ends for name in pair}
        lonely = [name for name in nodes if name not in linked]
        alone: dict[str, list[str]] = {}  # by the entry that the nodes come from
        for name in lonely:
            alone.setdefault(self._label(name), []).append(name)
        for label, names in alone.items():
            what = "this node" if names == [label] else _some(names)
            self.add(self._node_trees[names[0]], f"nodes.{label}", f"no link reaches {what}")
        parts = _parts([name for name in nodes if name in linked], ends)
        if len(parts) > 1:
            shown = "; ".join(_some(part, 4) for part in parts[:4]) + ("; ..." if len(parts) > 4 else "")
            message = f"the fabric falls into {len(parts)} parts that no link joins: {shown}"
            self.add(self._node_trees[parts[1][0]], f"nodes.{parts[1][0]}", message)
        if lonely or len(parts) > 1 or windows == "manual":
            return
        names = [name for name, node in nodes.items() if not node.is_switch]
        masks = _reach_masks(nodes, ends)
        everything = (1 << len(names)) - 1
        for position, name in enumerate(names):
            missing = everything & ~masks[name] & ~((1 << (position + 1)) - 1)
            if missing:
                unreached = [other for bit, other in enumerate(names) if missing >> bit & 1]
                message = f"there is no route from {name} to {_some(unreached, 4)}: routes pass only through switches"
                message += ". Add a switch or a link, or set windows: manual"
                self.add(self._node_trees[name], f"nodes.{name}", message)
                return

    def _label(self, name: str) -> str:
        tree = self._node_trees[name]
        return tree.text if isinstance(tree, _yaml.Scalar) else ""

    def _read_machines(self, tree: _yaml.Tree | None, nodes: Mapping[str, Node]) -> FrozenDict[str, FrozenDict[str, Any]]:
        """Placement, from `machines:` with lists of nodes and from nodes with a `machine`; where both speak they agree."""
        addresses: dict[str, str] = {}
        trees: dict[str, _yaml.Tree] = {}
        placed: dict[str, tuple[str, _yaml.Tree, str]] = {}
        for key, value in self.members(tree, "machines") if tree is not None else ():
            path = _join("machines", key.text)
            if not _NAME.match(key.text):
                self.add(key, path, _bad_name(key.text))
            found = self.entries(value, path, ("nodes", "address"))
            addresses[key.text] = (_text(self, found["address"], f"{path}.address") if "address" in found else "") or ""
            trees[key.text] = value
            for position, item in enumerate(self.items(found["nodes"], f"{path}.nodes") if "nodes" in found else ()):
                place = f"{path}.nodes[{position}]"
                pattern = _text(self, item, place)
                for name in (self.select(pattern, nodes, item, place) or []) if pattern is not None else []:
                    if name in placed:
                        self.add(item, place, f"{name} has a place already, on {placed[name][0]}")
                        continue
                    placed[name] = (key.text, item, place)
        told: set[str] = set()
        for name, (machine, item, place) in self._machine_trees.items():
            if name in placed and placed[name][0] != machine:
                other, where, at = placed[name]
                line = f" on line {where.line}" if where.line else ""
                self.add(item, place, f"{name} is on {machine} here, and on {other} by {at}{line}")
            elif tree is not None and machine not in addresses:
                if machine not in told:
                    message = f"no machine is named {machine[:80]!r}{_hint(machine, addresses)}; machines: {_some(addresses)}"
                    self.add(item, place, message)
                told.add(machine)
            elif tree is None and not _NAME.match(machine):
                if machine not in told:
                    self.add(item, place, _bad_name(machine))
                told.add(machine)
            else:
                addresses.setdefault(machine, "")
                placed.setdefault(name, (machine, item, place))
        here: dict[str, list[str]] = {machine: [] for machine in addresses}
        for name, (machine, _, _) in placed.items():
            here[machine].append(name)
        for machine, value in trees.items():
            if not here[machine] and isinstance(value, _yaml.Mapping) and all(key.text != "nodes" for key, _ in value.entries):
                message = "the machine has no nodes: none are listed, and no node says `machine`"
                self.add(value, f"machines.{machine}.nodes", message)
        return FrozenDict({name: FrozenDict(nodes=tuple(here[name]), address=addresses[name]) for name in addresses})


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _parts(names: list[str], ends: list[tuple[str, str]]) -> list[list[str]]:
    """The connected parts of a graph, each in the order of `names`."""
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for a, b in ends:
        if a in parent and b in parent:
            parent[root(b)] = root(a)
    grouped: dict[str, list[str]] = {}
    for name in names:
        grouped.setdefault(root(name), []).append(name)
    return list(grouped.values())


def _reach_masks(nodes: Mapping[str, Node], ends: list[tuple[str, str]]) -> dict[str, int]:
    """For each node that is not a switch, the set (bit per such node, in order) that routes through switches reach."""
    names = [name for name, node in nodes.items() if not node.is_switch]
    bit = {name: 1 << position for position, name in enumerate(names)}
    switches = [name for name, node in nodes.items() if node.is_switch]
    islands = _parts(switches, ends)
    island_of = {name: number for number, island in enumerate(islands) for name in island}
    members = [0] * len(islands)
    attached: dict[str, set[int]] = {name: set() for name in names}
    masks = dict(bit)
    for a, b in ends:
        for one, other in ((a, b), (b, a)):
            if one in bit and other in bit:
                masks[one] |= bit[other]
            elif one in bit:
                members[island_of[other]] |= bit[one]
                attached[one].add(island_of[other])
    for name in names:
        for island in attached[name]:
            masks[name] |= members[island]
    return masks


# Back to documents


def _quantity_text(render: Callable[[int], str], value: Any, unit: str) -> str:
    """A quantity as text; a value that cannot be one is written so that the check can name it."""
    try:
        return render(value)
    except (TypeError, ValueError):
        return f"{value}{unit}"


def _time_text(value: Any) -> str:
    return _quantity_text(format_time, value, "ps")


def _rate_text(value: Any, *, in_bytes: bool = False) -> str:
    return _quantity_text(lambda rate: format_rate(rate, in_bytes=in_bytes), value, "b/s")


def _node_document(node: Node, *, full: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"kind": node.kind}
    if node.memory:
        document["memory"] = {name: _memory_document(tier, full=full) for name, tier in node.memory.items()}
    if node.ntb is not None and (full or node.ntb != "fabrex"):
        document["ntb"] = node.ntb
    if node.delay_ps or (full and node.is_switch):
        document["delay"] = _time_text(node.delay_ps)
    for key, value, default in (("pio", node.pio, Pio()), ("dma", node.dma, Dma())):
        group = _group_document(value, default, full=full and node.kind in ("host", "accelerator"))
        if group:
            document[key] = group
    return document


def _memory_document(tier: Memory, *, full: bool) -> Any:
    size = _quantity_text(format_size, tier.size, "B")
    if not full and not tier.latency_ps and not tier.rate_bps and tier.jitter is None:
        return size
    document: dict[str, Any] = {"size": size}
    if tier.latency_ps or full:
        document["latency"] = _time_text(tier.latency_ps)
    if tier.rate_bps:
        document["rate"] = _rate_text(tier.rate_bps, in_bytes=True)
    if tier.jitter is not None:
        document["jitter"] = _jitter_document(tier.jitter)
    return document


def _jitter_document(jitter: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key.removesuffix("_ps"): (
            {name: _time_text(time) for name, time in value.items()}
            if key == "points"
            else (_time_text(value) if key.endswith("_ps") else value)
        )
        for key, value in jitter.items()
    }


def _group_document(value: object, default: object, *, full: bool) -> dict[str, Any]:
    """The members of a parameter group that differ from its defaults (or all), under the file's names."""
    document: dict[str, Any] = {}
    back = {attribute: key for key, attribute in _RENAMED.items()}
    for attribute, member in vars(value).items():
        if not full and member == getattr(default, attribute):
            continue
        if attribute.endswith("_ps"):
            document[back[attribute]] = _time_text(member)
        elif attribute.endswith("_bps"):
            document[back[attribute]] = _rate_text(member)
        else:
            document[attribute] = member
    return document


def _link_document(link: Link, *, full: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"endpoints": [":".join(link.a), ":".join(link.b)]}
    if full or link.name != _default_link_name(link.a, link.b):
        document["name"] = link.name
    if link.pcie is not None:
        required = PcieParams(0, 0)  # no link has these, so that gen and lanes are always written
        document["pcie"] = _group_document(link.pcie, required, full=full)
    if link.ethernet is not None:
        document["ethernet"] = _group_document(link.ethernet, EthernetParams(-1), full=full)
    if link.delay_ps or full:
        document["delay"] = _time_text(link.delay_ps)
    if link.jitter is not None:
        document["jitter"] = _jitter_document(link.jitter)
    return document


# Overrides


def _override_value(value: Any) -> Any:
    """Text as it would be read in the file; everything else as it is."""
    if not isinstance(value, str):
        return value
    if not value.startswith(("{", "[", '"', "'")):
        return _yaml.resolve(value)
    tree, faults = _yaml.parse(value)
    if tree is None or faults:
        raise ValueError(f"the value {value[:60]!r} cannot be read: {faults[0].message}")
    return _plain(tree)


def _plain(tree: _yaml.Tree) -> Any:
    if isinstance(tree, _yaml.Mapping):
        return {key.text: _plain(value) for key, value in tree.entries}
    if isinstance(tree, _yaml.Sequence):
        return [_plain(item) for item in tree.items]
    return tree.text if isinstance(tree.value, float) else tree.value


def _override_targets(head: str, rest: str, named: Mapping[str, dict[str, Any]]) -> list[tuple[dict[str, Any], list[str]]]:
    """The documents that `NAME.KEY...` stands for, and the keys below. Names may hold dots: the longest match wins."""
    from fnmatch import fnmatchcase

    words = rest.split(".")
    for cut in range(len(words), 0, -1):
        pattern = ".".join(words[:cut])
        literal = pattern.replace("[", "[[]").replace("?", "[?]")
        matching = [document for name, document in named.items() if fnmatchcase(name, literal)]
        if matching:
            if cut == len(words):
                raise ValueError(f"the key below {head}.{pattern} is missing, such as {head}.{pattern}.delay")
            return [(document, words[cut:]) for document in matching]
    name = rest.rpartition(".")[0] or rest
    hint = _hint(name, named)
    raise ValueError(f"nothing in {head} is named {name[:80]!r}{hint}; {head}: {_some(named)}")


def _override_set(target: dict[str, Any], keys: list[str], value: Any) -> None:
    if keys[0] == "memory" and len(keys) > 1:
        tiers = target.setdefault("memory", {})
        name = ".".join(keys[1:])
        if name not in tiers and len(keys) > 2 and keys[-1] in _TIER_SPEC:
            tiers, name, value = tiers.setdefault(".".join(keys[1:-1]), {}), keys[-1], value
        elif name in tiers and value is not None and not isinstance(value, Mapping):
            tiers, name = tiers[name], "size"
        target, keys = tiers, [name]
    for key in keys[:-1]:
        inner = target.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ValueError(f"{key} has no keys below it")
        target = inner
    last = keys[-1]
    if value is None:
        target.pop(last, None)
    elif isinstance(value, Mapping) and isinstance(target.get(last), dict):
        target[last] = {**target[last], **value}
    else:
        target[last] = value


# Writing YAML

_PLAIN_TEXT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./:*+-]*(?: [A-Za-z0-9_./*+-]+)*\Z", re.ASCII)


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(str(key))}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return str(value)
    if _PLAIN_TEXT.match(value) and isinstance(_yaml.resolve(value), str) and not value.endswith(":"):
        return value
    import json

    quoted = json.dumps(value, ensure_ascii=True)
    # JSON writes characters beyond the basic plane as two surrogates, which YAML does not join.
    return re.sub(
        r"\\ud([89ab][0-9a-f]{2})\\ud([c-f][0-9a-f]{2})",
        lambda pair: f"\\U{0x10000 + ((int(pair[1], 16) - 0x800) << 10) + (int(pair[2], 16) - 0xC00):08x}",
        quoted,
    )
