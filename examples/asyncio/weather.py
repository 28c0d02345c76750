"""A service over asyncio's libraries: aiohttp asks a web API, aiosqlite remembers the answers."""

from __future__ import annotations

from typing import Any

import aiohttp
import aiosqlite

from netsvc.coroutine import Stream
from netsvc.interfaces import Options
from netsvc.service import PlainCore, Service


class Settings(Options):
    optParameters = [
        ["api", None, "https://wttr.in/?format=3", "Where to ask"],
        ["database", None, "weather.sqlite", "Where to remember"],
    ]


class Core(PlainCore):
    async def answer(self, place: str) -> str:
        async with aiosqlite.connect(self.options["database"]) as database:
            await database.execute("CREATE TABLE IF NOT EXISTS answers (place TEXT PRIMARY KEY, text TEXT)")
            rows = list(await database.execute_fetchall("SELECT text FROM answers WHERE place = ?", (place,)))
            if rows:
                return str(rows[0][0])
            text = await self.ask(place)
            await database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (place, text))
            await database.commit()
            return text

    async def ask(self, place: str) -> str:
        limit = aiohttp.ClientTimeout(total=10)
        try:
            async with (
                aiohttp.ClientSession(timeout=limit) as web,
                web.get(self.options["api"], params={"place": place}) as response,
            ):
                return (await response.text()).strip()
        except (aiohttp.ClientError, TimeoutError):
            return "not known"

    async def serve(self, stream: Stream) -> None:
        while (line := await stream.read_line(100)) is not None:
            await stream.write(f"{await self.answer(line.decode('utf-8', 'replace'))}\n".encode())

    async def answer_datagram(self, data: bytes, peer: Any) -> bytes:
        return (await self.answer(data.decode("utf-8", "replace")[:100])).encode()


service = Service(
    "weather",
    "Say the weather at a place",
    options=Settings,
    core=Core,
    streams={"tcp": lambda core: core.serve},
    datagrams={"udp": lambda core: core.answer_datagram},
)
