"""The packets of TFTP (RFC 1350), and the options of a request (RFC 2347). Knows no transport."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, lru_cache

#: Bytes of a block, unless agreed otherwise; what may be agreed (RFC 2348).
BLOCK_SIZE, LEAST_BLOCK, LONGEST_BLOCK = 512, 8, 65464
#: Seconds until a retransmission that a client may ask for (RFC 2349).
LONGEST_TIMEOUT = 255
#: Blocks and bytes that are sent before they are acknowledged, at most. The system keeps less for most receivers.
MOST_BLOCKS, MOST_BYTES = 256, 1024 * 1024
#: Options of one request that are looked at.
MOST_OPTIONS = 16

_READ, _WRITE, _DATA, _ACK, _ERROR, _OPTIONS_ACK = range(1, 7)
_TWO = struct.Struct("!HH")
#: What an ACK packet begins with.
ACK = bytes((0, _ACK))
_NUMBER = re.compile(rb"[0-9]{1,20}")
#: Bytes of the text of an error.
_LONGEST_TEXT = 200


class ErrorCode(IntEnum):
    """The codes of ERROR packets."""

    UNDEFINED = 0
    NOT_FOUND = 1
    ACCESS = 2
    ILLEGAL = 4
    UNKNOWN_TRANSFER = 5
    OPTION = 8


class PacketError(Exception):
    """A packet is malformed. The text is for its sender."""


@dataclass(frozen=True)
class TFTPRequest:
    """A request to read a file, or to write one. `mode` is in lower case; `options` are as they were written."""

    name: bytes
    mode: bytes
    options: tuple[tuple[bytes, bytes], ...] = ()
    writes: bool = False


@dataclass(frozen=True)
class Ack:
    """All blocks up to this one have arrived. The number is that of the last block, modulo 65536."""

    block: int


@dataclass(frozen=True)
class Failed:
    """The sender has ended the transfer."""

    code: int
    text: bytes


@dataclass(frozen=True)
class Other:
    """A packet that a server of files does not expect."""

    opcode: int


Packet = TFTPRequest | Ack | Failed | Other


def parse_packet(data: bytes) -> Packet | None:
    """Parse a datagram; None for one too short to be a packet. Raises `PacketError`."""
    if len(data) < 2:
        return None
    opcode = data[0] << 8 | data[1]
    if opcode == _ACK:
        # Some clients send more than the number.
        return Ack(data[2] << 8 | data[3]) if len(data) >= 4 else None
    if opcode in (_READ, _WRITE):
        return _parse_request(data[2:], opcode == _WRITE)
    if opcode == _ERROR:
        # Whatever it is, it must not be answered.
        return Failed(int.from_bytes(data[2:4], "big"), data[4:].partition(b"\0")[0])
    return Other(opcode)


def _parse_request(data: bytes, writes: bool) -> TFTPRequest:
    name, *rest = data.split(b"\0")
    if not rest:
        raise PacketError("the file name does not end")
    # The last NUL of the packet ends a field. Some clients leave it out.
    if not rest[-1]:
        rest.pop()
    if not name:
        raise PacketError("no file name")
    if not rest:
        raise PacketError("no mode")
    mode, *words = rest
    # An option without a value, or none at all, may be the padding of the packet.
    pairs = zip(words[: 2 * MOST_OPTIONS : 2], words[1 : 2 * MOST_OPTIONS : 2], strict=False)
    return TFTPRequest(name, mode.lower(), tuple(pairs), writes)


@dataclass(frozen=True)
class Terms:
    """What client and server have agreed. `accepted` is what the OACK lists; empty if there is none.

    `timeout` is None unless the client has asked for one.
    """

    block_size: int = BLOCK_SIZE
    window: int = 1
    timeout: int | None = None
    accepted: tuple[tuple[bytes, int], ...] = ()


def agree(request: TFTPRequest, size: int | None) -> Terms:
    """Accept the options of a request that can be met; the others are ignored, as if they had not been sent.

    `size` is the number of bytes that will be sent, None if it is not known. Of an option that is given twice, the
    first counts.
    """
    asked: dict[bytes, tuple[bytes, int]] = {}
    for name, value in request.options:
        if _NUMBER.fullmatch(value):
            asked.setdefault(name.lower(), (name, int(value)))
    block_size, window, timeout = BLOCK_SIZE, 1, None
    accepted: dict[bytes, int] = {}
    if (option := asked.get(b"blksize")) and option[1] >= LEAST_BLOCK:
        block_size = accepted[b"blksize"] = min(option[1], LONGEST_BLOCK)
    if (option := asked.get(b"timeout")) and 1 <= option[1] <= LONGEST_TIMEOUT:
        timeout = accepted[b"timeout"] = option[1]
    if b"tsize" in asked and size is not None:
        accepted[b"tsize"] = size
    if (option := asked.get(b"windowsize")) and 1 <= option[1] <= 65535:
        window = accepted[b"windowsize"] = min(option[1], MOST_BLOCKS, max(1, MOST_BYTES // block_size))
    # In the order, and as it was spelled, of the request.
    listed = tuple((name, accepted[key]) for key, (name, _) in asked.items() if key in accepted)
    return Terms(block_size, window, timeout, listed)


#: The upper and the lower byte of each block number, and of as many more as one window has.
_UPPER = b"".join(bytes([byte]) * 256 for byte in range(256)) + bytes(MOST_BLOCKS)
_LOWER = bytes(range(256)) * (256 + MOST_BLOCKS // 256)


class Window:
    """Memory for the DATA packets of one window after another: each block is read to its place behind its header.

    `stride` is the size of a packet that is not the last one.
    """

    def __init__(self, area: bytearray, block_size: int) -> None:
        self.stride = stride = 4 + block_size
        self._area = area
        self._whole = memoryview(area)
        count = min(MOST_BLOCKS, len(area) // stride)
        self._blocks = [self._whole[number * stride + 4 : (number + 1) * stride] for number in range(count)]

    def buffers(self, count: int) -> list[memoryview]:
        """Return the places for the next `count` bytes of the file."""
        full, rest = divmod(count, self.stride - 4)
        return [*self._blocks[:full], self._blocks[full][:rest]] if rest else self._blocks[:full]

    def packets(self, first: int, count: int, length: int) -> memoryview:
        """Return `count` packets from block `first` on, counted from 1, whose blocks have `length` bytes together.

        They are valid until the memory is used again.
        """
        area, stride, number = self._area, self.stride, first & 0xFFFF
        end = length + 4 * count
        area[0:end:stride] = bytes(count)
        area[1:end:stride] = bytes((_DATA,)) * count
        area[2:end:stride] = _UPPER[number : number + count]
        area[3:end:stride] = _LOWER[number : number + count]
        return self._whole[:end]


@cache
def _area() -> bytearray:
    return bytearray(max(MOST_BYTES + 4 * MOST_BLOCKS, 4 + LONGEST_BLOCK))


@lru_cache(maxsize=16)
def window_of(block_size: int) -> Window:
    """Return the memory for windows of this block size; all sizes share it."""
    return Window(_area(), block_size)


def data_packets(first: int, blocks: Sequence[bytes]) -> bytes:
    """Return the DATA packets of blocks, of which `first` is the number of the first one, counted from 1."""
    pack = _TWO.pack
    return b"".join(pack(_DATA, (first + index) & 0xFFFF) + block for index, block in enumerate(blocks))


def options_packet(accepted: Sequence[tuple[bytes, int]]) -> bytes:
    """Return the OACK packet of accepted options."""
    return b"\0\6" + b"".join(b"%b\0%d\0" % option for option in accepted)


def error_packet(code: ErrorCode, text: str) -> bytes:
    """Return an ERROR packet."""
    return _TWO.pack(_ERROR, code) + text.encode("ascii", "replace")[:_LONGEST_TEXT] + b"\0"
