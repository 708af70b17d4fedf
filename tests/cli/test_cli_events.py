# SPDX-License-Identifier: Apache-2.0
"""`fabricctl events`: lines for people, one document, a stream of documents, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import fabrex

from .conftest import Cli

LINK = "host0:ntb0-sw0:p0"


def checked(line: str) -> dict[str, Any]:
    """One line of a stream, against the schema."""
    import jsonschema

    found: dict[str, Any] = json.loads(line)
    schema = json.loads(Path(fabrex.__path__[0], "schema", "cli.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(found)
    return found


def test_lines_for_people(cli: Cli) -> None:
    cli.good("up", "fabrex-pair", "--name", "lab")
    cli.good("link", "set", "lab", LINK, "delay=500ns")
    cli.good("link", "down", "lab", LINK)
    lines = cli.good("events", "lab").out.splitlines()
    shown = [re.sub(r"\d\d:\d\d:\d\d\.\d{3}", "TIME", re.sub(r"\d+(\.\d+)? (ns|µs|ms|s)  ", "AGO  ", line)) for line in lines]
    assert [line.split() for line in shown[1:]] == [
        ["1", "TIME", "AGO", "link_set", LINK, "delay", "500", "ns"],
        ["2", "TIME", "AGO", "link_down", LINK],
    ]
    assert re.fullmatch(r" +0  \S+ +\S+ \S+  fabric_up +pid \d+", lines[0])
    assert len(cli.good("events", "lab", "--since", "2").out.splitlines()) == 1
    assert len(cli.good("events", "lab", "--since", "1h").out.splitlines()) == 3
    assert cli.good("events", "lab", "--since", "0.1ms").out == ""
    assert len(cli.good("events", "lab", "--kind", "link_down", "--kind", "link_up").out.splitlines()) == 1
    assert all(len(line) <= 60 for line in cli.good("events", "lab", env={"COLUMNS": "60"}).out.splitlines())
    assert cli.good("events", "lab", "--since", "99").out == ""


def test_one_document(cli: Cli) -> None:
    cli.good("up", "fabrex-pair", "--name", "lab")
    cli.good("link", "set", "lab", LINK, "gen=3")
    found = cli.good("events", "lab", "--json").document
    assert [event["kind"] for event in found["events"]] == ["fabric_up", "link_set"]
    assert found["events"][1]["details"] == {"gen": 3} and found["next"] == 2 and found["lost"] == 0
    cli.good("link", "reset", "lab", LINK)
    later = cli.good("events", "lab", "--json", "--since", str(found["next"])).document
    assert [event["kind"] for event in later["events"]] == ["link_reset"]


def test_the_schema_knows_every_kind() -> None:
    schema = json.loads(Path(fabrex.__path__[0], "schema", "cli.schema.json").read_text(encoding="utf-8"))
    from fabrex.event import KINDS

    assert schema["$defs"]["event"]["properties"]["kind"]["enum"] == list(KINDS)


@pytest.mark.parametrize("as_json", [False, True])
def test_following_until_the_fabric_ends(cli: Cli, as_json: bool) -> None:
    cli.good("up", "fabrex-pair", "--name", "lab")
    follower = cli.start("events", "lab", "--follow", *(["--json"] if as_json else []), stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert follower.stdout
        assert "fabric_up" in follower.stdout.readline()
        cli.good("link", "down", "lab", LINK)
        line = follower.stdout.readline()
        assert "link_down" in line
        assert cli.good("list", "--json").document["fabrics"][0]["processes"] == 0
        cli.good("down", "lab")  # without --force
        out, err = follower.communicate(timeout=20)
        assert "fabric_down" in out.splitlines()[-1] and not err and follower.returncode == 0
        if as_json:
            documents = [checked(text) for text in [line, *out.splitlines()]]
            assert [d["events"][0]["number"] + 1 for d in documents] == [d["next"] for d in documents]
    finally:
        follower.kill()
        follower.communicate()


def test_interrupting_a_follower(cli: Cli) -> None:
    import signal

    cli.good("up", "fabrex-pair", "--name", "lab")
    follower = cli.start("events", "lab", "--follow", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert follower.stdout and "fabric_up" in follower.stdout.readline()
        time.sleep(0.2)
        follower.send_signal(signal.SIGINT)
        _, err = follower.communicate(timeout=20)
        assert follower.returncode == 130 and err == "fabricctl: interrupted\n"
    finally:
        follower.kill()
        follower.communicate()


def test_what_is_refused(cli: Cli) -> None:
    cli.good("up", "fabrex-pair", "--name", "lab")
    assert "did you mean 'lab'?" in cli.bad(3, "events", "lba")
    assert "did you mean 'link_down'?" in cli.bad(2, "events", "lab", "--kind", "link_donw")
    assert "has no unit" in cli.bad(2, "events", "lab", "--since", "1.5")
    assert "is no duration" in cli.bad(2, "events", "lab", "--since", "soon")


def test_completion(cli: Cli) -> None:
    cli.good("up", "fabrex-pair", "--name", "lab")
    assert cli.good("__complete", "events", "l").out.split() == ["lab"]
    assert cli.good("__complete", "events", "lab", "--kind", "link_").out.split() == [
        "link_down",
        "link_reset",
        "link_set",
        "link_up",
    ]
    assert set(cli.good("__complete", "events", "lab", "--").out.split()) >= {"--follow", "--since", "--kind", "--json"}
    assert cli.good("__complete", "link", "s").out.split() == ["set", "show"]
    assert cli.good("__complete", "link", "set", "lab", "host0").out.split() == [LINK]
    assert cli.good("__complete", "link", "set", "lab", LINK, "d").out.split() == ["delay="]
    assert "gen=" in cli.good("__complete", "link", "set", "lab", LINK, "delay=5ns", "").out.split()


@pytest.mark.parametrize("command", ["list", "events"])
def test_looking_loads_little(cli: Cli, command: str) -> None:
    """What a cold start costs is what it loads."""
    cli.good("up", "fabrex-pair", "--name", "lab")
    words = [command] if command == "list" else [command, "lab"]
    heavy = ("numpy", "yaml", "jsonschema", "matplotlib", "fabrex.topology", "fabrex.fabric", "fabrex.graph", "asyncio", "msgpack")
    code = f"import sys\nfrom fabrex.cli.commands import run\nassert run({words!r}) == 0\n" + (
        f"loaded = [name for name in {heavy!r} if name in sys.modules]\nassert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], env=cli.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
