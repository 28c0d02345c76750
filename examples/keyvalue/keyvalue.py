"""A key-value store in memory: SET KEY VALUE and GET KEY over TCP, GET KEY in a datagram."""

from typing import Any

from netsvc.coroutine import Stream
from netsvc.interfaces import Context, Options
from netsvc.options import whole_number
from netsvc.service import PlainCore, Service


class KeyValueOptions(Options):
    optParameters = [["keys", None, 1000, "The most keys that are kept", whole_number(1, 1_000_000)]]
    limits = ("keys",)


class Store(PlainCore):
    def __init__(self, options: Options, context: Context) -> None:
        super().__init__(options, context)
        self.values: dict[bytes, bytes] = {}

    def reconfigure(self, options: Options) -> bool:
        self.options = options
        return True

    async def serve(self, stream: Stream) -> None:
        async for line in stream:
            await stream.write(self.answer(line) + b"\n")

    def ask(self, data: bytes, peer: Any) -> bytes | None:
        return self.answer(data) if data.startswith(b"GET ") else None

    def answer(self, line: bytes) -> bytes:
        match line.split(maxsplit=2):
            case [b"GET", key]:
                return self.values.get(key, b"NONE")
            case [b"SET", key, value] if key in self.values or len(self.values) < self.options["keys"]:
                self.values[key] = value
                return b"OK"
            case [b"SET", _, _]:
                return b"FULL"
        return b"WHAT"


service = Service(
    "keyvalue",
    "Keep values by key",
    options=KeyValueOptions,
    core=Store,
    streams={"tcp": lambda core: core.serve},
    datagrams={"udp": lambda core: core.ask},
)
