# SPDX-License-Identifier: Apache-2.0
"""The bytes of one PCIe transaction layer packet (TLP): header and payload, both ways.

    >>> from fabrex.tlp import TLP
    >>> tlp = TLP.memory_write(0x1_0000_0001, b"abc", requester=0x0100, tag=5)
    >>> tlp
    <TLP MWr64 address=0x100000000 length=1 be=0xe/0x0 requester=01:00.0 tag=0x5 data=00616263>
    >>> tlp.encode().hex(" ", 4)
    '60000001 0100050e 00000001 00000000 00616263'
    >>> TLP.decode(tlp.encode()) == tlp
    True

This is the non-flit format of generations 1 to 5, without what the data link and physical layers put around it
(framing, sequence number, LCRC). TLP prefixes and an ECRC digest are kept but not interpreted. Whatever decodes encodes
to the same bytes, reserved bits included. What does not obey the format raises `TLPError` with the offset of the
offending byte.

Source: PCI Express base specification, chapter "Transaction Layer Specification". Not supported, and refused by name:
trusted configuration requests, deferrable memory writes, flit mode.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Buffer, Unpack

__all__ = [
    "CA",
    "ROUTE_BROADCAST",
    "ROUTE_BY_ADDRESS",
    "ROUTE_BY_ID",
    "ROUTE_GATHER",
    "ROUTE_LOCAL",
    "ROUTE_TO_ROOT",
    "RRS",
    "SC",
    "TLP",
    "UR",
    "Attributes",
    "TLPError",
]

SC, UR, RRS, CA = 0, 1, 2, 4
"""Completion status: success, unsupported request, (configuration) request retry, completer abort."""

ROUTE_TO_ROOT, ROUTE_BY_ADDRESS, ROUTE_BY_ID, ROUTE_BROADCAST, ROUTE_LOCAL, ROUTE_GATHER = range(6)
"""Routing of a message: the low three bits of its type."""

_STATUS_NAMES = {SC: "SC", UR: "UR", RRS: "RRS", CA: "CA"}
_FRAME_BYTES = 8  # framing 2, sequence number 2, LCRC 4
_PAGE = 4096
_PREFIX_FMT = 0b100
_MAX_END_TO_END_PREFIXES = 4
_BE_LAST = (0x1, 0x3, 0x7, 0xF)  # bytes from the start of a double word
_BE_FIRST = (0x8, 0xC, 0xE, 0xF)  # bytes up to its end


class TLPError(ValueError):
    """Bytes or fields that are no valid TLP.

    Attributes:
        reason: what is wrong.
        offset: byte of the (real or would-be) encoding that is wrong, or where bytes are missing.
    """

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(f"byte {offset}: {reason}")
        self.reason = reason
        self.offset = offset

    def __reduce__(self) -> tuple[type[TLPError], tuple[str, int]]:
        return type(self), (self.reason, self.offset)


class Attributes(TypedDict, total=False):
    """Keyword arguments that every constructor of `TLP` takes beside its own; the fields of the same names."""

    tc: int
    ro: bool
    ido: bool
    no_snoop: bool
    th: bool
    ep: bool
    at: int
    digest: Buffer | None
    prefixes: Iterable[Buffer]


class _Kind(NamedTuple):
    """What fmt and type stand for."""

    name: str
    layout: str
    has_data: bool
    header_bytes: int


def _kinds() -> dict[tuple[int, int], _Kind]:
    """Return every supported pair of fmt and type."""
    table: dict[tuple[int, int], _Kind] = {}

    def add(name: str, layout: str, kind: int, *formats: int) -> None:
        for fmt in formats:
            table[fmt, kind] = _Kind(name, layout, bool(fmt & 0b010), 16 if fmt & 0b001 else 12)

    add("MRd", "memory", 0b00000, 0b000, 0b001)
    add("MRdLk", "memory", 0b00001, 0b000, 0b001)
    add("MWr", "memory", 0b00000, 0b010, 0b011)
    add("IORd", "io", 0b00010, 0b000)
    add("IOWr", "io", 0b00010, 0b010)
    add("CfgRd0", "config", 0b00100, 0b000)
    add("CfgWr0", "config", 0b00100, 0b010)
    add("CfgRd1", "config", 0b00101, 0b000)
    add("CfgWr1", "config", 0b00101, 0b010)
    add("Cpl", "completion", 0b01010, 0b000)
    add("CplD", "completion", 0b01010, 0b010)
    add("CplLk", "completion", 0b01011, 0b000)
    add("CplDLk", "completion", 0b01011, 0b010)
    add("FetchAdd", "atomic", 0b01100, 0b010, 0b011)
    add("Swap", "atomic", 0b01101, 0b010, 0b011)
    add("CAS", "atomic", 0b01110, 0b010, 0b011)
    for routing in range(8):
        add("Msg", "message", 0b10000 | routing, 0b001)
        add("MsgD", "message", 0b10000 | routing, 0b011)
    return table


_KINDS = _kinds()
_REFUSED = {
    (0b000, 0b11011): "a trusted configuration read (TCfgRd), not supported",
    (0b010, 0b11011): "a trusted configuration write (TCfgWr) or a deferrable memory write (DMWr), not supported",
    (0b011, 0b11011): "a deferrable memory write (DMWr), not supported",
}

# Fields that only some layouts have, and their bits; all others have the default. The rest are common to all.
_REQUEST = {"first_be": 4, "last_be": 4}
_LAYOUT_FIELDS: dict[str, dict[str, int]] = {
    "memory": {**_REQUEST, "address": 64, "ph": 2},
    "atomic": {**_REQUEST, "address": 64, "ph": 2},
    "io": {**_REQUEST, "address": 32, "ph": 2},
    "config": {**_REQUEST, "destination": 16, "register": 12, "reserved": 6},
    "message": {"code": 8, "message_header": 64},
    "completion": {"completer": 16, "status": 3, "byte_count": 13, "lower_address": 7, "reserved": 1},
}
_COMMON_FIELDS = {"fmt": 3, "type": 5, "tc": 3, "at": 2, "length": 11, "requester": 16, "tag": 10}
_FLAGS = ("ro", "ido", "no_snoop", "th", "ep", "ln", "bcm")
_LAYOUT_ONLY = sorted({name for names in _LAYOUT_FIELDS.values() for name in names})
# Header byte that holds (the start of) a field, for errors.
_OFFSETS = {
    "fmt": 0, "type": 0, "tc": 1, "ido": 1, "th": 1, "ln": 1, "ep": 2, "ro": 2, "no_snoop": 2, "at": 2, "length": 2,
    "requester": 4, "tag": 6, "first_be": 7, "last_be": 7, "code": 7, "address": 8, "ph": 11, "message_header": 8,
    "destination": 8, "register": 10, "completer": 4, "status": 6, "bcm": 6, "byte_count": 6, "lower_address": 11,
    "reserved": 11,
}  # fmt: skip


def _bytes(name: str, value: object) -> bytes:
    """Return a copy of a bytes-like object."""
    if isinstance(value, bytes):
        return value
    try:
        return memoryview(value).tobytes()  # type: ignore[arg-type]  # the check that there is
    except TypeError:
        raise TypeError(f"{name} must be a bytes-like object, not {type(value).__name__}") from None


def _integer(name: str, value: object) -> int:
    """Return anything with __index__ as an int."""
    try:
        return operator.index(value)  # type: ignore[arg-type]  # the check that there is
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}") from None


def _id_text(function: int) -> str:
    """Return a requester, completer or destination ID the way lspci writes it."""
    return f"{function >> 8:02x}:{function >> 3 & 0x1F:02x}.{function & 7}"


def _span(address: int, size: int) -> tuple[int, int, int]:
    """Return length in double words, first and last byte enables of the bytes [address, address + size)."""
    lead = address & 3
    length = max(1, (lead + size + 3) // 4)
    first = 0xF << lead & 0xF
    last = 0xF >> (-(lead + size) & 3)
    if size == 0:
        return 1, 0, 0
    return (1, first & last, 0) if length == 1 else (length, first, last)


def _memory_format(address: int, address64: bool | None, data: bool) -> int:
    """Return fmt of a memory request; addresses below 4 GiB have the short header unless told otherwise."""
    long = address >= 1 << 32 if address64 is None else address64
    return (0b010 if data else 0) | (0b001 if long else 0)


def _byte_address(address: object) -> int:
    """Return a byte address that fits 64 bits."""
    number = _integer("address", address)
    if not 0 <= number < 1 << 64:
        raise TLPError(f"address must be between 0 and 0xffffffffffffffff, not {number:#x}", 8)
    return number


def _access(address: int, size: int, largest: int = _PAGE) -> None:
    """Refuse what no single request can do."""
    if not 0 <= size <= largest:
        raise TLPError(f"one request moves 0 to {largest} bytes, not {size}", 2)
    if address % _PAGE + size > _PAGE:
        raise TLPError(f"{size} bytes at {address:#x} cross a 4 KiB boundary", 8)


def _padded(lead: int, data: bytes) -> bytes:
    """Return `data` in whole double words, `lead` bytes after the start of the first; at least one."""
    return b"\0" * lead + data + b"\0" * (-(lead + len(data)) & 3 if lead + len(data) else 4)


@dataclass(frozen=True, slots=True, repr=False)
class TLP:
    """One transaction layer packet: an immutable value, valid once it exists.

    Use the constructors for the kind (`memory_write()` and so on) or `decode()`; fields can be changed with
    `dataclasses.replace()`. Fields that a kind does not have keep their defaults.

    Args:
        fmt: 3 bits: bit 0 a 4 DW header, bit 1 with data.
        type: 5 bits; with fmt it gives the `kind`.
        length: payload (or, for a read, requested) double words, 1 to 1024; 1024 is 0 in the header. Where the field is
            reserved (Msg, Cpl, CplLk) it is the bits themselves, 0 to 1023.
        tc: traffic class, 0 to 7.
        ro: relaxed ordering.
        ido: ID-based ordering.
        no_snoop: no cache snoop needed.
        th: a processing hint is present.
        ep: the payload is poisoned.
        at: address type, 0 to 3: untranslated, translation request, translated, reserved.
        ln: bit 1 of header byte 1: lightweight notification in some revisions, reserved in the others.
        requester: requester ID: bus (8 bits), device (5), function (3).
        tag: 10 bits.
        first_be: byte enables of the first double word (a steering tag's low half in a hinted read).
        last_be: byte enables of the last; 0 if there is only one.
        address: of the first double word: a multiple of 4.
        ph: low two bits of the address' byte: the hint if `th`, else reserved.
        destination: ID that a configuration request addresses.
        register: byte offset of a configuration register, a multiple of 4 below 4096.
        code: message code.
        message_header: header bytes 8 to 15 of a message, as a big-endian number.
        completer: completer ID.
        status: completion status: SC, UR, RRS, CA; the other values are reserved.
        bcm: byte count modified (bridges to PCI-X only).
        byte_count: bytes of the request still to come, this completion's included, 1 to 4096; 4096 is 0 in the header.
        lower_address: low 7 bits of the address of the first byte in this completion.
        reserved: reserved bits of configuration requests (bits 15:12 of the third double word, then 1:0) and
            completions (bit 7 of its last byte).
        data: payload, 4 * length bytes, in the order of addresses.
        digest: the 4 bytes of an ECRC, or None.
        prefixes: TLP prefixes of 4 bytes each, local ones before end-to-end ones.
    Raises:
        TypeError: a field has the wrong type.
        TLPError: the fields are no valid TLP.
    """

    fmt: int
    type: int
    length: int = 1
    tc: int = 0
    ro: bool = False
    ido: bool = False
    no_snoop: bool = False
    th: bool = False
    ep: bool = False
    at: int = 0
    ln: bool = False
    requester: int = 0
    tag: int = 0
    first_be: int = 0
    last_be: int = 0
    address: int = 0
    ph: int = 0
    destination: int = 0
    register: int = 0
    code: int = 0
    message_header: int = 0
    completer: int = 0
    status: int = 0
    bcm: bool = False
    byte_count: int = 0
    lower_address: int = 0
    reserved: int = 0
    data: bytes = b""
    digest: bytes | None = None
    prefixes: tuple[bytes, ...] = ()

    # Validity

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "data", _bytes("data", self.data))
        if self.digest is not None:
            put(self, "digest", _bytes("digest", self.digest))
        put(self, "prefixes", tuple(_bytes("a prefix", prefix) for prefix in self.prefixes))
        for name in (*_COMMON_FIELDS, *_LAYOUT_ONLY):
            put(self, name, _integer(name, getattr(self, name)))
        for name in _FLAGS:
            if getattr(self, name) not in (0, 1):
                raise TypeError(f"{name} must be a bool, not {getattr(self, name)!r}")
            put(self, name, bool(getattr(self, name)))
        self._check_prefixes()
        self._check_fields()
        if self._kind.layout in ("memory", "atomic"):
            self._check_memory()
        elif self._kind.layout in ("io", "config"):
            self._check_small()

    def _fail(self, field: str, reason: str) -> TLPError:
        """Return the error for one field."""
        return TLPError(reason, 4 * len(self.prefixes) + _OFFSETS[field])

    def _check_prefixes(self) -> None:
        end_to_end = 0
        for index, prefix in enumerate(self.prefixes):
            if len(prefix) != 4 or prefix[0] >> 5 != _PREFIX_FMT:
                raise TLPError("a TLP prefix is 4 bytes and begins with the bits 100", 4 * index)
            if prefix[0] & 0x10:
                end_to_end += 1
            elif end_to_end:
                raise TLPError("a local prefix follows an end-to-end prefix", 4 * index)
            if end_to_end > _MAX_END_TO_END_PREFIXES:
                raise TLPError(f"more than {_MAX_END_TO_END_PREFIXES} end-to-end prefixes", 4 * index)

    def _check_fields(self) -> None:
        """Refuse what does not fit its bits or does not belong to the kind."""
        pair = (self.fmt, self.type)
        if pair not in _KINDS:
            what = _REFUSED.get(pair, "reserved")
            raise self._fail("fmt", f"fmt {self.fmt:#05b} with type {self.type:#07b} is {what}")
        kind = _KINDS[pair]
        own = _LAYOUT_FIELDS[kind.layout]
        for name, bits in (*_COMMON_FIELDS.items(), *own.items()):
            value = getattr(self, name)
            if not 0 <= value < 1 << bits:
                raise self._fail(name, f"{name} must be between 0 and {(1 << bits) - 1:#x}, not {value}")
        for name in _LAYOUT_ONLY:
            if name not in own and getattr(self, name) != 0:
                raise self._fail(name, f"{kind.name} has no {name}")
        if self.bcm and kind.layout != "completion":
            raise self._fail("bcm", f"{kind.name} has no bcm")
        low, high = (0, 1023) if self._length_reserved else (1, 1024)
        if not low <= self.length <= high:
            raise self._fail("length", f"length must be between {low} and {high}, not {self.length}")
        if kind.layout == "completion" and not 1 <= self.byte_count <= _PAGE:
            raise self._fail("byte_count", f"byte_count must be between 1 and {_PAGE}, not {self.byte_count}")
        if (self.address | self.register) & 3:
            name = "address" if self.address else "register"
            raise self._fail(name, f"{name} must be a multiple of 4, not {getattr(self, name):#x}")
        if kind.header_bytes == 12 and self.address >> 32:
            raise self._fail("address", f"address {self.address:#x} does not fit a 3 DW header")
        start = 4 * len(self.prefixes) + kind.header_bytes
        expected = 4 * self.length if kind.has_data else 0
        if len(self.data) != expected:
            raise TLPError(f"{kind.name} of this length has {expected} bytes of data, not {len(self.data)}", start)
        if self.digest is not None and len(self.digest) != 4:
            raise TLPError(f"a digest is 4 bytes, not {len(self.digest)}", start + expected)

    def _check_memory(self) -> None:
        """Refuse combinations of address, length and byte enables that a memory request must not have."""
        if self._kind.layout == "atomic":
            operands = 2 if self._kind.name == "CAS" else 1
            allowed = (2, 4, 8) if operands == 2 else (1, 2)
            if self.length not in allowed:
                raise self._fail("length", f"{self.kind} has a length in {allowed} double words, not {self.length}")
            size = 4 * self.length // operands
            if self.address % size:
                raise self._fail("address", f"{self.kind} at {self.address:#x} is not aligned to its {size} bytes")
            return
        translation = self.at == 1 and not self._kind.has_data
        if not translation and self.address % _PAGE + 4 * self.length > _PAGE:
            raise self._fail("address", f"{self.length} double words at {self.address:#x} cross a 4 KiB boundary")
        if self.th and not self._kind.has_data:
            return  # the byte enables are a steering tag
        if self.length == 1:
            if self.last_be:
                raise self._fail("last_be", f"last_be must be 0 for a length of 1, not {self.last_be:#x}")
            return
        if not self.first_be or not self.last_be:
            raise self._fail("first_be", "first_be and last_be must not be 0 for a length above 1")
        scattered = self.first_be not in _BE_FIRST or self.last_be not in _BE_LAST
        if scattered and (self.length > 2 or self.address % 8):
            enables = f"{self.first_be:#x}/{self.last_be:#x}"
            raise self._fail("first_be", f"byte enables {enables} leave a gap; only an aligned pair of DW may")

    def _check_small(self) -> None:
        """Refuse what I/O and configuration requests must not have."""
        for name, value in (("length", 1), ("last_be", 0), ("tc", 0), ("ro", 0), ("no_snoop", 0), ("at", 0)):
            if getattr(self, name) != value:
                raise self._fail(name, f"{self._kind.name} must have {name} {value}, not {int(getattr(self, name))}")

    # What it is

    @property
    def _kind(self) -> _Kind:
        return _KINDS[self.fmt, self.type]

    @property
    def _length_reserved(self) -> bool:
        return self._kind.layout in ("message", "completion") and not self._kind.has_data

    @property
    def kind(self) -> str:
        """Its name in the specification, without the width of the address: MRd, MWr, CplD, FetchAdd…"""
        return self._kind.name

    @property
    def attr(self) -> int:
        """The three attribute bits: 4 for ido, 2 for ro, 1 for no_snoop."""
        return self.ido << 2 | self.ro << 1 | self.no_snoop

    @property
    def td(self) -> bool:
        """Whether a digest is present."""
        return self.digest is not None

    @property
    def routing(self) -> int:
        """How a message is routed: one of the ROUTE_ constants, or a reserved value."""
        if self._kind.layout != "message":
            raise ValueError(f"{self.kind} has no message routing")
        return self.type & 7

    @property
    def posted(self) -> bool:
        """Whether it is a posted request: no completion answers it."""
        return self._kind.layout == "message" or self.kind == "MWr"

    @property
    def non_posted(self) -> bool:
        """Whether it is a request that a completion answers."""
        return not self.posted and not self.is_completion

    @property
    def is_completion(self) -> bool:
        """Whether it is a completion."""
        return self._kind.layout == "completion"

    @property
    def access(self) -> tuple[int, int]:
        """Byte address and number of bytes of a memory, atomic or I/O request.

        From the first enabled byte to the last one; no bytes if none is enabled. For an atomic, its operand.
        """
        if self._kind.layout == "atomic":
            return self.address, 4 * self.length // (2 if self.kind == "CAS" else 1)
        if self._kind.layout not in ("memory", "io"):
            raise ValueError(f"{self.kind} accesses no address")
        if self.th and self.kind != "MWr":
            return self.address, 4 * self.length
        if not self.first_be:
            return self.address, 0
        lead = (self.first_be & -self.first_be).bit_length() - 1
        last = (self.last_be if self.length > 1 else self.first_be).bit_length()
        return self.address + lead, 4 * (self.length - 1) + last - lead

    @property
    def payload(self) -> bytes:
        """The data without padding.

        For a write, the bytes of `access`; for a completion with data, from lower_address on, at most byte_count; else
        all.
        """
        if self.kind in ("MWr", "IOWr"):
            address, size = self.access
            return self.data[address - self.address :][:size]
        if self.is_completion and self.data:
            return self.data[self.lower_address & 3 :][: self.byte_count]
        return self.data

    @property
    def wire_bytes(self) -> int:
        """Bytes that it occupies on a link: its encoding, and framing (2), sequence number (2), LCRC (4) around it."""
        digest = 4 if self.td else 0
        return _FRAME_BYTES + 4 * len(self.prefixes) + self._kind.header_bytes + len(self.data) + digest

    # Bytes

    def encode(self) -> bytes:
        """Return prefixes, header, payload and digest as they follow each other on the link."""
        length = self.length & 0x3FF
        tag9, tag8, tag = self.tag >> 9 & 1, self.tag >> 8 & 1, self.tag & 0xFF
        head = bytes(
            (
                self.fmt << 5 | self.type,
                tag9 << 7 | self.tc << 4 | tag8 << 3 | self.ido << 2 | self.ln << 1 | self.th,
                self.td << 7 | self.ep << 6 | self.ro << 5 | self.no_snoop << 4 | self.at << 2 | length >> 8,
                length & 0xFF,
            )
        )
        layout = self._kind.layout
        second = self.requester << 16 | tag << 8
        if layout == "completion":
            second = self.completer << 16 | self.status << 13 | self.bcm << 12 | self.byte_count & 0xFFF
            rest = (self.requester << 16 | tag << 8 | self.reserved << 7 | self.lower_address).to_bytes(4, "big")
        elif layout == "message":
            second |= self.code
            rest = self.message_header.to_bytes(8, "big")
        elif layout == "config":
            second |= self.last_be << 4 | self.first_be
            third = self.destination << 16 | self.reserved >> 2 << 12 | self.register | self.reserved & 3
            rest = third.to_bytes(4, "big")
        else:
            second |= self.last_be << 4 | self.first_be
            rest = (self.address | self.ph).to_bytes(self._kind.header_bytes - 8, "big")
        return b"".join((*self.prefixes, head, second.to_bytes(4, "big"), rest, self.data, self.digest or b""))

    @classmethod
    def decode(cls, data: Buffer) -> TLP:
        """Return the TLP that `data` is, all of it and nothing more.

        Args:
            data: any bytes-like object; copied.
        Raises:
            TypeError: `data` is not bytes-like.
            TLPError: it is no valid TLP; `offset` and `reason` say where and why.
        """
        raw = _bytes("data", data)
        start = 0
        while start < len(raw) and raw[start] >> 5 == _PREFIX_FMT:
            start += 4
        if len(raw) < start + 4:
            raise TLPError("the bytes end before the first double word of the header is complete", len(raw))
        prefixes = tuple(raw[at : at + 4] for at in range(0, start, 4))
        fmt, kind_bits = raw[start] >> 5, raw[start] & 0x1F
        kind = _KINDS.get((fmt, kind_bits))
        if kind is None:
            return cls(fmt=fmt, type=kind_bits, prefixes=prefixes)  # which says what is wrong with it

        second, third = raw[start + 1], raw[start + 2]
        length = (third & 3) << 8 | raw[start + 3]
        if kind.has_data or kind.layout not in ("message", "completion"):
            length = length or 1024
        payload_at = start + kind.header_bytes
        digest_at = payload_at + (4 * length if kind.has_data else 0)
        end = digest_at + (4 if third & 0x80 else 0)
        if len(raw) < end:
            part = "header" if len(raw) < payload_at else "data" if len(raw) < digest_at else "digest"
            raise TLPError(f"the {part} of {kind.name} ends early: {end} bytes expected, {len(raw)} given", len(raw))
        if len(raw) > end:
            raise TLPError(f"{len(raw) - end} bytes follow the end of {kind.name}", end)

        header = raw[start:payload_at]
        word = int.from_bytes(header[4:8], "big")
        rest = int.from_bytes(header[8:], "big")
        tag = (second >> 7) << 9 | (second >> 3 & 1) << 8 | header[6]
        own: dict[str, int]
        if kind.layout == "completion":
            tag = tag & 0x300 | rest >> 8 & 0xFF
            own = {
                "requester": rest >> 16,
                "completer": word >> 16,
                "status": word >> 13 & 7,
                "bcm": word >> 12 & 1,
                "byte_count": word & 0xFFF or _PAGE,
                "lower_address": rest & 0x7F,
                "reserved": rest >> 7 & 1,
            }
        elif kind.layout == "message":
            own = {"requester": word >> 16, "code": word & 0xFF, "message_header": rest}
        else:
            own = {"requester": word >> 16, "first_be": word & 0xF, "last_be": word >> 4 & 0xF}
            if kind.layout == "config":
                reserved = (rest >> 12 & 0xF) << 2 | rest & 3
                own |= {"destination": rest >> 16, "register": rest & 0xFFC, "reserved": reserved}
            else:
                own |= {"address": rest & ~3, "ph": rest & 3}
        values: dict[str, Any] = own
        return cls(
            fmt=fmt,
            type=kind_bits,
            length=length,
            tc=second >> 4 & 7,
            ro=bool(third & 0x20),
            ido=bool(second & 0x04),
            no_snoop=bool(third & 0x10),
            th=bool(second & 0x01),
            ep=bool(third & 0x40),
            at=third >> 2 & 3,
            ln=bool(second & 0x02),
            tag=tag,
            data=raw[payload_at:digest_at],
            digest=raw[digest_at:end] if third & 0x80 else None,
            prefixes=prefixes,
            **values,
        )

    def __repr__(self) -> str:
        kind, show = self._kind, [f"TLP {self._kind.name}"]
        if kind.layout in ("memory", "atomic"):
            show[0] += "64" if kind.header_bytes == 16 else "32"
        if kind.layout in ("memory", "atomic", "io"):
            show.append(f"address={self.address:#x}")
        elif kind.layout == "config":
            show += [f"destination={_id_text(self.destination)}", f"register={self.register:#x}"]
        elif kind.layout == "message":
            show += [f"code={self.code:#04x}", f"routing={self.routing}", f"message_header={self.message_header:#018x}"]
        else:
            show += [
                f"status={_STATUS_NAMES.get(self.status, self.status)}",
                f"completer={_id_text(self.completer)}",
                f"byte_count={self.byte_count}",
                f"lower_address={self.lower_address:#04x}",
            ]
        if not self._length_reserved or self.length:
            show.append(f"length={self.length}")
        if kind.layout in ("memory", "io", "config"):
            show.append(f"be={self.first_be:#x}/{self.last_be:#x}")
        show += [f"requester={_id_text(self.requester)}", f"tag={self.tag:#x}"]
        show += [name for name in _FLAGS if getattr(self, name)]
        show += [f"{name}={getattr(self, name)}" for name in ("tc", "at", "ph", "reserved") if getattr(self, name)]
        if kind.layout == "atomic" and (self.first_be or self.last_be):
            show.append(f"be={self.first_be:#x}/{self.last_be:#x}")
        if self.prefixes:
            show.append(f"prefixes={','.join(prefix.hex() for prefix in self.prefixes)}")
        if self.data:
            rest = f"…({len(self.data)} bytes)" if len(self.data) > 16 else ""
            show.append(f"data={self.data[:16].hex()}{rest}")
        if self.digest is not None:
            show.append(f"digest={self.digest.hex()}")
        return f"<{' '.join(show)}>"

    # Constructors

    @classmethod
    def memory_write(
        cls,
        address: int,
        data: Buffer,
        *,
        requester: int = 0,
        tag: int = 0,
        address64: bool | None = None,
        **attributes: Unpack[Attributes],
    ) -> TLP:
        """Return the MWr that stores `data`, of any size and alignment, at a byte address.

        Args:
            address: of the first byte.
            data: 0 to 4096 bytes that do not cross a 4 KiB boundary; no bytes make a zero-length write.
            requester: requester ID.
            tag: any value; hardware ignores it (it is a steering tag if `th`).
            address64: whether to use the 64-bit header; by default only from 4 GiB on, which is the rule.
            attributes: see `Attributes`.
        Raises:
            TLPError: no single TLP can do it.
        """
        raw, start = _bytes("data", data), _byte_address(address)
        _access(start, len(raw))
        length, first, last = _span(start, len(raw))
        return cls._build(
            attributes,
            fmt=_memory_format(start, address64, True),
            type=0,
            length=length,
            requester=requester,
            tag=tag,
            first_be=first,
            last_be=last,
            address=start & ~3,
            data=_padded(start & 3 if raw else 0, raw),
        )

    @classmethod
    def memory_read(
        cls,
        address: int,
        size: int,
        *,
        requester: int = 0,
        tag: int = 0,
        locked: bool = False,
        address64: bool | None = None,
        **attributes: Unpack[Attributes],
    ) -> TLP:
        """Return the MRd (MRdLk if `locked`) for `size` bytes at a byte address.

        Arguments and errors as for `memory_write()`. A size of 0 is the zero-length read that flushes posted writes.
        """
        start, number = _byte_address(address), _integer("size", size)
        _access(start, number)
        length, first, last = _span(start, number)
        return cls._build(
            attributes,
            fmt=_memory_format(start, address64, False),
            type=1 if locked else 0,
            length=length,
            requester=requester,
            tag=tag,
            first_be=first,
            last_be=last,
            address=start & ~3,
        )

    @classmethod
    def fetch_add(
        cls,
        address: int,
        value: int,
        *,
        size: int = 8,
        requester: int = 0,
        tag: int = 0,
        address64: bool | None = None,
        **attributes: Unpack[Attributes],
    ) -> TLP:
        """Return the AtomicOp that adds `value` to the little-endian number of `size` (4 or 8) bytes at `address`.

        Args:
            address: a multiple of `size`.
            value: unsigned or, as two's complement, signed; must fit `size` bytes.
            size: bytes of the operand.
            requester: requester ID.
            tag: of the transaction.
            address64: as for `memory_write()`.
            attributes: see `Attributes`.
        Raises:
            TLPError: an argument is out of range or not aligned.
        """
        return cls._atomic(0b01100, (4, 8), address, size, (value,), address64, attributes, requester, tag)

    @classmethod
    def swap(
        cls,
        address: int,
        value: int,
        *,
        size: int = 8,
        requester: int = 0,
        tag: int = 0,
        address64: bool | None = None,
        **attributes: Unpack[Attributes],
    ) -> TLP:
        """Return the AtomicOp that replaces the number at `address`; arguments and errors as for `fetch_add()`."""
        return cls._atomic(0b01101, (4, 8), address, size, (value,), address64, attributes, requester, tag)

    @classmethod
    def compare_swap(
        cls,
        address: int,
        expected: int,
        desired: int,
        *,
        size: int = 8,
        requester: int = 0,
        tag: int = 0,
        address64: bool | None = None,
        **attributes: Unpack[Attributes],
    ) -> TLP:
        """Return the AtomicOp that replaces the number at `address` if it is the expected one.

        Arguments and errors as for `fetch_add()`; `size` may also be 16.
        """
        operands = (expected, desired)
        return cls._atomic(0b01110, (4, 8, 16), address, size, operands, address64, attributes, requester, tag)

    @classmethod
    def io_read(
        cls,
        address: int,
        size: int = 4,
        *,
        requester: int = 0,
        tag: int = 0,
        **attributes: Unpack[Attributes],
    ) -> TLP:
        """Return the IORd for `size` (0 to 4) bytes inside one double word of I/O space."""
        first = cls._enables(address, size)
        return cls._build(attributes, fmt=0, type=2, requester=requester, tag=tag, first_be=first, address=address & ~3)

    @classmethod
    def io_write(
        cls,
        address: int,
        data: Buffer,
        *,
        requester: int = 0,
        tag: int = 0,
        **attributes: Unpack[Attributes],
    ) -> TLP:
        """Return the IOWr of 0 to 4 bytes inside one double word of I/O space."""
        raw = _bytes("data", data)
        return cls._build(
            attributes,
            fmt=2,
            type=2,
            requester=requester,
            tag=tag,
            first_be=cls._enables(address, len(raw)),
            address=address & ~3,
            data=_padded(address & 3, raw).ljust(4, b"\0"),
        )

    @classmethod
    def config_read(
        cls,
        destination: int,
        register: int,
        size: int = 4,
        *,
        forwarded: bool = False,
        requester: int = 0,
        tag: int = 0,
        **attributes: Unpack[Attributes],
    ) -> TLP:
        """Return the CfgRd0 (CfgRd1 if it is to be `forwarded` by bridges) of `size` (0 to 4) bytes at a byte offset.

        Args:
            destination: ID of the function whose configuration space it is.
            register: byte offset, 0 to 4095.
            size: bytes, inside one double word.
            forwarded: type 1, for a bus further away.
            requester: requester ID.
            tag: of the transaction.
            attributes: see `Attributes`.
        Raises:
            TLPError: an argument is out of range.
        """
        return cls._build(
            attributes,
            fmt=0,
            type=5 if forwarded else 4,
            requester=requester,
            tag=tag,
            first_be=cls._enables(register, size),
            destination=destination,
            register=register & ~3,
        )

    @classmethod
    def config_write(
        cls,
        destination: int,
        register: int,
        data: Buffer,
        *,
        forwarded: bool = False,
        requester: int = 0,
        tag: int = 0,
        **attributes: Unpack[Attributes],
    ) -> TLP:
        """Return the CfgWr0 (CfgWr1 if `forwarded`) of 0 to 4 bytes; arguments and errors as for `config_read()`."""
        raw = _bytes("data", data)
        return cls._build(
            attributes,
            fmt=2,
            type=5 if forwarded else 4,
            requester=requester,
            tag=tag,
            first_be=cls._enables(register, len(raw)),
            destination=destination,
            register=register & ~3,
            data=_padded(register & 3, raw).ljust(4, b"\0"),
        )

    @classmethod
    def message(
        cls,
        code: int,
        routing: int,
        data: Buffer | None = None,
        *,
        message_header: int = 0,
        requester: int = 0,
        tag: int = 0,
        **attributes: Unpack[Attributes],
    ) -> TLP:
        """Return the Msg, or with `data` the MsgD.

        Args:
            code: message code.
            routing: one of the ROUTE_ constants.
            data: None, or whole double words.
            message_header: header bytes 8 to 15, as a big-endian number: an address, an ID in its top 16 bits, or the
                vendor's.
            requester: requester ID.
            tag: of the message.
            attributes: see `Attributes`.
        Raises:
            TLPError: an argument is out of range.
        """
        if not 0 <= _integer("routing", routing) <= 7:
            raise TLPError(f"routing must be between 0 and 7, not {routing}", 0)
        raw = b"" if data is None else _bytes("data", data)
        return cls._build(
            attributes,
            fmt=0b001 if data is None else 0b011,
            type=0b10000 | routing,
            length=len(raw) // 4,
            requester=requester,
            tag=tag,
            code=code,
            message_header=message_header,
            data=raw,
        )

    @classmethod
    def completion(
        cls,
        requester: int,
        tag: int,
        data: Buffer | None = None,
        *,
        completer: int = 0,
        status: int = SC,
        byte_count: int | None = None,
        lower_address: int = 0,
        locked: bool = False,
        **attributes: Unpack[Attributes],
    ) -> TLP:
        """Return the Cpl, or with `data` the CplD (CplLk, CplDLk if `locked`).

        Args:
            requester: ID of the request's requester.
            tag: of the request.
            data: None, or 1 to 4096 bytes, the first of which belongs at `lower_address`.
            completer: ID of the completer.
            status: SC, UR, RRS, CA.
            byte_count: bytes still to come with these; by default those in `data`, and 4 without.
            lower_address: low 7 bits of the first byte's address; 0 unless a memory read is answered.
            locked: the answer to an MRdLk.
            attributes: see `Attributes`; a completion has the request's tc, ro, ido and no_snoop.
        Raises:
            TLPError: an argument is out of range.
        See: `complete()`, which takes all that from the request.
        """
        raw = b"" if data is None else _bytes("data", data)
        if data is not None and not raw:
            raise TLPError("a completion with data has at least one byte of it", 12)
        padded = _padded(_integer("lower_address", lower_address) & 3, raw) if raw else b""
        return cls._build(
            attributes,
            fmt=0b010 if raw else 0b000,
            type=0b01011 if locked else 0b01010,
            length=len(padded) // 4,
            requester=requester,
            tag=tag,
            completer=completer,
            status=status,
            byte_count=(len(raw) or 4) if byte_count is None else byte_count,
            lower_address=lower_address,
            data=padded,
        )

    def complete(self, data: Buffer | None = None, *, completer: int = 0, status: int = SC, ep: bool = False) -> TLP:
        """Return the one completion that answers this request in full.

        Args:
            data: for a read or an atomic that succeeds, as many bytes as `access` has (4 for I/O and configuration
                reads, and for a zero-length read, whose data means nothing); else None.
            completer: ID of the completer.
            status: SC, UR, RRS, CA.
            ep: the data is poisoned.
        Raises:
            ValueError: it is no non-posted request, or `data` has the wrong size.
        """
        if not self.non_posted:
            raise ValueError(f"no completion answers {self.kind}")
        memory_read = self.kind in ("MRd", "MRdLk")
        size = self.access[1] if memory_read or self._kind.layout == "atomic" else 4
        expected = 0 if status != SC or self.kind in ("IOWr", "CfgWr0", "CfgWr1") else size or 4
        raw = b"" if data is None else _bytes("data", data)
        if len(raw) != expected:
            what = f"a completion of this {self.kind} with status {status}"
            raise ValueError(f"{what} has {expected} bytes of data, not {len(raw)}")
        return TLP.completion(
            self.requester,
            self.tag,
            raw or None,
            completer=completer,
            status=status,
            byte_count=size or 1,
            lower_address=self.access[0] & 0x7F if memory_read else 0,
            locked=self.kind == "MRdLk",
            ep=ep,
            tc=self.tc,
            ro=self.ro,
            ido=self.ido,
            no_snoop=self.no_snoop,
        )

    @classmethod
    def _build(cls, attributes: Attributes, **values: Any) -> TLP:
        """Return a TLP from a constructor's own fields and the attributes that it was given."""
        unknown = sorted(set(attributes) - set(Attributes.__annotations__))
        if unknown:
            known = ", ".join(Attributes.__annotations__)
            raise TypeError(f"unexpected argument {unknown[0]!r}; attributes are {known}")
        extra: dict[str, Any] = dict(attributes)
        return cls(**values, **extra)

    @classmethod
    def _atomic(
        cls,
        kind: int,
        sizes: tuple[int, ...],
        address: int,
        size: int,
        operands: tuple[int, ...],
        address64: bool | None,
        attributes: Attributes,
        requester: int,
        tag: int,
    ) -> TLP:
        start = _byte_address(address)
        if _integer("size", size) not in sizes:
            raise TLPError(f"size must be one of {', '.join(map(str, sizes))}, not {size}", 2)
        if start % size:
            raise TLPError(f"address {start:#x} is not aligned to the operand's {size} bytes", 8)
        fmt = _memory_format(start, address64, True)
        raw = b""
        for operand in operands:
            number = _integer("operand", operand)
            if not -(1 << (8 * size - 1)) <= number < 1 << (8 * size):
                raise TLPError(f"operand {number} does not fit {size} bytes", 16 if fmt & 1 else 12)
            raw += (number & (1 << (8 * size)) - 1).to_bytes(size, "little")
        return cls._build(
            attributes, fmt=fmt, type=kind, length=len(raw) // 4, requester=requester, tag=tag, address=start, data=raw
        )

    @staticmethod
    def _enables(address: int, size: int) -> int:
        """Return the byte enables of an access inside one double word."""
        start, number = _integer("address", address), _integer("size", size)
        if number < 0 or (start & 3) + number > 4:
            raise TLPError(f"{number} bytes at {start:#x} are not inside one double word", 7)
        return (1 << number) - 1 << (start & 3)
