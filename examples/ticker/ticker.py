"""A line a second to every client, until the client leaves or the server drains."""

from twisted.internet.task import deferLater

from netsvc.coroutine import Stream
from netsvc.interfaces import Context, Options
from netsvc.options import seconds
from netsvc.service import PlainCore, Service


class TickerOptions(Options):
    optParameters = [["interval", None, 1.0, "Seconds between two lines", seconds(0.1, 3600)]]


class Ticker(PlainCore):
    def __init__(self, options: Options, context: Context) -> None:
        super().__init__(options, context)
        self.live: set[Stream] = set()

    def reconfigure(self, options: Options) -> bool:
        self.options = options
        return True

    async def serve(self, stream: Stream) -> None:
        self.live.add(stream)
        try:
            while True:
                await stream.write(b"tick\n")
                await deferLater(self.context.reactor, self.options["interval"])
        finally:
            self.live.remove(stream)

    def drain(self) -> None:
        for stream in list(self.live):
            stream.close()


service = Service(
    "ticker",
    "Send a line a second",
    options=TickerOptions,
    core=Ticker,
    streams={"tcp": lambda core: core.serve},
    limits={"handshake": None, "idle": None},
)
