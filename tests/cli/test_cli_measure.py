# SPDX-License-Identifier: Apache-2.0
"""`fabricctl bench`, `doctor` and `demo`: their shape, never their figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabrex.net.demo import TIERS, Measured, smallest
from fabrex.net.lan import why_not

from .conftest import Cli


def test_bench_rows(cli: Cli) -> None:
    found = cli.good("bench", "--quick", "--seconds", "5ms", "--json").document
    rows = found["rows"]
    assert {row["op"] for row in rows} == {
        "empty", "load", "store", "write", "read", "fetch_add", "gather", "scatter", "pingpong", "dma_write", "dma_read",
        "put_signal", "fill", "strided", "dma_submit", "dma_queue",
    }  # fmt: skip
    assert {(row["api"], row["timing"]) for row in rows if row["op"] == "load"} == {
        ("c", "on"), ("c", "off"), ("python", "on"), ("python", "off"),
    }  # fmt: skip
    for row in rows:
        assert row["p50_ns"] <= row["p99_ns"] <= row["p999_ns"], row
        assert (row["floor_ns"] is None) == (row["timing"] == "off"), row
    timed = [row for row in rows if row["timing"] == "on" and row["op"] == "load"]
    assert all(row["requested_ns"] == timed[0]["requested_ns"] > 0 and row["late"] is not None for row in timed)


def test_bench_table(cli: Cli) -> None:
    out = cli.good("bench", "--quick", "--seconds", "2ms", "--op", "load,store", "--api", "c", "--timing", "on", "--size", "8").out
    lines = out.splitlines()
    assert "cores" in lines[0] and any(line.startswith("load ") for line in lines)
    header = next(line for line in lines if line.startswith("OP"))
    assert header.split() == ["OP", "API", "SIZE", "REQUESTED", "P50", "P99", "P99.9", "LATE", "FLOOR", "RATE"]
    assert cli.segments() == []


def test_bench_sizes_and_topologies(cli: Cli) -> None:
    found = cli.good("bench", "--quick", "--seconds", "2ms", "--op", "write", "--size", "128", "--size", "1KiB", "--api", "c",
                     "--timing", "off", "--topology", "local", "--topology", "fabrex-pair", "--json").document  # fmt: skip
    assert [(row["topology"], row["size"]) for row in found["rows"]] == [
        ("local", 128), ("local", 1024), ("fabrex-pair", 128), ("fabrex-pair", 1024),
    ]  # fmt: skip


def test_doctor(cli: Cli) -> None:
    result = cli("doctor", "--json")
    found = result.document
    names = {check["name"] for check in found["checks"]}
    assert {"processors", "clock", "shared memory", "membarrier", "fallocate", "copy", "spin accuracy", "wake-up"} <= names
    assert (result.code == 0) == found["ok"]
    for check in found["checks"]:
        assert (check["remedy"] == "") == (check["verdict"] == "ok"), check


def test_doctor_where_nothing_works(cli: Cli) -> None:
    result = cli("doctor", "--directory", "/nonexistent", "--json")
    assert result.code == 1 and not result.document["ok"]


@pytest.mark.slow
def test_demo(cli: Cli, tmp_path: Path) -> None:
    result = cli("demo", "--quick", "--size", "8MiB", "--output-dir", str(tmp_path), "--json")
    found = result.document
    assert result.code == 0 and found["same"] and found["sha256_sent"] == found["sha256_received"]
    assert found["file_bytes"] == 8 << 20 and len(found["figures"]) >= 6
    assert (tmp_path / "fabrex-demo.svg").read_text().startswith("<svg")
    assert cli.segments() == []


@pytest.mark.parametrize(("beds", "machines"), [("network namespaces", 4), ("loopback", 3), ("loopback", 2)])
def test_demo_on_machines(cli: Cli, tmp_path: Path, beds: str, machines: int) -> None:
    """Sixteen accelerators on some machines: their data arrive, operations of both tiers are measured, nothing is left."""
    if beds != "loopback" and (reason := why_not()):
        pytest.skip(reason)
    words = ["demo", "--machines", str(machines), "--quick", "--size", "100001", "--output-dir", str(tmp_path), "--json"]
    words += ["--loopback"] if beds == "loopback" else ["--dilation", "20"]
    result = cli(*words)
    assert result.code == 0, result.err
    found = result.document
    assert found["same"] and found["sent"] == found["received"] and found["beds"] == beds
    assert len(found["machines"]) == machines and sum(map(len, found["machines"].values())) == 16
    for tier in ("near", "far"):
        pairs = [key.split()[1].split(">") for key in found["sent"] if key.startswith(tier)]
        assert len(pairs) == 16 and found["moved_bytes"][tier] == 16 * 100_001
        for sender, receiver in pairs:
            together = any({sender, receiver} <= set(cards) for cards in found["machines"].values())
            assert together == (tier == "near")
    digests = list(found["sent"].values())
    assert len(set(digests)) == 16  # each sends its own bytes to two
    assert found["dilation"] == ("1" if beds == "loopback" else "20")
    where = "squadrack" if found["dilation"] == "1" else "×20"
    asked = {(row["topology"], row["op"]): row["requested_ns"] for row in found["rows"]}
    assert len(asked) == 8
    # The model's own difference between the tiers: two NICs, a switch and two fibres, there and back.
    near, far = (asked[f"{where}, {words}", "load"] for words in TIERS.values())
    assert far - near > 2 * (2 * 700 + 400 + 2 * 100)
    assert all(row["p50_ns"] >= row["requested_ns"] * 0.98 for row in found["rows"] if row["op"] in ("load", "fetch_add"))
    assert (tmp_path / "fabrex-demo-card.svg").read_text().startswith("<svg")
    assert cli.segments() == []


def test_the_smallest_factor_that_fits() -> None:
    row = Measured("far", "load", 8, 4_600_000, [20_000, 22_000, 900_000], 0, 3)
    assert smallest([row]) == 8  # 1.5 × 22 us in 4.6 us
    assert smallest([row, Measured("near", "load", 8, 359_000, [70, 70, 70], 0, 3)]) == 8
    assert smallest([Measured("near", "load", 8, 359_000, [70, 70, 70], 0, 3)]) == 1


def test_demo_on_machines_refuses(cli: Cli) -> None:
    assert cli("demo", "--machines", "5").code == 2
    assert cli("demo", "--machines", "1").code == 2
    assert cli("demo", "--machines", "2", "--dilation", "0.5").code == 2
    assert cli("demo", "--machines", "2", "--dilation", "much").code == 2
    assert cli("demo", "--loopback").code == 2
    assert cli("demo", "--dilation", "auto").code == 2
    assert cli("demo", "--machines", "4", "--size", "0").code == 2
