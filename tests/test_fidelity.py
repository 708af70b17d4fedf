# SPDX-License-Identifier: Apache-2.0
"""Demanding a fidelity: what counts as short of it, and what a test is whose machine could not give it."""

from __future__ import annotations

from typing import Any

import pytest

import fabrex
import fabrex.pytest_plugin._fixtures  # inner runs share it
from fabrex.fidelity import Disturbance, shortfalls


def counted(count: int = 100, late: int = 4, preempted: int = 0, **words: Any) -> dict[str, Any]:
    """What Fabric.fidelity() says of one kind: half of the late ones by 1 us or so, half by 1 ms or so."""
    histogram = {1 << 20: late - late // 2, 1 << 30: late // 2}
    return {"count": count, "late": late, "late_fraction": late / count, "preempted": preempted, "failed": 0,
            "late_ps_max": 1 << 30, "late_ps_mean": 538445312.0, "bytes": 0, "histogram": histogram, **words}  # fmt: skip


def test_shortfalls() -> None:
    report = {"load": counted(), "write": counted(late=0, histogram={})}
    assert shortfalls(report, late=0.04) == []
    [fault] = shortfalls(report, late=0.039)
    assert fault.startswith("4.00% of 100 load were late, 3.90% demanded; late ones by 538us on average")
    assert "not taken away" in fault
    assert shortfalls(report, late=0.02, by="100us") == []
    assert "by more than 1us" in shortfalls(report, late=0.02, by="1us")[0]
    assert shortfalls(report, late=0.0, by="1ms", ops=["load"]), "2**30 ps to 2**31 ps may be more than 1 ms"
    assert shortfalls(report, late=0.0, by="3ms") == []
    assert shortfalls(report, late=0.0, ops=["write"]) == []
    assert shortfalls(report, ops=["swap"]) == ["no swap was timed, so nothing is known of any"]
    assert shortfalls({}) == []


def test_reasons_are_labelled() -> None:
    disturbance = Disturbance(stolen_fraction=0.125, load_average=7.5)
    [fault] = shortfalls({"load": counted(preempted=3)}, late=0, disturbance=disturbance)
    assert "in 75% of the late ones the processor was taken away" in fault
    assert "12.5% of the time was stolen by the hypervisor, load 7.5" in fault


@pytest.mark.parametrize("words", [{"late": 2}, {"late": -0.1}, {"late": "many"}, {"late": True}, {"by": "1 parsec"}])
def test_demands_that_make_no_sense(words: dict[str, Any]) -> None:
    with pytest.raises((fabrex.InvalidArgument, ValueError)):
        shortfalls({}, **words)


def test_disturbance() -> None:
    with Disturbance() as found:
        sum(range(10000))
    assert 0 <= found.stolen_fraction <= 1 and found.descheduled >= 0 and found.seconds >= 0
    assert set(found.facts()) == {"stolen_fraction", "descheduled", "load_average", "seconds"}


PROJECT = """
import pytest

# Three nanoseconds on the wire: no machine takes a write from Python that fast, so all of these are late.
def writes(fabric):
    node = fabric.attach("host0")
    for _ in range(20):
        node.write(fabric.gva("host1"), bytes(64))

@pytest.mark.fabrex(timing="on", fidelity={"late": 0.5, "ops": ["write"]})
def test_passes(fabrex_fabric):
    writes(fabrex_fabric)

@pytest.mark.fabrex(timing="on", fidelity=0.5)
def test_fails(fabrex_fabric):
    writes(fabrex_fabric)
    assert "took" == "longer"

@pytest.mark.fabrex(timing="on")
def test_by_fixture(fabrex_fabric, fabrex_fidelity):
    fabrex_fidelity(fabrex_fabric, late=0.0)
    writes(fabrex_fabric)

@pytest.mark.fabrex(timing="on", fidelity=1.0)
def test_content(fabrex_fabric):
    writes(fabrex_fabric)

@pytest.mark.fabrex(timing="on", fidelity=1.0)
def test_really_fails(fabrex_fabric):
    writes(fabrex_fabric)
    assert "really" == "wrong"

@pytest.mark.fabrex(timing="on", fidelity={"ops": ["swap"]})
def test_did_nothing(fabrex_fabric):
    pass

@pytest.mark.fabrex(fidelity=0.5)
def test_without_timing(fabrex_fabric):
    pass

@pytest.mark.fabrex(timing="on", fidelity={"lateness": 0.5})
def test_misspelt(fabrex_fabric):
    pass
"""


def test_an_inconclusive_test_is_skipped_with_its_reason(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=PROJECT)
    result = pytester.runpytest_inprocess("-rs", "-v", "-p", "no:xdist", "-p", "no:cacheprovider")
    outcomes = result.parseoutcomes()
    assert outcomes == {"passed": 1, "skipped": 4, "failed": 1, "errors": 2}, result.stdout.str()
    text = " ".join(result.stdout.str().split())
    assert "inconclusive, though it passed: 100.00% of 20 write were late, 50.00% demanded" in text
    assert "inconclusive, though it failed: 100.00% of 20 write were late" in text
    assert "no swap was timed" in text and "stolen by the hypervisor" in text
    assert "this fabric has timing off" in text and "some of late, by and ops" in text
    assert "assert 'really' == 'wrong'" in text


def test_an_inconclusive_test_fails_where_that_is_wanted(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=PROJECT)
    pytester.makeini("[pytest]\nfabrex_inconclusive = fail\n")
    result = pytester.runpytest_inprocess("-k", "passes or test_fails or content", "-p", "no:xdist", "-p", "no:cacheprovider")
    assert result.parseoutcomes() == {"passed": 1, "failed": 2, "deselected": 5}, result.stdout.str()
    text = result.stdout.str()
    assert "inconclusive, though it passed" in text and "fabrex: inconclusive" in text and "assert 'took' == 'longer'" in text
