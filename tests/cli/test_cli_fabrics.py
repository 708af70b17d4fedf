# SPDX-License-Identifier: Apache-2.0
"""Fabrics from the command line: descriptions, lives, links, windows, memory; good and bad words."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fabrex
from fabrex import presets

from .conftest import Cli

LINK = "host0:ntb0-sw0:p0"


# -- descriptions -----------------------------------------------------------------------------------------------------


def test_presets_are_listed_and_shown(cli: Cli) -> None:
    text = cli.good("presets").out
    assert [line.split()[0] for line in text.splitlines()[1:]] == list(presets.names())
    assert cli.good("presets", "fabrex-pair").out == presets.text("fabrex-pair")
    found = cli.good("presets", "--json").document
    assert [preset["name"] for preset in found["presets"]] == list(presets.names())
    assert cli.good("presets", "fabrex-pair", "--json").document["topology"]["name"] == "fabrex-pair"


def test_validate(cli: Cli, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(presets.text("fabrex-pair"))
    bad.write_text("fabrex: 1\nname: x\nnodes:\n  a: {kind: hosst, memory: {dram: 1GB, dram2: 12}}\nlinks: []\n")
    assert cli.good("validate", str(good)).out == f"{good}: valid: fabrex-pair: 2 hosts, 1 switch; 2 links; 2 GiB of memory\n"
    assert cli.good("validate", str(good), "--json").document["valid"] is True
    result = cli("validate", str(bad))
    assert result.code == 6 and result.out == "" and "line 4" in result.err
    found = cli("validate", str(bad), "--json")
    assert found.code == 6 and len(found.document["problems"]) >= 2
    assert {problem["line"] for problem in found.document["problems"]} == {4}
    assert cli.good("validate", "-", input=presets.text("local")).out.startswith("-: valid: local")


def test_validate_a_newer_version(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "new.yaml"
    file.write_text(presets.text("fabrex-pair").replace("fabrex: 1", "fabrex: 2"))
    result = cli("validate", str(file))
    assert result.code == 6 and "version" in result.err and "2" in result.err


@pytest.mark.parametrize(("option", "start"), [("--svg", "<svg"), ("--dot", "graph "), ("--mermaid", "graph ")])
def test_graph_of_a_topology(cli: Cli, option: str, start: str, tmp_path: Path) -> None:
    text = cli.good("graph", "fabrex-pair", option).out
    assert re.search(f"^{start}", text, re.M) or "flowchart" in text
    file = tmp_path / "drawing"
    result = cli.good("graph", "fabrex-pair", option, "-o", str(file))
    assert result.out == "" and file.read_text().rstrip() == text.rstrip()


def test_graph_chooses_by_ending_and_draws_fabrics(cli: Cli, tmp_path: Path) -> None:
    cli.good("up", "fabrex-pair", "--name", "drawn")
    cli.good("graph", "drawn", "-o", str(tmp_path / "a.svg"))
    assert (tmp_path / "a.svg").read_text().startswith("<svg")


# -- lives --------------------------------------------------------------------------------------------------------------


def test_a_life(cli: Cli) -> None:
    text = "lab: fabrex-pair, 3 nodes, 2 links, timing on, ordering posted\n"
    assert cli.good("up", "fabrex-pair", "--name", "lab").out == text
    header, row = cli.good("list").out.splitlines()
    assert header.split() == ["NAME", "STATE", "LIFE", "NODES", "LINKS", "ATTACHED", "TIMING", "ORDERING", "MEMORY", "AGE"]
    assert row.split()[:8] == ["lab", "up", "persistent", "3", "2", "0", "on", "posted"]
    [fabric] = cli.good("list", "--json").document["fabrics"]
    assert (fabric["name"], fabric["alive"], fabric["timing"], fabric["processes"]) == ("lab", True, "on", 0)
    assert "fabricctl down lab" in cli.bad(4, "up", "fabrex-pair", "--name", "lab")
    assert "did you mean 'lab'?" in cli.bad(3, "inspect", "lba")
    assert "did you mean 'lab'?" in cli.bad(3, "down", "laab")
    assert cli.good("down", "lab").out == "lab: ended\n"
    assert cli.segments() == []
    result = cli.good("list")
    assert result.out == "" and "no fabrics" in result.err


def test_up_takes_options_and_the_topology_name(cli: Cli) -> None:
    found = cli.good("up", "fabrex-pair", "--timing", "off", "--ordering", "immediate", "--seed", "0x10", "--json",
                     "--set", f"links.{LINK}.delay=500ns").document  # fmt: skip
    assert found["fabric"]["name"] == "fabrex-pair"
    assert (found["fabric"]["timing"], found["fabric"]["ordering"], found["fabric"]["seed"]) == ("off", "immediate", 16)
    links = cli.good("link", "show", "fabrex-pair", "--json").document["links"]
    assert {link["name"]: link["delay_ps"] for link in links}[LINK] == 500_000


def test_up_of_several_machines_on_one_says_so(cli: Cli, tmp_path: Path) -> None:
    described = tmp_path / "two.yaml"
    document = fabrex.Topology.preset("fabrex-pair").to_dict()
    switch = next(name for name, node in document["nodes"].items() if node["kind"] == "switch")
    document["machines"] = {"m0": {"nodes": ["host0", switch]}, "m1": {"nodes": ["host1"]}}
    described.write_text(fabrex.Topology.from_dict(document).to_yaml(), encoding="utf-8")
    result = cli.good("up", str(described), "--name", "lab")
    assert "all nodes are placed here" in result.err and "--machine m0" in result.err
    assert cli("exec", "lab", "--node", "host1", "--", "true").code == 0
    with fabrex.Fabric.host(fabrex.Topology.load(described), "far", directory=cli.directory):
        said = cli.bad(3, "exec", "far", "--node", "host1", "--", "true")
        assert "host1 is at home on machine m1" in said
        assert cli("exec", "far", "--node", "host0", "--", "true").code == 0


def test_directory_option(cli: Cli, tmp_path: Path) -> None:
    place = os.path.join(cli.directory, "inner")
    os.mkdir(place)
    cli.good("up", "local", "--directory", place)
    assert cli.good("list").out == ""
    assert "local" in cli.good("list", "--directory", place).out
    cli.good("down", "local", "--directory", place)
    os.rmdir(place)


def test_down_refuses_while_attached(cli: Cli) -> None:
    cli.good("up", "local", "--name", "busy")
    program = "import fabrex, sys; n = fabrex.Fabric.open('busy').attach('host0'); print('in', flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", program], env=cli.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline() == b"in\n"
        assert "--force" in cli.bad(5, "down", "busy")
        assert "--force" in cli.bad(5, "down", "--all")
        assert cli.good("inspect", "busy", "--json").document["nodes"][0]["owner_pid"] == other.pid
        assert cli.good("down", "busy", "--force").out == "busy: ended\n"
        assert cli.segments() == []
    finally:
        other.kill()
        other.communicate()


def test_down_all_and_several(cli: Cli) -> None:
    for name in ("a", "b", "c"):
        cli.good("up", "local", "--name", name)
    assert cli.good("down", "a", "b", "--json").document["ended"] == ["a", "b"]
    result = cli("down", "c", "nothing", "--json")
    assert result.code == 3 and result.document["ended"] == ["c"] and result.document["failed"][0]["name"] == "nothing"
    assert "no fabrics" in cli.good("down", "--all").err


def test_inspect(cli: Cli) -> None:
    cli.good("up", "fabrex-pair", "--name", "lab")
    with_buffer = "import fabrex; n = fabrex.Fabric.open('lab').attach('host0'); n.alloc(8192, name='inbox')"
    subprocess.run([sys.executable, "-c", with_buffer], env=cli.env, check=True)
    text = cli.good("inspect", "lab").out
    assert text.startswith("lab: fabrex-pair, persistent, in ") and "inbox" in text and LINK in text
    found = cli.good("inspect", "lab", "--json").document
    assert [(b["name"], b["node"], b["tier"], b["bytes"]) for b in found["buffers"]] == [("inbox", "host0", "dram", 8192)]
    assert found["nodes"][1]["regions"][0]["gva"] == "0x0000020000000000"
    assert cli.good("mem", "write", "lab", "@inbox+8", "7").code == 0
    assert cli.good("mem", "read", "lab", "@inbox+8", "--size", "8", "--json").document["data"] == "0700000000000000"


def test_prune_removes_what_the_dead_left_and_nothing_else(cli: Cli) -> None:
    cli.good("up", "local", "--name", "keeps")
    program = "import fabrex, os, signal; f = fabrex.Fabric.create('local', 'dies'); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", program], env=cli.env, check=False)
    assert "dead" in cli.good("list").out
    there = cli.segments()
    found = cli.good("prune", "--dry-run", "--json").document
    assert [item["name"] for item in found["removed"]] == ["dies"] and cli.segments() == there
    assert cli.good("prune").out.startswith("dies: removed")
    assert all("keeps" in segment for segment in cli.segments())
    orphan = Path(cli.directory, f"fabrex@{os.getuid()}@gone@0123456789abcdef@r0")
    orphan.write_bytes(b"")
    assert cli.good("prune", "--json").document["removed"][0]["name"] == orphan.name
    assert not orphan.exists()
    assert "nothing to remove" in cli.good("prune").err
    assert "keeps" in cli.good("list").out


def test_prune_leaves_what_is_being_made(cli: Cli) -> None:
    fresh = Path(cli.directory, f"fabrex@{os.getuid()}@young@0123456789abcdef@new")
    fresh.write_bytes(b"")
    region = Path(cli.directory, f"fabrex@{os.getuid()}@young@0123456789abcdef@r0")
    region.write_bytes(b"")
    cli.good("prune")
    assert fresh.exists() and region.exists()
    for file in (fresh, region):
        os.utime(file, (time.time() - 100, time.time() - 100))
    cli.good("prune")
    assert not fresh.exists() and not region.exists()


# -- control ------------------------------------------------------------------------------------------------------------


def test_links(cli: Cli) -> None:
    cli.good("up", "fabrex-pair", "--name", "lab")
    assert cli.good("link", "down", "lab", LINK).out == f"{LINK}: down\n"
    assert "down" in cli.good("link", "show", "lab", LINK).out.splitlines()[1]
    result = cli("mem", "read", "lab", "host1+0x40", "--from", "host0")
    assert result.code == 1 and "down" in result.err
    assert cli.good("link", "up", "lab", LINK, "--json").document["links"][0]["up"] is True
    assert cli.good("link", "set", "lab", LINK, "delay=500ns", "gen=3").out == (
        f"{LINK}: delay 500 ns (described as 5 ns), gen 3 (described as 4), lanes 16, mps 256, mrrs 512, rcb 64, tags 32\n"
    )
    shown = cli.good("link", "show", "lab", LINK)
    assert shown.out.splitlines()[1].split()[5:10] == ["500", "ns", "delay,", "gen", "0"]
    assert cli.good("inspect", "lab", "--json").document["links"][0]["changed"] == {"delay_ps": 5000, "gen": 4}
    assert cli.good("list", "--json").document["fabrics"][0]["links_changed"] == 1
    assert "2 (1 changed)" in cli.good("list").out
    assert "no unit" in cli.bad(2, "link", "set", "lab", LINK, "delay=5")
    assert "gen is given twice" in cli.bad(2, "link", "set", "lab", LINK, "gen=5", "gen=4")
    assert "no KEY=VALUE" in cli.bad(2, "link", "set", "lab", LINK, "delay")
    assert "did you mean 'delay'" in cli.bad(2, "link", "set", "lab", LINK, "dealy=5ns")
    assert "missing: KEY=VALUE" in cli.bad(2, "link", "set", "lab", LINK)
    found = cli.good("link", "reset", "lab", LINK, "--json").document["links"][0]
    assert found["changed"] == {} and found["delay_ps"] == 5000 and found["gen"] == 4
    assert "did you mean" in cli.bad(3, "link", "down", "lab", "host0:ntb0-sw0:p7")


def test_memory(cli: Cli) -> None:
    cli.good("up", "fabrex-pair", "--name", "lab")
    assert cli.good("mem", "write", "lab", "host1:dram+0x40", "0x1122", "--from", "host0").out == (
        "8 bytes written at 0x20000000040 (host1)\n"
    )
    assert cli.good("mem", "read", "lab", "host1+64", "--size", "16", "--from", "host0").out == (
        '0x020000000040  22 11 00 00 00 00 00 00 00 00 00 00 00 00 00 00  "...............\n'
    )
    cli.good("mem", "write", "lab", "0x20000000080", "--text", "hello")
    found = cli.good("mem", "read", "lab", "0x20000000080", "--size", "5", "--json").document
    assert bytes.fromhex(found["data"]) == b"hello" and found["gva"] == "0x0000020000000080" and found["node"] == "host1"
    cli.good("mem", "write", "lab", "host0", "-", input="from a pipe")
    assert cli.good("mem", "read", "lab", "host0", "--size", "11", "--raw").out == "from a pipe"
    long = cli.good("mem", "read", "lab", "host0+4KiB", "--size", "64KiB").out.splitlines()
    assert long[1] == "*" and len(long) == 3
    assert cli.good("inspect", "lab", "--json").document["nodes"][0]["owner_pid"] is None


def test_windows(cli: Cli) -> None:
    cli.good("up", "fabrex-pair", "--name", "lab", "--set", "windows=manual")
    assert cli.good("window", "list", "lab").out == ""
    assert cli("mem", "read", "lab", "host1", "--from", "host0").code == 2
    found = cli.good("window", "set", "lab", "host0", "0", "host1:dram+0x0", "1GiB", "--json").document
    [window] = found["windows"]
    assert (window["peer"], window["bytes"], window["permission"]) == ("host1", 1 << 30, "rw")
    assert len(cli.good("window", "list", "lab", "host0").out.splitlines()) == 2
    assert len(cli.good("window", "list", "lab", "host0", "--all", "--json").document["windows"]) > 1
    cli.good("window", "clear", "lab", "host0", "0")
    assert cli.good("window", "list", "lab", "--json").document["windows"] == []
    assert "windows 0 to" in cli.bad(3, "window", "set", "lab", "host0", "99999", "host1", "4KiB")
    assert cli("window", "set", "lab", "host0", "0", "host1:dram+1", "4KiB").code == 2


# -- what people type ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words", "said"),
    [
        (2, ["lst"], "did you mean 'list'?"),
        (2, ["link", "shwo", "x"], "did you mean 'show'?"),
        (2, ["list", "--jsn"], "did you mean --json?"),
        (2, ["up"], "missing: TOPOLOGY"),
        (2, ["up", "local", "--timing", "maybe"], "one of: on, off"),
        (2, ["up", "local", "--seed", "many"], "no whole number"),
        (2, ["up", "local", "--name", "../etc"], "cannot be a fabric's name"),
        (2, ["up", "local", "--name", ""], "cannot be a fabric's name"),
        (3, ["up", "fabrex-pear"], "did you mean 'fabrex-pair'?"),
        (3, ["up", "./none.yaml"], "no file './none.yaml'"),
        (6, ["up", "/tmp/"], "directory"),
        (6, ["up", "local", "--set", "links.nolink.delay=5ns"], "nolink"),
        (6, ["up", "local", "--set", "links.host0:ntb0-host1:ntb0.dely=5ns"], "dely"),
        (6, ["up", "local", "--set", "links.host0:ntb0-host1:ntb0.delay=5"], "5"),
        (6, ["up", "local", "--set", "nodes.host0.memory.dram=12parsec"], "parsec"),
        (6, ["up", "local", "--set", "timing"], "KEY=VALUE"),
        (3, ["presets", "fabrex_pair"], "did you mean 'fabrex-pair'?"),
        (3, ["graph", "nothing"], "nothing"),
        (2, ["down"], "--all"),
        (2, ["down", "x", "--all"], "not both"),
        (3, ["inspect", "x"], "no fabric 'x'"),
        (3, ["exec", "x", "--node", "host0", "--", "true"], "no fabric 'x'"),
        (2, ["exec", "x", "--node", "host0"], "--"),
        (2, ["list", "--", "true"], "no command"),
        (2, ["run", "local"], "put it after `--`"),
        (2, ["run", "local", "--"], "put it after `--`"),
        (2, ["run", "local", "--kind", "hots", "--", "true"], "did you mean 'host'?"),
        (2, ["run", "local", "--kind", "memory", "--", "true"], "it has host"),
        (2, ["run", "local", "--timeout", "soon", "--", "true"], "no duration"),
        (3, ["run", "local", "--on", "hots0", "--", "true"], "did you mean 'host0'?"),
        (127, ["run", "local", "--", "no-such-command"], "no command 'no-such-command'"),
        (126, ["run", "local", "--", "/etc/passwd"], "cannot be run"),
        (2, ["bench", "--op", "lod"], "did you mean 'load'?"),
        (2, ["bench", "--api", "rust"], "rust"),
        (2, ["demo", "--size", "1"], "1MiB"),
        (2, ["completion", "fish"], "bash"),
    ],
)  # fmt: skip
def test_mistakes(cli: Cli, code: int, words: list[str], said: str) -> None:
    line = cli.here(code, *words)
    assert said in line, line
    assert cli.segments() == []


@pytest.mark.parametrize(
    ("code", "words", "said"),
    [
        (3, ["mem", "read", "lab", "hots1"], "did you mean 'host1'?"),
        (3, ["mem", "read", "lab", "host1:darm"], "did you mean 'dram'?"),
        (2, ["mem", "read", "lab", "host1+2TiB"], "outside"),
        (2, ["mem", "read", "lab", "host1+x"], "no offset"),
        (2, ["mem", "read", "lab", "sw0"], "no memory"),
        (2, ["mem", "read", "lab", "host1!"], "no address"),
        (3, ["mem", "read", "lab", "0x1"], "in no region"),
        (3, ["mem", "read", "lab", "@inbocks"], "no buffer"),
        (2, ["mem", "read", "lab", "host1", "--from", "sw0"], "switch"),
        (2, ["mem", "read", "lab", "host1", "--size", "0"], "--size"),
        (2, ["mem", "write", "lab", "host1"], "VALUE"),
        (2, ["mem", "write", "lab", "host1", "x"], "no whole number"),
        (2, ["mem", "write", "lab", "host1", "300", "--size", "1"], "does not fit"),
        (2, ["mem", "write", "lab", "host1", "--hex", "0g"], "hex"),
        (3, ["exec", "lab", "--node", "host9", "--", "true"], "did you mean"),
        (127, ["exec", "lab", "--node", "host0", "--", "no-such-command"], "no command"),
    ],
)
def test_mistakes_with_a_fabric(cli: Cli, code: int, words: list[str], said: str) -> None:
    fabrex.Fabric.create("fabrex-pair", "lab", persistent=True, directory=cli.directory).close()
    line = cli.here(code, *words)
    assert said in line, line
    fabrex.Fabric.destroy("lab", cli.directory)


def test_topology_errors_come_with_all_their_lines(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("fabrex: 1\nname: x\nnodes:\n  a: {kind: hosst}\n  b: {kind: host, memory: {dram: 1}}\n")
    result = cli("up", str(file))
    assert result.code == 6 and "line 4" in result.err and "line 5" in result.err and "did you mean 'host'" in result.err


def test_debug_shows_where(cli: Cli) -> None:
    process = cli.start("inspect", "x", env={"FABREX_DEBUG": "1"}, stderr=subprocess.PIPE, text=True)
    assert "Traceback" in process.communicate()[1]


def test_output_fits_the_terminal(cli: Cli) -> None:
    cli.good("up", "supernode-32", "--name", "a-name-that-is-quite-a-bit-longer-than-others")
    for words in (["list"], ["inspect", "a-name-that-is-quite-a-bit-longer-than-others"], ["presets"],
                  ["link", "show", "a-name-that-is-quite-a-bit-longer-than-others"]):  # fmt: skip
        for columns in (40, 80):
            text = cli.good(*words, env={"COLUMNS": str(columns)}).out
            assert max(map(len, text.splitlines())) <= columns, words


def test_a_closed_pipe_is_no_error_message(cli: Cli) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for words in (["presets", "supernode-32"], ["list"], ["presets", "--json"]):
        process = cli.start(*words, stdout=writing, stderr=subprocess.PIPE)
        err = process.communicate()[1]
        assert b"Traceback" not in err and b"Exception" not in err and b"BrokenPipe" not in err
        assert process.returncode in (0, 141), words
    os.close(writing)


def test_no_colour_where_nobody_looks(cli: Cli) -> None:
    assert "\x1b" not in cli.good("run", "local", "--", "echo", "x").out
    assert "\x1b" not in cli("doctor").out


def test_completion(cli: Cli) -> None:
    for shell in ("bash", "zsh"):
        assert "_fabricctl" in cli.good("completion", shell).out
    script = cli.good("completion", "bash").out
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    cli.good("up", "fabrex-pair", "--name", "lab")
    assert cli.good("__complete", "l").out.split() == ["link", "list"]
    assert cli.good("__complete", "down", "").out.split() == ["lab"]
    assert cli.good("__complete", "link", "down", "lab", "host0").out.split() == [LINK]
    assert cli.good("__complete", "run", "fabrex-pair", "--on", "").out.split() == ["host0", "host1"]
    assert "--output-dir" in cli.good("__complete", "run", "--o").out.split()
    assert cli.good("__complete", "mem", "read", "lab", "").out.split() == ["host0:dram", "host1:dram"]
    assert cli.good("__complete", "nothing", "").out == ""


def test_list_is_quick_because_it_loads_little(cli: Cli) -> None:
    code = "import sys, fabrex.cli; fabrex.cli.main(['list']); print(*sorted(set(sys.modules) & {'numpy', 'yaml', 'jsonschema', 'multiprocessing', 'torch', 'matplotlib', 'ssl'}))"  # noqa: E501
    found = subprocess.run([sys.executable, "-c", code], env=cli.env, capture_output=True, text=True, check=True)
    heavy = set(found.stdout.split())
    assert heavy & {"numpy", "yaml", "jsonschema", "multiprocessing", "torch", "matplotlib"} == set()


def test_help_of_every_command(cli: Cli) -> None:
    from fabrex.cli.commands import _HANDLERS

    text = cli.good("--help").out
    for name in _HANDLERS:
        assert name.split()[0] in text
        help_text = cli.good(*name.split(), "--help", env={"COLUMNS": "100"}).out
        assert "usage: fabricctl" in help_text
    assert cli.good("--version").out.startswith("fabrex ")
