# SPDX-License-Identifier: Apache-2.0
"""The timing model against a model of its own in Python: memory rates, jitter, tags, credits, dilation.

The reference knows the published link arithmetic (bytes per packet, TLP rate) and plain queueing, and nothing of the core.
"""

from __future__ import annotations

import math
import statistics
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers import topology

import fabrex
from fabrex import dilation, jitter

pytest_plugins = ["helpers"]

LINK = "host0:ntb0-host1:ntb0"
MASK = (1 << 64) - 1


def pair(memory: dict[str, Any] | None = None, pcie: dict[str, Any] | None = None, *, dma: dict[str, Any] | None = None,
         link: dict[str, Any] | None = None, hosts: int = 2, **settings: Any) -> fabrex.Topology:  # fmt: skip
    """Hosts on one link, or on one switch."""
    document = topology(hosts, delay="100ns").to_dict()
    for node in document["nodes"].values():
        if "memory" in node:
            node["memory"] = {"dram": {"size": "32MiB", **(memory or {})}}
            node["dma"] = dma or {}
    for one in document["links"]:
        one["pcie"].update(pcie or {})
        one.update(link or {})
    return fabrex.Topology.from_dict({**document, **settings})


class Wire:
    """One direction of a Gen4 x16 link as the paper describes it."""

    rate = Fraction(fabrex.pcie.Link(gen=4, lanes=16).tlp_bps(), 8 * 10**12)  # bytes per ps

    @classmethod
    def ps(cls, payload: int, tlps: int, header: int) -> float:
        return float((payload + tlps * header) / cls.rate)


# ---- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "size", "accesses"), [("load", 8, 1), ("fetch_add", 8, 2), ("compare_swap", 8, 2)])
def test_scalar_accesses_pay_the_tiers_rate(place: Path, kind: str, size: int, accesses: int) -> None:
    times = []
    for memory in ({"latency": "80ns"}, {"latency": "80ns", "rate": "1GB/s"}):
        with fabrex.Fabric.create(pair(memory), "lab") as fabric:
            node = fabric.attach("host0")
            told = node.estimate(kind, fabric.gva("host1"), size)["completes_ps"]
            request = {"load": 0, "fetch_add": size, "compare_swap": 2 * size}[kind]
            reference = Wire.ps(request, 1, 24) + 100_000 + 80_000 + Wire.ps(size, 1, 20) + 100_000
            reference += accesses * size * 1000 if "rate" in memory else 0
            assert told == pytest.approx(reference, abs=5)
            if kind == "load":
                node.begin(kind, fabric.gva("host1")).wait()
                operation = node.begin(kind, fabric.gva("host1"))
                operation.wait()
                assert operation.completes_ps - operation.issued_ps == pytest.approx(told, abs=200)
            times.append(told)
    assert times[1] > times[0]


def test_a_fast_tier_adds_nothing_to_a_write(place: Path) -> None:
    told = []
    for memory in ({}, {"rate": "200GB/s"}):
        with fabrex.Fabric.create(pair(memory), "lab") as fabric:
            node = fabric.attach("host0")
            told.append(node.estimate("write", fabric.gva("host1"), 1 << 16))
    assert told[0]["arrives_ps"] == told[1]["arrives_ps"] and told[0]["departs_ps"] == told[1]["departs_ps"]


@pytest.mark.parametrize("way", ["write", "read"])
def test_a_slow_tier_limits_dma(place: Path, way: str) -> None:
    """4 MiB to or from a tier of 2 GB/s over a link of 25 GB/s: the tier's rate, less what credits let run ahead."""
    size = 4 << 20
    with fabrex.Fabric.create(pair({"rate": "2GB/s"}, dilation=8), "lab") as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        near, far = h0.alloc(size), h1.alloc(size)
        dst, src = (far, near) if way == "write" else (near, far)
        done = h0.dma.copy(dst=dst.gva, src=src.gva, size=size)
        done.wait()
        assert done.completes_ps - done.issued_ps == pytest.approx(size * 500, rel=0.01)
        # An estimate takes the tier as it takes links: with nobody else there.
        assert h0.estimate(f"dma_{way}", far.gva, size)["completes_ps"] == pytest.approx(size * 500, rel=0.01)


def test_two_that_write_to_one_memory_share_its_rate(place: Path) -> None:
    """Each has a link of its own; the memory behind is what they contend for. Jain's index, and the sum against the rate."""
    size = 1 << 20
    with fabrex.Fabric.create(pair({"rate": "2GB/s"}, hosts=3, dilation=200), "lab") as fabric:
        nodes = [fabric.attach(f"host{i}") for i in range(3)]
        inbox = [nodes[0].alloc(size) for _ in range(2)]
        sources = [node.alloc(size) for node in nodes[1:]]
        jobs = [node.dma.copy(dst=inbox[i].gva, src=sources[i].gva, size=size) for i, node in enumerate(nodes[1:])]
        for job in jobs:
            job.wait()
        begin = min(job.issued_ps for job in jobs)
        took = [job.completes_ps - begin for job in jobs]
        assert max(took) == pytest.approx(2 * size * 500, rel=0.02)
        rates = [size / t for t in took]
        assert sum(rates) ** 2 / (2 * sum(rate * rate for rate in rates)) > 0.99


# ---- jitter ------------------------------------------------------------------------------------------------------------


def mix(x: int) -> int:
    """The permutation of csrc/jitter.c, written anew."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def sample(points: list[tuple[int, int]], seed: int, where: int, at: int) -> int:
    share = mix(mix((mix(seed) + (where + 1) * 0x9E3779B97F4A7C15) & MASK) ^ mix(at)) >> 32
    low = max(i for i in range(len(points) - 1) if points[i][0] <= share)
    (s0, p0), (s1, p1) = points[low], points[low + 1]
    return p0 + (p1 - p0) * (share - s0) // (s1 - s0)


NORMAL = {"distribution": "normal", "mean_ps": 20_000, "deviation_ps": 5_000, "min_ps": 0, "max_ps": 100_000}


def inverse(points: list[tuple[int, int]], p: float) -> float:
    at = p * jitter.WHOLE
    for (s0, p0), (s1, p1) in pairwise(points):
        if s0 <= at <= s1:
            return p0 + (p1 - p0) * (at - s0) / (s1 - s0)
    raise AssertionError


def test_tables_are_the_distributions() -> None:
    normal = jitter.table(NORMAL)
    exact = statistics.NormalDist(20_000, 5_000)
    for i in range(1, 1000):
        assert inverse(normal, i / 1000) == pytest.approx(exact.inv_cdf(i / 1000), abs=150)
    exponential = jitter.table({"distribution": "exponential", "mean_ps": 50_000, "min_ps": 10_000})
    for i in range(1, 1000):
        assert inverse(exponential, i / 1000) == pytest.approx(10_000 - 40_000 * math.log(1 - i / 1000), rel=0.01)
    assert jitter.table({"distribution": "uniform", "min_ps": 5, "max_ps": 9}) == [(0, 5), (1 << 32, 9)]
    empirical = jitter.table({"distribution": "empirical", "points": {"p50": 10, "p99.9": 500}})
    assert empirical == [(0, 0), (1 << 31, 10), ((1 << 32) * 999 // 1000, 500), (1 << 32, 500)]
    for z in (jitter.NORMAL, jitter.EXPONENTIAL):
        assert list(z) == sorted(z)
    for p, z in jitter.NORMAL:
        assert -statistics.NormalDist().inv_cdf(p / 10**6) * 10**6 == pytest.approx(z, abs=1)
    for p, x in jitter.EXPONENTIAL:
        assert -math.log1p(-p / 10**6) * 10**6 == pytest.approx(x, abs=1)
    for kind in (NORMAL, {"distribution": "exponential", "mean_ps": 1 << 39}):
        points = jitter.table(kind)
        assert points[0][0] == 0 and points[-1][0] == 1 << 32 and points == sorted(points) and len(points) <= 256


@pytest.mark.parametrize("seed", [0, 7, (1 << 64) - 1])
def test_every_delay_is_the_references(place: Path, seed: int) -> None:
    """From when an operation was issued the reference says, to the picosecond, when it completes."""
    described = {"distribution": "empirical", "points": {"p50": "20ns", "p99": "90ns", "p99.9": "1.2us", "p100": "12us"}}
    with fabrex.Fabric.create(pair(link={"jitter": described}), "lab", seed=seed) as fabric:
        node, gva = fabric.attach("host0"), fabric.gva("host1")
        fabric.attach("host1")
        points = jitter.table(fabric.topology.links[LINK].jitter)
        base = node.estimate("load", gva)
        mean = sum((p1 + p0) * (s1 - s0) for (s0, p0), (s1, p1) in pairwise(points)) / 2 / jitter.WHOLE
        request, answer = round(Wire.ps(0, 1, 24)), round(Wire.ps(8, 1, 20))
        assert base["completes_ps"] == pytest.approx(request + answer + 200_000 + 2 * mean, abs=4)
        exact = 0
        for _ in range(300):
            operation = node.begin("load", gva)
            operation.wait()
            there = operation.issued_ps + request + 100_000 + sample(points, seed, 0, operation.issued_ps)
            back = there + answer + 100_000 + sample(points, seed, 1, there)
            exact += abs(operation.arrives_ps - there) <= 1 and abs(operation.completes_ps - back) <= 1
        assert exact > 290, "all but where two loads met in one slot of the calendar"


def test_the_tail_of_the_xeon_e3(place: Path) -> None:
    """Published percentiles come out again: from the table in ten thousand places, and from operations."""
    described = fabrex.Topology.preset("xeon-e3")
    points = jitter.table(described.nodes["host0"].memory["dram"].jitter)
    found = sorted(sample(points, 1, 0x10000000, at * 1_000_003) for at in range(20_000))
    for p, ps in ((0.5, 720_000), (0.95, 2_987_000), (0.999, 11_507_000)):
        assert found[int(p * len(found))] == pytest.approx(ps, rel=0.06)
    with fabrex.Fabric.create(described, "lab") as fabric:
        nic = fabric.attach("nic0")
        fabric.attach("host0")
        sink = nic.alloc(64, on="nic0")
        took = []
        for _ in range(1500):
            done = nic.dma.copy(dst=sink.gva, src=fabric.gva("host0"), size=64)
            done.wait()
            took.append(done.completes_ps - done.issued_ps)
        took.sort()
        assert 492_500 <= took[0] < 530_000  # published as 493 ns
        for share, ps in ((0.5, 1_213_000), (0.95, 3_480_000)):  # to five standard deviations of 1,500 draws
            assert sum(t < ps for t in took) / len(took) == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / 1500))
        assert took[-1] < 12_100_000


def test_jitter_reorders_nothing_and_stalls_nobody(place: Path) -> None:
    wide = {"distribution": "uniform", "min": "0ns", "max": "5us"}
    with fabrex.Fabric.create(pair(link={"jitter": wide}), "lab") as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        gva = fabric.gva("host1")
        for i in range(1, 400):
            h0.store(gva, i)
            h0.store(gva + 64, i)
            flag = h1.load(gva + 64)
            assert h1.load(gva) >= flag
        h0.flush("host1")
        plain = h0.estimate("write", gva, 1 << 15)["departs_ps"]
        operation = h0.begin("write", gva, b"x" * (1 << 15))
        operation.wait()
        assert operation.completes_ps - operation.issued_ps < 2 * plain, "chance on the way is no back-pressure"


@pytest.mark.parametrize(
    ("jitter_", "message"),
    [
        ({"distribution": "uniform"}, "needs max"),
        ({"distribution": "normal", "mean": "5ns"}, "needs deviation"),
        ({"distribution": "exponential", "mean": "5ns", "deviation": "1ns"}, "has no deviation"),
        ({"distribution": "uniform", "min": "5ns", "max": "1ns"}, "max is less than min"),
        ({"distribution": "empirical", "points": {"p50": "5ns", "p99": "1ns"}}, "falls after p50"),
        ({"distribution": "empirical", "points": {"p50": "5ns"}, "max": "1ns"}, "outside min and max"),
        ({"distribution": "empirical", "points": {}}, "needs points"),
        ({"distribution": "gamma"}, "gamma"),
    ],
)
@pytest.mark.parametrize("where", ["link", "tier"])
def test_what_is_no_distribution(jitter_: dict[str, Any], message: str, where: str) -> None:
    with pytest.raises(fabrex.TopologyError, match=message):
        pair(link={"jitter": jitter_}) if where == "link" else pair({"jitter": jitter_})


def test_jitter_survives_writing_and_reading() -> None:
    described = pair({"jitter": {"distribution": "normal", "mean": "20ns", "deviation": "5ns"}})
    again = fabrex.Topology.loads(described.to_yaml())
    assert again == described and again.nodes["host0"].memory["dram"].jitter == described.nodes["host0"].memory["dram"].jitter


# ---- tags and credits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tags", [1, 4, 32])
def test_loads_that_do_not_wait_share_the_tags(place: Path, tags: int) -> None:
    """`tags` requests are outstanding; the next leaves when the oldest has come back."""
    count = 48
    with fabrex.Fabric.create(pair({"latency": "20us"}, {"tags": tags}), "lab") as fabric:
        node, gva = fabric.attach("host0"), fabric.gva("host1")
        fabric.attach("host1")
        trip = node.estimate("load", gva)["completes_ps"]
        node.load(gva)
        operations = [node.begin("load", gva + 64 * i) for i in range(count)]
        for operation in operations:
            operation.wait()
        completes = [operation.completes_ps for operation in operations]
        free = [0] * tags
        for i, operation in enumerate(operations):
            at = max(operation.issued_ps, free[i % tags])
            free[i % tags] = at + trip
            assert completes[i] == pytest.approx(at + trip, abs=100_000)


def reads_per_trip(trip: float, outstanding: int, gap: float, size: int, rate_ps: float) -> float:
    """When `size` bytes in requests of 512 are here: by what is outstanding, by the pace of requests, or by the wire."""
    count = size // 512
    return max(count / outstanding * trip, count * gap + trip, rate_ps + trip)


@pytest.mark.parametrize(
    ("pcie", "outstanding", "gap"),
    [
        ({}, 32, 0),
        ({"completion_credits_data": 64}, 2, 0),  # 1 KiB
        ({"completion_credits_header": 12}, 6, 0),  # two completions a request
        ({"completion_credits_data": 8}, 1, 0),  # less than one request: one at a time
        ({"nonposted_credits_header": 1}, 32, 1),
        ({"nonposted_credits_header": 2}, 32, 2),
    ],
)
def test_credits_limit_what_dma_pulls(place: Path, pcie: dict[str, int], outstanding: int, gap: int) -> None:
    size = 1 << 18
    with fabrex.Fabric.create(pair({"latency": "300ns"}, pcie, dma={"tags": 32}, dilation=4), "lab") as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        near, far = h0.alloc(size), h1.alloc(size)
        request, answer = Wire.ps(0, 1, 24), Wire.ps(512, 2, 20)
        trip = request + answer + 200_000 + 300_000
        loop = (200_000 + request + float(8 / Wire.rate)) / gap if gap else 0
        reference = reads_per_trip(trip, outstanding, loop, size, Wire.ps(size, size // 256, 20))
        told = h0.estimate("dma_read", far.gva, size)["completes_ps"]
        assert told == pytest.approx(reference, rel=0.03)
        h0.dma.copy(dst=near.gva, src=far.gva, size=size).wait()
        done = h0.dma.copy(dst=near.gva, src=far.gva, size=size)
        done.wait()
        assert done.completes_ps - done.issued_ps == pytest.approx(told, rel=0.03)


def test_posted_credits_hold_a_store_back(place: Path) -> None:
    """A store returns at once while the link is at most the credits behind: of headers, or of data."""
    with fabrex.Fabric.create(pair(pcie={"gen": 1, "lanes": 1, "posted_credits_header": 4}), "lab") as fabric:
        node, gva = fabric.attach("host0"), fabric.gva("host1")
        fabric.attach("host1")
        rate = Fraction(fabrex.pcie.Link(gen=1, lanes=1).tlp_bps(), 8 * 10**12)
        packet, ahead = float(32 / rate), float(4 * (256 + 24) / rate)
        operations = [node.begin("store", gva + 8 * i, i) for i in range(200)]
        for operation in operations:
            operation.wait()
        first = operations[0].issued_ps
        backlog = first
        for operation in operations:
            backlog = max(backlog, operation.issued_ps) + packet
            assert operation.completes_ps == pytest.approx(max(operation.issued_ps, backlog - ahead), abs=20_000)


# ---- dilation ------------------------------------------------------------------------------------------------------------


def test_automatic_dilation_is_what_the_rates_need(place: Path) -> None:
    described = pair(dilation="auto")
    assert described.dilation == 0 and described.to_dict()["dilation"] == "auto"
    payload = fabrex.pcie.Link(gen=4, lanes=16).write_bps(1 << 20) / 8
    assert dilation.wanted_rate(described) == payload
    assert dilation.automatic(described, copies=2 * payload) == 1
    assert dilation.automatic(described, copies=100 * payload) == 1
    assert dilation.automatic(described, copies=payload) == 2
    assert dilation.automatic(described, copies=payload / 5.1) == Fraction(41, 4)
    eth = fabrex.Topology.preset("jetstream-pair")
    assert dilation.wanted_rate(eth) > 40e9
    with fabrex.Fabric.create(described, "lab") as fabric:
        assert fabric.topology.dilation == dilation.automatic(described) >= 1
        assert fabrex.Fabric.open("lab").topology.dilation == fabric.topology.dilation
    with fabrex.Fabric.create(pair(), "lab", dilation="auto") as fabric:
        assert fabric.topology.dilation == dilation.automatic(described)
    with fabrex.Fabric.create(pair(), "lab", dilation="5/2") as fabric:
        assert fabric.topology.dilation == Fraction(5, 2)
    with fabrex.Fabric.create(described, "lab", timing=False) as fabric:
        assert fabric.topology.dilation == 1
    with pytest.raises(fabrex.TopologyError, match="or auto"):
        pair(dilation="fast")
