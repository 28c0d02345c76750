"""Answers lines in capitals: an asyncio server, before it is moved to netsvc."""

import asyncio


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()
    writer.close()


async def main() -> None:
    async with await asyncio.start_server(shout, port=9001) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
