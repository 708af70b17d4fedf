# SPDX-License-Identifier: Apache-2.0
"""Link arithmetic: published numbers to the last digit, exact rationals, and packets cut one at a time."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabrex import pcie
from fabrex.pcie import Link

U64 = 2**64 - 1
PAGE = 4096

GEN3 = Link(gen=3, lanes=8, mps=256, mrrs=512)
GEN4 = Link(gen=4, lanes=16, mps=256, mrrs=512)
GEN5 = Link(gen=5, lanes=16, mps=256, mrrs=512)

links = st.builds(
    Link,
    gen=st.sampled_from(pcie.GENERATIONS),
    lanes=st.sampled_from(pcie.LANES),
    mps=st.sampled_from(pcie.PACKET_SIZES),
    mrrs=st.sampled_from(pcie.PACKET_SIZES),
    rcb=st.sampled_from(pcie.READ_COMPLETION_BOUNDARIES),
)
sizes = st.one_of(st.integers(0, 10000), st.integers(0, U64), st.integers(U64 - 5000, U64))
addresses = st.one_of(st.integers(0, 10000), st.integers(0, U64))


def nearest(value: Fraction) -> int:
    """Round halves up, as the arithmetic says that it does."""
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


def ceil_div(value: int, unit: int) -> int:
    return -(-value // unit)


def exact_raw(link: Link) -> Fraction:
    giga = {1: Fraction(5, 2), 2: Fraction(5), 3: Fraction(8), 4: Fraction(16), 5: Fraction(32), 6: Fraction(64)}
    encoding = Fraction(8, 10) if link.gen <= 2 else Fraction(128, 130) if link.gen <= 5 else Fraction(236, 256)
    return link.lanes * giga[link.gen] * 10**9 * encoding


def exact_tlp(link: Link) -> Fraction:
    if link.gen == 6:
        return exact_raw(link)
    return exact_raw(link) * (1 - Fraction(16, link.ack_limit()) - Fraction(4, 1538))


# Published numbers


@pytest.mark.parametrize(
    ("bps", "gigabits"),
    [
        (lambda: GEN3.raw_bps(), "63.015"),
        (lambda: GEN3.tlp_bps(), "57.885"),
        (lambda: GEN3.write_bps(64), "42.098"),
        (lambda: GEN3.write_bps(256), "52.923"),
        (lambda: GEN3.write_bps(257), "48.775"),
        (lambda: GEN3.read_bps(64), "44.103"),
        (lambda: GEN3.read_bps(513), "51.824"),
        (lambda: GEN3.read_write_bps(64), "33.077"),
        (lambda: GEN4.tlp_bps(), "227.400"),
        (lambda: GEN4.write_bps(64), "165.382"),
        (lambda: GEN4.write_bps(512), "207.909"),
        (lambda: GEN4.read_bps(512), "210.922"),
        (lambda: GEN5.tlp_bps(), "454.800"),
        (lambda: GEN5.write_bps(512), "415.817"),
        (lambda: GEN5.read_bps(512), "421.844"),
    ],
)
def test_published_rates(bps: Any, gigabits: str) -> None:
    value = bps()
    assert isinstance(value, int)
    whole, decimals = gigabits.split(".")
    assert (value + 500_000) // 1_000_000 == int(whole + decimals)


@pytest.mark.parametrize(
    ("gen", "lanes", "limits"),
    [  # mps 128 … 4096; the specification's Ack latency limits (x12: from general knowledge of it)
        (1, 1, (237, 416, 559, 1071, 2095, 4143)),
        (1, 8, (67, 107, 86, 150, 278, 534)),
        (1, 12, (58, 90, 109, 194, 365, 706)),
        (1, 32, (33, 45, 52, 84, 148, 276)),
        (2, 4, (124, 169, 205, 333, 589, 1101)),
        (3, 2, (224, 313, 385, 641, 1153, 2177)),
        (3, 8, (163, 203, 182, 246, 374, 630)),
        (4, 16, (144, 168, 182, 246, 374, 630)),
        (5, 32, (129, 141, 148, 180, 244, 372)),
        (6, 16, (0, 0, 0, 0, 0, 0)),
    ],
)
def test_ack_limit_gives_the_tables(gen: int, lanes: int, limits: tuple[int, ...]) -> None:
    assert tuple(Link(gen, lanes, mps=mps).ack_limit() for mps in pcie.PACKET_SIZES) == limits


def test_flit_mode_has_no_dllp_loss() -> None:
    link = Link(6, 16)
    assert link.raw_bps() == link.tlp_bps() == 944_000_000_000


# Exactness, limits, saturation


@given(links)
def test_rates_are_the_nearest_integers(link: Link) -> None:
    assert link.raw_bps() == nearest(exact_raw(link))
    assert link.tlp_bps() == nearest(exact_tlp(link))
    assert 0 < link.tlp_bps() <= link.raw_bps()


@given(links, sizes)
def test_goodput_is_the_nearest_integer(link: Link, n: int) -> None:
    if n == 0:
        assert link.write_bps(0) == link.read_bps(0) == link.read_write_bps(0) == 0
        return
    write = n + 24 * ceil_div(n, link.mps)
    request = 24 * ceil_div(n, link.mrrs)
    completion = n + 20 * ceil_div(n, link.mps)
    rate = exact_tlp(link)
    assert link.write_bps(n) == nearest(rate * n / write)
    assert link.read_bps(n) == nearest(rate * n / max(request, completion))
    assert link.read_write_bps(n) == nearest(rate * n / max(write + request, completion))


@given(links, sizes)
def test_plain_wire_bytes(link: Link, n: int) -> None:
    assert link.write_wire_bytes(n) == min(U64, n + 24 * ceil_div(n, link.mps))
    assert link.request_wire_bytes(n) == min(U64, 24 * ceil_div(n, link.mrrs))
    assert link.completion_wire_bytes(n) == min(U64, n + 20 * ceil_div(n, link.mps))


@given(links, st.integers(1, 100))
def test_goodput_rises_from_one_full_packet_to_the_next_byte_never(link: Link, packets: int) -> None:
    full = link.mps * packets
    assert link.write_bps(full) > link.write_bps(full + 1)  # one more header for one more byte
    assert link.write_bps(full) == link.write_bps(link.mps)
    assert link.write_bps(full - 1) < link.write_bps(full) < link.tlp_bps()
    assert link.read_bps(full) < link.tlp_bps()
    assert link.read_write_bps(full) < min(link.read_bps(full), link.write_bps(full))


@given(links, sizes, sizes, addresses)
def test_more_bytes_never_need_less(link: Link, one: int, other: int, address: int) -> None:
    small, large = sorted((one, other))
    for function in (link.write_wire_bytes, link.request_wire_bytes, link.completion_wire_bytes):
        assert function(small) <= function(large)
        assert function(small, address) <= function(large, address)
    assert link.time_ps(small) <= link.time_ps(large)


@given(links, sizes, st.integers(0, U64 // PAGE).map(lambda page: page * PAGE))
def test_aligned_is_as_without_an_address(link: Link, n: int, address: int) -> None:
    n -= n % 4
    assert link.write_wire_bytes(n, address) == link.write_wire_bytes(n)
    assert link.request_wire_bytes(n, address) == link.request_wire_bytes(n)
    if link.mrrs >= link.mps:
        assert link.completion_wire_bytes(n, address) == link.completion_wire_bytes(n)
    else:
        assert link.completion_wire_bytes(n, address) >= link.completion_wire_bytes(n)


@given(links, sizes)
def test_time(link: Link, n: int) -> None:
    per_byte = nearest(Fraction(8 * 10**12 << 24) / exact_tlp(link))
    assert link.time_ps(n) == min(U64, nearest(Fraction(per_byte * n, 1 << 24)))


@given(st.integers(1, U64), sizes, st.integers(1, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_ethernet(rate: int, n: int, mtu: int, overhead: int) -> None:
    wire = min(U64, n + overhead * ceil_div(n, mtu))
    assert pcie.ethernet_wire_bytes(n, mtu=mtu, overhead=overhead) == wire
    per_byte = min(U64, nearest(Fraction(8 * 10**12 << 24, rate)))
    assert pcie.ethernet_time_ps(wire, rate) == min(U64, nearest(Fraction(per_byte * wire, 1 << 24)))


def test_ethernet_full_frames() -> None:
    assert pcie.ethernet_wire_bytes(1500) == 1538
    assert pcie.ethernet_time_ps(1538, 10 * 10**9) == 1_230_400
    assert pcie.ethernet_wire_bytes(9001, mtu=9000) == 9001 + 2 * 38


def test_saturates() -> None:
    link = Link(1, 1, mps=128, mrrs=128)
    assert link.write_wire_bytes(U64) == link.completion_wire_bytes(U64) == U64
    assert link.write_wire_bytes(U64, U64) == link.completion_wire_bytes(U64, U64) == U64
    assert link.time_ps(U64) == U64
    assert link.write_tlps(U64, 1) == 2**57
    assert link.write_tlps(U64, 2) == 2**57 + 1


# Packets, one at a time


def cut(start: int, size: int, unit: int) -> list[tuple[int, int]]:
    """Cut bytes into packets of whole double words, `unit` bytes of them at most and none across 4 KiB."""
    made = []
    end = start + size
    while start < end:
        stop = min(end, start - start % 4 + unit, start - start % PAGE + PAGE)
        made.append((start, stop - start))
        start = stop
    return made


def answers(start: int, size: int, mps: int, rcb: int) -> list[tuple[int, int]]:
    """Cut a request's completions: each as long as mps and the read completion boundary let it be."""
    made = []
    end = start + size
    while start < end:
        stop = end
        if dwords(start, end - start) > mps // 4:
            stop = max(at for at in range(start + 1, start - start % 4 + mps + 1) if at % rcb == 0)
        made.append((start, stop - start))
        start = stop
    return made


def dwords(start: int, size: int) -> int:
    return len({at // 4 for at in (start, start + size - 1)} | set(range(start // 4, (start + size - 1) // 4)))


def check_packets(link: Link, address: int, n: int) -> None:
    writes = cut(address, n, link.mps)
    requests = cut(address, n, link.mrrs)
    completions = [piece for request in requests for piece in answers(*request, link.mps, link.rcb)]
    assert all(4 * dwords(*piece) <= link.mps for piece in writes + completions)
    assert all(4 * dwords(*piece) <= link.mrrs for piece in requests)
    assert link.write_tlps(n, address) == len(writes)
    assert link.write_wire_bytes(n, address) == sum(24 + 4 * dwords(*piece) for piece in writes)
    assert link.request_tlps(n, address) == len(requests)
    assert link.request_wire_bytes(n, address) == 24 * len(requests)
    assert link.completion_tlps(n, address) == len(completions)
    assert link.completion_wire_bytes(n, address) == sum(20 + 4 * dwords(*piece) for piece in completions)


@pytest.mark.parametrize("rcb", pcie.READ_COMPLETION_BOUNDARIES)
@pytest.mark.parametrize("mps", (128, 256))
@pytest.mark.parametrize("mrrs", (128, 512))
def test_packets_of_every_small_access(mps: int, mrrs: int, rcb: int) -> None:
    link = Link(3, 8, mps=mps, mrrs=mrrs, rcb=rcb)
    starts = [*range(8), *range(60, 69), *range(124, 133), *range(253, 259), *range(4090, 4096)]
    for address, n in itertools.product(starts, [*range(20), *range(60, 70), *range(120, 140), 255, 256, 257, 513]):
        check_packets(link, address, n)


@given(links, st.integers(0, 2**40), st.integers(0, 20000))
def test_packets_of_any_access(link: Link, address: int, n: int) -> None:
    check_packets(link, address, n)


@given(links, addresses, sizes)
def test_packets_depend_on_the_place_in_the_page_only(link: Link, address: int, n: int) -> None:
    assert link.write_wire_bytes(n, address) == link.write_wire_bytes(n, address % PAGE)
    assert link.completion_tlps(n, address) == link.completion_tlps(n, address % PAGE)


# The Python side


def test_link_is_a_value() -> None:
    link = Link(3, 8)
    assert (link.mps, link.mrrs, link.rcb) == (256, 512, 64)
    assert link == Link(gen=3, lanes=8, mps=256, mrrs=512, rcb=64)
    assert len({link, Link(3, 8), Link(3, 4)}) == 2
    assert pickle.loads(pickle.dumps(link)) == copy.deepcopy(link) == link
    assert dataclasses.replace(link, gen=4) == Link(4, 8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        link.gen = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gen": 0}, "gen must be one of 1, 2, 3, 4, 5, 6, not 0"),
        ({"gen": 7}, "gen must be one of"),
        ({"lanes": 3}, "lanes must be one of 1, 2, 4, 8, 12, 16, 32, not 3"),
        ({"lanes": 2**70}, "lanes must be one of"),
        ({"mps": 64}, "mps must be one of 128, 256, 512, 1024, 2048, 4096, not 64"),
        ({"mrrs": -512}, "mrrs must be one of"),
        ({"rcb": 256}, "rcb must be one of 64, 128, not 256"),
    ],
)
def test_link_refuses_values(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Link(**{"gen": 3, "lanes": 8, **arguments})


@pytest.mark.parametrize("value", [3.0, "3", None, True, [3]])
def test_link_refuses_types(value: Any) -> None:
    for name in ("gen", "lanes", "mps", "mrrs", "rcb"):
        with pytest.raises(TypeError, match=f"{name} must be an integer"):
            Link(**{"gen": 3, "lanes": 8, name: value})
    for function in (GEN3.write_bps, GEN3.read_bps, GEN3.read_write_bps, GEN3.write_wire_bytes, GEN3.time_ps):
        with pytest.raises(TypeError, match="must be an integer"):
            function(value)
    if value is not None:
        with pytest.raises(TypeError, match="address must be an integer"):
            GEN3.write_wire_bytes(1, value)


@pytest.mark.parametrize("value", [-1, 2**64])
def test_sizes_and_addresses_out_of_range(value: int) -> None:
    for function in (GEN3.write_bps, GEN3.read_bps, GEN3.read_write_bps, GEN3.request_wire_bytes, GEN3.time_ps):
        with pytest.raises(ValueError, match="must be between 0 and 0xffffffffffffffff"):
            function(value)
    with pytest.raises(ValueError, match="address must be between"):
        GEN3.completion_wire_bytes(1, value)
    with pytest.raises(ValueError, match="rate_bps must be"):
        pcie.ethernet_time_ps(1, value)


def test_ethernet_refuses_zero() -> None:
    with pytest.raises(ValueError, match="mtu must be at least 1"):
        pcie.ethernet_wire_bytes(1, mtu=0)
    with pytest.raises(ValueError, match="rate_bps must be at least 1"):
        pcie.ethernet_time_ps(1, 0)
    with pytest.raises(ValueError, match="overhead must be between"):
        pcie.ethernet_wire_bytes(1, overhead=2**32)


def test_anything_with_an_index_is_a_size() -> None:
    class Size:
        def __index__(self) -> int:
            return 64

    assert GEN3.write_bps(Size()) == GEN3.write_bps(64)
