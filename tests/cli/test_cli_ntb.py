# SPDX-License-Identifier: Apache-2.0
"""`fabricctl ntb`: every action, for people and as JSON, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from .conftest import Cli

HOSTS = """
import sys, fabrex
fabric = fabrex.Fabric.open("lab")
nodes = [fabric.attach(name) for name in ("host0", "host1")]
print("in", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def lab(cli: Cli) -> Iterator[Cli]:
    """A fabric whose two hosts are on."""
    cli.good("up", "fabrex-pair", "--name", "lab", "--timing", "off")
    hosts = subprocess.Popen([sys.executable, "-c", HOSTS], env=cli.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert hosts.stdout is not None and hosts.stdout.readline() == b"in\n"
        yield cli
    finally:
        hosts.communicate(timeout=30)


def test_show(lab: Cli) -> None:
    header, first, second = lab.good("ntb", "show", "lab").out.splitlines()
    assert header.split() == ["NODE", "PROFILE", "PORT", "PEERS", "UP", "LINK", "DOORBELLS", "SPADS", "MESSAGES", "MSI", "WINDOWS"]
    assert first.split()[:6] == ["host0", "fabrex", "0", "1", "of", "1"] and second.split()[0] == "host1"
    [device] = lab.good("ntb", "show", "lab", "host1", "--json").document["devices"]
    assert (
        device["link"]["up"]
        and device["link"]["speed"] > 0
        and device["doorbells"] == 64
        and device["scratchpads"] == 128
        and device["interrupts"] == 64
    )
    assert device["peers"] == [{"node": "host0", "index": 0, "port": 0, "up": True}]


def test_link(lab: Cli) -> None:
    assert lab.good("ntb", "link", "lab", "host0").out.splitlines()[1].split()[:4] == ["host1", "0", "1", "up"]
    assert "down" in lab.good("ntb", "link", "lab", "host0", "down", "--wait", "5").out
    found = lab.good("ntb", "link", "lab", "host1", "--json").document
    assert found["link"] == {"up": False, "speed": 0, "width": 0} and not found["peers"][0]["up"]
    # What is sent over it is lost, and nobody says otherwise.
    for words in (["db", "lab", "host0", "set", "1"], ["spad", "lab", "host0", "write", "0", "1"]):
        assert "is down" in lab.bad(1, "ntb", *words, "--peer", "host1")
    assert "is down" in lab.bad(1, "ntb", "msg", "lab", "host0", "send", "0", "1", "--peer", "host1")
    assert lab.good("ntb", "db", "lab", "host1", "--json").document["doorbell"]["bits"] == "0x0000000000000000"
    assert "up" in lab.good("ntb", "link", "lab", "host0", "up", "--wait", "5").out
    assert "--wait" in lab.bad(2, "ntb", "link", "lab", "host0", "--wait", "5")


def test_doorbell(lab: Cli) -> None:
    assert "0, 2, 4-7" in lab.good("ntb", "db", "lab", "host0", "set", "0xf5", "--peer", "host1").out
    lab.good("ntb", "db", "lab", "host1", "mask", "0xf0")
    lab.good("ntb", "db", "lab", "host0", "clear", "0x1", "--peer", "host1")
    found = lab.good("ntb", "db", "lab", "host1", "--json").document
    assert found["node"] == "host1" and found["peer"] is None
    assert [int(found["doorbell"][key], 16) for key in ("bits", "mask", "pending")] == [0xF4, 0xF0, 0x04]
    lab.good("ntb", "db", "lab", "host1", "unmask", "0xf0")
    assert lab.good("ntb", "db", "lab", "host0", "--peer", "host1", "--json").document["doorbell"]["mask"] == "0x0000000000000000"
    waiter = lab.start("ntb", "db", "lab", "host1", "wait", "0x104", "--timeout", "60")
    lab.good("ntb", "db", "lab", "host1", "set", "0x100")
    assert waiter.wait(60) == 0
    assert "0x200" in lab.bad(124, "ntb", "db", "lab", "host1", "wait", "0x200", "--timeout", "50ms")


def test_scratchpads(lab: Cli) -> None:
    assert (
        lab.good("ntb", "spad", "lab", "host0", "write", "3", "77", "--peer", "host1").out.splitlines()[1].split()[1]
        == "0x0000004d"
    )
    found = lab.good("ntb", "spad", "lab", "host1", "--json").document["scratchpads"]
    assert len(found) == 128 and found[3] == {"index": 3, "value": 77} and found[4]["value"] == 0
    assert lab.good("ntb", "spad", "lab", "host1", "show", "3", "--json").document["scratchpads"] == [{"index": 3, "value": 77}]
    lab.good("ntb", "spad", "lab", "host1", "write", "127", "0xffffffff")
    assert lab.good("ntb", "spad", "lab", "host0", "show", "127", "--peer", "host1").out.split()[-1] == "4294967295"


def test_messages(lab: Cli) -> None:
    assert (
        lab.good("ntb", "msg", "lab", "host0", "send", "1", "0x2a", "--peer", "host1").out
        == "message register 1 of host1: 0x2a sent\n"
    )
    row = lab.good("ntb", "msg", "lab", "host1").out.splitlines()[2].split()
    assert row[:4] == ["1", "full", "0x0000002a", "host0"]
    assert "still holds" in lab.bad(5, "ntb", "msg", "lab", "host0", "send", "1", "7", "--peer", "host1")
    found = lab.good("ntb", "msg", "lab", "host1", "clear", row[4], "--json").document
    assert found["messages"][1]["full"] is False and int(found["status"], 16) == 0
    lab.good("ntb", "msg", "lab", "host0", "send", "1", "7", "--peer", "host1")
    for verb in ("mask", "unmask"):
        lab.good("ntb", "msg", "lab", "host1", verb, found["inbits"])


def test_windows(lab: Cli) -> None:
    [window] = lab.good("ntb", "mw", "lab", "host0", "--json").document["windows"]
    assert window["peer"] == "host1" and window["bytes"] == 1 << 30 and window["address_align"] == 4096
    everything = lab.good("ntb", "mw", "lab", "host0", "--all", "--peer", "host1", "--json").document["windows"]
    assert len(everything) == 576 and [w["index"] for w in everything] == list(range(576))
    assert "host1" in lab.good("ntb", "mw", "lab", "host0").out
    lab.good("window", "clear", "lab", "host0", str(window["index"]))
    result = lab.good("ntb", "mw", "lab", "host0")
    assert result.out == "" and "--all" in result.err


@pytest.mark.parametrize(
    ("code", "words", "said"),
    [
        (3, ["ntb", "show", "lba"], "did you mean 'lab'?"),
        (3, ["ntb", "show", "lab", "hots0"], "did you mean 'host0'?"),
        (2, ["ntb", "show", "lab", "sw0"], "switch"),
        (2, ["ntb", "db", "lab", "host0", "sett", "1"], "did you mean 'set'?"),
        (2, ["ntb", "db", "lab", "host0", "set"], "BITS"),
        (2, ["ntb", "db", "lab", "host0", "show", "1"], "takes no"),
        (2, ["ntb", "db", "lab", "host0", "set", "x"], "whole number"),
        (2, ["ntb", "db", "lab", "host0", "set", "0x10000000000000000"], "64 bits"),
        (2, ["ntb", "db", "lab", "host0", "set", "1", "--peer", "host0"], "no peer of its own"),
        (3, ["ntb", "db", "lab", "host0", "set", "1", "--peer", "host7"], "did you mean"),
        (2, ["ntb", "db", "lab", "host0", "set", "1", "--timeout", "1"], "--timeout"),
        (2, ["ntb", "db", "lab", "host0", "wait", "1", "--peer", "host1"], "--peer"),
        (2, ["ntb", "spad", "lab", "host0", "write", "1"], "VALUE"),
        (2, ["ntb", "spad", "lab", "host0", "write", "128", "1"], "no scratchpad 128"),
        (3, ["ntb", "spad", "lab", "host0", "show", "128"], "0 to 127"),
        (2, ["ntb", "spad", "lab", "host0", "write", "0", "0x100000000"], "32 bits"),
        (2, ["ntb", "msg", "lab", "host0", "send", "0", "1"], "--peer"),
        (2, ["ntb", "msg", "lab", "host0", "send", "8", "1", "--peer", "host1"], "8"),
        (2, ["ntb", "msg", "lab", "host0", "clear"], "BITS"),
        (2, ["ntb", "msg", "lab", "host0", "clear", "0x8000000000000000"], "0x8000000000000000"),
        (3, ["ntb", "mw", "lab", "host0", "--peer", "nobody"], "no node"),
    ],
)  # fmt: skip
def test_mistakes(cli: Cli, code: int, words: list[str], said: str) -> None:
    cli.good("up", "fabrex-pair", "--name", "lab", "--timing", "off")
    line = cli.here(code, *words)
    assert said in line, line
    registers = cli.good("ntb", "db", "lab", "host0", "--json").document["doorbell"]
    assert int(registers["bits"], 16) == int(registers["mask"], 16) == 0


def test_devices_that_lack_things(cli: Cli) -> None:
    cli.good("up", "fabrex-pair", "--name", "lab", "--set", "nodes.host0.ntb=xeon-gen4", "--set", "nodes.host1.ntb=idt")
    assert "no message registers" in cli.bad(3, "ntb", "msg", "lab", "host0")
    assert "no scratchpads" in cli.bad(3, "ntb", "spad", "lab", "host1")
    assert "cannot read the doorbell" in cli.bad(1, "ntb", "db", "lab", "host0", "--peer", "host1")
    assert cli.bad(2, "ntb", "db", "lab", "host0", "set", "1")
    found = cli.good("ntb", "db", "lab", "host0", "--peer", "host1", "--json").document["doorbell"]
    assert found["bits"] is None and found["valid"] == "0x00000000ffffffff"


def test_completion(cli: Cli) -> None:
    cli.good("up", "fabrex-pair", "--name", "lab")
    assert cli.good("__complete", "ntb", "").out.split() == ["db", "link", "msg", "mw", "show", "spad"]
    assert cli.good("__complete", "ntb", "db", "").out.split() == ["lab"]
    assert cli.good("__complete", "ntb", "db", "lab", "").out.split() == ["host0", "host1"]
    assert cli.good("__complete", "ntb", "db", "lab", "host0", "un").out.split() == ["unmask"]
    assert cli.good("__complete", "ntb", "db", "lab", "host0", "set", "1", "--peer", "").out.split() == ["host0", "host1"]
    assert cli.good("__complete", "ntb-tool", "/mnt", "--fabric", "").out.split() == ["lab"]
