"""A crowd in one process: thousands of chat members in rooms, and as many idle echo connections.

    python -m benchmarks.crowd [--members 5000] [--rooms 50] [--idle 5000]

Starts `twistd -n netsvc`, connects everybody, a third of the members by each wire (lines, IRC, WebSocket), lets a
member of each wire speak in each room, and checks that every other member of that room hears it before anything said in
another, that the idle connections still echo, and that the server ends cleanly. Prints what the server used. Exit
status 1 if anything is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import resource
import signal
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TWISTD = str(Path(sysconfig.get_path("scripts"), "twistd"))
#: Seconds that any step may take.
PATIENCE = 120.0
#: Loopback addresses to connect from: one address has at most some 28,000 free ports.
SOURCES = [f"127.0.0.{number}" for number in range(1, 9)]


class CrowdError(Exception):
    """Something was not as it should be."""


WIRES = ("line", "irc", "web")
_UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Member:
    """One chat connection."""

    def __init__(self, wire: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.wire = wire
        self.reader = reader
        self.writer = writer
        self._unread = b""

    async def enter(self, name: str, room: str) -> None:
        """Enter the chat, and be in this room only."""
        if self.wire == "line":
            self.send(f"/nick {name}", f"/join {room}", "/leave lobby")
            await self.expect(rb"you left lobby")
            return
        if self.wire == "web":
            self.writer.write(_UPGRADE)
            await self.expect(rb"\r\n\r\n")
        self.send(f"NICK {name}", f"USER {name} 0 * :{name}", f"JOIN #{room}")
        await self.expect(rb" 366 ")

    def say(self, room: str, text: str) -> None:
        """Say something in a room."""
        self.send(text if self.wire == "line" else f"PRIVMSG #{room} :{text}")

    def send(self, *lines: str) -> None:
        """Send lines, which are short; over WebSocket as messages, masked with zeros."""
        for line in lines:
            data = line.encode()
            framed = b"\x81%c\0\0\0\0%b" % (0x80 | len(data), data)
            self.writer.write(framed if self.wire == "web" else data + b"\r\n")

    async def expect(self, pattern: bytes) -> re.Match[bytes]:
        """Read up to what matches."""
        while (match := re.search(pattern, self._unread)) is None:
            data = await asyncio.wait_for(self.reader.read(65536), PATIENCE)
            if not data:
                raise CrowdError(f"closed while waiting for {pattern!r}")
            self._unread += data
        self._unread = self._unread[match.end() :]
        return match


async def connect(port: int, number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open one connection, from one of several loopback addresses."""
    source = (SOURCES[number % len(SOURCES)], 0)
    return await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port, local_addr=source), PATIENCE)


async def gather_members(ports: Mapping[str, int], members: int, rooms: int) -> list[list[Member]]:
    """Connect everybody and bring them to their rooms, a hundred at a time."""
    crowd: list[list[Member]] = [[] for _ in range(rooms)]

    async def enter(number: int) -> None:
        room = number % rooms
        wire = WIRES[number // rooms % len(WIRES)]
        member = Member(wire, *await connect(ports[f"chat {wire}"], number))
        await member.enter(f"member{number}", f"room{room}")
        crowd[room].append(member)

    for start in range(0, members, 100):
        await asyncio.gather(*(enter(number) for number in range(start, min(members, start + 100))))
    return crowd


async def speak(crowd: Sequence[Sequence[Member]]) -> int:
    """Let a member of each wire say one thing in each room; count who heard it. No member may hear another room."""
    heard = 0

    async def hear(member: Member, room: int, wire: str) -> None:
        match = await member.expect(rb"this is room (\d+) by (\w+)\.")
        if (int(match[1]), match[2].decode()) != (room, wire):
            raise CrowdError(f"a member of room {room} heard {match[0].decode()}")

    for wire in WIRES:
        speakers = [next((each for each in members if each.wire == wire), None) for members in crowd]
        for room, speaker in enumerate(speakers):
            if speaker is not None:
                speaker.say(f"room{room}", f"this is room {room} by {wire}.")
        listeners = [
            (member, room)
            for room, members in enumerate(crowd)
            for member in members
            if speakers[room] not in (None, member)
        ]
        await asyncio.gather(*(hear(member, room, wire) for member, room in listeners))
        heard += len(listeners)
    return heard


def memory(process: int, name: str = "VmRSS") -> int:
    """Return the KiB of memory that a process has, or a figure of another name."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) if found else 0


async def attend(ports: Mapping[str, int], process: int, options: argparse.Namespace) -> None:
    """Do it all against a running server."""
    began = time.monotonic()
    idle = []
    for start in range(0, options.idle, 100):
        numbers = range(start, min(options.idle, start + 100))
        idle += await asyncio.gather(*(connect(ports["echo tcp"], number) for number in numbers))
    print(f"{len(idle)} idle echo connections after {time.monotonic() - began:.1f} s")
    before = memory(process)
    crowd = await gather_members(ports, options.members, options.rooms)
    print(f"{options.members} members in {options.rooms} rooms after {time.monotonic() - began:.1f} s")
    print(f"a member takes {(memory(process) - before) / max(1, options.members):.1f} KiB")
    print(f"{await speak(crowd)} deliveries after {time.monotonic() - began:.1f} s")
    for number, (reader, writer) in enumerate(idle):
        writer.write(b"%d" % number)
        if await asyncio.wait_for(reader.readexactly(len(str(number))), PATIENCE) != b"%d" % number:
            raise CrowdError("an idle connection did not echo")
    print(f"every idle connection echoes after {time.monotonic() - began:.1f} s")
    for writer in [member.writer for members in crowd for member in members] + [writer for _, writer in idle]:
        writer.transport.abort()


async def main(options: argparse.Namespace) -> None:
    """Run the server and the crowd."""
    words = ["-n", "--pidfile=", "netsvc", "--chat", "0", "--chat-irc", "0", "--chat-web", "0", "--tcp", "0"]
    words += ["--drain", "2"]
    words += ["--chat-members", str(options.members + 10), "--chat-rooms", str(options.rooms + 10)]
    server = await asyncio.create_subprocess_exec(TWISTD, *words, stdout=asyncio.subprocess.PIPE)
    assert server.stdout is not None
    ports: dict[str, int] = {}
    try:
        async for line in server.stdout:
            if match := re.search(rb"((?:echo|chat) \S+) listens on .*:(\d+)$", line.strip()):
                ports[match[1].decode()] = int(match[2])
            if line.rstrip().endswith(b"ready"):
                break
        await attend(ports, server.pid, options)
        print(f"peak memory of the server: {memory(server.pid, 'VmHWM') / 1024:.0f} MiB")
    finally:
        server.send_signal(signal.SIGTERM)
        rest = await asyncio.wait_for(server.stdout.read(), PATIENCE)
        await server.wait()
    if b"Traceback" in rest or b"Unhandled" in rest:
        raise CrowdError(rest.decode("utf-8", "replace"))
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"CPU of the server: {ended.ru_utime + ended.ru_stime:.1f} s")


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowd", description=__doc__.partition("\n")[0])
    parser.add_argument("--members", type=int, default=5000)
    parser.add_argument("--rooms", type=int, default=50)
    parser.add_argument("--idle", type=int, default=5000)
    return parser.parse_args(words)


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        asyncio.run(main(arguments()))
    except (CrowdError, TimeoutError) as error:
        sys.exit(f"failed: {error or type(error).__name__}")
