# SPDX-License-Identifier: Apache-2.0
"""Units: exact both ways, and errors that say what is allowed."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabrex import units
from fabrex.units import UnitError, format_rate, format_size, format_time, parse_rate, parse_size, parse_time

WORD = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1B", 1),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("1.5MiB", 3 * 2**19),
        ("256GB", 256 * 10**9),
        (" 2 TiB ", 2 * 2**40),
        ("0.001KB", 1),
        ("0B", 0),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1ps", 1),
        ("105ns", 105_000),
        ("0.1us", 100_000),
        ("1.78us", 1_780_000),
        ("2µs", 2 * 10**6),
        ("2μs", 2 * 10**6),
        ("1ms", 10**9),
        ("1s", 10**12),
    ],
)
def test_times(text: str, value: int) -> None:
    assert parse_time(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1b/s", 1),
        ("1B/s", 8),
        ("1kb/s", 1000),
        ("400Gb/s", 400 * 10**9),
        ("400GB/s", 3200 * 10**9),
        ("150TB/s", 1200 * 10**12),
        ("0.5B/s", 4),
    ],
)
def test_rates(text: str, value: int) -> None:
    assert parse_rate(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_size, "1024", "no unit; allowed: B, KB"),
        (parse_size, "1gib", r"did you mean GiB\?"),
        (parse_size, "1G", r"did you mean GB or GiB\?"),
        (parse_size, "0.3B", "whole number of bytes"),
        (parse_size, "-1B", "not a size"),
        (parse_size, "GiB", "not a size"),
        (parse_size, "1e9B", "unknown unit 'e9B'"),
        (parse_size, "16777216TiB", "too large"),
        (parse_size, "", "not a size"),
        (parse_time, "5", "no unit; allowed: ps, ns, us, µs, ms, s"),
        (parse_time, "5sec", r"did you mean s\?"),
        (parse_time, "0.5ps", "whole number of picoseconds"),
        (parse_rate, "400Gbps", r"did you mean Gb/s\?"),
        (parse_rate, "400gb/s", r"did you mean Gb/s or GB/s\?"),
        (parse_rate, "1" * 41 + "b/s", "not a rate"),
    ],
)
def test_errors_say_what_is_allowed(parse: object, text: str, message: str) -> None:
    with pytest.raises(UnitError, match=message):
        parse(text)  # type: ignore[operator]


def test_only_text_is_parsed() -> None:
    with pytest.raises(UnitError, match="with its unit"):
        parse_size(1024)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1GiB", 2**30), ("1.5GiB", 3 * 2**29), ("256GB", 256 * 10**9), ("64KiB", 65536), ("1001B", 1001), ("0B", 0)],
)
def test_sizes_are_short(text: str, value: int) -> None:
    assert format_size(value) == text


def test_times_and_rates_are_short() -> None:
    assert format_time(1_780_000) == "1.78us"
    assert format_time(105_000) == "105ns"
    assert format_time(0) == "0ns"
    assert format_rate(400 * 10**9) == "400Gb/s"
    assert format_rate(3200 * 10**9, in_bytes=True) == "400GB/s"
    assert format_rate(9, in_bytes=True) == "9b/s"


@given(WORD)
def test_round_trip(value: int) -> None:
    assert parse_size(format_size(value)) == value
    assert parse_time(format_time(value)) == value
    assert parse_rate(format_rate(value)) == value
    assert parse_rate(format_rate(value, in_bytes=True)) == value


@given(st.text(max_size=30))
def test_any_text_is_a_quantity_or_a_unit_error(text: str) -> None:
    for parse in (parse_size, parse_time, parse_rate):
        with contextlib.suppress(UnitError):
            assert 0 <= parse(text) <= units.MAX_VALUE


def test_format_refuses_what_is_no_quantity() -> None:
    with pytest.raises(ValueError, match="negative"):
        format_size(-1)
    with pytest.raises(TypeError):
        format_time(1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        format_rate(True)
