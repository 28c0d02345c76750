"""Recognizes a client of another protocol by the first bytes that it sends. Knows no transport."""

from __future__ import annotations

import re

__all__ = ["Opening", "foreign_protocol"]

#: What no one types first, and no line of a chat begins with.
_SIGNATURES = {
    name: re.compile(pattern, re.DOTALL)
    for name, pattern in {
        # RFC 8446, section 5.1: a handshake record; and the ClientHello of SSL 2.
        "TLS": rb"\x16\x03|\x80.\x01\x03[\0-\x04]",
        "SSH": rb"SSH-\d\.",
        "SMB": rb"\0.{3}[\xfe\xff]SMB",
        # TPKT (RFC 1006) with an X.224 connection request.
        "RDP": rb"\x03\0.{2}[\x06-\xfe]\xe0",
        "PROXY": rb"PROXY (?:TCP4|TCP6|UNKNOWN)[ \r]|\0\r\nQUIT\n",
        "IRC": rb"CAP (?:LS|REQ|LIST)\b|(?:PASS [^\n]*\n)?(?:NICK|USER) [^\n]*\n(?:NICK|USER) |USER \S+ \S+ \S+ :",
        "SMTP": rb"EHLO \S",
        "XMPP": rb"<\?xml |<stream:stream",
        "PostgreSQL": rb"\0\0\0\x08\x04\xd2\x16[\x2e-\x30]|\0\0..\0\x03\0[\0-\x03]",
        "Redis": rb"\*\d+\r\n\$\d+\r\n",
        "MQTT": rb"\x10.{1,4}\0(?:\x04MQTT|\x06MQIsdp)",
        "AMQP": rb"AMQP[\0-\x03]",
        "SOCKS": rb"\x05[\x01-\x09][\0-\x09]|\x04[\x01\x02].{2}",
        "VNC": rb"RFB 00\d\.00\d",
        "BitTorrent": rb"\x13BitTorrent protocol",
        "Java RMI": rb"JRMI\0",
        "DNS": rb"\0[\x0c-\xff].{2}[\0\x01][\0\x10\x20]\0\x01\0\0",
    }.items()
}

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
#: A request line (RFC 9112, section 3), any method, and of the protocols that have copied it; HTTP/2's preface is one.
_REQUEST = re.compile(
    _TOKEN + rb" (?:/.*|\*|[A-Za-z][A-Za-z0-9+.-]*:\S+|\S+:\d+) (HTTP|RTSP|SIP|ICAP)/\d+(?:\.\d+)?\s*[\r\n]"
)
#: A request of HTTP/0.9; and the beginning of one that does not end.
_OLD_REQUEST = re.compile(rb"(?:GET|HEAD|POST|PUT|DELETE|OPTIONS|TRACE|CONNECT|PATCH) (?:/|https?://)\S*\s*[\r\n]")
_UNENDED_REQUEST = re.compile(_OLD_REQUEST.pattern.removesuffix(rb"\s*[\r\n]") + rb"(?: H?T?T?P?/?[\d.]*)?$")


def foreign_protocol(data: bytes, *, final: bool = False) -> str | None:
    """Return the protocol that a connection speaks which begins with `data`, if it certainly is no chat.

    `final`: more will not come soon, or would be too long for a line.
    """
    for name, signature in _SIGNATURES.items():
        if signature.match(data):
            return name
    if found := _REQUEST.match(data):
        return found[1].decode()
    return "HTTP" if _OLD_REQUEST.match(data) or (final and _UNENDED_REQUEST.match(data)) else None


class Opening:
    """The first line of a connection, until it is clear whether it is one. Keeps at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = b""
        #: Whether more bytes may tell more.
        self.open = True

    def feed(self, data: bytes) -> str | None:
        """Take the next bytes; return the protocol that they belong to, if it is none of ours."""
        # A request may follow blank lines (RFC 9112, section 2.2).
        self._data = (self._data + data[: self._limit]).lstrip(b"\r\n")
        full = len(self._data) >= self._limit
        protocol = foreign_protocol(self._data, final=full)
        self.open = not (protocol or full or b"\n" in self._data or b"\r" in self._data)
        return protocol

    def end(self) -> str | None:
        """Take the bytes so far for all there is; return their protocol, if it is none of ours."""
        return foreign_protocol(self._data, final=True)
