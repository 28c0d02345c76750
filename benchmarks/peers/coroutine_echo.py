"""An echo as a coroutine, for netsvc to serve."""

from netsvc.coroutine import Stream
from netsvc.service import Service


async def echo(stream: Stream) -> None:
    """Send back what the client sends."""
    while data := await stream.read():
        await stream.write(data)


service = Service("coroutine", "Echo, as a coroutine", streams={"tcp": echo})
