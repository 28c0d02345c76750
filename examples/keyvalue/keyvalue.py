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
            match line.split(maxsplit=2):
                case [b"SET", key, value] if key in self.values or len(self.values) < self.options["keys"]:
                    self.values[key] = value
                    await stream.write(b"OK\n")
                case [b"SET", _, _]:
                    await stream.write(b"FULL\n")
                case _:
                    await stream.write(self.answer(line, stream.peer) + b"\n")

    def answer(self, question: bytes, peer: Any) -> bytes:
        match question.split():
            case [b"GET", key]:
                return self.values.get(key, b"NONE")
        return b"WHAT"


service = Service(
    "keyvalue",
    "Keep values by key",
    options=KeyValueOptions,
    core=Store,
    streams={"tcp": lambda core: core.serve},
    datagrams={"udp": lambda core: core.answer},
)
