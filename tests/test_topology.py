# SPDX-License-Identifier: Apache-2.0
"""Topologies: what a file means, what is refused and where, and that nothing is lost on the way out and in again."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import textwrap
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabrex import _yaml
from fabrex.topology import Link, Memory, Node, PcieParams, Problem, Topology, TopologyError, _plain

ROOT = Path(__file__).resolve().parent.parent
FULL = ROOT / "docs/examples/full.yaml"
SCHEMA: dict[str, Any] = json.loads((ROOT / "fabrex/schema/topology.schema.json").read_text(encoding="utf-8"))

PAIR = """\
fabrex: 1
name: pair
nodes:
  host0: {kind: host, memory: {dram: 1GiB}}
  host1: {kind: host, memory: {dram: 1GiB}}
  sw0:   {kind: switch, delay: 105ns}
links:
  - {endpoints: [host0:ntb0, sw0:p0], pcie: {gen: 4, lanes: 16}, delay: 5ns}
  - {endpoints: [host1:ntb0, sw0:p1], pcie: {gen: 4, lanes: 16}}
"""


def problems(text: str) -> list[Problem]:
    with pytest.raises(TopologyError) as caught:
        Topology.loads(textwrap.dedent(text), "bad.yaml")
    assert isinstance(caught.value, ValueError)
    return list(caught.value.errors)


def places(text: str) -> list[tuple[int | None, str]]:
    return [(problem.line, problem.path) for problem in problems(text)]


def only(text: str) -> Problem:
    found = problems(text)
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]


# What a file means


def test_pair() -> None:
    topology = Topology.loads(PAIR)
    assert list(topology.nodes) == ["host0", "host1", "sw0"]
    assert [node.index for node in topology.nodes.values()] == [0, 1, 2]
    assert topology.nodes["host0"].memory == {"dram": Memory("dram", 2**30)}
    assert topology.nodes["host0"].ntb == "fabrex"
    assert topology.nodes["sw0"].ntb is None
    assert topology.nodes["sw0"].delay_ps == 105_000
    link = topology.links["host0:ntb0-sw0:p0"]
    assert (link.a, link.b, link.delay_ps, link.index) == (("host0", "ntb0"), ("sw0", "p0"), 5000, 0)
    assert link.pcie == PcieParams(4, 16, mps=256, mrrs=512, rcb=64, tags=32)
    assert (topology.windows, topology.ordering, topology.timing, topology.seed) == ("auto", "posted", True, 0)
    assert topology.dilation == 1


@pytest.mark.parametrize(("text", "expected"), [("on", True), ("off", False), ("true", True), ("false", False)])
def test_timing(text: str, expected: bool) -> None:
    assert Topology.loads(PAIR + f"timing: {text}\n").timing is expected


@pytest.mark.parametrize("text", ["yes", "no", "On", "1", '""', "[]"])
def test_timing_is_on_or_off_only(text: str) -> None:
    assert only(PAIR + f"timing: {text}\n").path == "timing"


@pytest.mark.parametrize(("text", "num", "den"), [("10", 10, 1), ("2.5", 5, 2), ("3/2", 3, 2), ('"4/6"', 2, 3), ("1.10", 11, 10)])
def test_dilation(text: str, num: int, den: int) -> None:
    topology = Topology.loads(PAIR + f"dilation: {text}\n")
    assert (topology.dilation_num, topology.dilation_den) == (num, den)
    assert topology.dilation == Fraction(num, den)


def test_numbers_are_those_of_yaml_1_2() -> None:
    assert Topology.loads(PAIR + "seed: 0o17\n").seed == 15
    assert Topology.loads(PAIR + "seed: 0xffffffffffffffff\n").seed == 2**64 - 1
    assert Topology.loads(PAIR + "seed: 017\n").seed == 17
    assert only(PAIR + "seed: 1_000\n").path == "seed"
    assert only(PAIR + "seed: 1:30\n").path == "seed"


def test_counts_and_patterns() -> None:
    topology = Topology.loads(
        """
        fabrex: 1
        name: tree
        defaults: {pcie: {gen: 4, lanes: 16}, nodes: {switch: {delay: 105ns}}}
        nodes:
          gpu: {kind: accelerator, count: 4, memory: {hbm: 1GiB}}
          host0: {kind: host}
          sw: {kind: switch, count: 2}
        links:
          - {endpoints: ["gpu[0-1]:ntb0", "sw0:p*"]}
          - {endpoints: ["gpu[2-3]:ntb0", "sw1:p*"], name: "right*"}
          - {endpoints: ["host0:ntb*", "sw*:up0"]}
          - {endpoints: [sw0:p1, sw1:x0]}
        """
    )
    assert list(topology.nodes) == ["gpu0", "gpu1", "gpu2", "gpu3", "host0", "sw0", "sw1"]
    # sw0:p1 is named by the last link, so that the pattern of the first one passes over it.
    assert list(topology.links) == [
        "gpu0:ntb0-sw0:p0",
        "gpu1:ntb0-sw0:p2",
        "right0",
        "right1",
        "host0:ntb0-sw0:up0",
        "host0:ntb1-sw1:up0",
        "sw0:p1-sw1:x0",
    ]
    assert topology.nodes["sw1"].delay_ps == 105_000


def test_defaults_fill_gaps_only() -> None:
    topology = Topology.load(FULL)
    assert topology.nodes["host0"].memory["dram"] == Memory("dram", 2**30, 80_000)
    assert topology.nodes["host2"].memory["dram"] == Memory("dram", 2 * 2**30, 90_000, 307_200_000_000 * 8,
        {"distribution": "exponential", "mean_ps": 5_000, "max_ps": 1_000_000})  # fmt: skip
    assert topology.nodes["gpu0"].memory["hbm"].rate_bps == 3_200_000_000_000 * 8
    assert (topology.nodes["host0"].dma.channels, topology.nodes["host0"].dma.tags) == (2, 64)
    assert topology.nodes["gpu0"].dma.setup_read_ps == 400_000
    gpu = topology.links["gpu0:ntb0-sw0:p4"].pcie
    assert gpu is not None and (gpu.gen, gpu.lanes) == (5, 16)
    ethernet = topology.links["sw0:up0-eth0:e0"].ethernet
    assert ethernet is not None and (ethernet.rate_bps, ethernet.mtu, ethernet.overhead_bytes) == (400 * 10**9, 4096, 38)
    jitter = topology.links["memory-box"].jitter
    assert jitter is not None and jitter["points"]["p99.9"] == 1_200_000
    assert topology.machines["left"]["nodes"] == ("host0", "host1", "host2", "sw0", "gpu0", "gpu1", "gpu2", "gpu3")


def test_a_node_may_say_which_machine_it_is_on() -> None:
    said = """fabrex: 1
name: placed
nodes:
  host: {kind: host, count: 2, memory: {dram: 1GiB}, machine: m*}
  gpu: {kind: accelerator, count: 2, memory: {hbm: 1GiB}, machine: m1}
  sw0: {kind: switch, machine: m0}
links:
  - {endpoints: ["host*:n", "sw0:h*"], pcie: {gen: 4, lanes: 16}}
  - {endpoints: ["gpu*:n", "sw0:g*"], pcie: {gen: 4, lanes: 16}}
"""
    topology = Topology.loads(said)
    assert {name: machine["nodes"] for name, machine in topology.machines.items()} == {
        "m0": ("host0", "sw0"),
        "m1": ("host1", "gpu0", "gpu1"),
    }
    assert [topology.machine_of(name) for name in ("host0", "gpu1")] == ["m0", "m1"]
    tree, _ = _yaml.parse(said)
    jsonschema.validate(_plain(tree), SCHEMA)
    # Beside lists, where they agree; the map then says which machines there are, and which is first.
    both = said + 'machines: {m1: {address: x, nodes: ["gpu*"]}, m0: {nodes: [host0]}}\n'
    assert list(Topology.loads(both).machines) == ["m1", "m0"]
    assert set(Topology.loads(both).machines["m1"]["nodes"]) == {"host1", "gpu0", "gpu1"}
    assert Topology.loads(both).machines["m1"]["address"] == "x"
    for made in (topology, Topology.loads(both)):
        assert Topology.from_dict(made.to_dict()) == made == Topology.loads(made.to_yaml())
    moved = topology.override({"nodes.gpu1.machine": "m0"})
    assert moved.machine_of("gpu1") == "m0" and moved.machine_of("gpu0") == "m1"
    assert Topology.loads(said.replace(", machine: m*", "").replace(", machine: m1", "")).machine_of("host0") is None
    with pytest.raises(TopologyError, match="no machine is named 'm7'"):
        topology.override(["nodes.gpu0.machine=m7"])


def test_full_example_uses_every_key() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    keys: set[str] = set()

    def collect(schema: Any) -> None:
        if isinstance(schema, dict):
            keys.update(schema.get("properties", {}) if isinstance(schema.get("properties"), dict) else ())
            for value in schema.values():
                collect(value)

    collect(SCHEMA)
    text = FULL.read_text(encoding="utf-8")
    assert [key for key in sorted(keys) if f"{key}:" not in text] == []


def test_lone_node_needs_no_link() -> None:
    assert len(Topology.loads("fabrex: 1\nname: one\nnodes: {a: {kind: host, memory: {dram: 128KiB}}}\n").nodes) == 1


# What is refused, and where


def test_all_problems_at_once_with_their_lines() -> None:
    text = """\
    fabrex: 1
    name: Bad
    ndoes: {}
    nodes:
      host0: {kind: hots, memory: {dram: 1}}
      host1: {kind: host, memory: {dram: 1gib}, delay: 3ns}
      sw0: {kind: switch, memory: {dram: 1GiB}}
      host0: {kind: host}
      lone: {kind: memory}
    links:
      - {endpoints: [host0:ntb0, sw0:p0], pcie: {gen: 7, lanes: 3, mps: 100, mtu: 4}}
      - {endpoints: [host1:ntb0, sw0:p0], pcie: {gen: 4}}
      - {endpoints: [hots1:ntb0, sw0]}
    timing: maybe
    """
    assert places(text) == [
        (2, "name"),
        (3, "ndoes"),
        (5, "nodes.host0.kind"),
        (5, "nodes.host0.memory.dram"),
        (6, "nodes.host1.memory.dram"),
        (6, "nodes.host1.delay"),
        (7, "nodes.sw0.memory"),
        (8, ""),
        (9, "nodes.lone.memory"),
        (11, "links[0].pcie.gen"),
        (11, "links[0].pcie.lanes"),
        (11, "links[0].pcie.mps"),
        (11, "links[0].pcie.mtu"),
        (12, "links[1].endpoints"),
        (12, "links[1].pcie"),
        (13, "links[2]"),
        (13, "links[2].endpoints[1]"),
        (14, "timing"),
    ]
    found = problems(text)
    assert found[0].column == 11 - 4
    assert "did you mean 'host'?" in found[2].message
    assert "did you mean GiB?" in found[4].message
    assert "first on line 5" in found[7].message


def test_message_names_the_file() -> None:
    with pytest.raises(TopologyError, match=r"rack\.yaml: line 2, column 7: name: "):
        Topology.loads(PAIR.replace("pair", "9"), "rack.yaml")


# Text of one bad file each: replace this by that in PAIR, and the path, line and part of the message. `schema` says
# whether the JSON Schema can see it too; what depends on other parts of the file is beyond it.
BAD: list[tuple[str, str, str, int, str, bool]] = [
    ("fabrex: 1\n", "fabrex: 2\n", "fabrex", 1, "this fabrex reads version 1 and has to be upgraded", True),
    ("fabrex: 1\n", "fabrex: 0\n", "fabrex", 1, "no version 0", True),
    ("fabrex: 1\n", "", "fabrex", 1, "write fabrex: 1", True),
    ("name: pair\n", "", "name", 1, "no name", True),
    ("gen: 4, lanes: 16}}", "gen: 4, lanes: 3}}", "links[1].pcie.lanes", 9, "allowed: 1, 2, 4, 8, 12, 16, 32", True),
    ("gen: 4, lanes: 16}}", "gen: 4, lanes: 16.0}}", "links[1].pcie.lanes", 9, "not the number 16.0", True),
    ("gen: 4, lanes: 16}}", 'gen: "4", lanes: 16}}', "links[1].pcie.gen", 9, "not the text '4'", True),
    ("gen: 4, lanes: 16}}", "gen: 4, lanes: 16, mrrs: 384}}", "links[1].pcie.mrrs", 9, "allowed: 128, 256", True),
    ("gen: 4, lanes: 16}}", "gen: 4, lanes: 16, rcb: 32}}", "links[1].pcie.rcb", 9, "allowed: 64, 128", True),
    ("gen: 4, lanes: 16}}", "gen: 4, lanes: 16, posted_credits_data: 8}}", "links[1].pcie", 9, "at least 16", False),
    ("gen: 4, lanes: 16}}", "gen: 4}}", "links[1].pcie", 9, "lanes is missing", False),
    (", pcie: {gen: 4, lanes: 16}}", "}", "links[1]", 9, "neither pcie nor ethernet", False),
    ("lanes: 16}}", "lanes: 16}, ethernet: {rate: 1Gb/s}}", "links[1].ethernet", 9, "not both", True),
    ("delay: 5ns", "delay: 5", "links[0].delay", 8, "has no unit; allowed: ps, ns", True),
    ("delay: 5ns", "delay: 5 parsecs", "links[0].delay", 8, "unknown unit", True),
    ("delay: 5ns", "delay: 2000000s", "links[0].delay", 8, "out of range", False),
    ("delay: 5ns", "dealy: 5ns", "links[0].dealy", 8, "did you mean 'delay'?", True),
    ("host1:ntb0", "host1", "links[1].endpoints[0]", 9, "NODE:PORT", True),
    ("host1:ntb0", "hots1:ntb0", "links[1].endpoints[0]", 9, "did you mean 'host1'?", False),
    ("host1:ntb0", '"h[0-1]:ntb0"', "links[1].endpoints[0]", 9, "do not exist: h0, h1", False),
    ("host1:ntb0", '"q*:ntb0"', "links[1].endpoints[0]", 9, "stands for no node", False),
    ("[host1:ntb0, sw0:p1]", "[host1:ntb0]", "links[1].endpoints", 9, "two endpoints, not 1", True),
    ("sw0:p1", "sw0:p0", "links[1].endpoints", 9, "used twice; first by the link host0:ntb0-sw0:p0 on line 8", False),
    ("sw0:p1", "host1:p1", "links[1].endpoints", 9, "to itself", False),
    (
        "host1: {kind: host, memory: {dram: 1GiB}}",
        "host1: {kind: host, memory: {dram: 1MB}}",
        "nodes.host1.memory.dram",
        5,
        "multiple of 4KiB (did you mean 1MiB?)",
        False,
    ),
    (
        "host1: {kind: host, memory: {dram: 1GiB}}",
        "host1: {kind: host, memory: {dram: 64KiB}}",
        "nodes.host1.memory.dram",
        5,
        "allowed: 128KiB to 16TiB",
        False,
    ),
    (
        "host1: {kind: host, memory: {dram: 1GiB}}",
        "host1: {kind: host, memory: {dram: 17TiB}}",
        "nodes.host1.memory.dram",
        5,
        "allowed: 128KiB to 16TiB",
        False,
    ),
    (
        "host1: {kind: host, memory: {dram: 1GiB}}",
        "host1: {kind: host, memory: {dram: -1GiB}}",
        "nodes.host1.memory.dram",
        5,
        "not a size",
        True,
    ),
    (
        "host1: {kind: host, memory: {dram: 1GiB}}",
        "host1: {kind: host, memory: {DRAM: 1GiB}}",
        "nodes.host1.memory.DRAM",
        5,
        "did you mean 'dram'?",
        True,
    ),
    (
        "host1: {kind: host, memory: {dram: 1GiB}}",
        "host1: {kind: host, ntb: switchtek}",
        "nodes.host1.ntb",
        5,
        "did you mean 'switchtec'?",
        True,
    ),
    (
        "host1: {kind: host, memory: {dram: 1GiB}}",
        "host1: {kind: host, pio: {access_bytes: 3}}",
        "nodes.host1.pio.access_bytes",
        5,
        "allowed: 1, 2, 4",
        True,
    ),
    (
        "host1: {kind: host, memory: {dram: 1GiB}}",
        "host1: {kind: host, pio: {wc: yes}}",
        "nodes.host1.pio.wc",
        5,
        "expected true or false",
        True,
    ),
    ("host1: {kind: host, memory: {dram: 1GiB}}", "host1: {memory: {dram: 1GiB}}", "nodes.host1", 5, "has no kind", True),
    ("host1: {kind: host, memory: {dram: 1GiB}}", "host1: {kind: host, delay: 1ns}", "nodes.host1.delay", 5, "only a switch", True),
    ("host1: {kind: host, memory: {dram: 1GiB}}", "host1:", "nodes.host1", 5, "expected a mapping, not nothing", True),
    ("sw0:   {kind: switch, delay: 105ns}", "sw0: {kind: switch, dma: {}}", "nodes.sw0.dma", 6, "a switch has no dma", True),
    (
        "sw0:   {kind: switch, delay: 105ns}",
        "sw0: {kind: switch}\n  x: {kind: host}",
        "nodes.x",
        7,
        "no link reaches this node",
        False,
    ),
    ("sw0:   {kind: switch, delay: 105ns}", "sw0: {kind: host}", "nodes.host0", 4, "no route from host0 to host1", False),
    (
        "sw0:   {kind: switch, delay: 105ns}",
        "sw0: {kind: switch}\n  host: {kind: host, count: 2}",
        "nodes.host",
        7,
        "the name 'host0' is taken by the node on line 4",
        False,
    ),
    ("sw0:   {kind: switch, delay: 105ns}", "sw0: {kind: switch, count: 0}", "nodes.sw0.count", 6, "allowed: 1 to 4096", True),
    ("links:", "links:\n  - 5", "links[0]", 8, "expected a mapping, not the number 5", True),
    ("links:", "machines: {m: {nodes: [host7]}}\nlinks:", "machines.m.nodes[0]", 7, "no node is named 'host7'", False),
    ("links:", "machines: {m: {}}\nlinks:", "machines.m.nodes", 7, "the machine has no nodes", False),
    ("sw0:   {kind: switch, delay: 105ns}", "sw0: {kind: switch, machine: M0}", "nodes.sw0.machine", 6, "'m0'", True),
    ("sw0:   {kind: switch, delay: 105ns}", "sw0: {kind: switch, machine: [m0]}", "nodes.sw0.machine", 6, "expected text", True),
    (
        "sw0:   {kind: switch, delay: 105ns}",
        "sw0: {kind: switch, machine: mo}\nmachines: {m0: {nodes: [host0]}, m1: {nodes: [host1]}}",
        "nodes.sw0.machine",
        6,
        "no machine is named 'mo'; machines: m0, m1",
        False,
    ),
    (
        "sw0:   {kind: switch, delay: 105ns}",
        "sw0: {kind: switch, machine: m0}\nmachines: {m0: {nodes: [host0]}, m1: {nodes: [host1, sw0]}}",
        "nodes.sw0.machine",
        6,
        "sw0 is on m0 here, and on m1 by machines.m1.nodes[1] on line 7",
        False,
    ),
    ("links:", "ordering: adversary\nlinks:", "ordering", 7, "did you mean 'adversarial'?", True),
    ("links:", "dilation: 0\nlinks:", "dilation", 7, "out of range", True),
    ("links:", "seed: -1\nlinks:", "seed", 7, "allowed: 0 to", True),
    ("links:", "defaults: {pcie: {gen: 9}}\nlinks:", "defaults.pcie.gen", 7, "allowed: 1, 2, 3, 4, 5, 6", True),
]


@pytest.mark.parametrize(("old", "new", "path", "line", "message", "schema"), BAD)
def test_bad_files(old: str, new: str, path: str, line: int, message: str, schema: bool) -> None:
    assert old in PAIR
    text = PAIR.replace(old, new)
    found = [problem for problem in problems(text) if problem.path == path]
    assert found, [str(problem) for problem in problems(text)]
    assert found[0].line == line
    assert found[0].column is not None and found[0].column >= 1
    assert message in found[0].message
    tree, faults = _yaml.parse(text)
    assert tree is not None and not faults
    valid = jsonschema.Draft202012Validator(SCHEMA).is_valid(_plain(tree))
    assert valid is not schema


def test_full_example_matches_the_schema() -> None:
    tree, _ = _yaml.parse(FULL.read_text(encoding="utf-8"))
    assert tree is not None
    jsonschema.Draft202012Validator(SCHEMA).validate(_plain(tree))


def test_a_bad_default_is_reported_once() -> None:
    assert len([p for p in problems(PAIR + "defaults: {memory: {dram: {latency: 5}}}\n") if "no unit" in p.message]) == 1


def test_unpaired_patterns() -> None:
    text = PAIR.replace("host1:ntb0, sw0:p1", '"host*:ntb1", "sw[0-2]:p1"').replace(
        "sw0: ", "sw: {kind: switch, count: 3}\n  sw9: "
    )
    assert any("stands for 2 nodes and 'sw[0-2]' for 3" in problem.message for problem in problems(text))


def test_separate_parts() -> None:
    text = textwrap.dedent("""\
        fabrex: 1
        name: parts
        defaults: {pcie: {gen: 4, lanes: 16}}
        nodes: {h: {kind: host, count: 4}}
        links: [{endpoints: [h0:a, h1:a]}, {endpoints: [h2:a, h3:a]}]
        """)
    assert "2 parts that no link joins: h0, h1; h2, h3" in only(text).message
    assert "2 parts" in only(text + "windows: manual\n").message


def test_many_lonely_nodes_are_one_problem() -> None:
    problem = only("fabrex: 1\nname: a\nnodes: {h: {kind: host, count: 100}}\n")
    assert (problem.line, problem.path) == (3, "nodes.h")
    assert "no link reaches h0, h1, h2, h3, h4, h5, h6, h7 and 92 more" in problem.message


def test_a_long_message_is_cut_but_nothing_is_lost() -> None:
    with pytest.raises(TopologyError, match="and 150 more") as caught:
        Topology.loads("fabrex: 1\nname: a\nnodes: {" + ", ".join(f"n{n}: {{kind: x}}" for n in range(100)) + "}\n")
    assert len(caught.value.errors) == 200


def test_a_chain_of_hosts_has_no_route_unless_manual() -> None:
    text = textwrap.dedent("""\
        fabrex: 1
        name: chain
        defaults: {pcie: {gen: 4, lanes: 16}}
        nodes: {h: {kind: host, count: 3}}
        links: [{endpoints: [h0:a, h1:a]}, {endpoints: [h1:b, h2:a]}]
        """)
    assert "no route from h0 to h2" in only(text).message
    chain = Topology.loads(text + "windows: manual\n")
    assert chain.reachable("h0") == ["h1"]
    assert chain.reachable("h1") == ["h0", "h2"]


def test_cycles_and_parallel_links_are_legal() -> None:
    ring = Topology.builder("ring", defaults={"pcie": {"gen": 4, "lanes": 8}}).host("h", count=3).switch("s", count=3)
    ring.link("h*:ntb0", "s*:h0").link("s0:a", "s1:b").link("s1:a", "s2:b").link("s2:a", "s0:b").link("s0:c", "s1:c")
    assert ring.build().reachable("h0") == ["h1", "h2"]


def test_limits() -> None:
    assert (
        "more than 4096 nodes"
        in problems("fabrex: 1\nname: a\nnodes: {a: {kind: host, count: 4096}, b: {kind: host}}\n")[0].message
    )
    tiers = ", ".join(f"t{number}: 1MiB" for number in range(17))
    assert "more than 16 memory tiers" in only(f"fabrex: 1\nname: a\nnodes: {{a: {{kind: host, memory: {{{tiers}}}}}}}\n").message
    assert Topology.loads("fabrex: 1\nname: a\nnodes: {a: {kind: host}}\n")
    long = "a" * 64
    assert "1 to 63 characters" in only(f"fabrex: 1\nname: {long}\nnodes: {{a: {{kind: host}}}}\n").message


# YAML itself


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "the file is empty"),
        ("# nothing\n", 1, "the file is empty"),
        ("a: 1\n---\nb: 2\n", 2, "a second document begins here"),
        ("a: &x [*x]\n", 1, "inside its own anchor"),
        ("a: *x\n", 1, None),
        ("a: [1\nb: 2\n", 2, "not YAML"),
        ("a: !!python/object:os.system x\n", 1, "not one of the core schema"),
        ("a: !!int x\n", 1, "is not a !!int"),
        ("? [a]\n: 1\n", 1, "a key must be a string"),
        ("a: {<<: {b: 1}}\n", 1, "merge keys"),
        ("a: \x01\n", 1, "not allowed in YAML"),
        ("[" * 100 + "]" * 100, 1, "nested deeper than 64"),
    ],
)
def test_yaml_that_is_refused(text: str, line: int, message: str | None) -> None:
    _, faults = _yaml.parse(text)
    assert len(faults) == 1
    assert faults[0].line == line
    assert message is None or message in faults[0].message


def test_alias_bomb_is_refused() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    tree, faults = _yaml.parse(text)
    assert tree is None and "aliases included" in faults[0].message


def test_anchors_are_fine() -> None:
    text = PAIR.replace("pcie: {gen: 4, lanes: 16}, delay", "pcie: &wide {gen: 4, lanes: 16}, delay")
    assert Topology.loads(text.replace("pcie: {gen: 4, lanes: 16}}", "pcie: *wide}")) == Topology.loads(PAIR)


def test_bytes_that_are_refused(tmp_path: Path) -> None:
    for data, line, message in [
        (b"name: pair\nnotes: caf\xe9\n", 2, "not UTF-8: byte 0xe9"),
        (PAIR.encode("utf-16"), 1, "not UTF-8"),
        (b"# " + b"x" * _yaml.MAX_BYTES, None, "4 MiB"),
    ]:
        path = tmp_path / "t.yaml"
        path.write_bytes(data)
        with pytest.raises(TopologyError, match=message) as caught:
            Topology.load(path)
        assert [problem.line for problem in caught.value.errors] == [line]


def test_byte_order_mark_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + PAIR.encode())
    assert Topology.load(path) == Topology.loads(PAIR)


@settings(max_examples=200)
@given(st.text(alphabet="ab01:{}[]-*&!#'\"\n ,?|>~.%@\t", max_size=60))
def test_any_text_is_a_topology_error(text: str) -> None:
    with pytest.raises(TopologyError):
        Topology.loads(text)


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200)
@given(st.sampled_from(["nodes", "links", "defaults", "machines", "seed", "dilation", "name", "fabrex"]), JSONISH)
def test_any_value_in_any_place_is_a_topology_error_or_fine(key: str, value: Any) -> None:
    document = Topology.loads(PAIR).to_dict()
    document[key] = value
    try:
        Topology.from_dict(document)
    except TopologyError as error:
        assert error.errors


# Out and in again


@pytest.mark.parametrize("text", [PAIR, FULL.read_text(encoding="utf-8")])
def test_round_trips(text: str) -> None:
    topology = Topology.loads(text)
    assert Topology.from_dict(topology.to_dict()) == topology
    assert Topology.from_dict(json.loads(json.dumps(topology.to_dict()))) == topology
    assert Topology.loads(topology.to_yaml()) == topology
    assert pickle.loads(pickle.dumps(topology)) == topology == copy.deepcopy(topology)
    assert hash(pickle.loads(pickle.dumps(topology))) == hash(topology)
    assert topology.override({}) == topology


@given(st.text(max_size=40))
def test_notes_survive_yaml(notes: str) -> None:
    try:
        notes.encode("utf-8")
    except UnicodeEncodeError:
        return
    topology = Topology.loads(PAIR).override({}, notes="x").to_dict()
    topology["notes"] = notes
    built = Topology.from_dict(topology)
    assert Topology.loads(built.to_yaml()).notes == notes


def test_python_objects() -> None:
    built = Topology(
        "pair",
        [Node("host0", memory={"dram": "1GiB"}), Node("host1", memory={"dram": 2**30}), Node("sw0", "switch", delay_ps=105_000)],
        [
            Link("host0:ntb0", "sw0:p0", pcie=PcieParams(4, 16), delay_ps=5000),
            Link(("host1", "ntb0"), ("sw0", "p1"), pcie=PcieParams(4, 16)),
        ],
    )
    assert built == Topology.loads(PAIR)
    assert built.digest() == Topology.loads(PAIR).digest()


def test_python_objects_are_checked() -> None:
    with pytest.raises(TopologyError) as caught:
        Topology("x", [Node("a", memory={"dram": -5}), Node("b")], [Link("a:p", "b:p", pcie=PcieParams(9, 3), delay_ps=-1)])
    assert [problem.path for problem in caught.value.errors] == [
        "nodes.a.memory.dram",
        "links[0].delay",
        "links[0].pcie.gen",
        "links[0].pcie.lanes",
    ]
    assert all(problem.line is None for problem in caught.value.errors)
    with pytest.raises(TopologyError, match="given twice"):
        Topology("x", [Node("a"), Node("a")])


def test_builder() -> None:
    pcie = {"gen": 4, "lanes": 16}
    built = Topology.builder("pair").host("host0", dram="1GiB").host("host1", dram="1GiB").switch("sw0", delay="105ns")
    built.link("host0:ntb0", "sw0:p0", pcie=pcie, delay="5ns").link("host1:ntb0", "sw0:p1", pcie=pcie)
    assert built.build() == Topology.loads(PAIR)
    with pytest.raises(TopologyError, match="given twice"):
        Topology.builder("x").host("a").host("a").build()


def test_it_cannot_be_changed() -> None:
    topology = Topology.loads(PAIR)
    with pytest.raises(AttributeError):
        topology.name = "x"  # type: ignore[misc]
    with pytest.raises(TypeError, match="override"):
        topology.nodes["x"] = Node("x")  # type: ignore[index]
    with pytest.raises(TypeError):
        topology.nodes.update({})  # type: ignore[attr-defined]


def test_digest_is_stable_and_sees_what_matters() -> None:
    topology = Topology.loads(PAIR)
    assert topology.digest() == Topology.loads("# comment\n" + PAIR, "elsewhere").digest()
    assert topology.override(notes="x").digest() == topology.digest()
    changed = [
        topology.override({key: value}).digest()
        for key, value in [
            ("timing", "off"),
            ("seed", 1),
            ("links.host0:ntb0-sw0:p0.delay", "6ns"),
            ("nodes.host0.memory.dram", "2GiB"),
            ("nodes.host0.ntb", "idt"),
        ]
    ]
    assert len({topology.digest(), *changed}) == 6
    code = f"from fabrex.topology import Topology; print(Topology.loads({PAIR!r}).digest())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == topology.digest()


# Overrides


def test_override() -> None:
    topology = Topology.loads(PAIR)
    changed = topology.override(
        {
            "links.host0:ntb0-sw0:p0.delay": "500ns",
            "nodes.host0.memory.dram": "2GiB",
            "nodes.host1.memory.hbm": "{size: 1GiB, latency: 9ns}",
            "links.*.pcie.lanes": 8,
            "timing": "off",
        },
        ordering="adversarial",
        seed=7,
    )
    assert changed.links["host0:ntb0-sw0:p0"].delay_ps == 500_000
    assert changed.nodes["host0"].memory["dram"].size == 2 * 2**30
    assert changed.nodes["host1"].memory["hbm"] == Memory("hbm", 2**30, 9000)
    assert [link.pcie.lanes for link in changed.links.values() if link.pcie] == [8, 8]
    assert (changed.timing, changed.ordering, changed.seed) == (False, "adversarial", 7)
    assert topology == Topology.loads(PAIR)


def test_override_from_a_command_line() -> None:
    topology = Topology.load(FULL)
    changed = topology.override(
        ["nodes.host2.memory.dram=4GiB", "nodes.gpu*.memory.hbm.latency=1us", "nodes.host2.ntb=", "links.leaf1-gpu*.delay = 7ns"]
    )
    dram = changed.nodes["host2"].memory["dram"]
    assert (dram.size, dram.latency_ps) == (4 * 2**30, 90_000)
    assert {node.memory["hbm"].latency_ps for node in changed.of_kind("accelerator")} == {1_000_000}
    assert changed.nodes["host2"].ntb == "fabrex"
    assert [link.name for link in changed.links.values() if link.delay_ps == 7000] == [f"leaf1-gpu{n}" for n in range(4)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("links.host0:ntb0-sw0:p9.delay=1ns", "did you mean 'host0:ntb0-sw0:p0'"),
        ("links.host0:ntb0-sw0:p0=1ns", "the key below links.host0:ntb0-sw0:p0 is missing"),
        ("links.host0:ntb0-sw0:p0.dealy=1ns", "links.host0:ntb0-sw0:p0.dealy: unknown key 'dealy' .did you mean 'delay'"),
        ("links.host0:ntb0-sw0:p0.delay=1", "has no unit"),
        ("timing", "write KEY=VALUE"),
        ("timming=off", "did you mean 'timing'"),
        ("defaults.delay=5ns", "defaults have been applied"),
        ("name.x=5", "cannot be set"),
        ("nodes.host0.kind.x=1", "no keys below"),
        ("nodes.host0.memory.dram={", "cannot be read"),
    ],
)
def test_bad_overrides(change: str, message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        Topology.loads(PAIR).override([change])


# Ways in


def test_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topology = Topology.loads(PAIR)
    path = tmp_path / "pair.yaml"
    path.write_text(PAIR, encoding="utf-8")
    (tmp_path / "plain").write_text(PAIR, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert Topology.resolve(topology) is topology
    assert Topology.resolve(topology.to_dict()) == topology
    assert Topology.resolve(path) == Topology.resolve(str(path)) == Topology.resolve("pair.yaml") == Topology.resolve("plain")
    assert Topology.resolve("fabrex-pair").name == "fabrex-pair"
    with pytest.raises(TopologyError, match=r"did you mean 'fabrex-pair'\?"):
        Topology.resolve("fabric-pair")
    with pytest.raises(FileNotFoundError):
        Topology.resolve("absent.yaml")
    with pytest.raises(TopologyError, match="presets: corsair-server"):
        Topology.preset("absent")


def test_error_survives_pickling() -> None:
    with pytest.raises(TopologyError) as caught:
        Topology.loads("fabrex: 1\n")
    again = pickle.loads(pickle.dumps(caught.value))
    assert list(again.errors) == list(caught.value.errors)
    assert str(again) == str(caught.value)


def test_import_needs_neither_core_nor_numpy_nor_yaml() -> None:
    heavy = ("yaml", "numpy", "fabrex._core", "fabrex._hot", "jsonschema")
    code = f"import sys; import fabrex.topology; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


def test_the_largest_fabric_is_read_in_reasonable_work() -> None:
    text = "fabrex: 1\nname: large\ndefaults: {pcie: {gen: 4, lanes: 16}}\n"
    text += "nodes: {h: {kind: host, count: 4095}, s: {kind: switch}}\n"
    topology = Topology.loads(text + 'links: [{endpoints: ["h*:ntb0", "s:p*"]}]\n')
    assert len(topology.links) == 4095
    assert topology.links["h4094:ntb0-s:p4094"].index == 4094
