# SPDX-License-Identifier: Apache-2.0
"""The measuring tools: they run, say what they measured, and skip what is not there. No figure is judged here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "tools" / "bench"

pytestmark = pytest.mark.skipif(not BENCH.exists(), reason="needs the source tree")


def tool(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def common() -> Any:
    return load("common")


def test_a_summary_is_of_the_samples(common: Any) -> None:
    facts = common.summary([4.0, 1.0, 2.0, 3.0, 100.0])
    assert facts["median"] == 3.0
    assert (facts["min"], facts["max"]) == (1.0, 100.0)
    assert facts["p25"] <= facts["median"] <= facts["p75"]
    assert facts["samples"] == [4.0, 1.0, 2.0, 3.0, 100.0]


def test_a_ratio_pairs_what_was_measured_together(common: Any) -> None:
    assert common.ratio([1.0, 20.0, 3.0], [2.0, 40.0, 6.0]) == 0.5
    assert common.ratio([], [1.0]) != common.ratio([], [1.0])  # not a number


def test_only_measurements_are_read(common: Any) -> None:
    said = "hello\nload 8 3.25\nload eight 3\nwrite 4096 90.1 ns\nstore 8 1e1\n"
    assert list(common.lines(said)) == [("load", 8, 3.25), ("store", 8, 10.0)]


def test_samples_keep_one_value_a_repetition(common: Any) -> None:
    samples = common.Samples()
    samples.add([("load", 8, 3.0), ("load", 8, 5.0), ("load", 8, 4.0)])
    samples.add([("load", 8, 6.0)])
    assert samples.get("load") == [4.0, 6.0]
    assert samples.get("store") == []


def test_a_program_that_fails_is_missing_with_its_reason(common: Any) -> None:
    with pytest.raises(common.Missing, match="no such thing"):
        common.said([sys.executable, "-c", "import sys; sys.exit('no such thing')"])
    with pytest.raises(common.Missing, match="does not end"):
        common.said([sys.executable, "-c", "import time; time.sleep(20)"], timeout=0.3)


@pytest.mark.parametrize("script", ["core.py", "net.py", "peers/run.py"])
def test_the_tools_explain_themselves(script: str) -> None:
    run = tool(f"tools/bench/{script}", "--help")
    assert run.returncode == 0
    assert "--repeat" in run.stdout
    run = tool(f"tools/bench/{script}", "--only", "nonsense")
    assert run.returncode == 2
    assert "nonsense" in run.stderr


def test_peers_measures_and_skips(tmp_path: Path) -> None:
    """With fabrex and whatever else is here; what is not on the path is skipped with how to get it."""
    place = tmp_path / "bin"
    place.mkdir()
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        for program in Path(folder).iterdir() if folder and Path(folder).is_dir() else ():
            if program.name not in {"oshcc", "oshrun", "mpirun"} and not (place / program.name).exists():
                (place / program.name).symlink_to(program.resolve())
    run = tool("tools/bench/peers/run.py", "--json", "--repeat", "1", "--only", "fabrex,shmem,mpi", PATH=str(place))
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    assert document["schema_version"] == 1
    assert set(document["skipped"]) >= {"shmem", "mpi"}, document["skipped"]
    assert "apt-get install" in document["skipped"]["shmem"]
    if "fabrex" in document["skipped"]:
        pytest.skip(f"no compiler: {document['skipped']['fabrex']}")
    rows = {(row["op"], row["size"]): row for row in document["rows"]}
    assert {"load", "store", "fetch_add", "gather", "posted_store", "python_load"} <= {op for op, _ in rows}
    for key, row in rows.items():
        assert row["fabrex"]["median"] > 0, key
        assert len(row["fabrex"]["samples"]) == 1
    assert rows[("write", 4096)]["peers"]["memcpy_there"]["ratio"] > 0
    assert document["machine"]["tick_hz"] > 0


def test_core_reports_and_never_judges_by_its_status() -> None:
    run = tool("tools/bench/core.py", "--json", "--repeat", "1", "--only", "python")
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    assert document["schema_version"] == 1
    assert len(document["rows"]) == 6
    for row in document["rows"]:
        assert row["pass"] == (row["reached"] <= row["target"]), row
        assert row["samples"], row


def test_control_measures_changes() -> None:
    run = tool("tools/bench/control.py", "--json", "--count", "5")
    assert run.returncode == 0, run.stderr
    rows = json.loads(run.stdout)["rows"]
    assert len(rows) == 4 and all(row["count"] == 5 and 0 < row["p50_ns"] <= row["p99_ns"] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("group", ["delay", "fair", "scale"])
def test_each_group_of_core_runs(group: str) -> None:
    run = tool("tools/bench/core.py", "--json", "--repeat", "1", "--only", group)
    assert run.returncode == 0, run.stderr
    rows = json.loads(run.stdout)["rows"]
    assert rows
    assert {row["group"] for row in rows} == {group}
    assert all(row["pass"] is not None or row["remark"] for row in rows)


def test_requested_latency_is_what_the_model_says() -> None:
    """The topologies of the delay group ask for exactly the latency in the claim."""
    code = """
import sys
sys.path.insert(0, "tools/bench")
import core, common
for wanted in core.DELAYS_NS:
    with common.fabric(core._pair(wanted)) as made, made.attach("host0") as node:
        assert abs(node.estimate("load", made.gva("host1", 64), 8)["completes_ps"] - wanted * 1000) <= 1, wanted
"""
    run = tool("-c", code)
    assert run.returncode == 0, run.stderr


def test_plots_are_drawn_where_matplotlib_is(common: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "plot.svg"
    common.bars(str(target), "title", [("fabrex load", 3.0, 2.9, 3.1), ("other", 30.0, 29.0, 33.0)], "ns", [8.0, None])
    assert "<svg" in target.read_text(encoding="utf-8")
