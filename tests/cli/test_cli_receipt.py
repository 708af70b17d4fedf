# SPDX-License-Identifier: Apache-2.0
"""The accuracy card and receipts: that figures follow from samples, that edits show, and that comparing is sober."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

import fabrex
import fabrex.presets
from fabrex.cli import bench, card, figures, measure, receipt
from fabrex.cli.histogram import BITS, Histogram, interval, ratio_interval
from fabrex.cli.output import CommandError

from .conftest import Cli

QUICK = ("bench", "--quick", "--seconds", "3ms")
FACTS = {"processor": "Test", "cores": 2, "kernel": "6.0", "python": "3", "fabrex": "0", "clock_step_ns": 10.0, "measured_unix": 0}
CALM = {"stolen_fraction": 0.0, "descheduled": 0, "load_average": 0.0, "seconds": 1.0}


def row(samples: list[list[float]], requested: float = 300.0, floor: float | None = 100.0, **words: Any) -> dict[str, Any]:
    """A measured row, as bench makes them."""
    made = {"op": "load", "api": "c", "size": 8, "topology": "pair", "timing": "on", "ordering": "posted",
            "requested_ps": round(requested * 1e3), "count": sum(map(len, samples)), "late": 1, "preempted": 1,
            "counted": sum(map(len, samples)), "rounds": [Histogram.of(part).to_json() for part in samples],
            "floor": None if floor is None else [Histogram.of([floor]).to_json()]}  # fmt: skip
    return {**made, **words}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a receipt of rows."""
    pair = fabrex.Topology.preset("fabrex-pair")

    def write(rows: list[dict[str, Any]], name: str = "receipt.json") -> Path:
        path = tmp_path / name
        receipt.write(str(path), rows, FACTS, CALM, {"pair": pair}, SimpleNamespace(seconds=1.0, quick=False))
        return path

    return write


# -- histograms -------------------------------------------------------------------------------------------------------


def test_histogram_keeps_twelve_bits() -> None:
    draw = random.Random(1)
    values = [draw.uniform(1, 10 ** draw.uniform(0, 9)) for _ in range(3000)]
    kept = Histogram.of(values)
    assert len(kept) == 3000
    for value in values[:200]:
        alone = Histogram.of([value]).percentile_ns(0.5)
        assert abs(alone - value) <= value * 2**-BITS + 0.0005
    ordered = sorted(values)
    for fraction in (0.0, 0.25, 0.5, 0.99, 0.999, 1.0):
        wanted = ordered[min(int(3000 * fraction), 2999)]
        assert kept.percentile_ns(fraction) == pytest.approx(wanted, rel=2**-BITS, abs=0.001)
    assert Histogram.from_json(json.loads(json.dumps(kept.to_json()))).to_json() == kept.to_json()
    assert Histogram.merged([kept, kept]).percentile_ns(0.5) == kept.percentile_ns(0.5)


@pytest.mark.parametrize(
    "found",
    [None, [], {}, {"ps": [1]}, {"ps": [1], "n": [0]}, {"ps": [2, 1], "n": [1, 1]}, {"ps": [1, 1], "n": [1, 1]},
     {"ps": [-1], "n": [1]}, {"ps": [1.5], "n": [1]}, {"ps": [True], "n": [1]}, {"ps": ["1"], "n": [1]}, {"ps": [1], "n": [1, 2]},
     {"ps": {}, "n": []}],
)  # fmt: skip
def test_histogram_refuses(found: Any) -> None:
    with pytest.raises(ValueError, match="histogram"):
        Histogram.from_json(found)


def test_intervals_come_from_rounds() -> None:
    steady = [Histogram.of([100.0] * 1000) for _ in range(7)]
    shaky = [Histogram.of([value] * 1000) for value in (90.0, 95, 100, 105, 110, 120, 130)]
    assert interval(steady[:2], "x") is None
    assert interval(steady, "x") == pytest.approx((100, 100), rel=1e-3)
    low, high = interval(shaky, "x") or (0, 0)
    assert low < 100 < high, "thousands of samples of one round say no more than one does"
    assert interval(shaky, "x") == interval(shaky, "x")
    assert ratio_interval(steady, shaky[:2], "x") is None
    low, high = ratio_interval(steady, [Histogram.of([200.0])] * 7, "x") or (0, 0)
    assert low == high == pytest.approx(2, rel=1e-3)


# -- figures ----------------------------------------------------------------------------------------------------------


def test_the_verdict_on_a_row() -> None:
    found = figures.figures(row([[303.0] * 99 + [900.0]]), 0)
    assert found["claim"] == "kept" and found["error"] == pytest.approx(0.01, abs=1e-3) and found["dilation"] is None
    assert found["p99_ns"] == pytest.approx(900, rel=1e-3) and found["late"] == 0.01 and found["floor_ns"] == 100
    assert figures.figures(row([[309.0]]), 0)["claim"] == "missed"
    assert figures.figures(row([[309.0]]), 10)["claim"] == "kept", "one step of the clock"
    assert figures.figures(row([[290.0]]), 0)["claim"] == "missed", "too early is as wrong"
    below = figures.figures(row([[303.0]], requested=30.0), 10)
    assert below["claim"] == "below floor" and below["error"] is None and below["dilation"] == 4
    assert figures.figures(row([[303.0]], requested=0.0), 10)["claim"] is None
    off = figures.figures(row([[64.0]], op="write", size=64, timing="off", late=None, preempted=None, counted=0, floor=None), 0)
    assert off["bytes_per_s"] == 10**9 and off["late"] is None and off["claim"] is None
    assert figures.figures(row([[250.0]], op="dma_queue", timing="off"), 0)["per_s"] == pytest.approx(4e6, rel=1e-3)


def test_the_card_fits_a_terminal_and_refuses_below_the_floor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = [row([[303.0]]), row([[345.0]], api="python"), row([[303.0]], requested=3.1, op="write", size=64),
            row([[9e9]], op="dma_write", size=16 << 20, topology="x" * 60)]  # fmt: skip
    made = [bench.shown(one, 10.0) for one in rows]
    text = card.text(made, FACTS, CALM)
    assert max(map(len, text.splitlines())) <= 80
    kept, missed, below = (
        line for line in text.splitlines() if line.startswith(("load", "  ", "write")) and ("c  " in line or "python" in line)
    )
    assert "●●●●" in kept and "+1.0 %" in kept
    assert "+15.0 %" in missed and "○○○○○" in missed
    assert "no claim" in below and "dilate ×36" in below and "%" not in below
    assert "1 kept, 1 missed, 1 below this machine's floor" in text
    picture = card.picture(made, FACTS, CALM)
    picture.save(str(tmp_path / "card.svg"))
    drawn = (tmp_path / "card.svg").read_text(encoding="utf-8")
    assert "no claim; dilate ×36" in drawn and "+15.0 %" in drawn and "<script" not in drawn
    with pytest.raises(CommandError, match=r"\.svg or \.png"):
        picture.save(str(tmp_path / "card.bmp"))


def test_the_card_as_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    card.picture([bench.shown(row([[303.0]]), 10.0)], FACTS, CALM).save(str(tmp_path / "card.png"))
    assert (tmp_path / "card.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


# -- receipts ---------------------------------------------------------------------------------------------------------


def test_a_receipt_of_a_run(cli: Cli, tmp_path: Path) -> None:
    """What bench printed, what the receipt says and what its samples say are the same."""
    path = tmp_path / "run.json"
    printed = cli.good(
        *QUICK, "--op", "load,fetch_add,dma_write,dma_submit", "--size", "4096", "--receipt", str(path), "--json"
    ).document
    schema = json.loads(Path(fabrex.__path__[0], "schema", "cli.schema.json").read_text(encoding="utf-8"))
    kept = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator({**schema["$defs"]["receipt_file"], "$defs": schema["$defs"]}).validate(kept)
    shown = cli.good("receipt", "show", str(path), "--json").document
    assert shown["intact"] and len(shown["rows"]) == len(printed["rows"]) == 16
    for one, other in zip(printed["rows"], shown["rows"], strict=True):
        assert other.pop("interval_ns")[0] <= one["p50_ns"] or one["p50_ns"] >= 0
        assert one == other
    assert kept["versions"]["fabrex"] and kept["seed"] == {"fabrex-pair": 0}
    assert fabrex.Topology.loads(kept["topologies"]["fabrex-pair"]).name == "fabrex-pair"
    assert cli.good("receipt", "verify", str(path), "--json").document["intact"]
    assert "intact; 16 rows follow from" in cli.good("receipt", "verify", str(path)).out
    assert "fetch_add 8 B" in cli.good("receipt", "show", str(path), "--plot", str(tmp_path / "card.svg")).out
    assert (tmp_path / "card.svg").exists()
    same = cli.good("receipt", "compare", str(path), str(path), "--json").document
    assert {one["ratio"] for one in same["rows"]} == {1.0} and same["only_in"] == [0, 0]
    assert not {one["verdict"] for one in same["rows"]} & {"slower", "faster"}


def test_every_edited_byte_shows(written: Callable[..., Path]) -> None:
    path = written([row([[300.0, 310.0], [305.0], [301.0, 302.0]]), row([[50.0]], timing="off", late=None, preempted=None)])
    whole = path.read_bytes()
    assert receipt.read(str(path))[1] == []
    draw = random.Random(7)
    for place in [*range(0, len(whole), 7), len(whole) - 1, len(whole) - 2]:
        edited = bytearray(whole)
        edited[place] ^= 1 << draw.randrange(7)
        path.write_bytes(edited)
        try:
            faults = receipt.read(str(path))[1]
        except CommandError:
            continue
        assert faults, f"byte {place}: {whole[place - 10 : place + 10]!r} became {bytes(edited[place - 10 : place + 10])!r}"
    for cut in (whole[:-1], whole + b"\n", whole + b" ", whole.replace(b'"rows":[\n', b'"rows":[ \n')):
        path.write_bytes(cut)
        assert receipt.read(str(path))[1]


def test_a_digest_made_anew_does_not_help(written: Callable[..., Path]) -> None:
    """Figures must follow from the samples, whoever computed the digest."""
    path = written([row([[300.0, 310.0], [305.0], [301.0]])])
    found = json.loads(path.read_text(encoding="utf-8"))
    found["rows"][0]["figures"]["p50_ns"] = 300.5
    found["rows"][0]["figures"]["flattering"] = True
    path.write_text(receipt.serialized(found), encoding="utf-8")
    faults = receipt.read(str(path))[1]
    assert [fault.split(": ")[1].split()[1] for fault in faults] == ["flattering", "p50_ns"]


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda found: found.pop("rows"), "no rows"),
        (lambda found: found.update(rows={}), "no rows"),
        (lambda found: found["machine"].pop("clock_step_ns"), "clock_step_ns"),
        (lambda found: found.update(disturbance=3), "disturbed"),
        (lambda found: found["rows"].append(7), "row 1 lacks"),
        (lambda found: found["rows"][0].pop("late"), "row 0 lacks"),
        (lambda found: found["rows"][0].update(size=-1), "negative"),
        (lambda found: found["rows"][0].update(rounds=[]), "no samples"),
        (lambda found: found["rows"][0]["rounds"].append({"ps": [], "n": []}), "no samples"),
        (lambda found: found["rows"][0]["rounds"].append({"ps": [2, 1], "n": [1, 1]}), "rise"),
        (lambda found: found.update(fabrex_receipt=99), "format 99"),
        (lambda found: found.pop("fabrex_receipt"), "no receipt"),
    ],
)
def test_damaged_receipts(written: Callable[..., Path], edit: Callable[[dict[str, Any]], Any], why: str) -> None:
    path = written([row([[300.0]])])
    found = json.loads(path.read_text(encoding="utf-8"))
    edit(found)
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(CommandError, match=why):
        receipt.read(str(path))


def test_commands_on_what_is_no_receipt(cli: Cli, tmp_path: Path, written: Callable[..., Path]) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"\xff\x00")
    assert "no file" in cli("receipt", "verify", str(tmp_path / "none")).err
    assert "no receipt" in cli("receipt", "show", str(other)).err
    assert "directory" in cli("receipt", "show", str(tmp_path)).err
    good = written([row([[300.0]])])
    edited = tmp_path / "edited.json"
    edited.write_bytes(good.read_bytes().replace(b"Test", b"Best"))
    for words in (("verify", edited), ("show", edited), ("compare", good, edited)):
        result = cli("receipt", *map(str, words))
        assert result.code == 1 and "edited" in result.err, words
    assert not cli("receipt", "verify", str(edited), "--json").document["intact"]
    assert cli("receipt", "show", str(good), "--plot", str(tmp_path / "card.bmp")).code == 2
    assert cli("receipt", "show", str(good), "--plot", str(tmp_path / "none" / "card.svg")).code == 3
    apart = written([row([[300.0]], op="read")], "apart.json")
    assert "no row in common" in cli("receipt", "compare", str(good), str(apart)).err


def test_comparing_is_sober(cli: Cli, tmp_path: Path, written: Callable[..., Path]) -> None:
    """A change is one when resampled rounds agree on it, and it is more than a step of the clock."""
    steady = [[1000.0] * 20 for _ in range(7)]
    first = [row(steady, size=size) for size in (1, 2, 4, 8)] + [row(steady, op="read")]
    second = [
        row([[1100.0] * 20 for _ in range(7)], size=1),
        row([[900.0] * 20 for _ in range(7)], size=2),
        row([[1009.0] * 20 for _ in range(7)], size=4),
        row([[value] * 20 for value in (800.0, 900, 1000, 1050, 1100, 1200, 1300)], size=8),
        row(steady, op="write"),
    ]
    paths = [str(written(rows, name)) for rows, name in ((first, "a.json"), (second, "b.json"))]
    found = cli.good("receipt", "compare", *paths, "--json").document
    assert [one["verdict"] for one in found["rows"]] == ["slower", "faster", "same", "unsure"]
    assert found["only_in"] == [1, 1]
    out = cli.good("receipt", "compare", *paths, "--plot", str(tmp_path / "c.svg")).out
    assert re.search(r"load 1 B +c +on .* slower", out) and "load 4 B" not in out
    assert "1 faster, 1 slower, 1 same, 1 unsure of 4 rows" in out
    assert "load 4 B" in cli.good("receipt", "compare", *paths, "--all").out
    assert "slower" in (tmp_path / "c.svg").read_text(encoding="utf-8")


# -- bench's options --------------------------------------------------------------------------------------------------


def test_card_from_the_command_line(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "card.svg"
    out = cli.good(*QUICK, "--card", str(path), "--op", "load,write", "--size", "64", "--api", "c").out
    assert out.startswith("ACCURACY CARD  fabrex-pair, posted") and "load 8 B" in out and path.exists()
    assert "no claim" in next(line for line in out.splitlines() if line.startswith("write 64 B")), "3 ns is no machine's"
    assert cli.segments() == []


def test_dilation_brings_a_rate_within_reach(cli: Cli) -> None:
    """What is asked for stays the same in the fabric's time; the floor moves away."""
    words = ("--op", "dma_write", "--size", "65536", "--api", "c", "--timing", "on", "--json")
    plain, slow = (cli.good(*QUICK, *words, *more).document["rows"][0] for more in ((), ("--dilation", "50")))
    assert plain["requested_ns"] == slow["requested_ns"]
    assert slow["floor_ns"] < plain["floor_ns"] / 2
    assert slow["claim"] != "below floor"


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("--card", "card.bmp"), 2, ".svg or .png"),
        (("--card", "none/card.svg"), 3, "no directory"),
        (("--receipt", "none/r.json"), 3, "no directory"),
        (("--receipt", "."), 2, "directory"),
        (("--card", "--timing", "off"), 2, "timing"),
        (("--size", "65537", "--op", "read"), 2, "1 to 65536"),
        (("--dilation", "0"), 6, "dilation"),
    ],
)
def test_bad_options_are_refused_before_anything_is_measured(cli: Cli, words: tuple[str, ...], code: int, why: str) -> None:
    result = cli("bench", *words)
    assert result.code == code and why in result.err, result.err


@pytest.mark.parametrize("name", fabrex.presets.names())
def test_every_preset_has_an_idle_twin(name: str) -> None:
    """The floor's topology: the same nodes and ways, valid, and with less time everywhere."""
    topology = fabrex.Topology.preset(name)
    for delays in (False, True):
        twin = measure.idle(topology, delays)
        assert list(twin.nodes) == list(topology.nodes) and list(twin.links) == list(topology.links)
        tiers = [tier for node in twin.nodes.values() for tier in node.memory.values()]
        assert not any(tier.latency_ps or tier.rate_bps for tier in tiers)
        for link in topology.links.values():
            assert twin.links[link.name].raw_bps >= link.raw_bps
            assert twin.links[link.name].delay_ps == (link.delay_ps if delays else 0)


def test_a_card_of_a_small_memory(cli: Cli) -> None:
    """Sizes that a tier cannot hold are left out, not an error."""
    words = ("--topology", "pcie-bench", "--op", "dma_read", "--api", "c", "--timing", "on", "--json")
    assert [row["size"] for row in cli.good(*QUICK, *words).document["rows"]] == [4096, 65536]
