"""Files over TFTP: requests at the listener, and each transfer at a port of its own.

Anybody can forge the address of a request. So until the client has acknowledged something, it gets one packet for each
request; one address gets `UNVERIFIED_BURST` such packets at once, and `UNVERIFIED_RATE` a second. When all places for
transfers are taken, one that nobody has acknowledged gives up its place.
"""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol

from netsvc.base.bucket import PeerBuckets
from netsvc.base.hosts import peer_key, plain_host
from netsvc.base.text import host_port
from netsvc.datagram import ECHO_LIKE_PORTS
from netsvc.services.files.core import FilesCore
from netsvc.services.files.file import FileBusyError, FileRefusedError, OpenFile
from netsvc.services.files.tftp_packet import (
    ACK,
    ErrorCode,
    Other,
    PacketError,
    Terms,
    TFTPRequest,
    agree,
    error_packet,
    parse_packet,
)
from netsvc.services.files.tftp_transfer import TFTPTransfer

#: First packets of transfers that one address gets a second, and at once. Those that are acknowledged do not count.
UNVERIFIED_RATE, UNVERIFIED_BURST = 20.0, 100
#: Ports of the range that are tried for one transfer.
MOST_TRIED = 64

_MODES = (b"octet", b"netascii")


class Tftp(DatagramProtocol):
    """The listener: answers requests with transfers, or with errors."""

    transport: Any
    core: FilesCore

    def __init__(self) -> None:
        #: The transfers, and for each peer key how many; those that are not verified, the oldest first, by client.
        self.transfers: set[_TransferPort] = set()
        self._count: dict[str, int] = {}
        self._half_open: dict[tuple[str, int], _TransferPort] = {}
        self._buckets: PeerBuckets | None = None

    def datagramReceived(self, data: bytes, address: Any) -> None:
        """Answer a request. Acknowledgements and errors are for the port of a transfer, and ignored here."""
        # The client of a UNIX socket has no second port to talk to.
        if type(address) is not tuple or address[1] in ECHO_LIKE_PORTS or address[1] in self.core.context.own_ports:
            return
        try:
            packet = parse_packet(data)
        except PacketError as error:
            self.transport.write(error_packet(ErrorCode.ILLEGAL, str(error)), address)
            return
        if isinstance(packet, TFTPRequest):
            self._asked(packet, address)
        elif isinstance(packet, Other):
            self.transport.write(error_packet(ErrorCode.ILLEGAL, "not a request"), address)

    def _asked(self, request: TFTPRequest, address: tuple[str, int]) -> None:
        core = self.core
        before = self._half_open.get(address)
        if before is not None:
            if before.request == request:
                # The client has not got the first packet.
                if self._may_send(address):
                    before.transfer.send_first()
                return
            before.transfer.end("asked for something else")
        if request.writes:
            self._refuse(request, address, ErrorCode.ACCESS, "read only")
        elif request.mode not in _MODES:
            self._refuse(request, address, ErrorCode.ILLEGAL, "unknown mode")
        elif len(request.name) > core.name_limit:
            self._refuse(request, address, ErrorCode.NOT_FOUND, "name too long")
        elif not self._may_send(address):
            # It may ask again, if it is the one who asks.
            self._record(request, address, "too many requests that are not acknowledged")
        elif not self._make_room(peer_key(address[0])):
            self._record(request, address, "too many transfers")
        else:
            self._open(request, address)

    def _open(self, request: TFTPRequest, address: tuple[str, int]) -> None:
        core = self.core
        try:
            file, path = core.find(request.name)
        except FileBusyError as refusal:
            self._refuse(request, address, ErrorCode.UNDEFINED, str(refusal), "busy")
            return
        except FileRefusedError as refusal:
            # Only the access line has the reason: it may say that a hidden file exists.
            self._refuse(request, address, ErrorCode.NOT_FOUND, str(refusal), "no such file")
            return
        is_text = request.mode == b"netascii"
        terms = agree(request, None if is_text else file.size)
        port = _TransferPort(self, request, address, path=path, file=file, terms=terms)
        try:
            core.context.open_datagrams(port, self.transport, address, self._ports())
        except CannotListenError:
            file.close()
            self._refuse(request, address, ErrorCode.UNDEFINED, "no free port", "busy")
            return
        self.transfers.add(port)
        self._count[port.key] = self._count.get(port.key, 0) + 1
        self._half_open[address] = port
        port.transfer.start()

    def _ports(self) -> list[int]:
        ports = self.core.tftp_ports
        return [0] if ports is None else random.sample(ports, min(MOST_TRIED, len(ports)))

    def _may_send(self, address: tuple[str, int]) -> bool:
        """Return whether an address may get a packet that it may not have asked for, and count it."""
        now = self.core.context.reactor.seconds()
        if self._buckets is None:
            self._buckets = PeerBuckets(UNVERIFIED_RATE, UNVERIFIED_BURST, now)
        key = peer_key(address[0])
        if self._buckets.wait(key, now):
            return False
        self._buckets.take(key, now)
        return True

    def _make_room(self, key: str) -> bool:
        """Return whether there is a place for one more transfer, after ending one that is not verified if necessary."""
        core = self.core
        if self._count.get(key, 0) >= core.tftp_peer:
            own = next((port for port in self._half_open.values() if port.key == key), None)
            if own is None:
                return False
            own.transfer.end("gave way to another")
        if len(self.transfers) >= core.tftp_transfers:
            if not self._half_open:
                return False
            next(iter(self._half_open.values())).transfer.end("gave way to another")
        return True

    def verified(self, port: _TransferPort) -> None:
        """Note that a client has acknowledged the first packet."""
        self._forget_half_open(port)
        if self._buckets is not None:
            self._buckets.give_back(port.key, self.core.context.reactor.seconds())

    def _forget_half_open(self, port: _TransferPort) -> None:
        if self._half_open.get(port.address) is port:
            del self._half_open[port.address]

    def ended(self, port: _TransferPort) -> None:
        """Forget a transfer."""
        self._forget_half_open(port)
        self.transfers.discard(port)
        left = self._count[port.key] - 1
        if left:
            self._count[port.key] = left
        else:
            del self._count[port.key]

    def _refuse(
        self, request: TFTPRequest, address: tuple[str, int], code: ErrorCode, reason: str, text: str = ""
    ) -> None:
        self.transport.write(error_packet(code, text or reason), address)
        self._record(request, address, reason)

    def _record(self, request: TFTPRequest, address: tuple[str, int], reason: str) -> None:
        core = self.core
        peer = host_port(plain_host(address[0]), address[1])
        answer = {"mode": request.mode.decode("ascii", "replace")[:20]}
        core.record(peer, core.shown(request.name), 0, core.context.reactor.seconds(), reason, answer)


class _TransferPort(DatagramProtocol):
    """The port of one transfer."""

    transport: Any
    noisy = False

    def __init__(
        self,
        listener: Tftp,
        request: TFTPRequest,
        address: tuple[str, int],
        *,
        path: bytes,
        file: OpenFile,
        terms: Terms,
    ) -> None:
        core = listener.core
        self.request = request
        self.address = address
        self.key = peer_key(address[0])
        self.opened: Any = None
        self._listener = listener
        self._path = path
        self._started = core.context.reactor.seconds()
        self.transfer = TFTPTransfer(
            file,
            terms,
            core.context.reactor,
            core.ahead,
            write=self._write,
            verified=self._verified,
            ended=self._ended,
            netascii=request.mode == b"netascii",
        )
        file.evict = self._evicted

    def startProtocol(self) -> None:
        """Keep the port, to send with when the protocol is stopped; and how it sends many packets, if it can."""
        self.opened = self.transport
        self._write_series = getattr(self.transport, "write_series", None)

    def datagramReceived(self, data: bytes, address: Any) -> None:
        """Take a packet of the client; any other sender is told that it has no transfer here (RFC 1350, section 4)."""
        if address == self.address and data[:2] == ACK and len(data) >= 4:
            # The most frequent one.
            self.transfer.acknowledged(data[2] << 8 | data[3])
            return
        try:
            packet = parse_packet(data)
        except PacketError:
            return
        if packet is None:
            return
        if address == self.address:
            self.transfer.received(packet)
        elif not hasattr(packet, "code"):
            # Errors are not answered, or two servers could do so for ever.
            self.transport.write(error_packet(ErrorCode.UNKNOWN_TRANSFER, "unknown transfer"), address)

    def _write(self, packets: bytes | memoryview, size: int) -> int:
        if self._write_series is not None:
            return int(self._write_series(packets, size, self.address))
        # Twisted's own port does not say what it has not taken.
        for start in range(0, len(packets), size):
            self.opened.write(bytes(packets[start : start + size]), self.address)
        return -(-len(packets) // size)

    def _verified(self) -> None:
        self._listener.verified(self)

    def _evicted(self) -> None:
        self.transfer.fail(ErrorCode.UNDEFINED, "busy", "stalled, and gave way to another")

    def stopProtocol(self) -> None:
        """End the transfer: a drain has closed the port at its deadline."""
        self.transfer.fail(ErrorCode.UNDEFINED, "the server stops", "cut off")

    def _ended(self, result: str) -> None:
        listener, request, transfer = self._listener, self.request, self.transfer
        core = listener.core
        answer: dict[str, object] = {"mode": request.mode.decode("ascii")}
        answer |= {"blksize": transfer.terms.block_size, "windowsize": transfer.terms.window}
        peer = host_port(plain_host(self.address[0]), self.address[1])
        core.record(peer, self._path, transfer.file.offset, self._started, result, answer)
        listener.ended(self)
        self.opened.stopListening()
