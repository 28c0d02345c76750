"""Answers lines in capitals: the same server under netsvc."""

from netsvc.coroutine import Stream
from netsvc.service import Service


async def shout(stream: Stream) -> None:
    async for line in stream:
        await stream.write(line.upper() + b"\n")


service = Service("shouting", "Answer lines in capitals", streams={"tcp": shout})
