# SPDX-License-Identifier: Apache-2.0
"""Drawings: complete, well-formed, without boxes on top of each other."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree

import pytest

from fabrex import presets
from fabrex.graph import SUMMARY_NODES, to_dot, to_mermaid, to_svg
from fabrex.topology import Topology

SVG = "{http://www.w3.org/2000/svg}"
KINDS = ("host", "accelerator", "memory", "switch")


def large() -> Topology:
    builder = Topology.builder("large").host("host", count=8, dram="1GiB").switch("root")
    builder.switch("leaf", count=8).accelerator("gpu", count=64, hbm="16GiB")
    builder.link("host*:ntb0", "root:p*", pcie={"gen": 4, "lanes": 16}).link("root:p*", "leaf*:up0", pcie={"gen": 4, "lanes": 16})
    for number in range(8):
        builder.link(f"gpu[{8 * number}-{8 * number + 7}]:ntb0", f"leaf{number}:p*", pcie={"gen": 4, "lanes": 16})
    return builder.build()


def boxes(svg: str) -> dict[str, tuple[float, float, float, float]]:
    found = {}
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        name = group.find(f"{SVG}text")
        if group.get("class") in KINDS and name is not None:
            rect = group.findall(f"{SVG}rect")[-1]
            x, y, width, height = (float(rect.get(key, "nan")) for key in ("x", "y", "width", "height"))
            found[name.text or ""] = (x, y, x + width, y + height)
    return found


@pytest.mark.parametrize("name", presets.names())
def test_svg_shows_every_node_and_link_once(name: str) -> None:
    topology = Topology.preset(name)
    svg = to_svg(topology)
    places = boxes(svg)
    assert set(places) == set(topology.nodes)
    titles = [(path.findtext(f"{SVG}title") or "").split("\n")[0] for path in ElementTree.fromstring(svg).iter(f"{SVG}path")]
    assert sorted(title for title in titles if title) == sorted(topology.links)
    for (one, a), (other, b) in itertools.combinations(places.items(), 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], f"{one} covers {other}"


@pytest.mark.parametrize("name", presets.names())
def test_svg_is_self_contained_and_fits(name: str) -> None:
    svg = to_svg(Topology.preset(name))
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.get("viewBox", "").split())
    for x1, y1, x2, y2 in boxes(svg).values():
        assert min(x1, y1) >= 0
        assert x2 <= width
        assert y2 <= height
    assert "href" not in svg and "url(" not in svg and "<script" not in svg
    assert "prefers-color-scheme:dark" in svg


def test_memory_and_links_are_labelled() -> None:
    svg = to_svg(Topology.preset("corsair-server"))
    assert "lpddr 256GB" in svg and "sram 2GiB" in svg
    assert "Gen5 x16 · 504 Gb/s" in svg
    assert "4 × Gen5 x16" in svg


def test_faster_links_are_wider() -> None:
    base = Topology.preset("local")
    widths = []
    for lanes in (4, 16):
        svg = to_svg(base.override({"links.*.pcie.lanes": lanes}))
        path = next(path for path in ElementTree.fromstring(svg).iter(f"{SVG}path") if path.find(f"{SVG}title") is not None)
        widths.append(float(path.get("stroke-width", "nan")))
    assert widths[0] < widths[1]


def test_large_fabrics_are_summarised() -> None:
    topology = large()
    assert len(topology.nodes) > SUMMARY_NODES
    svg = to_svg(topology)
    assert set(boxes(svg)) == {"host0 … host7", "root", "leaf0 … leaf7", "gpu0 … gpu7"}
    assert ">× 8<" in svg and ">× 8 each<" in svg and "equal parts drawn once" in svg


def test_text_is_escaped() -> None:
    assert "<b>" not in to_svg(Topology.preset("local"))
    ElementTree.fromstring(to_svg(Topology("a.b-c", Topology.preset("local").nodes, Topology.preset("local").links)))


@pytest.mark.parametrize("name", presets.names())
def test_text_formats_are_complete(name: str) -> None:
    topology = Topology.preset(name)
    dot, mermaid = to_dot(topology), to_mermaid(topology)
    assert dot.count(" -- ") == len(topology.links)
    assert all(f'"{node}" [label=' in dot for node in topology.nodes)
    assert mermaid.startswith("flowchart TB\n")
    assert mermaid.count(" ---|") + mermaid.count(" -.-|") == len(topology.links)


def test_rings_spines_and_parallel_links_are_drawn() -> None:
    pcie = {"gen": 4, "lanes": 8}
    builder = Topology.builder("mesh").host("h", count=4, dram="1GiB").switch("leaf", count=4).switch("spine", count=2)
    builder.link("h*:ntb0", "leaf*:p0", pcie=pcie).link("h0:ntb1", "leaf0:p1", pcie=pcie)
    for spine in (0, 1):
        builder.link(f"spine{spine}:p*", "leaf*:up*", pcie=pcie)
    topology = builder.build()
    svg = to_svg(topology)
    places = boxes(svg)
    assert set(places) == set(topology.nodes)
    assert places["spine0"][3] < places["leaf0"][1]
    titles = [(path.findtext(f"{SVG}title") or "").split("\n")[0] for path in ElementTree.fromstring(svg).iter(f"{SVG}path")]
    assert sorted(title for title in titles if title) == sorted(topology.links)
