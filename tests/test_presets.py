# SPDX-License-Identifier: Apache-2.0
"""Presets: valid, documented, and as fast as they say."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fabrex import _yaml, presets
from fabrex.pcie import Link
from fabrex.topology import LANES, Topology, _plain

ROOT = Path(__file__).resolve().parent.parent
SCHEMA: dict[str, Any] = json.loads((ROOT / "fabrex/schema/topology.schema.json").read_text(encoding="utf-8"))
EXPECTED = {
    "corsair-server",
    "dolphin-8",
    "fabrex-claimed",
    "fabrex-pair",
    "jetstream-pair",
    "local",
    "ntb-measured",
    "nvlink-ib",
    "pcie-bench",
    "squadrack",
    "supernode-32",
    "xeon-e3",
}


def document(text: str) -> Any:
    tree, faults = _yaml.parse(text)
    assert tree is not None and not faults
    return _plain(tree)


def one_way_ps(topology: Topology, *nodes: str) -> int:
    """Delays of links and switches along a way, without wire time."""
    total = sum(topology.nodes[name].delay_ps for name in nodes)
    for a, b in itertools.pairwise(nodes):
        total += next(link.delay_ps for link in topology.links.values() if {a, b} == {link.a[0], link.b[0]})
    return total


def test_names() -> None:
    assert set(presets.names()) == EXPECTED
    with pytest.raises(KeyError):
        presets.text("../../setup")


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_preset(name: str) -> None:
    topology = Topology.preset(name)
    assert topology.name == name
    assert topology.source == f"preset {name}"
    assert len(topology.nodes) >= 2
    assert presets.summary(name).endswith(".")
    assert Topology.loads(topology.to_yaml()) == topology
    assert Topology.from_dict(topology.to_dict()) == topology
    ends = [node.name for node in topology.nodes.values() if not node.is_switch]
    assert all(len(topology.reachable(end)) == len(ends) - 1 for end in ends)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_preset_matches_the_schema(name: str) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(document(presets.text(name)))
    jsonschema.Draft202012Validator(SCHEMA).validate(Topology.preset(name).to_dict())


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_constants_name_their_origin(name: str) -> None:
    """Each line that sets a quantity has its origin on the same line or in the comments above it."""
    words = ("claimed", "measured", "modelled", "estimate", "fitted")
    known = False
    for line in presets.text(name).splitlines():
        stripped = line.strip()
        comment = line.partition("#")[2]
        if stripped.startswith("#"):
            known = known or any(word in comment for word in words)
        elif "ns" in stripped.partition("#")[0] and any(f"{digit}ns" in stripped for digit in "0123456789"):
            assert known or any(word in comment for word in words), line


def test_pair_is_the_example_of_the_documentation() -> None:
    pair = Topology.preset("fabrex-pair")
    assert list(pair.nodes) == ["host0", "host1", "sw0"]
    assert list(pair.links) == ["host0:ntb0-sw0:p0", "host1:ntb0-sw0:p1"]
    assert pair.nodes["host0"].memory["dram"].size == 2**30
    assert pair.nodes["sw0"].delay_ps == 105_000
    link = pair.links["host0:ntb0-sw0:p0"]
    assert link.pcie is not None
    assert (link.pcie.gen, link.pcie.lanes, link.pcie.mps, link.pcie.mrrs, link.delay_ps) == (4, 16, 256, 512, 5000)


def test_claimed_load_is_below_200_ns() -> None:
    claimed = Topology.preset("fabrex-claimed")
    path = 2 * one_way_ps(claimed, "host0", "sw0", "host1") + claimed.nodes["host1"].memory["dram"].latency_ps
    wire = (24 + 28) * 8 * 10**12 // 227_400_000_000  # bytes of request and completion at the TLP rate of Gen4 x16
    assert 185_000 < path + wire < 200_000


def test_measured_load_and_dma_read_are_fitted() -> None:
    measured = Topology.preset("ntb-measured")
    host = measured.nodes["host0"]
    link = measured.links["host0:ntb0-sw0:p0"]
    assert link.pcie is not None
    tlp_bps = Link(gen=3, lanes=12, mps=256, mrrs=512).tlp_bps()
    way = 2 * one_way_ps(measured, "host0", "sw0", "host1") + host.memory["dram"].latency_ps
    load = way + host.pio.read_ps + (24 + 28) * 8 * 10**12 // tlp_bps
    assert load == pytest.approx(1_780_000, rel=0.01)
    reply = (link.pcie.mrrs + 20 * link.pcie.mrrs // link.pcie.mps + 24) * 8 * 10**12 // tlp_bps
    assert host.dma.tags * link.pcie.mrrs / ((way + reply) / 10**12) == pytest.approx(5.0e9, rel=0.02)
    # The width stands for the narrowest place of the way: of all there are, the nearest to the measured DMA write.
    off = {lanes: abs(Link(gen=3, lanes=lanes, mps=256, mrrs=512).write_bps(1 << 20) / 8 / 10.4e9 - 1) for lanes in LANES}
    assert min(off, key=off.__getitem__) == link.pcie.lanes


def test_dolphin_is_below_300_ns_one_way() -> None:
    dolphin = Topology.preset("dolphin-8")
    assert 250_000 < one_way_ps(dolphin, "host0", "sw0", "host7") < 300_000 - 5_000


def test_jetstream_is_2_us_between_servers() -> None:
    assert one_way_ps(Topology.preset("jetstream-pair"), "host0", "host1") == 2_000_000
    assert one_way_ps(Topology.preset("squadrack"), "nic0", "leaf0", "nic1") == 2_000_000


def test_shapes() -> None:
    supernode = Topology.preset("supernode-32")
    assert [len(supernode.of_kind(kind)) for kind in ("host", "accelerator", "memory")] == [4, 32, 1]
    assert {node.memory["hbm"].size for node in supernode.of_kind("accelerator")} == {192 * 10**9}
    corsair = Topology.preset("corsair-server")
    assert len(corsair.of_kind("accelerator")) == 8
    assert corsair.nodes["card7"].memory["sram"].rate_bps == 150 * 8 * 10**12
    assert Topology.preset("local").timing is False


def test_listing_imports_no_yaml() -> None:
    code = "import sys; from fabrex import presets; presets.names(), presets.summary('local'); print('yaml' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "False"
