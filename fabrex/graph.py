# SPDX-License-Identifier: Apache-2.0
"""Drawings of a topology: Graphviz DOT, Mermaid, and an SVG with a layout of its own.

`to_svg` needs no other program. It ranks switches by their distance from the fabric's middle, puts the hosts of the middle
above it, and hangs everything else below its switch in small grids. Beyond `SUMMARY_NODES` nodes, equal
neighbours are drawn once with a count.

Owns: layout and markup. Must not know: running fabrics.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from typing import Final

from .topology import Link, Node, Topology
from .units import format_rate, format_size, format_time

__all__ = ["SUMMARY_NODES", "link_label", "to_dot", "to_mermaid", "to_svg"]

#: Above this number of nodes `to_svg` draws equal neighbours once.
SUMMARY_NODES: Final = 64

# Fill, border in light mode; fill, border in dark mode. Hues after Okabe and Ito, which colour-blind people tell apart.
_COLOURS: Final = {
    "host": ("#e3f0fa", "#0072b2", "#10324a", "#56b4e9"),
    "accelerator": ("#fdeedd", "#d55e00", "#4a2a10", "#f0a35e"),
    "memory": ("#def5ec", "#00805c", "#0f3b2f", "#3fc79d"),
    "switch": ("#eeeaf6", "#6a51a3", "#2f2844", "#b5a3e3"),
}
_WIRES: Final = {"pcie": ("#56616d", "#a6b1bd"), "ethernet": ("#b0417e", "#e38fbd")}


def _rate_text(bps: int) -> str:
    """A rate for people: `252 Gb/s`, rounded to three digits."""
    for unit, scale in (("Tb/s", 10**12), ("Gb/s", 10**9), ("Mb/s", 10**6), ("kb/s", 10**3)):
        if bps >= scale:
            return f"{bps / scale:.3g} {unit}" if bps < 1000 * scale else f"{bps // scale} {unit}"
    return f"{bps} b/s"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def link_label(link: Link) -> str:
    """What a drawing says about a link: generation, lanes and raw rate, or the rate alone."""
    if link.pcie is not None:
        return f"Gen{link.pcie.gen} x{link.pcie.lanes} · {_rate_text(link.raw_bps)}"
    return _rate_text(link.raw_bps)


def _tier_texts(node: Node) -> list[str]:
    return [f"{tier.name} {format_size(tier.size)}" for tier in node.memory.values()]


def _node_title(node: Node) -> str:
    parts = [f"{node.name} ({node.kind})"]
    for tier in node.memory.values():
        text = f"{tier.name}: {format_size(tier.size)}"
        if tier.latency_ps:
            text += f", {format_time(tier.latency_ps)}"
        if tier.rate_bps:
            text += f", {format_rate(tier.rate_bps, in_bytes=True)}"
        parts.append(text)
    if node.delay_ps:
        parts.append(f"cut-through {format_time(node.delay_ps)}")
    if node.ntb not in (None, "fabrex"):
        parts.append(f"NTB {node.ntb}")
    return "\n".join(parts)


def _link_title(link: Link) -> str:
    parts = [link.name, link_label(link)]
    if link.delay_ps:
        parts.append(f"{format_time(link.delay_ps)} one way")
    return "\n".join(parts)


# Text formats


def to_dot(topology: Topology) -> str:
    """The topology for Graphviz, as an undirected graph."""

    def quote(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'

    lines = [
        f"graph {quote(topology.name)} {{",
        "  graph [rankdir=TB, splines=true];",
        '  node [fontname="sans-serif", style="rounded,filled", shape=box];',
        '  edge [fontname="sans-serif", fontsize=10];',
    ]
    for node in topology.nodes.values():
        fill, border, _, _ = _COLOURS[node.kind]
        label = "\n".join([node.name, *_tier_texts(node)])
        shape = ", shape=hexagon, style=filled" if node.is_switch else ""
        lines.append(f'  {quote(node.name)} [label={quote(label)}, fillcolor="{fill}", color="{border}"{shape}];')
    for link in topology.links.values():
        width = f"{_thickness(link.raw_bps):.1f}"
        style = "" if link.pcie is not None else ", style=dashed"
        ends = f"{quote(link.a[0])} -- {quote(link.b[0])}"
        ports = f"taillabel={quote(link.a[1])}, headlabel={quote(link.b[1])}"
        lines.append(f"  {ends} [label={quote(link_label(link))}, {ports}, penwidth={width}{style}];")
    return "\n".join([*lines, "}"]) + "\n"


def to_mermaid(topology: Topology) -> str:
    """The topology as a Mermaid flowchart, which GitHub and many editors draw."""
    lines = ["flowchart TB"]
    for node in topology.nodes.values():
        label = "<br/>".join([f"<b>{node.name}</b>", *_tier_texts(node)])
        left, right = {"switch": ("{{", "}}"), "memory": ("[(", ")]")}.get(node.kind, ("[", "]"))
        lines.append(f'  n{node.index}{left}"{label}"{right}:::{node.kind}')
    for link in topology.links.values():
        a, b = topology.nodes[link.a[0]].index, topology.nodes[link.b[0]].index
        arrow = "---" if link.pcie is not None else "-.-"
        lines.append(f'  n{a} {arrow}|"{link_label(link)}"| n{b}')
    for kind in dict.fromkeys(node.kind for node in topology.nodes.values()):
        fill, border, _, _ = _COLOURS[kind]
        lines.append(f"  classDef {kind} fill:{fill},stroke:{border},color:#1b1f24")
    return "\n".join(lines) + "\n"


# SVG: what is drawn


@dataclass
class _Box:
    """A node, or several equal ones, with its place."""

    node: Node
    count: int = 1
    last: str = ""
    each: bool = False  # the count is that of one of several equal groups
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0

    @property
    def title(self) -> str:
        return self.node.name if self.count == 1 else f"{self.node.name} … {self.last}"

    @property
    def lines(self) -> list[str]:
        lines = _tier_texts(self.node)
        if self.node.is_switch:
            lines = [f"cut-through {format_time(self.node.delay_ps)}"] if self.node.delay_ps else []
        return [*lines, f"× {self.count}" + (" each" if self.each else "")] if self.count > 1 else lines

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height


@dataclass
class _Branch:
    """A switch with the switches and the grid of end nodes that hang below it."""

    box: _Box
    uplink: Link | None = None
    children: list[_Branch] = field(default_factory=list)
    leaves: list[tuple[_Box, Link]] = field(default_factory=list)
    rows: list[list[tuple[_Box, Link]]] = field(default_factory=list)
    rails: list[tuple[_Box, list[tuple[_Box, Link]]]] = field(default_factory=list)
    count: int = 1
    width: float = 0.0
    span: float = 0.0  # the grid's own width


_TEXT: Final = 6.7  # average advance of a character at 11 px
_GUTTER: Final = 26.0
_ROW_GAP: Final = 14.0
_DROP: Final = 58.0
_MARGIN: Final = 28.0


def _thickness(bps: int) -> float:
    """Line width in px: one step for each doubling from 32 Gb/s."""
    return max(1.0, min(6.0, 1.2 + 0.75 * math.log2(max(bps, 1) / 32e9)))


def to_svg(topology: Topology) -> str:
    """A self-contained SVG of the topology, for light and dark backgrounds.

    Hovering over a node or link shows its details. Above `SUMMARY_NODES` nodes, equal neighbours are drawn once with a
    count.
    """
    return _Drawing(topology).render()


class _Drawing:
    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.summary = len(topology.nodes) > SUMMARY_NODES
        self.wires: list[str] = []
        self.panels: list[str] = []
        self.labels: list[str] = []
        self.boxes: list[_Box] = []
        self.neighbours: dict[str, list[tuple[str, Link]]] = {name: [] for name in topology.nodes}
        for link in topology.links.values():
            self.neighbours[link.a[0]].append((link.b[0], link))
            self.neighbours[link.b[0]].append((link.a[0], link))
        self.drawn: set[str] = set()
        self.hidden = 0
        self.single = False
        self.reach = 0.0  # how far labels go to the right

    # Structure

    def _islands(self) -> list[list[str]]:
        """Groups of switches joined by links between switches, the one with most neighbours first."""
        nodes, seen, islands = self.topology.nodes, set[str](), []
        for name, node in nodes.items():
            if not node.is_switch or name in seen:
                continue
            island, queue = [], [name]
            seen.add(name)
            while queue:
                current = queue.pop(0)
                island.append(current)
                for other, _ in self.neighbours[current]:
                    if nodes[other].is_switch and other not in seen:
                        seen.add(other)
                        queue.append(other)
            islands.append(island)

        def ends(island: list[str]) -> int:
            return len({other for name in island for other, _ in self.neighbours[name] if not nodes[other].is_switch})

        return sorted(islands, key=ends, reverse=True)

    def _distances(self, start: str) -> dict[str, int]:
        distance, queue = {start: 0}, [start]
        for current in queue:
            for other, _ in self.neighbours[current]:
                if self.topology.nodes[other].is_switch and other not in distance:
                    distance[other] = distance[current] + 1
                    queue.append(other)
        return distance

    def _centre(self, island: list[str]) -> list[str]:
        """The switches from which the farthest one is nearest; among many, those with most links to switches."""
        if len(island) > 200:  # quadratic; large fabrics take the best connected switch
            return [max(island, key=lambda name: len(self.neighbours[name]))]
        reach = {name: max(self._distances(name).values()) for name in island}
        least = min(reach.values())
        centre = [name for name in island if reach[name] == least]
        ends = {name for name in centre if any(not self.topology.nodes[o].is_switch for o, _ in self.neighbours[name])}
        # Spines stand above the leaves that carry the end nodes, though both are as near to everything.
        return [name for name in centre if name not in ends] or centre

    def _grow(self, island: list[str], roots: list[str], owner: dict[str, str]) -> list[_Branch]:
        branches = {name: _Branch(_Box(self.topology.nodes[name])) for name in island}
        seen, queue = set(roots), list(roots)
        for current in queue:
            for other, link in self.neighbours[current]:
                if self.topology.nodes[other].is_switch and other not in seen:
                    seen.add(other)
                    queue.append(other)
                    branches[other].uplink = link
                    branches[current].children.append(branches[other])
                    self.drawn.add(link.name)
        for name, node in self.topology.nodes.items():
            if owner.get(name) in branches:
                branch = branches[owner[name]]
                link = next(link for other, link in self.neighbours[name] if other == owner[name])
                branch.leaves.append((_Box(node), link))
                self.drawn.add(link.name)
        return [branches[name] for name in roots]

    def _shape(self, node: Node) -> object:
        return (node.kind, node.memory, node.ntb, node.delay_ps)

    @staticmethod
    def _wire_shape(link: Link | None) -> object:
        return link and (link.pcie, link.ethernet, link.delay_ps)

    def _signature(self, branch: _Branch) -> object:
        leaves = sorted(repr((self._shape(box.node), self._wire_shape(link), box.count)) for box, link in branch.leaves)
        below = sorted(repr((self._signature(child), child.count)) for child in branch.children)
        return (self._shape(branch.box.node), self._wire_shape(branch.uplink), tuple(leaves), tuple(below))

    def _fold(self, branch: _Branch) -> None:
        """Draw equal siblings once."""
        folded: dict[str, tuple[_Box, Link]] = {}
        for box, link in branch.leaves:
            key = repr((self._shape(box.node), self._wire_shape(link)))
            if key in folded:
                folded[key][0].count += 1
                folded[key][0].last = box.node.name
            else:
                folded[key] = (box, link)
        branch.leaves = list(folded.values())
        groups: dict[str, _Branch] = {}
        for child in branch.children:
            self._fold(child)
            key = repr(self._signature(child))
            if key in groups:
                first = groups[key]
                first.count += 1
                first.box.count = first.count
                first.box.last = child.box.node.name
            else:
                groups[key] = child
        branch.children = list(groups.values())
        for child in branch.children:
            if child.count > 1:
                for below in _walk([child]):
                    below.box.each = below is not child
                    for box, _ in below.leaves:
                        box.each = True

    # Measures

    @staticmethod
    def _measure(box: _Box) -> None:
        widest = max([len(box.title) * 7.8, *(len(line) * _TEXT for line in box.lines)])
        box.width = max(74.0, widest + 24)
        box.height = 30.0 + 15.0 * len(box.lines)

    def _grid(self, leaves: list[tuple[_Box, Link]], columns: int) -> tuple[list[list[tuple[_Box, Link]]], float]:
        """Rows by kind, hosts first, and the width of the widest; all boxes get one width."""
        order = {"host": 0, "accelerator": 1, "memory": 2, "switch": 3}
        for box, _ in leaves:
            self._measure(box)
        width = max((box.width for box, _ in leaves), default=0.0)
        rows: list[list[tuple[_Box, Link]]] = []
        for kind in order:
            members = [leaf for leaf in leaves if leaf[0].node.kind == kind]
            few = len(leaves) <= columns
            if few and rows:
                rows[-1].extend(members)
            else:
                rows.extend(members[start : start + columns] for start in range(0, len(members), columns))
        for box, _ in leaves:
            box.width = width
        used = max((len(row) for row in rows), default=0)
        return rows, used * (width + _GUTTER) + (_GUTTER if used else 0.0)

    def _size(self, branch: _Branch, columns: int) -> None:
        self._measure(branch.box)
        for child in branch.children:
            self._size(child, columns)
        branch.rows, branch.span = self._grid(branch.leaves, columns)
        for rail, _ in branch.rails:
            self._measure(rail)
        below = sum(child.width for child in branch.children) + 20.0 * max(0, len(branch.children) - 1)
        if branch.children:
            branch.width = max(branch.box.width + 40, below + (branch.span + 20 if branch.rows else 0))
        else:
            branch.width = max(branch.box.width + 40, branch.span)
            longest = max((len(link_label(link)) for _, link in branch.leaves), default=0)
            branch.width = max(branch.width, 2 * ((longest + 5) * _TEXT + 6) if longest else 0.0)

    # Places

    def _place(self, branch: _Branch, left: float, top: float) -> float:
        """Give the branch its place; returns its lower edge."""
        box = branch.box
        box.x, box.y = left + (branch.width - box.width) / 2, top
        self.boxes.append(box)
        lower = box.bottom
        row_top = box.bottom + _DROP
        below = sum(child.width for child in branch.children) + 20.0 * max(0, len(branch.children) - 1)
        grid = branch.span if branch.rows else 0.0
        total = below + ((20 if branch.children else 0) + grid if branch.rows else 0)
        x = left + (branch.width - total) / 2
        trunk: list[tuple[_Box, Link]] = []
        for child in branch.children:
            lower = max(lower, self._place(child, x, row_top))
            if child.uplink is not None:
                trunk.append((child.box, child.uplink))
            x += child.width + 20
        if branch.rows:
            bottom = self._place_rows(branch.rows, x, grid, row_top)
            if not branch.children and not (self.single and branch.uplink is None):
                rails = 52.0 + 40 if branch.rails else 0.0
                self._panel(left - 2, box.y - 10, branch.width + 4, bottom - box.y + 22 + rails)
            trunk_rows = branch.rows
            lower = max(lower, bottom + 12)
            if branch.rails:
                lower = max(lower, self._place_rails(branch, x, grid, bottom))
        else:
            trunk_rows = []
        self._wire_down(box, trunk, trunk_rows)
        return lower

    def _place_rows(self, rows: list[list[tuple[_Box, Link]]], left: float, width: float, top: float) -> float:
        y = top
        for row in rows:
            step = row[0][0].width + _GUTTER
            x = left + (width - len(row) * step + _GUTTER) / 2
            # Shorter rows stand in the columns of the longest one, so that the gutters line up.
            longest = max(len(other) for other in rows)
            x -= step / 2 if len(rows) > 1 and (longest - len(row)) % 2 else 0
            for box, _ in row:
                box.x, box.y = x, y
                x += step
                self.boxes.append(box)
            y += max(box.height for box, _ in row) + _ROW_GAP
        return y - _ROW_GAP

    def _place_rails(self, branch: _Branch, left: float, width: float, bottom: float) -> float:
        """Switches that join the same end nodes once more stand below the grid."""
        lower = bottom
        for rail, members in branch.rails:
            rail.x, rail.y = left + (width - rail.width) / 2, bottom + 46
            self.boxes.append(rail)
            bus = bottom + 16
            for box, link in members:
                side = box.x + box.width
                gutter = side + 9
                last = abs(box.bottom - bottom) < 1
                steps = (
                    [(rail.middle, rail.y), (rail.middle, bus), (box.middle, bus), (box.middle, box.bottom)]
                    if last
                    else [
                        (rail.middle, rail.y),
                        (rail.middle, bus),
                        (gutter, bus),
                        (gutter, box.y + box.height / 2),
                        (side, box.y + box.height / 2),
                    ]
                )
                self._wire(steps, link)
            self._group_label(rail.middle + 8, bus + 20, [link for _, link in members])
            lower = max(lower, rail.bottom + 12)
        return lower

    def _panel(self, x: float, y: float, width: float, height: float) -> None:
        self.panels.append(f'<rect class="panel" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="14"/>')

    # Wires

    def _wire_down(self, box: _Box, trunk: list[tuple[_Box, Link]], rows: list[list[tuple[_Box, Link]]]) -> None:
        """From a switch to what hangs below it: one trunk, a bus, and a branch to each."""
        start = (box.middle, box.bottom)
        bus = box.bottom + _DROP - 18
        links: list[Link] = []
        for other, link in trunk:
            self._wire([start, (box.middle, bus), (other.middle, bus), (other.middle, other.y)], link)
            links.extend([link] * other.count)
        for number, row in enumerate(rows):
            for other, link in row:
                centre = other.y + other.height / 2
                gutter = other.x - _GUTTER / 2 + 3
                if number == 0:
                    steps = [start, (box.middle, bus), (other.middle, bus), (other.middle, other.y)]
                else:
                    steps = [start, (box.middle, bus), (gutter, bus), (gutter, centre), (other.x, centre)]
                self._wire(steps, link)
                links.extend([link] * other.count)
        self._group_label(box.middle + 9, box.bottom + 22, links)

    def _group_label(self, x: float, y: float, links: list[Link], anchor: str = "start") -> None:
        """One label for each kind of link among these, with its number."""
        counts: dict[str, int] = {}
        for link in links:
            counts[link_label(link)] = counts.get(link_label(link), 0) + 1
        texts = [f"{count} × {text}" if count > 1 else text for text, count in counts.items()]
        if texts:
            shown = texts if len(texts) <= 2 else [texts[0], f"and {len(texts) - 1} other kinds"]
            for number, text in enumerate(shown):
                self._label(x, y + 13 * (number - (len(shown) - 1)), text, anchor)

    def _label(self, x: float, y: float, text: str, anchor: str = "start") -> None:
        length = len(text) * _TEXT
        self.reach = max(self.reach, x + (length if anchor == "start" else length / 2))
        self.labels.append(f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def _wire(self, points: list[tuple[float, float]], link: Link) -> None:
        """A line with rounded corners."""
        kept = [points[0]]
        for point in points[1:]:
            if abs(point[0] - kept[-1][0]) + abs(point[1] - kept[-1][1]) > 0.5:
                kept.append(point)
        path = f"M{kept[0][0]:.1f} {kept[0][1]:.1f}"
        for before, corner, after in zip(kept, kept[1:], kept[2:], strict=False):
            radius = min(8.0, math.dist(before, corner) / 2, math.dist(corner, after) / 2)
            into, out = _toward(corner, before, radius), _toward(corner, after, radius)
            path += f"L{into[0]:.1f} {into[1]:.1f}Q{corner[0]:.1f} {corner[1]:.1f} {out[0]:.1f} {out[1]:.1f}"
        self._path(path + f"L{kept[-1][0]:.1f} {kept[-1][1]:.1f}", link)

    def _path(self, path: str, link: Link) -> None:
        medium = "pcie" if link.pcie is not None else "ethernet"
        width = _thickness(link.raw_bps)
        title = escape(_link_title(link))
        self.wires.append(f'<path class="{medium}" d="{path}" stroke-width="{width:.1f}"><title>{title}</title></path>')

    # All of it

    def render(self) -> str:
        topology = self.topology
        islands = self._islands()
        home = {name: number for number, island in enumerate(islands) for name in island}
        owner: dict[str, str] = {}
        for name, node in topology.nodes.items():
            if node.is_switch:
                continue
            switches = [other for other, _ in self.neighbours[name] if topology.nodes[other].is_switch]
            if switches:
                owner[name] = min(switches, key=lambda other: home[other])
        rails = [
            island
            for island in islands[1:]
            if len(island) == 1 and not any(owner.get(other) == island[0] for other, _ in self.neighbours[island[0]])
        ]
        branches: list[_Branch] = []
        above: list[tuple[_Box, Link]] = []
        for island in islands:
            if island in rails:
                continue
            grown = self._grow(island, self._centre(island), owner)
            branches.extend(grown)
            for branch in grown:
                hosts = [leaf for leaf in branch.leaves if leaf[0].node.kind == "host"]
                lone = len(hosts) == len(branch.leaves) and not branch.children and len(grown) == 1
                if lone and len(hosts) > 4:
                    hosts = hosts[: (len(hosts) + 1) // 2]
                branch.leaves = [leaf for leaf in branch.leaves if leaf not in hosts]
                above.extend(hosts)
        if self.summary:
            holder = _Branch(_Box(next(iter(topology.nodes.values()))), children=branches, leaves=above)
            self._fold(holder)
            branches, above = holder.children, holder.leaves
        else:
            self._attach_rails(branches, [island[0] for island in rails])
        loose = [_Box(node) for name, node in topology.nodes.items() if not node.is_switch and name not in owner]
        right, bottom = self._arrange(branches, above, loose)
        self._rest()
        return self._document(right, bottom)

    def _attach_rails(self, branches: list[_Branch], rails: list[str]) -> None:
        for name in rails:
            ends = dict(self.neighbours[name])
            best: tuple[int, _Branch] | None = None
            for branch in _walk(branches):
                shared = sum(1 for box, _ in branch.leaves if box.node.name in ends)
                if shared and (best is None or shared > best[0]) and not branch.children:
                    best = (shared, branch)
            box = _Box(self.topology.nodes[name])
            if best is None:
                branches.append(_Branch(box))
                continue
            members = [(leaf, ends[leaf.node.name]) for leaf, _ in best[1].leaves if leaf.node.name in ends]
            self.drawn.update(link.name for _, link in members)
            best[1].rails.append((box, members))

    def _arrange(self, branches: list[_Branch], above: list[tuple[_Box, Link]], loose: list[_Box]) -> tuple[float, float]:
        self.single = len(branches) == 1  # one group needs no frame
        grids = sum(1 for branch in _walk(branches) if branch.leaves)
        columns = 4 if grids <= 2 else 2
        for branch in branches:
            self._size(branch, columns)
        gap = 20.0
        for one, other in itertools.pairwise(branches):
            for name, link in self.neighbours[one.box.node.name]:
                if name == other.box.node.name:  # room for the label between two roots
                    slack = (one.width - one.box.width + other.width - other.box.width) / 2
                    gap = max(gap, len(link_label(link)) * _TEXT + 30 - slack)
        rows, span = self._grid(above, 8)
        body = sum(branch.width for branch in branches) + gap * max(0, len(branches) - 1)
        for box in loose:
            self._measure(box)
        spacing = max([60.0, *(len(link_label(link)) * _TEXT + 36 for link in self.topology.links.values() if loose)])
        loose_width = sum(box.width for box in loose) + spacing * max(0, len(loose) - 1)
        width = max(body, span, loose_width, 320.0)
        y = 92.0
        if rows:
            y = self._place_rows(rows, _MARGIN + (width - span) / 2, span, y) + _DROP
        x = _MARGIN + (width - body) / 2
        top, bottom = y, y
        for branch in branches:
            bottom = max(bottom, self._place(branch, x, y))
            x += branch.width + gap
        by_name = {branch.box.node.name: branch for branch in branches}
        self._wire_up(rows, by_name, top)
        if loose:
            x = _MARGIN + (width - loose_width) / 2
            start = bottom + (50 if branches or rows else 30)
            for box in loose:
                box.x, box.y = x, start
                x += box.width + spacing
                self.boxes.append(box)
                bottom = max(bottom, box.bottom)
        return _MARGIN + width, bottom

    def _wire_up(self, rows: list[list[tuple[_Box, Link]]], roots: dict[str, _Branch], top: float) -> None:
        """From the hosts above down to the switches of the middle."""
        bus = top - _DROP + 20
        labelled: dict[str, list[Link]] = {}
        for number, row in enumerate(rows):
            for box, _ in row:
                pairs = [(other, link) for other, link in self.neighbours[box.node.name] if other in roots]
                for position, (other, link) in enumerate(pairs):
                    self.drawn.add(link.name)
                    switch = roots[other].box
                    spread = (position - (len(pairs) - 1) / 2) * 16
                    if number == len(rows) - 1:
                        steps = [(box.middle + spread, box.bottom), (box.middle + spread, bus)]
                    else:
                        gutter, centre = box.x - _GUTTER / 2 + 3, box.y + box.height / 2
                        steps = [(box.x, centre), (gutter, centre), (gutter, bus)]
                    self._wire([*steps, (switch.middle, bus), (switch.middle, switch.y)], link)
                    labelled.setdefault(other, []).extend([link] * box.count)
        for other, links in labelled.items():
            self._group_label(roots[other].box.middle + 9, top - 14, links)

    def _rest(self) -> None:
        """Links that are not part of the tree: between neighbours straight, all others as curves."""
        places = {box.node.name: box for box in self.boxes}
        remaining = [link for link in self.topology.links.values() if link.name not in self.drawn]
        if self.summary:
            self.hidden = sum(1 for link in remaining if not (link.a[0] in places and link.b[0] in places))
        parallel: dict[frozenset[str], int] = {}
        shown = [link for link in remaining if link.a[0] in places and link.b[0] in places]
        for link in shown:
            a, b = sorted((places[link.a[0]], places[link.b[0]]), key=lambda box: (box.x, box.y))
            pair = frozenset((link.a[0], link.b[0]))
            turn = parallel.get(pair, 0)
            parallel[pair] = turn + 1
            between = any(
                box is not a and box is not b and a.x < box.x < b.x and box.y < a.bottom and box.bottom > a.y for box in self.boxes
            )
            if abs(a.y - b.y) < 1 and b.x > a.x and not between and turn == 0:
                y = a.y + min(a.height, b.height) / 2
                self._path(f"M{a.x + a.width:.1f} {y:.1f}L{b.x:.1f} {y:.1f}", link)
                if b.x - a.x - a.width > len(link_label(link)) * _TEXT:
                    self._label((a.x + a.width + b.x) / 2, y - 8, link_label(link), "middle")
                continue
            if abs(a.y - b.y) < 1:
                bend = a.y - 26 - 14 * turn
                self._path(
                    f"M{a.middle:.1f} {a.y:.1f}Q{(a.middle + b.middle) / 2:.1f} {bend:.1f} {b.middle:.1f} {b.y:.1f}",
                    link,
                )
                middle = (a.middle + b.middle) / 2, (a.y + bend) / 2 - 4
            else:
                upper, lower = sorted((a, b), key=lambda box: box.y)
                half = (upper.bottom + lower.y) / 2
                x1, x2 = upper.middle + 14 * (turn + 1), lower.middle + 14 * (turn + 1)
                self._path(f"M{x1:.1f} {upper.bottom:.1f}C{x1:.1f} {half:.1f} {x2:.1f} {half:.1f} {x2:.1f} {lower.y:.1f}", link)
                middle = (x1 + x2) / 2 + 6, half
            if len(shown) <= 2:  # more would cover one another; hovering shows them
                self._label(*middle, link_label(link), "middle")

    def _document(self, right: float, bottom: float) -> str:
        topology = self.topology
        kinds = [kind for kind in _COLOURS if any(node.kind == kind for node in topology.nodes.values())]
        media = []
        for medium, name in (("pcie", "PCIe"), ("ethernet", "Ethernet or other frames")):
            if any((link.pcie is not None) == (medium == "pcie") for link in topology.links.values()):
                media.append((medium, name))
        facts = [
            _count(len(topology.nodes), "node"),
            _count(len(topology.links), "link"),
            f"ordering {topology.ordering}",
            f"timing {'on' if topology.timing else 'off'}",
            topology.status,
        ]
        if self.summary:
            facts.append("equal parts drawn once")
        if self.hidden:
            facts.append(f"{self.hidden} links not drawn")
        subtitle = " · ".join(facts)
        right = max(right, self.reach)
        width = max(right + _MARGIN, len(subtitle) * _TEXT + 2 * _MARGIN)
        legend, legend_right = self._legend(kinds, media, bottom + 40)
        width = max(width, legend_right + _MARGIN)
        height = bottom + 40 + 36
        shift = max(0.0, (width - right - _MARGIN) / 2)
        title = escape(topology.name)
        description = escape(f"{topology.name}: {subtitle}")
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" role="img" aria-label="{description}">',
            f"<title>{title}</title>",
            f"<style>{_style()}</style>",
            '<rect class="page" width="100%" height="100%"/>',
            f'<text class="title" x="{_MARGIN:.0f}" y="40">{title}</text>',
            f'<text class="facts" x="{_MARGIN:.0f}" y="62">{escape(subtitle)}</text>',
            f'<g transform="translate({shift:.1f} 0)">',
            *self.panels,
            *self.wires,
            *(self._box_markup(box) for box in self.boxes),
            *self.labels,
            "</g>",
            *legend,
            "</svg>",
        ]
        return "\n".join(parts) + "\n"

    @staticmethod
    def _box_markup(box: _Box) -> str:
        kind = box.node.kind
        parts = [f'<g class="{kind}"><title>{escape(_node_title(box.node))}</title>']
        shape = f'width="{box.width:.1f}" height="{box.height:.1f}" rx="{4 if kind == "switch" else 9}"'
        for number in range(min(2, box.count - 1), 0, -1):  # a stack for several
            parts.append(f'<rect x="{box.x + 5 * number:.1f}" y="{box.y + 5 * number:.1f}" {shape}/>')
        parts.append(f'<rect x="{box.x:.1f}" y="{box.y:.1f}" {shape}/>')
        parts.append(f'<text class="name" x="{box.middle:.1f}" y="{box.y + 20:.1f}">{escape(box.title)}</text>')
        for number, line in enumerate(box.lines):
            y = box.y + 35 + 15 * number
            parts.append(f'<text class="tier" x="{box.middle:.1f}" y="{y:.1f}">{escape(line)}</text>')
        return "".join([*parts, "</g>"])

    @staticmethod
    def _legend(kinds: Iterable[str], media: Iterable[tuple[str, str]], y: float) -> tuple[list[str], float]:
        names = {"accelerator": "accelerator", "memory": "memory box"}
        parts: list[str] = []
        x = _MARGIN
        for kind in kinds:
            rounding = 2 if kind == "switch" else 5
            parts.append(f'<g class="{kind}"><rect x="{x:.1f}" y="{y:.1f}" width="20" height="14" rx="{rounding}"/></g>')
            parts.append(f'<text class="facts" x="{x + 27:.1f}" y="{y + 11.5:.1f}">{names.get(kind, kind)}</text>')
            x += 27 + len(names.get(kind, kind)) * _TEXT + 22
        for medium, name in media:
            parts.append(f'<path class="{medium}" d="M{x:.1f} {y + 7:.1f}h28" stroke-width="3"/>')
            parts.append(f'<text class="facts" x="{x + 35:.1f}" y="{y + 11.5:.1f}">{name}</text>')
            x += 35 + len(name) * _TEXT + 22
        text = "wider is faster"
        parts.append(f'<text class="facts" x="{x:.1f}" y="{y + 11.5:.1f}">{text}</text>')
        return parts, x + len(text) * _TEXT


def _walk(branches: Iterable[_Branch]) -> Iterable[_Branch]:
    for branch in branches:
        yield branch
        yield from _walk(branch.children)


def _toward(start: tuple[float, float], end: tuple[float, float], distance: float) -> tuple[float, float]:
    length = math.dist(start, end) or 1.0
    part = distance / length
    return start[0] + (end[0] - start[0]) * part, start[1] + (end[1] - start[1]) * part


def _style() -> str:
    """Rules for light pages, and the differences for dark ones."""
    font = "font-family:system-ui,'Segoe UI',Helvetica,Arial,sans-serif"
    light = [
        ".page{fill:#ffffff}",
        ".panel{fill:#f5f7f9;stroke:#dde3e8;stroke-width:1}",
        f"text{{{font};fill:#1b1f24;font-size:11px}}",
        ".title{font-size:19px;font-weight:650}",
        ".facts{fill:#57606a;font-size:12px}",
        ".name{font-size:13px;font-weight:600;text-anchor:middle}",
        ".tier{text-anchor:middle;fill:#3d454d}",
        ".label{fill:#3d454d;paint-order:stroke;stroke:#ffffff;stroke-width:3px;stroke-linejoin:round}",
        "path{fill:none;stroke-linecap:round}",
    ]
    dark = [
        ".page{fill:#14181c}",
        ".panel{fill:#1b2026;stroke:#2d353d}",
        "text{fill:#e8ecef}",
        ".facts{fill:#a3adb8}",
        ".tier{fill:#c5cdd5}",
        ".label{fill:#c5cdd5;stroke:#14181c}",
    ]
    for kind, (fill, border, dark_fill, dark_border) in _COLOURS.items():
        light.append(f".{kind} rect{{fill:{fill};stroke:{border};stroke-width:1.5}}")
        dark.append(f".{kind} rect{{fill:{dark_fill};stroke:{dark_border}}}")
    for medium, (colour, dark_colour) in _WIRES.items():
        light.append(f".{medium}{{stroke:{colour}}}")
        dark.append(f".{medium}{{stroke:{dark_colour}}}")
    return "".join(light) + "@media (prefers-color-scheme:dark){" + "".join(dark) + "}"
