"""Downloads over TFTP (RFC 1350), with the options blksize, tsize and windowsize (RFC 2347, 2348, 2349, 7440).

A transfer cannot be resumed: the protocol has no offset.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from netsvc.base.text import escape
from netsvc.cli.errors import AgainError, ClientError, reason
from netsvc.cli.sink import Sink

__all__ = ["Reception", "RemoteName", "download", "is_tftp", "parse_url"]

PORT = 69
#: What is asked for. Blocks of this size fit into a packet of every usual network, tunnels included.
BLOCK_SIZE, WINDOW = 1428, 16
#: Bytes of a block without options; bytes of the longest request.
PLAIN_BLOCK_SIZE, LONGEST_REQUEST = 512, 512
#: Seconds until the last packet is sent again, the first time and at most.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 8.0
_LONGEST_DATAGRAM = 65536

_READ, _DATA, _ACK, _ERROR, _OPTIONS_ACK = 1, 3, 4, 5, 6
_REFUSES_OPTIONS = 8
#: Makes the socket report that nobody listens at the port, although it is not connected: from Linux's in.h and in6.h.
_REPORT_ERRORS = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}


@dataclass(frozen=True)
class RemoteName:
    """A file, and the server that has it."""

    host: str
    port: int
    name: bytes


def is_tftp(url: str) -> bool:
    """Return whether a URL is one of TFTP."""
    return url.lower().startswith("tftp://")


def parse_url(url: str) -> RemoteName:
    """Parse `tftp://HOST[:PORT]/NAME[;mode=octet]` (RFC 3617). Raises `ValueError` with one line."""
    shown = escape(url, 4096)
    try:
        parts = urlsplit(url.partition("#")[0])
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host:
        raise ValueError(f"{shown} is not a URL such as tftp://host/file")
    if parts.username is not None:
        raise ValueError("a URL with a user name and password is not supported")
    path, mode_given, mode = parts.path.partition(";mode=")
    if mode_given and mode.lower() != "octet":
        raise ValueError(f"{shown}: only the mode octet is supported")
    name = unquote_to_bytes(path[1:] + (f"?{parts.query}" if parts.query else ""))
    if not name or b"\0" in name:
        raise ValueError(f"{shown} does not name a file")
    if len(name) > LONGEST_REQUEST // 2:
        raise ValueError(f"{shown}: the name is longer than {LONGEST_REQUEST // 2} bytes")
    return RemoteName(host, PORT if port is None else port, name)


class Reception:
    """The client's side of one transfer. It knows no transport: it is fed with packets, and says what to send.

    `begin(size)` is called once, with the size that the server has told or None; `write(data)` for each block. Raises
    `ClientError`.
    """

    def __init__(self, name: bytes, begin: Callable[[int | None], None], write: Callable[[bytes], None]) -> None:
        options: dict[bytes, int] = {b"blksize": BLOCK_SIZE, b"windowsize": WINDOW, b"tsize": 0}
        self._name, self._asked = name, options
        self._begin, self._write = begin, write
        self._block_size, self._window = PLAIN_BLOCK_SIZE, 1
        self._has_begun = False
        #: Received blocks, and how many of them have been acknowledged; counted from 1 and never wrapped.
        self.blocks = self._acknowledged = 0
        #: Whether a gap in this window was reported already.
        self._told_of_gap = False
        #: Whether the last block has arrived.
        self.is_complete = False
        #: What to send first, and again when nothing arrives.
        self.last_packet = self._request()

    def _request(self) -> bytes:
        options = b"".join(b"%b\0%d\0" % option for option in self._asked.items())
        return struct.pack("!H", _READ) + self._name + b"\0octet\0" + options

    def received(self, packet: bytes) -> bytes | None:
        """Take a packet from the server; return the one to send, if there is one."""
        if len(packet) < 4 or self.is_complete:
            return None
        opcode, number = struct.unpack_from("!HH", packet)
        if opcode == _DATA:
            return self._take(number, packet[4:])
        if opcode == _ERROR:
            return self._refused(number, packet[4:].partition(b"\0")[0])
        if opcode == _OPTIONS_ACK and not self._has_begun:
            return self._agree(packet[2:])
        return None

    def _refused(self, code: int, text: bytes) -> bytes:
        if code == _REFUSES_OPTIONS and self._asked and not self._has_begun:
            self._asked = {}
            self.last_packet = self._request()
            return self.last_packet
        said = escape(text.decode("utf-8", "backslashreplace"), 200)
        raise ClientError(f"the server answered with error {code}: {said}")

    def _agree(self, data: bytes) -> bytes:
        words = data.split(b"\0")
        agreed: dict[bytes, int] = {}
        for option, value in zip(words[:-1:2], words[1::2], strict=False):
            number = int(value) if value.isdigit() and len(value) <= 20 else -1
            key = option.lower()
            limit = {b"blksize": (8, BLOCK_SIZE), b"windowsize": (1, WINDOW), b"tsize": (0, 1 << 64)}.get(key)
            if key not in self._asked or limit is None or not limit[0] <= number <= limit[1]:
                raise ClientError(
                    f"the server agreed to what was not asked for: {escape(option.decode('latin-1'), 40)}"
                )
            agreed[key] = number
        self._block_size = agreed.get(b"blksize", PLAIN_BLOCK_SIZE)
        self._window = agreed.get(b"windowsize", 1)
        self._start(agreed.get(b"tsize"))
        return self._acknowledge()

    def _start(self, size: int | None) -> None:
        self._has_begun = True
        self._begin(size)

    def _take(self, number: int, data: bytes) -> bytes | None:
        if not self._has_begun:
            # The server ignores options.
            self._start(None)
        if number != (self.blocks + 1) & 0xFFFF:
            # What follows a lost one. Or one that was sent again: to answer it would double every later packet.
            is_later = 0 < (number - self.blocks) & 0xFFFF <= self._window
            if not is_later or self._told_of_gap:
                return None
            self._told_of_gap = True
            return self._acknowledge()
        if len(data) > self._block_size:
            raise ClientError("the server sent a longer block than was agreed")
        self.blocks += 1
        self._told_of_gap = False
        self._write(data)
        self.is_complete = len(data) < self._block_size
        return self._acknowledge() if self.is_complete or self.blocks - self._acknowledged >= self._window else None

    def _acknowledge(self) -> bytes:
        self._acknowledged = self.blocks
        self.last_packet = struct.pack("!HH", _ACK, self.blocks & 0xFFFF)
        return self.last_packet

    def repeat(self) -> bytes:
        """Return the packet to send when nothing has arrived for a while."""
        self._told_of_gap = False
        return self._acknowledge() if self._has_begun else self.last_packet


def download(url: str, sink: Sink, shown: Callable[[int, int | None], object], timeout: float) -> None:
    """Download a file to a sink, from its beginning. Raises `ClientError`, or `AgainError` if it may succeed later.

    It ends if nothing new arrives for `timeout` seconds.
    """
    remote = parse_url(url)

    def begin(size: int | None) -> None:
        sink.start_over(url, None, size)
        shown(0, size)

    def write(data: bytes) -> None:
        sink.write(data)
        shown(sink.position, sink.size)

    reception = Reception(remote.name, begin, write)
    try:
        with closing(_Line(remote)) as line:
            line.send(reception.last_packet)
            while not reception.is_complete:
                before = reception.blocks
                for packet in line.packets(reception, timeout):
                    answer = reception.received(packet)
                    if answer is not None:
                        line.send(answer)
                        if reception.is_complete or reception.blocks > before:
                            break
    except ClientError as error:
        raise ClientError(f"{escape(url, 4096)}: {error}") from None
    except OSError as error:
        raise AgainError(reason(error)) from None
    if sink.size is not None and sink.position != sink.size:
        raise AgainError(f"{sink.position} bytes have arrived, and the server told {sink.size}")


class _Line:
    """A socket to a server, which answers from a port that it chooses (RFC 1350, section 4)."""

    def __init__(self, remote: RemoteName) -> None:
        try:
            found = socket.getaddrinfo(remote.host, remote.port, type=socket.SOCK_DGRAM)
        except (socket.gaierror, UnicodeError) as error:
            why = reason(error) if isinstance(error, OSError) else "not a host name"
            raise ClientError(f"cannot resolve the host ({why})") from None
        family, _, _, _, address = found[0]
        self._address: tuple[Any, ...] = address
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._host = str(address[0]).partition("%")[0]
        self._is_answered = False
        level, option = _REPORT_ERRORS[socket.AddressFamily(family)]
        self._socket.setsockopt(level, option, 1)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def send(self, packet: bytes) -> None:
        """Send a packet. Raises `OSError`."""
        if self._is_answered:
            self._socket.send(packet)
        else:
            self._socket.sendto(packet, self._address)

    def packets(self, reception: Reception, timeout: float) -> Iterator[bytes]:
        """Yield packets; repeat the last one of ours after pauses. Raises `AgainError` after `timeout` seconds."""
        pause, now = FIRST_PAUSE, time.monotonic()
        deadline, repeat_at = now + timeout, now + pause
        while True:
            now = time.monotonic()
            if now >= deadline:
                raise AgainError(f"nothing arrived for {timeout:g} s")
            if now >= repeat_at:
                self.send(reception.repeat())
                pause = min(2 * pause, LONGEST_PAUSE)
                repeat_at = now + pause
            self._socket.settimeout(max(0.001, min(deadline, repeat_at) - now))
            try:
                packet, sender = self._socket.recvfrom(_LONGEST_DATAGRAM)
            except TimeoutError:
                continue
            # Until the socket is connected, anybody can send to it.
            if not self._is_answered:
                if sender[0] != self._host:
                    continue
                self._socket.connect(sender)
                self._is_answered = True
            yield packet
