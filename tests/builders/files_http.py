"""Builds a files service over HTTP in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from netsvc.services.files.http import http_factory
from netsvc.testing import MemoryReactor
from tests.builders.files import make_core
from tests.builders.http import Reply, Transport, connect, read_replies, request

#: In the past, so that tags are strong.
MODIFIED = 784111777
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


class FilesSite:
    """The files of a directory, over HTTP."""

    def __init__(self, root: Path, **options: object) -> None:
        self.root = root
        self.clock = MemoryReactor()
        self.core, self.events = make_core(root, self.clock, **options)
        self.core.start()
        self.factory = http_factory(self.core)

    def write(self, name: str | bytes, data: bytes) -> None:
        path = self.root / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (MODIFIED, MODIFIED))

    def send(self, data: bytes) -> Transport:
        transport = connect(self.factory, Transport())
        transport.protocol.dataReceived(data)
        return transport

    def ask(self, target: str, method: str = "GET", **headers: str) -> Reply:
        transport = self.send(request(target, method, headers=headers))
        [reply] = read_replies(transport.value() if method != "HEAD" else without_length(transport.value()))
        transport.end()
        return reply

    @property
    def results(self) -> list[tuple[str, int, str, str, int]]:
        fields = ("name", "size", "result", "method", "status")
        return [tuple(event[field] for field in fields) for event in self.events]


def without_length(answer: bytes) -> bytes:
    return answer.replace(b"Content-Length:", b"X-Length:")


def producer_of(transport: Transport) -> Any:
    return transport.producer
