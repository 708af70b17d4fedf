# SPDX-License-Identifier: Apache-2.0
"""The links of a fabric that runs: state, counters, and what they are set to.

Owns: `Link` and `Links`. Values are written as in the topology file and checked by the same reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ._handle import check, ffi, lib
from .errors import InvalidArgument, TopologyError
from .topology import Topology

if TYPE_CHECKING:
    from .fabric import Fabric

__all__ = ["Link", "Links"]

_CREDITS = tuple(f"{kind}_credits_{part}" for kind in ("posted", "nonposted", "completion") for part in ("header", "data"))
_KEYS = {
    "pcie": ("delay", "gen", "lanes", "mps", "mrrs", "rcb", "tags", *_CREDITS),
    "ethernet": ("delay", "rate", "mtu", "overhead_bytes"),
}
_INDEX = {
    "delay": lib.FBX_LINK_DELAY_PS,
    "rate": lib.FBX_LINK_RATE_BPS,
    **{
        key: getattr(lib, f"FBX_LINK_{key.upper()}")
        for key in ("gen", "lanes", "mps", "mrrs", "rcb", "tags", "mtu", "overhead_bytes", *_CREDITS)
    },
}
_JSON = {"delay": "delay_ps", "rate": "rate_bps"}


class Link:
    """One link of a fabric: its state, what it is set to, and its counters per direction."""

    def __init__(self, fabric: Fabric, name: str, index: int) -> None:
        self._fabric = fabric
        self.name = name
        self.index = index

    def __repr__(self) -> str:
        return f"<Link {self.name} {'up' if self.up_ else 'down'}>"

    @property
    def kind(self) -> str:
        """`pcie` or `ethernet`."""
        return "ethernet" if self._fabric.topology.links[self.name].ethernet is not None else "pcie"

    @property
    def keys(self) -> tuple[str, ...]:
        """What `set` takes for this link."""
        return _KEYS[self.kind]

    def info(self) -> dict[str, Any]:
        """Return values, state and counters (bytes on the wire, packets, dropped) per direction.

        `changed` holds what is set otherwise than the topology describes it: key -> described value.
        """
        out = ffi.new("struct fbx_link_info *")
        check(lib.fbx_link_info(self._fabric._live(), self.index, out))
        values, described = self._values(False), self._values(True)
        return {
            "name": self.name,
            "up": bool(out.up),
            "kind": self.kind,
            "rate_bps": int(out.rate_bps),
            **{_JSON.get(key, key): value for key, value in values.items()},
            "changed": {_JSON.get(key, key): described[key] for key, value in values.items() if value != described[key]},
            "bytes": [int(out.bytes[0]), int(out.bytes[1])],
            "tlps": [int(out.tlps[0]), int(out.tlps[1])],
            "dropped": [int(out.dropped[0]), int(out.dropped[1])],
        }

    def _values(self, described: bool) -> dict[str, int]:
        out = ffi.new("uint64_t[]", lib.FBX_LINK_KEYS)
        check(lib.fbx_link_values(self._fabric._live(), self.index, int(described), out))
        return {key: int(out[_INDEX[key]]) for key in _KEYS[self.kind]}

    @property
    def up_(self) -> bool:
        """Whether the link is up."""
        return bool(self.info()["up"])

    def down(self) -> None:
        """Take the link down. When this has returned nothing crosses it any more; what was on it is lost."""
        check(lib.fbx_link_set(self._fabric._live(), self.index, 0))
        self._fabric._point()

    def up(self) -> None:
        """Bring the link up again."""
        check(lib.fbx_link_set(self._fabric._live(), self.index, 1))
        self._fabric._point()

    def set(self, **values: Any) -> None:
        """Set values of the link while it runs, all of them or none.

        What is on its way keeps its times; whatever any process issues after this has returned has the new ones. The way
        from node to node stays the same, whatever a link on it is set to.

        Args:
            values: as in the topology file. PCIe: `delay`, `gen`, `lanes`, `mps`, `mrrs`, `rcb`, `tags`, and credits such as
                `posted_credits_header`. Ethernet: `delay`, `rate`, `mtu`, `overhead_bytes`. Units are mandatory: `delay="500ns"`.
        Raises:
            InvalidArgument: no such value, or not in the range that a topology file may have; nothing was set.
            Busy: a process is stopped in the middle of an operation; the values are set.
        See: fbx_link_configure().
        """
        kind = self.kind
        for key in values:
            if key not in _KEYS[kind]:
                from difflib import get_close_matches

                near = get_close_matches(key, _KEYS[kind], n=1, cutoff=0.6)
                other = next((medium for medium, keys in _KEYS.items() if key in keys), None)
                why = f"it is a value of {other} links" if other else f"did you mean {near[0]!r}?" if near else ""
                raise InvalidArgument(
                    f"{self.name} is {'a PCIe' if kind == 'pcie' else 'an Ethernet'} link and has no {key!r}"
                    + (f" ({why})" if why else ""),
                    hint=f"it has {', '.join(_KEYS[kind])}",
                )
        if not values:
            raise InvalidArgument("nothing is to be set", hint=f"give at least one of {', '.join(_KEYS[kind])}")
        numbers = self._read(kind, values)
        out = ffi.new("uint64_t[]", lib.FBX_LINK_KEYS)
        mask = 0
        for key in values:
            out[_INDEX[key]] = numbers[key]
            mask |= 1 << _INDEX[key]
        check(lib.fbx_link_configure(self._fabric._live(), self.index, mask, out))
        self._fabric._point()

    def _read(self, kind: str, values: Mapping[str, Any]) -> dict[str, int]:
        """What the topology's reader makes of the values, together with those that stay."""
        now = self._values(False)
        inner = {key: f"{now[key]}b/s" if key == "rate" else now[key] for key in _KEYS[kind] if key != "delay"}
        base = {"fabrex": 1, "name": "link", "nodes": {"a": {"kind": "host"}, "b": {"kind": "host"}},
                "links": [{"name": "l", "endpoints": ["a:p", "b:p"], kind: inner, "delay": f"{now['delay']}ps"}]}  # fmt: skip
        changes = {f"links.l.{key}" if key == "delay" else f"links.l.{kind}.{key}": value for key, value in values.items()}
        for key, value in values.items():
            if value is None or value == "":
                raise InvalidArgument(f"{self.name}: {key} has no value", hint="`reset` goes back to what the topology says")
        try:
            link = Topology.from_dict(base).override(changes).links["l"]
        except TopologyError as error:
            problems = [f"{(problem.path or '').rpartition('.')[2]}: {problem.message}" for problem in error.errors]
            raise InvalidArgument(f"{self.name}: {'; '.join(problems)}") from None
        medium: Any = link.pcie if link.pcie is not None else link.ethernet
        return {"delay": link.delay_ps, **{key: getattr(medium, "rate_bps" if key == "rate" else key) for key in inner}}

    def reset(self) -> None:
        """Set all values back to what the topology describes. Its state stays.

        See: fbx_link_configure().
        """
        check(lib.fbx_link_configure(self._fabric._live(), self.index, 0, ffi.NULL))


class Links(Mapping[str, Link]):
    """The links of a fabric by name."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._index = {name: i for i, name in enumerate(fabric.topology.links)}

    def __getitem__(self, name: str) -> Link:
        if name not in self._index:
            known = ", ".join(list(self._index)[:8])
            raise KeyError(f"no link {name!r}; there are {known}{'…' if len(self._index) > 8 else ''}")
        return Link(self._fabric, name, self._index[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)
