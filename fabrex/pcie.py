# SPDX-License-Identifier: Apache-2.0
"""What a PCIe link can carry: rates, packets and bytes on the wire.

This is the arithmetic that the timing model uses (csrc/pcie.c), for planning and for comparison with published numbers:

    >>> from fabrex.pcie import Link
    >>> link = Link(gen=3, lanes=8, mps=256, mrrs=512)
    >>> link.raw_bps(), link.tlp_bps()
    (63015384615, 57884765627)
    >>> link.write_bps(64)
    42098011365

Everything is a pure function in integers: rates are bits per second, rounded once to the nearest; sizes are bytes;
times are picoseconds. Source of the model: Neugebauer et al., *Understanding PCIe Performance for End Host Networking*,
SIGCOMM 2018, section 3. Figures for generation 6 (flit mode) are estimates; docs/reference/pcie.md says what they
assume.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, SupportsIndex

__all__ = [
    "GENERATIONS",
    "LANES",
    "PACKET_SIZES",
    "READ_COMPLETION_BOUNDARIES",
    "Link",
    "ethernet_time_ps",
    "ethernet_wire_bytes",
]

GENERATIONS = (1, 2, 3, 4, 5, 6)
"""Generations that a `Link` can have."""
LANES = (1, 2, 4, 8, 12, 16, 32)
"""Widths that a `Link` can have."""
PACKET_SIZES = (128, 256, 512, 1024, 2048, 4096)
"""Values of the maximum payload size and the maximum read request size, in bytes."""
READ_COMPLETION_BOUNDARIES = (64, 128)
"""Values of the read completion boundary, in bytes."""

_U64_MAX = 2**64 - 1


def _core() -> Any:
    """Return the compiled core, which is loaded when something is first computed and not on import."""
    return import_module("fabrex._core")


def _integer(name: str, value: SupportsIndex) -> int:
    """Return `value` as an int; a bool is a mistake here, not a number."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not bool")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}") from None


def _unsigned(name: str, value: SupportsIndex, largest: int = _U64_MAX) -> int:
    """Return `value` as an int between 0 and `largest`."""
    number = _integer(name, value)
    if not 0 <= number <= largest:
        raise ValueError(f"{name} must be between 0 and {largest:#x}, not {number}")
    return number


@dataclass(frozen=True, slots=True)
class Link:
    """One PCIe link, as its two ends were configured.

    Args:
        gen: generation, 1 to 6 (2.5, 5, 8, 16, 32, 64 GT/s).
        lanes: 1, 2, 4, 8, 12, 16 or 32.
        mps: maximum payload size in bytes, a power of two from 128 to 4096.
        mrrs: maximum read request size in bytes, a power of two from 128 to 4096.
        rcb: read completion boundary in bytes, 64 or 128; it matters only to counts at an address.
    Raises:
        TypeError: a value is not an integer.
        ValueError: a value is not one of those listed; the message lists them.
    See: struct fbx_pcie_link, fbx_pcie_check().
    """

    gen: int
    lanes: int
    mps: int = 256
    mrrs: int = 512
    rcb: int = 64

    def __post_init__(self) -> None:
        for name, allowed in (
            ("gen", GENERATIONS),
            ("lanes", LANES),
            ("mps", PACKET_SIZES),
            ("mrrs", PACKET_SIZES),
            ("rcb", READ_COMPLETION_BOUNDARIES),
        ):
            value = _integer(name, getattr(self, name))
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, not {value}")
            object.__setattr__(self, name, value)

    def _call(self, function: str, *arguments: int) -> int:
        """Call fbx_pcie_`function`() for this link."""
        core = _core()
        link = core.ffi.new("struct fbx_pcie_link *", (self.gen, self.lanes, self.mps, self.mrrs, self.rcb))
        return int(getattr(core.lib, f"fbx_pcie_{function}")(link, *arguments))

    def _count(self, function: str, size: SupportsIndex, address: SupportsIndex | None) -> int:
        """Call the plain function, or its `_at` variant if there is an address."""
        number = _unsigned("size", size)
        if address is None:
            return self._call(function, number)
        return self._call(f"{function}_at", _unsigned("address", address), number)

    def raw_bps(self) -> int:
        """Return the rate of one direction after line encoding, in bit/s.

        Formula: lanes * transfer rate * encoding; the encoding is 8/10 for generations 1 and 2, 128/130 for 3 to 5, and
        for 6 the 236 TLP bytes of a 256-byte flit.
        Source: PCI Express base specification, physical layer; for generation 6 an estimate of the same kind.
        See: fbx_pcie_raw_bps().
        """
        return self._call("raw_bps")

    def tlp_bps(self) -> int:
        """Return the rate left for TLPs after ACK and flow-control DLLPs and SKP ordered sets, in bit/s.

        Formula: raw * (1 - 8/AckLimit - 8/FCLimit - 4/1538) with FCLimit = AckLimit (`ack_limit()`); for generation 6,
        raw, because a flit carries its DLLP bytes, CRC and FEC beside the 236 bytes that are already counted.
        Source: Neugebauer et al., SIGCOMM 2018, section 3; checked in tests/test_pcie.py.
        See: fbx_pcie_tlp_bps().
        """
        return self._call("tlp_bps")

    def ack_limit(self) -> int:
        """Return AckLimit, the bound on how long a received TLP waits for its ACK, in symbol times; 0 for generation 6.

        Formula: floor((mps + 28) * f / lanes) + d. d is 19, 70, 115 for generations 1, 2, 3 and later. f is, for mps up
        to 256, 1.4 (x1 to x4), 2.5 (x8), 3.0 (x12 and wider); for larger mps 1.0 (x1 to x8), 2.0 (x12 and wider).
        Source: reproduces the tables of the PCI Express base specification, which give the values by width and payload.
        See: fbx_pcie_ack_limit().
        """
        return self._call("ack_limit")

    def write_bps(self, size: SupportsIndex) -> int:
        """Return the payload rate of back-to-back writes of `size` bytes each, in bit/s.

        Formula: tlp_bps * size / write_wire_bytes(size), from the exact TLP rate; 0 for size 0.
        Raises:
            TypeError: `size` is not an integer.
            ValueError: it is negative or above 2**64 - 1.
        Source: Neugebauer et al., SIGCOMM 2018, section 3; checked in tests/test_pcie.py.
        See: fbx_pcie_write_bps().
        """
        return self._call("write_bps", _unsigned("size", size))

    def read_bps(self, size: SupportsIndex) -> int:
        """Return the payload rate of reads of `size` bytes each, with enough of them outstanding, in bit/s.

        Formula: tlp_bps * size / max(request_wire_bytes(size), completion_wire_bytes(size)): the fuller direction
        limits.
        Raises:
            TypeError: `size` is not an integer.
            ValueError: it is negative or above 2**64 - 1.
        Source: Neugebauer et al., SIGCOMM 2018, section 3; checked in tests/test_pcie.py.
        See: fbx_pcie_read_bps().
        """
        return self._call("read_bps", _unsigned("size", size))

    def read_write_bps(self, size: SupportsIndex) -> int:
        """Return the payload rate of either one of as many reads as writes of `size` bytes at the same time, in bit/s.

        Formula: tlp_bps * size / (write_wire_bytes(size) + request_wire_bytes(size)): the read requests share the
        direction of the written data, which always outweighs the completions in the other one.
        Raises:
            TypeError: `size` is not an integer.
            ValueError: it is negative or above 2**64 - 1.
        Source: Neugebauer et al., SIGCOMM 2018, section 3; checked in tests/test_pcie.py.
        See: fbx_pcie_read_write_bps().
        """
        return self._call("read_write_bps", _unsigned("size", size))

    def write_wire_bytes(self, size: SupportsIndex, address: SupportsIndex | None = None) -> int:
        """Return the bytes that a write of `size` bytes occupies on the link.

        Formula: size + 24 * ceil(size / mps). 24 is a 64-bit memory write's header (16), and framing (2), sequence
        number (2) and LCRC (4).
        Args:
            size: bytes written, 0 to 2**64 - 1.
            address: count the TLPs of a write at this bus address instead: cut at 4 KiB, at most mps of payload in
                double words, which pad the first and the last byte. Headers stay 64-bit ones.
        Raises:
            TypeError: an argument is not an integer.
            ValueError: it is negative or above 2**64 - 1.
        Source: Neugebauer et al., SIGCOMM 2018, section 3. A result above 2**64 - 1 is given as 2**64 - 1.
        See: fbx_pcie_write_wire_bytes(), fbx_pcie_write_wire_bytes_at().
        """
        return self._count("write_wire_bytes", size, address)

    def request_wire_bytes(self, size: SupportsIndex, address: SupportsIndex | None = None) -> int:
        """Return the bytes that the requests of a read of `size` bytes occupy, in the requester's direction.

        Formula: 24 * ceil(size / mrrs). Arguments, errors and source as for `write_wire_bytes()`; at an address,
        requests are cut at 4 KiB and at mrrs counted in double words.
        See: fbx_pcie_request_wire_bytes(), fbx_pcie_request_wire_bytes_at().
        """
        return self._count("request_wire_bytes", size, address)

    def completion_wire_bytes(self, size: SupportsIndex, address: SupportsIndex | None = None) -> int:
        """Return the bytes that the completions of a read of `size` bytes occupy, in the completer's direction.

        Formula: size + 20 * ceil(size / mps), which takes mrrs >= mps for granted. At an address, each request (cut at
        4 KiB and mrrs) is answered by the fewest completions that the rules permit: at most mps each, all but the last
        ending at a read completion boundary. Arguments, errors and source as for `write_wire_bytes()`.
        See: fbx_pcie_completion_wire_bytes(), fbx_pcie_completion_wire_bytes_at().
        """
        return self._count("completion_wire_bytes", size, address)

    def write_tlps(self, size: SupportsIndex, address: SupportsIndex = 0) -> int:
        """Return how many MWr TLPs a write of `size` bytes at `address` needs at least.

        Arguments and errors as for `write_wire_bytes()`.
        See: fbx_pcie_write_tlps_at().
        """
        return self._count("write_tlps", size, address)

    def request_tlps(self, size: SupportsIndex, address: SupportsIndex = 0) -> int:
        """Return how many MRd TLPs a read of `size` bytes at `address` needs at least.

        Arguments and errors as for `write_wire_bytes()`.
        See: fbx_pcie_request_tlps_at().
        """
        return self._count("request_tlps", size, address)

    def completion_tlps(self, size: SupportsIndex, address: SupportsIndex = 0) -> int:
        """Return how many CplD TLPs answer a read of `size` bytes at `address` at least.

        Arguments and errors as for `write_wire_bytes()`.
        See: fbx_pcie_completion_tlps_at().
        """
        return self._count("completion_tlps", size, address)

    def time_ps(self, wire_bytes: SupportsIndex) -> int:
        """Return how long `wire_bytes` bytes occupy one direction at the TLP rate, in picoseconds.

        Formula: 8e12 * wire_bytes / tlp_bps, with the time per byte rounded to 24 fractional bits, as the timing model
        does.
        Raises:
            TypeError: `wire_bytes` is not an integer.
            ValueError: it is negative or above 2**64 - 1.
        Source: definition. A result above 2**64 - 1 is given as 2**64 - 1.
        See: fbx_pcie_ps_per_byte(), fbx_bytes_to_ps().
        """
        number = _unsigned("wire_bytes", wire_bytes)
        return int(_core().lib.fbx_bytes_to_ps(self._call("ps_per_byte"), number))


def ethernet_wire_bytes(size: SupportsIndex, *, mtu: SupportsIndex = 1500, overhead: SupportsIndex = 38) -> int:
    """Return the bytes that `size` bytes of payload occupy on an Ethernet link.

    Formula: size + overhead * ceil(size / mtu).
    Args:
        size: payload bytes, 0 to 2**64 - 1.
        mtu: payload bytes of a full frame, 1 to 2**32 - 1.
        overhead: bytes around each frame's payload, 0 to 2**32 - 1. The default is that of plain Ethernet (preamble and
            delimiter 8, header 14, FCS 4, gap 12); add what the protocols above take.
    Raises:
        TypeError: an argument is not an integer.
        ValueError: it is out of range.
    Source: IEEE 802.3 framing. Padding of short frames is not counted. A result above 2**64 - 1 is given as 2**64 - 1.
    See: fbx_ethernet_wire_bytes().
    """
    frame = _unsigned("mtu", mtu, 2**32 - 1)
    if frame == 0:
        raise ValueError("mtu must be at least 1, not 0")
    around = _unsigned("overhead", overhead, 2**32 - 1)
    return int(_core().lib.fbx_ethernet_wire_bytes(frame, around, _unsigned("size", size)))


def ethernet_time_ps(wire_bytes: SupportsIndex, rate_bps: SupportsIndex) -> int:
    """Return how long `wire_bytes` bytes occupy an Ethernet link of `rate_bps` bit/s, in picoseconds.

    Formula: 8e12 * wire_bytes / rate_bps, with the time per byte rounded to 24 fractional bits, as the timing model
    does.
    Raises:
        TypeError: an argument is not an integer.
        ValueError: it is negative or above 2**64 - 1, or the rate is 0.
    Source: definition. A result above 2**64 - 1 is given as 2**64 - 1.
    See: fbx_ethernet_ps_per_byte(), fbx_bytes_to_ps().
    """
    rate = _unsigned("rate_bps", rate_bps)
    if rate == 0:
        raise ValueError("rate_bps must be at least 1, not 0")
    lib = _core().lib
    return int(lib.fbx_bytes_to_ps(lib.fbx_ethernet_ps_per_byte(rate), _unsigned("wire_bytes", wire_bytes)))
