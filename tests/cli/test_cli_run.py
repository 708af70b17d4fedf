# SPDX-License-Identifier: Apache-2.0
"""`fabricctl run` and `exec`: output, failures, signals, and nothing left behind."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fabrex.launcher import Output

from .conftest import Cli


def mark() -> str:
    """A string that no other process has in its command line."""
    return f"mark-{os.getpid()}-{os.urandom(4).hex()}"


def living(word: str) -> list[int]:
    """Processes with `word` in their command line that are not zombies."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            line = Path(f"/proc/{entry}/cmdline").read_bytes()
            state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if word.encode() in line and state not in "ZX":
            found.append(int(entry))
    return found


def soon(done: Any, seconds: float = 10.0) -> bool:
    """Wait until `done()`."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def script(tmp_path: Path, text: str) -> str:
    file = tmp_path / "script.sh"
    file.write_text("#!/bin/bash\n" + text)
    file.chmod(0o755)
    return str(file)


# -- what runs, and what is seen ----------------------------------------------------------------------------------------------


def test_once_per_host_with_its_environment(cli: Cli) -> None:
    words = "echo $FABREX_NODE $FABREX_RANK $FABREX_SIZE $FABREX_DIRECTORY $FABREX_FABRIC"
    result = cli.good("run", "fabrex-pair", "--name", "lab", "--", "sh", "-c", words)
    place = cli.directory
    assert sorted(result.out.splitlines()) == [f"[host0] host0 0 2 {place} lab", f"[host1] host1 1 2 {place} lab"]
    assert cli.segments() == []


def test_the_nodes_find_one_another(cli: Cli, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import fabrex\n"
        "node = fabrex.attach()\n"
        "gva = node.fabric.gva(f'host{1 - node.rank}')\n"
        "node.store(gva, node.rank + 1)\n"
        "node.flush()\n"
        "node.barrier('there', timeout=20)\n"
        "print(node.name, node.size, node.load(node.fabric.gva(node.name)))\n"
    )
    result = cli.good("run", "local", "--timeout", "60", "--", sys.executable, str(program))
    assert sorted(result.out.splitlines()) == ["[host0] host0 2 2", "[host1] host1 2 1"]


def test_kinds_and_chosen_nodes(cli: Cli) -> None:
    echo = ["--", "sh", "-c", "echo $FABREX_RANK/$FABREX_SIZE"]
    out = cli.good("run", "corsair-server", "--kind", "accelerator", *echo).out
    assert len(out.splitlines()) == 8 and "/8" in out
    words = ["--on", "host1", "--", "echo", "b", "--on", "x", "y", "--on", "host0", "--", "echo", "a"]
    out = cli.good("run", "fabrex-pair", *words).out
    assert sorted(out.splitlines()) == ["[host0] a", "[host1] b --on x y"]
    out = cli.good("run", "fabrex-pair", "--on", "host*", *echo).out
    assert sorted(out.splitlines()) == ["[host0] 0/2", "[host1] 1/2"]
    out = cli.good("run", "fabrex-pair", "--on", "host0", "--on", "host0", *echo).out
    assert sorted(out.splitlines()) == ["[host0.2] 1/2", "[host0] 0/2"]


def test_streams_stay_apart_and_lines_whole(cli: Cli) -> None:
    text = "for i in $(seq 200); do echo line $i of $FABREX_NODE; done; echo oops >&2; printf end"
    result = cli.good("run", "fabrex-pair", "--", "sh", "-c", text)
    for host in ("host0", "host1"):
        mine = [line for line in result.out.splitlines() if line.startswith(f"[{host}] ")]
        assert mine == [f"[{host}] line {i} of {host}" for i in range(1, 201)] + [f"[{host}] end"]
    assert sorted(result.err.splitlines()) == ["[host0] oops", "[host1] oops"]
    assert result.out.endswith("\n")


def test_partial_lines_are_shown_and_continued() -> None:
    stream = io.BytesIO()
    output = Output(stream, patience=1.0)
    output.feed("a", b"one\ntw", 0.0)
    assert stream.getvalue() == b"[a] one\n"
    output.feed("b", b"whole\n", 0.1)
    output.tick(0.5)
    assert stream.getvalue() == b"[a] one\n[b] whole\n"
    output.tick(1.1)
    assert stream.getvalue().endswith(b"[a] tw")
    output.feed("a", b"o\n", 1.2)
    assert stream.getvalue().endswith(b"[a] two\n")
    output.feed("a", b"thr", 2.0)
    output.tick(3.5)
    output.feed("b", b"between\n", 3.6)
    assert stream.getvalue().endswith(b"[a] thr\n[b] between\n")
    output.feed("a", b"ee", 3.7)
    output.finish("a")
    output.finish("b")
    assert stream.getvalue().endswith(b"[b] between\n[a] ee\n")


def test_output_that_is_no_text_and_very_long_lines(cli: Cli) -> None:
    program = "import sys; sys.stdout.buffer.write(b'\\xff\\xfe' + b'x' * 300000 + b'\\n')"
    process = cli.start("run", "local", "--on", "host0", "--", sys.executable, "-c", program, stdout=subprocess.PIPE)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and out == b"[host0] \xff\xfe" + b"x" * 300000 + b"\n"


def test_output_dir(cli: Cli, tmp_path: Path) -> None:
    place = tmp_path / "out" / "deep"
    # Whoever fails ends the others: the second of them only once the first has said what it has to say.
    said = tmp_path / "said"
    code = f"echo hi; echo no >&2; [ $FABREX_RANK = 1 ] || : > {said}; until [ -e {said} ]; do sleep 0.02; done; exit $FABREX_RANK"
    result = cli("run", "fabrex-pair", "--output-dir", str(place), "--", "sh", "-c", code)
    assert result.code == 1
    assert (place / "host0.out").read_text() == "hi\n" and (place / "host1.err").read_text() == "no\n"
    assert json.loads((place / "run.json").read_text())["exit_code"] == 1


def test_json_has_facts_on_standard_output_and_the_rest_elsewhere(cli: Cli, tmp_path: Path) -> None:
    said = tmp_path / "said"
    code = f"echo hi; [ $FABREX_RANK = 1 ] || : > {said}; until [ -e {said} ]; do sleep 0.02; done; exit $((FABREX_RANK * 3))"
    result = cli("run", "fabrex-pair", "--json", "--name", "lab", "--", "sh", "-c", code)
    found = result.document
    assert result.code == 3 and found["exit_code"] == 3 and found["fabric"] == "lab"
    assert [(p["node"], p["exit_code"]) for p in found["processes"]][1] == ("host1", 3)
    assert "[host0] hi" in result.err


def test_keep(cli: Cli) -> None:
    result = cli.good("run", "local", "--keep", "--name", "kept", "--", "true")
    assert "fabricctl down kept" in result.err
    assert "kept" in cli.good("list").out
    cli.good("down", "kept")


def test_a_name_that_exists(cli: Cli) -> None:
    cli.good("up", "local", "--name", "lab")
    assert "--name" in cli.bad(4, "run", "local", "--name", "lab", "--", "true")


# -- what goes wrong -----------------------------------------------------------------------------------------------------------


def test_the_first_failure_ends_the_rest_and_gives_its_code(cli: Cli, tmp_path: Path) -> None:
    word = mark()
    file = script(tmp_path, f"[ $FABREX_RANK = 1 ] && exit 7\nexec -a {word} sleep 1000\n")
    result = cli("run", "fabrex-pair", "--", file)
    assert result.code == 7
    assert "host1 exited with code 7" in result.err and "ending host0" in result.err
    assert living(word) == [] and cli.segments() == []


def test_a_command_that_is_killed(cli: Cli) -> None:
    result = cli("run", "fabrex-pair", "--on", "host0", "--", "sh", "-c", "kill -9 $$")
    assert result.code == 137 and "host0 was killed by SIGKILL" in result.err


def test_a_command_that_hangs(cli: Cli, tmp_path: Path) -> None:
    word = mark()
    file = script(tmp_path, f"trap '' TERM INT\n(exec -a {word} sleep 1000) &\nwhile :; do sleep 1; done  # {word}\n")
    result = cli("run", "fabrex-pair", "--timeout", "500ms", "--grace", "0.3", "--", file)
    assert result.code == 124
    assert "time of 0.5 s is over" in result.err and "killing" in result.err
    assert living(word) == [] and living(file) == [] and cli.segments() == []


def test_a_daemon_that_escapes_is_found(cli: Cli, tmp_path: Path) -> None:
    word = mark()
    file = script(tmp_path, f"setsid bash -c 'exec -a {word} sleep 1000' >/dev/null 2>&1 &\nsleep 0.2\n")
    cli.good("run", "local", "--", file)
    assert soon(lambda: living(word) == [])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_are_passed_on(cli: Cli, tmp_path: Path, number: signal.Signals, code: int) -> None:
    file = script(tmp_path, "trap 'echo bye; exit 0' INT TERM\necho up\nwhile :; do sleep 0.05; done\n")
    process = cli.start("run", "local", "--", file, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert {process.stdout.readline(), process.stdout.readline()} == {"[host0] up\n", "[host1] up\n"}
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert sorted(out.splitlines()) == ["[host0] bye", "[host1] bye"] and "Traceback" not in err
    assert cli.segments() == []


def test_nothing_is_left_when_the_launcher_itself_is_killed(cli: Cli, tmp_path: Path) -> None:
    word = mark()
    file = script(tmp_path, f"(exec -a {word} sleep 1000) &\necho up\nexec -a {word} sleep 1000\n")
    process = cli.start("run", "local", "--", file, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline(), process.stdout.readline()
    assert soon(lambda: len(living(word)) == 4)
    process.kill()
    process.communicate()
    assert soon(lambda: living(word) == [])
    assert soon(lambda: cli.segments() == [])


def test_a_closed_output_ends_the_run(cli: Cli, tmp_path: Path) -> None:
    word = mark()
    file = script(tmp_path, "while :; do echo y; sleep 0.01; done\n" + f"# {word}\n")
    process = cli.start("run", "local", "--", file, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    assert living(file) == [] and cli.segments() == []


# -- exec -----------------------------------------------------------------------------------------------------------------------


def test_exec_is_the_command(cli: Cli) -> None:
    cli.good("up", "fabrex-pair", "--name", "lab")
    result = cli("exec", "lab", "--node", "host1", "--", "sh", "-c", "echo $FABREX_FABRIC $FABREX_NODE $FABREX_RANK; exit 9")
    assert (result.code, result.out) == (9, "lab host1 1\n")
    code = "import fabrex; n = fabrex.attach(); print(n.name, n.owner, n.rank, n.size)"
    assert cli.good("exec", "lab", "--node", "host1", "--", sys.executable, "-c", code).out == "host1 True 1 2\n"
    assert cli.good("exec", "lab", "--node", "host0", "--", "cat", input="through").out == "through"
