"""One transfer of a file over TFTP: it is driven by packets and by time, and knows no transport.

The rules:

- The client acknowledges the last block of a window, or the last one in sequence before a gap. What follows the
  acknowledged block is sent next (RFC 1350, RFC 7440).
- An acknowledgement that acknowledges nothing more is ignored. To answer it would double every later packet, if the
  network has doubled one (RFC 1123, section 4.2.3.1).
- Until something is acknowledged, the address of the client may be forged: there is one packet for each request, and
  none is repeated without one.
- After that, what is not acknowledged in time is sent again, after pauses that double, `TRIES` times.
- A block shorter than the others is the last one; it is empty if the size is a multiple of the block size.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from typing import Any

from netsvc.services.files.file import AHEAD, CutError, OpenFile, ReadAhead
from netsvc.services.files.tftp_packet import (
    Ack,
    ErrorCode,
    Failed,
    Other,
    Packet,
    Terms,
    data_packets,
    error_packet,
    options_packet,
    window_of,
)

#: Some packets, one after the other.
Packets = bytes | memoryview

#: Seconds until the first retransmission, unless the client has asked for another time; the longest pause between two,
#: unless that time is longer; and retransmissions in a row without progress.
TIMEOUT, LONGEST_PAUSE, TRIES = 1.0, 8.0, 6
#: Seconds in which the first packet has to be acknowledged.
HALF_OPEN = 10.0
#: Seconds until a datagram is tried again that the system, or a limit of bytes a second, did not take; and how often.
REFUSED_PAUSE, REFUSED_TRIES = 0.02, 1500


class OctetBlocks:
    """The blocks of a file as it is. `file.offset` is the number of acknowledged bytes."""

    def __init__(self, file: OpenFile, size: int) -> None:
        self._file = file
        self._size = size

    def acknowledge(self, count: int) -> bool:
        """Go on after `count` more blocks; return whether the last one is among them."""
        file, bytes_in_full = self._file, count * self._size
        moved = min(bytes_in_full, file.left)
        if moved:
            file.move(moved)
        return moved < bytes_in_full

    def packets(self, first: int, count: int, *, wait: bool) -> Packets | None:
        """Return the packets of the next `count` blocks, or fewer at the end, numbered from `first` on.

        Without `wait` returns None if they are not in memory. Raises `CutError`. The packets are valid until this is
        called for any file.
        """
        file, size, window = self._file, self._size, window_of(self._size)
        length = min(count * size, file.left)
        buffers = window.buffers(length)
        if wait:
            file.fill(buffers)
        elif not file.fill_cached(buffers):
            return None
        return window.packets(first, min(count, length // size + 1), length)


class NetasciiBlocks:
    """The blocks of a file as netascii: LF is CR LF, and CR is CR NUL, even across the border of two blocks.

    `file.offset` is the number of acknowledged bytes, of the file.
    """

    def __init__(self, file: OpenFile, size: int) -> None:
        self._file = file
        self._size = size
        #: The second half of what has begun in the block before.
        self._rest = b""
        #: For each block that was read and is not acknowledged: where the next one begins, and `_rest` there.
        self._ends: list[tuple[int, bytes]] = []
        self._last = 0

    def acknowledge(self, count: int) -> bool:
        """Go on after `count` more blocks; return whether the last one is among them."""
        place, self._rest = self._ends[count - 1]
        del self._ends[:count]
        if place > self._file.offset:
            self._file.move(place - self._file.offset)
        self._last -= count
        return self._last == 0

    def packets(self, first: int, count: int, *, wait: bool) -> Packets | None:
        """Return the packets of the next `count` blocks, as `OctetBlocks` does."""
        size, start = self._size, self._file.offset
        data = bytearray(min(count * size, self._file.left))
        buffers = [memoryview(data)]
        if wait:
            self._file.fill(buffers)
        elif not self._file.fill_cached(buffers):
            return None
        place, rest, blocks = 0, self._rest, list[bytes]()
        self._ends, self._last = [], -1
        while len(blocks) < count and self._last < 0:
            raw = data[place : place + size]
            # As many as fit, if each of the special ones takes two bytes.
            taken = bisect_right(range(len(raw) + 1), size - len(rest), key=partial(_length, raw)) - 1
            block = rest + _translate(raw[:taken])
            rest = b""
            if len(block) < size and taken < len(raw):
                half = _translate(raw[taken : taken + 1])
                block, rest, taken = block + half[:1], half[1:], taken + 1
            place += taken
            blocks.append(block)
            self._ends.append((start + place, rest))
            if len(block) < size:
                self._last = len(blocks)
        return data_packets(first, blocks)


def _length(data: bytes | bytearray, end: int) -> int:
    """Return the number of bytes that the first `end` bytes are translated to."""
    return end + data.count(b"\r", 0, end) + data.count(b"\n", 0, end)


def _translate(data: bytes | bytearray) -> bytes:
    return bytes(data).replace(b"\r", b"\r\0").replace(b"\n", b"\r\n")


class TFTPTransfer:
    """Sends one file, and closes it.

    `write(packets, size)` sends packets of `size` bytes to the client, of which the last one may be shorter; it returns
    how many were taken, and keeps none of the memory. `verified()` is called when the
    client has acknowledged the first packet, `ended(result)` when the file is closed and no packet will follow.
    """

    def __init__(
        self,
        file: OpenFile,
        terms: Terms,
        clock: Any,
        ahead: ReadAhead,
        *,
        write: Callable[[Packets, int], int],
        ended: Callable[[str], None],
        verified: Callable[[], None],
        netascii: bool = False,
    ) -> None:
        self.file = file
        self.terms = terms
        self.has_ended = False
        self.is_verified = False
        self._blocks = (NetasciiBlocks if netascii else OctetBlocks)(file, terms.block_size)
        self._clock = clock
        self._ahead = ahead
        self._write = write
        self._ended = ended
        self._verified = verified
        #: The last acknowledged block, and the last one that was sent, counted from 1 and never wrapped.
        self._base = self._sent = 0
        #: Whether the OACK is to be acknowledged first.
        self._offers = bool(terms.accepted)
        #: How far a thread has read the file, and whether one is reading.
        self._fetched = 0
        self._waits_for_disk = False
        #: Retransmissions, and datagrams that were not taken, since the last progress.
        self._tries = self._refused = 0
        #: What is called when `_timer` is due.
        self._due: Callable[[], None] = self._give_up
        self._timer: Any = None

    def start(self) -> None:
        """Send the first packet: the OACK, or the first block."""
        self._after(HALF_OPEN, self._give_up)
        self.send_first()

    def send_first(self) -> None:
        """Send the first packet once more: the request has come again. Does nothing once it is acknowledged."""
        if self.has_ended or self.is_verified:
            return
        if self._offers:
            self._write_one(options_packet(self.terms.accepted))
        elif not self._waits_for_disk:
            self._send(1)

    def received(self, packet: Packet) -> None:
        """Take a packet from the client."""
        if self.has_ended:
            return
        if isinstance(packet, Ack):
            self.acknowledged(packet.block)
        elif isinstance(packet, Failed):
            self.end("refused by the client" if not self.is_verified else "ended by the client")
        elif isinstance(packet, Other):
            self.fail(ErrorCode.ILLEGAL, "unexpected packet")

    def _write_one(self, packet: bytes) -> None:
        self._write(packet, len(packet))

    def acknowledged(self, block: int) -> None:
        """Take an ACK packet from the client."""
        if self.has_ended:
            return
        if self._offers:
            if block != 0:
                return
            self._offers = False
        else:
            count = (block - self._base) & 0xFFFF
            # Nothing new, or what was never sent.
            if not 0 < count <= self._sent - self._base:
                return
            self._base += count
            try:
                is_last = self._blocks.acknowledge(count)
            except CutError as cut:
                self.fail(ErrorCode.UNDEFINED, str(cut))
                return
            if is_last:
                self._verify()
                self.end("sent")
                return
        self._verify()
        self._tries = self._refused = 0
        if not self._waits_for_disk:
            self._send(self.terms.window)

    def _verify(self) -> None:
        if not self.is_verified:
            self.is_verified = True
            self._verified()

    def _send(self, count: int, skipped: int = 0) -> None:
        """Send the next `count` blocks but the first `skipped` ones, when they are in memory."""
        file, blocks, size = self.file, self._blocks, self.terms.block_size
        first = self._base + 1
        try:
            packets = blocks.packets(first, count, wait=file.offset + min(count * size, file.left) <= self._fetched)
            if packets is None:
                self._fetched = file.offset + AHEAD
                self._waits_for_disk = self._ahead.fetch(file, self._go_on)
                if self._waits_for_disk:
                    if self.is_verified:
                        self._stop_timer()
                    return
                packets = blocks.packets(first, count, wait=True)
                assert packets is not None
        except CutError as cut:
            self.fail(ErrorCode.UNDEFINED, str(cut))
            return
        stride = 4 + size
        total = -(-len(packets) // stride)
        taken = skipped + self._write(memoryview(packets)[skipped * stride :], stride)
        self._sent = max(self._sent, self._base + taken)
        if not self.is_verified:
            return
        if taken == total:
            self._after(self._pause(), self._repeat)
        elif self._refused < REFUSED_TRIES:
            self._refused += 1
            self._after(REFUSED_PAUSE, partial(self._send, count, taken))
        else:
            self.end("could not be sent")

    def _go_on(self) -> None:
        self._waits_for_disk = False
        self._send(self.terms.window if self.is_verified else 1)

    def _pause(self) -> float:
        first = self.terms.timeout or TIMEOUT
        return float(min(first * 2**self._tries, max(first, LONGEST_PAUSE)))

    def _repeat(self) -> None:
        if self._tries >= TRIES:
            self.end("client does not answer")
            return
        self._tries += 1
        self._send(self.terms.window)

    def _give_up(self) -> None:
        self.end("client did not answer")

    def fail(self, code: ErrorCode, text: str, result: str = "") -> None:
        """Send an ERROR packet, and end."""
        if not self.has_ended:
            self._write_one(error_packet(code, text))
            self.end(result or text)

    def end(self, result: str) -> None:
        """End the transfer without a packet; a second time does nothing."""
        if self.has_ended:
            return
        self.has_ended = True
        self._stop_timer()
        self.file.close()
        self._ended(result)

    def _after(self, delay: float, call: Callable[[], None]) -> None:
        self._due = call
        if self._timer is None:
            self._timer = self._clock.callLater(delay, self._is_due)
        else:
            # To move it on costs less than a new one for each window.
            self._timer.reset(delay)

    def _is_due(self) -> None:
        self._timer = None
        self._due()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
