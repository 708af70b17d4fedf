# SPDX-License-Identifier: Apache-2.0
"""Failing seeds: found, made small, told; in Python and by `fabricctl explore`."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import fabrex
import fabrex.sim

pytest.importorskip("greenlet")

from . import programs

PAIR = "fabrex-pair"
BUGGY = {"host0": programs.producer, "host1": programs.careful}
MENDED = {"host0": programs.mended, "host1": programs.careful}


def test_a_missing_flush_is_found_and_a_mended_one_is_not() -> None:
    [failure] = fabrex.sim.search(PAIR, BUGGY, seeds=200)
    assert (failure.node, failure.kind, failure.message) == ("host1", "AssertionError", "the data are not there")
    with pytest.raises(AssertionError, match="not there"):
        fabrex.sim.run(PAIR, BUGGY, ordering="adversarial", seed=failure.seed)
    assert fabrex.sim.search(PAIR, BUGGY, seeds=100, ordering="immediate") == []
    assert fabrex.sim.search(PAIR, BUGGY, seeds=100, ordering="posted") == []
    assert fabrex.sim.search(PAIR, MENDED, seeds=300) == []
    many = fabrex.sim.search(PAIR, BUGGY, seeds=range(50, 100), most=3)
    assert len(many) == 3 and all(50 <= found.seed < 100 for found in many)


def test_the_failure_explains_itself() -> None:
    [failure] = fabrex.sim.search(PAIR, BUGGY, seeds=200)
    told = fabrex.sim.explain(PAIR, BUGGY, failure.seed)
    assert told is not None
    text = str(told)
    assert "(host1:dram+0x40) became visible before" in text and "RO=1 on write" in text and "rule A2b" in text
    assert "no flush between them" in text
    assert "fabrex.sim.run('fabrex-pair'" in told.replay and f"seed={failure.seed}" in told.replay
    assert 'node.store(gva("host1", 0), 42)' in text and 'node.store(gva("host1", 64), 1, ro=True)' in text
    assert len(told.steps) <= 12 and [step.at_ps for step in told.steps] == sorted(step.at_ps for step in told.steps)
    assert told.minimal is not None and 1 <= len(told.minimal.decisions) <= 3 and told.minimal.whole > len(told.minimal.decisions)
    assert isinstance(told.minimal.result.error, AssertionError)


def test_every_decision_of_a_minimal_run_is_needed() -> None:
    from fabrex.sim._search import Case, minimise

    case = Case(PAIR, BUGGY)
    for failure in fabrex.sim.search(PAIR, BUGGY, seeds=300, most=5):
        minimal = minimise(case, failure.seed)
        assert minimal is not None
        again = case.attempt(failure.seed, minimal.decisions)
        assert again.error is not None and again.trace_hash == minimal.result.trace_hash
        for i in range(len(minimal.decisions)):
            assert case.attempt(failure.seed, minimal.decisions[:i] + minimal.decisions[i + 1 :]).error is None
    assert case.attempt(failure.seed, []).error is None


def test_decisions_replay_a_seed() -> None:
    """All decisions of a seed, given instead of it, are the same run."""
    from fabrex.sim._search import Case

    case = Case(PAIR, programs.PAIRS["busy"])
    for seed in range(20):
        whole = case.attempt(seed, log=True)
        given = [(kind, key, value) for kind, key, value, _, _ in whole.decisions]
        assert given and case.attempt(seed, given).trace_hash == whole.trace_hash


def test_a_plain_bug_is_no_matter_of_ordering() -> None:
    def wrong(node: Any) -> None:
        node.store(node.fabric.gva("host1"), 1)
        raise ValueError("always")

    told = fabrex.sim.explain(PAIR, {"host0": wrong}, 3)
    assert told is not None and told.minimal is not None and not told.minimal.needs_adversary
    assert "no matter of ordering" in str(told)
    assert fabrex.sim.explain(PAIR, {"host0": lambda node: None}, 3) is None


def test_a_flush_missing_after_the_last_write() -> None:
    """The write is issued, its buffer is told of out of band, and the reader looks too early."""

    def writer(node: Any) -> None:
        node.store(node.fabric.gva("host1", 256), 9)
        node.barrier("written")

    def reader(node: Any) -> None:
        node.barrier("written")
        assert node.load(node.fabric.gva("host1", 256)) == 9

    told = fabrex.sim.explain(PAIR, {"host0": writer, "host1": reader}, 0)
    assert told is not None
    assert "had been issued" in str(told) and "became visible" in str(told)


def test_checks_of_the_result() -> None:
    pair = {"host0": programs.producer, "host1": programs.consumer}
    [failure] = fabrex.sim.search(PAIR, pair, check=lambda result: result.returned["host1"] == 42)
    assert failure.node is None
    told = fabrex.sim.explain(PAIR, pair, failure.seed, check=lambda result: result.returned["host1"] == 42)
    assert told is not None and "rule A2b" in str(told)


def test_deadlocks_are_failures_too() -> None:
    def sleeper(node: Any) -> None:
        node.wait_until(node.fabric.gva("host0"), "==", 1)

    [failure] = fabrex.sim.search(PAIR, {"host0": sleeper}, seeds=3)
    assert failure.kind == "Deadlock"


# -- fabricctl explore ------------------------------------------------------------------------------------------------

SCRIPT = """
'''Message passing.'''
topology = "fabrex-pair"

def host0(node):
    print("not data")
    node.store(node.fabric.gva("host1", 0), 42)
    {between}
    node.store(node.fabric.gva("host1", 64), 1, ro=True)

def host1(node):
    node.wait_until(node.fabric.gva("host1", 64), "==", 1)
    return node.load(node.fabric.gva("host1", 0))

def check(result):
    assert result.returned["host1"] == 42
"""


def write(folder: Path, between: str, name: str = "case.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(SCRIPT).format(between=between), encoding="utf-8")
    return path


def fabricctl(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fabrex.cli", *words], capture_output=True, text=True, timeout=120, check=False, cwd=cwd
    )


def test_explore_finds_and_replays(tmp_path: Path) -> None:
    path = write(tmp_path, "pass")
    found = fabricctl("explore", "case.py", "--seeds", "300", "--jobs", "2", cwd=tmp_path)
    assert found.returncode == 1, found.stderr
    assert "1 failed" in found.stdout and "rule A2b" in found.stdout and "not data" not in found.stdout
    again = next(line for line in found.stdout.splitlines() if line.startswith("Again: "))
    words = again.split()[1:]
    assert words[0] == "fabricctl"
    replayed = fabricctl(*words[1:], cwd=tmp_path)
    assert replayed.returncode == 1 and replayed.stdout.strip() in found.stdout
    traced = fabricctl(*words[1:], "--trace", "--no-explain", cwd=tmp_path)
    assert "passes write" in traced.stdout
    assert fabricctl("explore", str(path), "--seeds", "50", "--ordering", "immediate").returncode == 0


def test_explore_passes_what_is_right(tmp_path: Path) -> None:
    path = write(tmp_path, "node.flush('host1')")
    done = fabricctl("explore", str(path), "--seeds", "200")
    assert done.returncode == 0 and "none failed" in done.stdout
    one = fabricctl("explore", str(path), "--seed", "7")
    assert one.returncode == 0 and "seed 7 passes" in one.stdout and "host1 returned 42" in one.stdout


def test_explore_json(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(fabrex.__file__).parent / "schema" / "cli.schema.json").read_text(encoding="utf-8"))
    path = write(tmp_path, "pass")
    answers = []
    several = ["--seeds", "200", "--most", "4"]
    for extra in (several, [*several, "--jobs", "2"], ["--seed", "0"], ["--seed", "1"]):
        done = fabricctl("explore", str(path), "--json", *extra)
        facts = json.loads(done.stdout)
        jsonschema.validate(facts, schema)
        assert done.returncode == bool(facts["failed"])
        answers.append(facts)
    assert answers[0]["failures"] == answers[1]["failures"] and answers[0]["failed"] == 4
    assert answers[0]["explanation"]["reasons"]


def test_explore_says_what_is_wrong(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.py"
    nothing.write_text("x = 1\n", encoding="utf-8")
    broken = tmp_path / "broken.py"
    broken.write_text("import nowhere_to_be_found\n", encoding="utf-8")
    strange = tmp_path / "strange.py"
    strange.write_text("programs = {'mars': print}\n", encoding="utf-8")
    for words, code, text in (
        ((str(tmp_path / "missing.py"),), 3, "no script"),
        ((str(nothing),), 2, "names no programs"),
        ((str(broken),), 1, "nowhere_to_be_found"),
        ((str(strange),), 2, "no node"),
        ((str(nothing), "--jobs", "0"), 2, "at least 1"),
    ):
        done = fabricctl("explore", *words)
        assert done.returncode == code and text in done.stderr, (words, done.stderr)
        assert "Traceback" not in done.stderr and not done.stdout
