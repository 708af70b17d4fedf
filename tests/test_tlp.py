# SPDX-License-Identifier: Apache-2.0
"""TLP bytes: hand-made packets, round trips, rules, and garbage."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import struct
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fabrex import tlp as module
from fabrex.pcie import Link
from fabrex.tlp import CA, RRS, SC, TLP, UR, TLPError

FULL = bytes(range(256)) * 16

# Written by hand from the header layouts of the specification: bytes, and what builds them.
GOLDEN = [
    ("40000001 01000c0f febc0010 78563412", TLP.memory_write(0xFEBC0010, b"xV4\x12", requester=0x0100, tag=0x0C)),
    ("60000002 000000ff 00000001 00000008 0001020304050607", TLP.memory_write(0x100000008, bytes(range(8)))),
    ("40000002 0000001e 00001000 00aabbcc dd000000", TLP.memory_write(0x1001, bytes.fromhex("aabbccdd"))),
    ("40000001 00000000 00001000 00000000", TLP.memory_write(0x1002, b"")),
    ("00000001 0a180700 00002000", TLP.memory_read(0x2000, 0, requester=0x0A18, tag=7)),
    ("00000010 0000ffff 00002000", TLP.memory_read(0x2000, 64, tag=0xFF)),
    ("20000000 000000ff 00000020 00003000", TLP.memory_read(0x2000003000, 4096)),
    ("01000001 0000000f 00000004", TLP.memory_read(4, 4, locked=True)),
    ("21000001 0000000f 00000000 00000004", TLP.memory_read(4, 4, locked=True, address64=True)),
    ("00000001 0000000c 00000004", TLP.memory_read(6, 2)),
    ("02000001 0000010f 0000e000", TLP.io_read(0xE000, tag=1)),
    ("42000001 00000102 0000e000 00aa0000", TLP.io_write(0xE001, b"\xaa", tag=1)),
    ("04000001 0000000f 01000010", TLP.config_read(0x0100, 0x10)),
    ("45000001 00000103 02080004 06040000", TLP.config_write(0x0208, 4, b"\x06\x04", forwarded=True, tag=1)),
    ("04000001 0000000f 01000ffc", TLP.config_read(0x0100, 0xFFC)),
    ("33000000 00000019 00000000 00000000", TLP.message(0x19, module.ROUTE_BROADCAST)),
    ("34000000 00080020 00000000 00000000", TLP.message(0x20, module.ROUTE_LOCAL, requester=8)),
    ("74000001 00000050 00000000 00000000 4b000000", TLP.message(0x50, module.ROUTE_LOCAL, b"K\0\0\0")),
    ("32000000 0000007f 01001ab4 00000001", TLP.message(0x7F, module.ROUTE_BY_ID, message_header=0x01001AB400000001)),
    ("0a000000 00002004 01000c00", TLP.completion(0x0100, 0x0C, status=UR)),
    ("0a000000 02008004 01000c00", TLP.completion(0x0100, 0x0C, status=CA, completer=0x0200)),
    ("0a000000 02004004 01000c00", TLP.completion(0x0100, 0x0C, status=RRS, completer=0x0200)),
    ("4a000001 00000004 01000c10 deadbeef", TLP.completion(0x0100, 12, b"\xde\xad\xbe\xef", lower_address=0x10)),
    ("4a000001 00000001 01000c13 000000ef", TLP.completion(0x0100, 12, b"\xef", lower_address=0x13)),
    ("4a000001 00000000 01000c00 01020304", TLP.completion(0x0100, 12, b"\1\2\3\4", byte_count=4096)),
    ("0b000000 00002004 00000000", TLP.completion(0, 0, status=UR, locked=True)),
    ("4b000001 00000004 00000000 01020304", TLP.completion(0, 0, b"\1\2\3\4", locked=True)),
    ("4c000001 00000500 00001004 ffffffff", TLP.fetch_add(0x1004, -1, size=4, tag=5)),
    ("6c000002 00000500 00000001 00000008 0200000000000000", TLP.fetch_add(0x100000008, 2, tag=5)),
    ("4d000002 00000000 00001008 efcdab8967452301", TLP.swap(0x1008, 0x0123456789ABCDEF)),
    ("4e000002 00000000 00001004 01000000 02000000", TLP.compare_swap(0x1004, 1, 2, size=4)),
    ("4e000004 00000000 00001008 0100000000000000 0200000000000000", TLP.compare_swap(0x1008, 1, 2)),
    (
        "6e000008 00000000 00000001 00000010" + " 01" + "00" * 15 + " 02" + "00" * 15,
        TLP.compare_swap(0x100000010, 1, 2, size=16),
    ),
    # traffic class 5, ido, th, tag bits 9 and 8, digest, poison, ro, no snoop, translated address
    (
        "40ddf801 0000210f 00001000 00000000 11223344",
        TLP.memory_write(
            0x1000,
            bytes(4),
            tag=0x321,
            tc=5,
            ido=True,
            th=True,
            ep=True,
            ro=True,
            no_snoop=True,
            at=2,
            digest=b'\x11"3D',
        ),
    ),
    (
        "8e010203 91000001 00000001 0000000f 00001000",
        TLP.memory_read(0x1000, 4, prefixes=(b"\x8e\1\2\3", b"\x91\0\0\1")),
    ),
]


@pytest.mark.parametrize(("text", "tlp"), GOLDEN, ids=[text[:17].replace(" ", "_") for text, _ in GOLDEN])
def test_golden(text: str, tlp: TLP) -> None:
    data = bytes.fromhex(text)
    assert tlp.encode() == data
    assert TLP.decode(data) == tlp
    assert tlp.wire_bytes == len(data) + 8


def test_fields_of_a_packet() -> None:
    tlp = TLP.decode(bytes.fromhex("40ddf801 0000210f 00001002 00000000 11223344"))
    assert (tlp.kind, tlp.fmt, tlp.type, tlp.tc, tlp.attr, tlp.tag) == ("MWr", 2, 0, 5, 7, 0x321)
    assert (tlp.td, tlp.th, tlp.ep, tlp.at, tlp.ph, tlp.address) == (True, True, True, 2, 2, 0x1000)
    assert (tlp.posted, tlp.non_posted, tlp.is_completion) == (True, False, False)
    assert tlp.digest == b'\x11"3D'
    done = TLP.decode(bytes.fromhex("4a000001 02009004 01000c90 01020304"))
    assert (done.completer, done.status, done.bcm, done.byte_count) == (0x0200, CA, True, 4)
    assert (done.requester, done.tag, done.lower_address, done.reserved) == (0x0100, 12, 0x10, 1)
    message = TLP.decode(bytes.fromhex("36000005 00000019 00000000 00000000"))  # reserved routing and length kept
    assert (message.routing, message.length, message.posted) == (6, 5, True)


# Every valid field value goes to bytes and back

bools, u16 = st.booleans(), st.integers(0, 0xFFFF)
common: dict[str, st.SearchStrategy[Any]] = {
    "tc": st.integers(0, 7),
    "ro": bools,
    "ido": bools,
    "no_snoop": bools,
    "ep": bools,
    "at": st.integers(0, 3),
    "th": bools,
    "digest": st.none() | st.binary(min_size=4, max_size=4),
    "prefixes": st.builds(
        lambda local, ends: (
            tuple(bytes([0x80 | kind]) + rest for kind, rest in local) + tuple(bytes([0x90 | kind]) + rest for kind, rest in ends)
        ),
        st.lists(st.tuples(st.integers(0, 15), st.binary(min_size=3, max_size=3)), max_size=2),
        st.lists(st.tuples(st.integers(0, 15), st.binary(min_size=3, max_size=3)), max_size=4),
    ),
}
plain = {name: common[name] for name in ("ido", "ep", "th", "digest", "prefixes")}
ids = {"requester": u16, "tag": st.integers(0, 1023)}


@st.composite
def accesses(draw: st.DrawFn, smallest: int = 0) -> tuple[int, int]:
    """A byte address anywhere, and a size that stays in its page."""
    address = draw(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 8191)))
    room = 4096 - address % 4096
    size = draw(st.one_of(st.integers(min(smallest, room), min(16, room)), st.integers(min(smallest, room), room)))
    return address, size


@st.composite
def tlps(draw: st.DrawFn) -> TLP:
    """Any valid TLP that a constructor makes, with reserved bits set now and then."""
    kind = draw(st.sampled_from(["MWr", "MRd", "atomic", "io", "config", "message", "completion"]))
    attributes = draw(st.fixed_dictionaries(plain if kind in ("io", "config") else common))
    attributes |= draw(st.fixed_dictionaries(ids if kind != "completion" else {}))
    if kind == "MWr":
        address, size = draw(accesses())
        tlp = TLP.memory_write(address, FULL[:size], **attributes)
    elif kind == "MRd":
        address, size = draw(accesses())
        tlp = TLP.memory_read(address, size, locked=draw(bools), **attributes)
    elif kind == "atomic":
        size = draw(st.sampled_from([4, 8, 16]))
        address = draw(st.integers(0, 2**64 // size - 1)) * size
        value, other = draw(st.integers(0, 2 ** (8 * size) - 1)), draw(st.integers(-(2 ** (8 * size - 1)), -1))
        operation = draw(st.sampled_from([TLP.fetch_add, TLP.swap])) if size < 16 and draw(bools) else None
        if operation:
            tlp = operation(address, other, size=size, **attributes)
        else:
            tlp = TLP.compare_swap(address, value, other, size=size, **attributes)
        tlp = dataclasses.replace(tlp, first_be=draw(st.integers(0, 15)), last_be=draw(st.integers(0, 15)))
    elif kind == "io":
        address = draw(st.integers(0, 2**32 - 1))
        size = draw(st.integers(0, 4 - address % 4))
        if draw(bools):
            tlp = TLP.io_write(address, FULL[:size], **attributes)
        else:
            tlp = TLP.io_read(address, size, **attributes)
    elif kind == "config":
        register = draw(st.integers(0, 4095))
        size, to, far = draw(st.integers(0, 4 - register % 4)), draw(u16), draw(bools)
        if draw(bools):
            tlp = TLP.config_write(to, register, FULL[:size], forwarded=far, **attributes)
        else:
            tlp = TLP.config_read(to, register, size, forwarded=far, **attributes)
        tlp = dataclasses.replace(tlp, reserved=draw(st.integers(0, 63)))
    elif kind == "message":
        data = draw(st.none() | st.integers(1, 1024).map(lambda count: FULL[: 4 * count]))
        header = draw(st.integers(0, 2**64 - 1))
        tlp = TLP.message(draw(st.integers(0, 255)), draw(st.integers(0, 7)), data, message_header=header, **attributes)
        if data is None:
            tlp = dataclasses.replace(tlp, length=draw(st.integers(0, 1023)))
    else:
        lower = draw(st.integers(0, 127))
        data = draw(st.none() | st.integers(1, 4096 - lower % 4).map(lambda size: FULL[:size]))
        tlp = TLP.completion(
            draw(u16),
            draw(st.integers(0, 1023)),
            data,
            completer=draw(u16),
            status=draw(st.integers(0, 7)),
            byte_count=draw(st.none() | st.integers(1, 4096)),
            lower_address=lower,
            locked=draw(bools),
            **attributes,
        )
        tlp = dataclasses.replace(tlp, reserved=draw(st.integers(0, 1)), bcm=draw(bools))
    if kind in ("MWr", "MRd", "atomic", "io"):
        tlp = dataclasses.replace(tlp, ph=draw(st.integers(0, 3)))
    return dataclasses.replace(tlp, ln=draw(bools))


@given(tlps())
def test_round_trip(tlp: TLP) -> None:
    data = tlp.encode()
    again = TLP.decode(data)
    assert again == tlp
    assert again.encode() == data
    assert hash(again) == hash(tlp)
    assert repr(again) == repr(tlp)
    assert tlp.wire_bytes == len(data) + 8
    assert TLP.decode(memoryview(bytearray(data))) == tlp


@given(tlps(), st.data())
def test_truncated_and_extended(tlp: TLP, data: st.DataObject) -> None:
    raw = tlp.encode()
    short = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(TLPError) as error:
        TLP.decode(raw[:short])
    assert error.value.offset == short
    with pytest.raises(TLPError, match="follow the end") as error:
        TLP.decode(raw + data.draw(st.binary(min_size=1, max_size=9)))
    assert error.value.offset == len(raw)


@given(accesses(), st.booleans())
def test_write_payload_and_access(access: tuple[int, int], long: bool) -> None:
    address, size = access
    tlp = TLP.memory_write(address, FULL[:size], address64=long or address >= 2**32)
    assert tlp.payload == FULL[:size]
    assert tlp.access == (address if size else address & ~3, size)
    read = TLP.memory_read(address, size)
    assert read.access == tlp.access
    assert (read.first_be, read.last_be, read.length) == (tlp.first_be, tlp.last_be, tlp.length)


@given(accesses(smallest=1), st.sampled_from([128, 256, 512, 4096]))
def test_wire_bytes_agree_with_the_link(access: tuple[int, int], unit: int) -> None:
    address, size = access
    link = Link(gen=4, lanes=16, mps=4096, mrrs=4096)
    assert TLP.memory_write(address, FULL[:size], address64=True).wire_bytes == link.write_wire_bytes(size, address)
    read = TLP.memory_read(address, size, address64=True)
    assert read.wire_bytes == link.request_wire_bytes(size, address)
    assert read.complete(FULL[:size]).wire_bytes == link.completion_wire_bytes(size, address)
    assert TLP.memory_write(1 << 32, FULL[:unit]).wire_bytes == 24 + unit == link.write_wire_bytes(unit)
    assert TLP.completion(0, 0, FULL[:unit]).wire_bytes == 20 + unit == link.completion_wire_bytes(unit)


# Completions


def test_complete() -> None:
    read = TLP.memory_read(0x1_0000_1085, 3, requester=0x0100, tag=9, tc=3, ro=True, ido=True)
    done = read.complete(b"abc", completer=0x0200)
    assert (done.kind, done.requester, done.tag, done.completer) == ("CplD", 0x0100, 9, 0x0200)
    assert (done.status, done.byte_count, done.lower_address, done.payload) == (SC, 3, 5, b"abc")
    assert (done.tc, done.ro, done.ido, done.no_snoop) == (3, True, True, False)
    assert read.complete(status=UR).byte_count == 3
    assert TLP.memory_read(0, 4, locked=True).complete(bytes(4)).kind == "CplDLk"
    assert TLP.memory_read(0, 4, locked=True).complete(status=CA).kind == "CplLk"
    flush = TLP.memory_read(0x40, 0).complete(bytes(4))
    assert (flush.byte_count, flush.length) == (1, 1)
    assert TLP.compare_swap(16, 1, 2, size=16).complete(bytes(16)).byte_count == 16
    assert TLP.config_write(0x0100, 4, b"\1").complete().kind == "Cpl"
    assert TLP.config_read(0x0100, 4).complete(b"\1\2\3\4").payload == b"\1\2\3\4"
    assert TLP.io_read(0x60, 1).complete(bytes(4)).lower_address == 0
    with pytest.raises(ValueError, match="no completion answers MWr"):
        TLP.memory_write(0, b"a").complete()
    with pytest.raises(ValueError, match="has 3 bytes of data, not 2"):
        read.complete(b"ab")
    with pytest.raises(ValueError, match="has 0 bytes of data, not 3"):
        read.complete(b"abc", status=UR)


# Rules


@pytest.mark.parametrize(
    ("text", "offset", "reason"),
    [
        ("", 0, "first double word"),
        ("400000", 3, "first double word"),
        ("40000001 00000000", 8, "the header of MWr ends early"),
        ("40000002 000000ff 00001000 00000000", 16, "the data of MWr ends early"),
        ("00008001 0000000f 00001000", 12, "the digest of MRd ends early"),
        ("00000001 0000000f 00001000 00", 12, "1 bytes follow"),
        ("00000001 000000ff 00001000", 7, "last_be must be 0"),
        ("00000002 0000000f 00001000", 7, "must not be 0"),
        ("00000002 000000f0 00001000", 7, "must not be 0"),
        ("00000003 000000f7 00001000", 7, "leave a gap"),
        ("00000002 000000f7 00001004", 7, "leave a gap"),
        ("00000002 000000ff 00001ffc", 8, "cross a 4 KiB boundary"),
        ("04000002 0000000f 01000010", 2, "CfgRd0 must have length 1"),
        ("04000001 0000001f 01000010", 7, "CfgRd0 must have last_be 0"),
        ("02100001 0000000f 00001000", 1, "IORd must have tc 0"),
        ("02002001 0000000f 00001000", 2, "IORd must have ro 0"),
        ("4c000003 00000000 00001000 " + "00" * 12, 2, "FetchAdd has a length in"),
        ("4e000001 00000000 00001000 00000000", 2, "CAS has a length in"),
        ("4c000002 00000000 00001004 " + "00" * 8, 8, "not aligned to its 8 bytes"),
        ("1b000001 0000000f 00001000", 0, "TCfgRd"),
        ("5b000001 0000000f 00001000 00000000", 0, "DMWr"),
        ("7b000001 0000000f 00000000 00001000 00000000", 0, "DMWr"),
        ("03000001 0000000f 00001000", 0, "reserved"),
        ("a0000001 0000000f 00001000", 0, "reserved"),
        ("ff" * 16, 0, "reserved"),
        ("22000001 0000000f 00000000 00001000", 0, "reserved"),
        ("90000000", 4, "first double word"),
        ("9000", 2, "first double word"),
        ("90000000 80000000 00000001 0000000f 00001000", 4, "local prefix follows"),
        ("90000000" * 5 + "00000001 0000000f 00001000", 16, "more than 4 end-to-end"),
        ("90000000 00000001 000000ff 00001000", 11, "last_be must be 0"),
        ("90000000 03000001", 4, "reserved"),
    ],
)
def test_malformed(text: str, offset: int, reason: str) -> None:
    with pytest.raises(TLPError) as error:
        TLP.decode(bytes.fromhex(text))
    assert reason in error.value.reason
    assert error.value.offset == offset
    assert str(error.value) == f"byte {offset}: {error.value.reason}"


def test_what_the_rules_allow() -> None:
    for text in (
        "00000002 00000095 00001008",  # scattered bytes in an aligned pair
        "00000001 00000005 00001000",  # and in one double word
        "00010003 00000012 00001000",  # a hinted read: the byte enables are a steering tag
        "00000402 000000ff 00001ffc",  # a translation request asks for no bytes
        "20000001 0000000f 00000000 00001000",  # a long header that a short one would have done for
        "4ae00001 00000004 00000000 00000000",  # any traffic class; unknown statuses below
        "0a000000 0000f004 00000000",
    ):
        assert TLP.decode(bytes.fromhex(text)).encode() == bytes.fromhex(text)


@pytest.mark.parametrize(
    "build",
    [
        lambda: TLP.memory_write(0, bytes(4097)),
        lambda: TLP.memory_write(4095, b"ab"),
        lambda: TLP.memory_write(-1, b""),
        lambda: TLP.memory_write(2**64, b""),
        lambda: TLP.memory_write(2**32, b"a", address64=False),
        lambda: TLP.memory_read(0, -1),
        lambda: TLP.memory_read(0, 4, tag=1024),
        lambda: TLP.memory_read(0, 4, requester=-1),
        lambda: TLP.memory_read(0, 4, tc=8),
        lambda: TLP.memory_read(0, 4, digest=b"abc"),
        lambda: TLP.memory_read(0, 4, prefixes=[b"\0\0\0\0"]),
        lambda: TLP.memory_read(0, 4, prefixes=[b"\x80\0\0"]),
        lambda: TLP.fetch_add(0, 1, size=16),
        lambda: TLP.fetch_add(4, 1),
        lambda: TLP.fetch_add(0, 2**64),
        lambda: TLP.fetch_add(0, -(2**63) - 1),
        lambda: TLP.compare_swap(8, 1, 2, size=16),
        lambda: TLP.io_read(2, 4),
        lambda: TLP.io_write(2**32, b"a"),
        lambda: TLP.config_read(0, 4096),
        lambda: TLP.config_read(0, -4),
        lambda: TLP.config_write(0x10000, 0, b"a"),
        lambda: TLP.config_read(0, 0, ro=True),
        lambda: TLP.message(256, 0),
        lambda: TLP.message(0, 8),
        lambda: TLP.message(0, 0, b"abc"),
        lambda: TLP.message(0, 0, b""),
        lambda: TLP.message(0, 0, bytes(4100)),
        lambda: TLP.completion(0, 0, b""),
        lambda: TLP.completion(0, 0, bytes(4097)),
        lambda: TLP.completion(0, 0, status=8),
        lambda: TLP.completion(0, 0, byte_count=0),
        lambda: TLP.completion(0, 0, lower_address=128),
        lambda: TLP(fmt=0, type=0, status=1),
        lambda: TLP(fmt=0, type=0, bcm=True),
        lambda: TLP(fmt=0, type=0, address=2),
        lambda: TLP(fmt=0, type=0, data=b"abcd"),
        lambda: TLP(fmt=8, type=0),
        lambda: TLP(fmt=4, type=0),
    ],
)
def test_constructors_refuse(build: Any) -> None:
    with pytest.raises(TLPError):
        build()


@pytest.mark.parametrize(
    "build",
    [
        lambda: TLP.decode(5),  # type: ignore[arg-type]
        lambda: TLP.decode("40"),  # type: ignore[arg-type]
        lambda: TLP.decode(None),  # type: ignore[arg-type]
        lambda: TLP.memory_write("0", b""),  # type: ignore[arg-type]
        lambda: TLP.memory_write(0, 7),  # type: ignore[arg-type]
        lambda: TLP.memory_read(0, 4.0),  # type: ignore[arg-type]
        lambda: TLP.memory_read(0, 4, ro="yes"),  # type: ignore[arg-type]
        lambda: TLP.memory_read(0, 4, prefixes=b"\x80\0\0\0"),  # type: ignore[arg-type]
        lambda: TLP.memory_read(0, 4, colour=3),  # type: ignore[call-arg]
        lambda: TLP.fetch_add(0, 1.5),  # type: ignore[arg-type]
    ],
)
def test_wrong_types(build: Any) -> None:
    with pytest.raises(TypeError):
        build()


# Garbage


@settings(max_examples=500)
@given(st.binary(max_size=80))
@example(b"\x60\x00\x00\x00" + bytes(12))
@example(b"\x9f" * 80)
def test_any_bytes_decode_exactly_or_are_refused(data: bytes) -> None:
    try:
        tlp = TLP.decode(data)
    except TLPError as error:
        assert 0 <= error.offset <= len(data)
        return
    assert tlp.encode() == data
    assert repr(tlp)


@settings(max_examples=500)
@given(tlps(), st.data())
def test_flipped_bits_decode_exactly_or_are_refused(tlp: TLP, data: st.DataObject) -> None:
    raw = bytearray(tlp.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        bit = data.draw(st.integers(0, 8 * min(len(raw), 40) - 1))
        raw[bit // 8] ^= 1 << bit % 8
    test_any_bytes_decode_exactly_or_are_refused.hypothesis.inner_test(bytes(raw))  # type: ignore[attr-defined]


def test_every_first_double_word() -> None:
    """Each fmt, type and flag combination, on headers that are long enough for any of them."""
    accepted = 0
    for first in range(256):
        for flags in range(256):
            head = struct.pack(">BBBB", first, flags, flags & 0x7C, 1)
            for size in (12, 16, 20):
                data = head + b"\x00\x00\x00\x0f" + bytes(size - 8)
                try:
                    tlp = TLP.decode(data)
                except TLPError as error:
                    assert 0 <= error.offset <= len(data)
                else:
                    accepted += 1
                    assert tlp.encode() == data
    assert accepted > 256 * 30


# A value like any other


def test_value() -> None:
    tlp = TLP.memory_write(0x1000, bytearray(b"abcdefgh" * 4), requester=0x0108, tag=3, ro=True, tc=1)
    assert pickle.loads(pickle.dumps(tlp)) == copy.deepcopy(tlp) == tlp
    assert isinstance(tlp.data, bytes)
    assert repr(tlp) == (
        "<TLP MWr32 address=0x1000 length=8 be=0xf/0xf requester=01:01.0 tag=0x3 ro tc=1"
        " data=61626364656667686162636465666768…(32 bytes)>"
    )
    assert repr(TLP.completion(0x0108, 3, status=UR)) == (
        "<TLP Cpl status=UR completer=00:00.0 byte_count=4 lower_address=0x00 requester=01:01.0 tag=0x3>"
    )
    assert "destination=02:01.3 register=0x10" in repr(TLP.config_read(0x020B, 0x10))
    assert "code=0x19 routing=3" in repr(TLP.message(0x19, module.ROUTE_BROADCAST))
    with pytest.raises(dataclasses.FrozenInstanceError):
        tlp.tc = 0  # type: ignore[misc]
    with pytest.raises(ValueError, match="no message routing"):
        _ = tlp.routing
    with pytest.raises(ValueError, match="accesses no address"):
        _ = TLP.message(0, 0).access
    error = TLPError("why", 3)
    again = pickle.loads(pickle.dumps(error))
    assert (again.reason, again.offset, str(again)) == ("why", 3, str(error))
    assert isinstance(error, ValueError)
