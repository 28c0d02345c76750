"""Mixed load for ten minutes, and then: is everything as it was at the beginning?

    python -m benchmarks.soak [--seconds 600] [--workers 1] [--clients 40]

Starts `twistd -n netsvc` with echo over TCP and UDP, chat and files. Clients come and go: they echo, chat, download,
read slowly, break off, are silent, and send datagrams. Every few seconds the configuration is changed and read again,
and in the second half the program is replaced by itself (`netsvc upgrade`). Whenever nobody is there any more, the
descriptors, the memory and the pending calls are looked at: they must be those of the first time, or of the first time
after an upgrade. Every byte that comes back is checked. Exit status 1 if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import re
import signal
import socket
import struct
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.process import free_port

__all__ = ["Soak", "SoakError", "Vitals", "arguments", "judge"]

_SCRIPTS = Path(sysconfig.get_path("scripts"))
#: Seconds that any step may take.
PATIENCE = 60.0
#: Bytes of the files that are downloaded.
_SIZES = {"small": 4096, "large": 8 * 1024 * 1024}
#: What memory may grow by: the allocator keeps some of what a peak of load has used.
MEMORY_SHARE, MEMORY_BYTES = 1.15, 8 * 1024 * 1024
#: Calls that come and go by themselves: those that measure the event loop, or write a log.
CALLS = 4

_CONFIG = """drain = 60
access = "{directory}/access.log"
[limits]
sessionidle = 2
perip = {perip}
periprate = "none"
handshake = 20
[services.echo]
tcp = "127.0.0.1:{echo}"
udp = "127.0.0.1:{echo}"
{chat}
[services.files]
classic = "127.0.0.1:{files}"
root = "{directory}/public"
"""
_CHAT = """[services.chat]
line = "127.0.0.1:{chat}"
rate = 1000
"""


class SoakError(Exception):
    """Something was not as it should be."""


@dataclass(frozen=True)
class Vitals:
    """What all processes use together while nobody is there."""

    processes: int
    descriptors: int
    memory: int
    calls: int

    def __str__(self) -> str:
        return f"{self.descriptors} descriptors, {self.memory / 1e6:.1f} MB, {self.calls} pending calls"


def judge(first: Vitals, last: Vitals) -> list[str]:
    """Say what has grown; an empty list if nothing has."""
    grown = []
    if last.processes != first.processes:
        grown.append(f"{last.processes} processes, at first {first.processes}")
    if last.descriptors > first.descriptors:
        grown.append(f"{last.descriptors} descriptors, at first {first.descriptors}")
    if last.calls > first.calls + CALLS:
        grown.append(f"{last.calls} pending calls, at first {first.calls}")
    if last.memory > first.memory * MEMORY_SHARE + MEMORY_BYTES:
        grown.append(f"{last.memory} bytes of memory, at first {first.memory}")
    return grown


class Soak:
    """One run. `say` is given a line for each thing that happens."""

    def __init__(self, options: argparse.Namespace, directory: Path, say: Callable[[str], None] = print) -> None:
        self.done: Counter[str] = Counter()
        self._options = options
        self._directory = directory
        self._say = say
        self._echo, self._chat, self._files = (free_port() for _ in range(3))
        self._config = directory / "netsvc.toml"
        self._busy = asyncio.Event()
        self._reloads = 0
        self._random = random.Random(options.seed)
        public = directory / "public"
        public.mkdir()
        self._hashes = {}
        for name, size in _SIZES.items():
            data = self._random.randbytes(size)
            (public / name).write_bytes(data)
            self._hashes[name] = hashlib.sha256(data).digest()
        self._write_config()

    def _write_config(self) -> None:
        # A chat may not be divided among workers.
        chat = _CHAT.format(chat=self._chat) if self._options.workers == 1 else ""
        self._config.write_text(
            _CONFIG.format(
                directory=self._directory, perip=1000 + self._reloads % 2, echo=self._echo, files=self._files, chat=chat
            )
        )

    async def _run(self, *words: str) -> str:
        """Run a command of netsvc; return what it prints."""
        command = await asyncio.create_subprocess_exec(
            str(_SCRIPTS / "netsvc"),
            *words,
            "--config",
            str(self._config),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(command.communicate(), 2 * PATIENCE)
        if command.returncode:
            raise SoakError(f"netsvc {' '.join(words)}: {err.decode('utf-8', 'replace').strip()}")
        return out.decode()

    async def _status(self) -> list[Any]:
        processes: list[Any] = json.loads(await self._run("status", "--json"))["processes"]
        return processes

    # What clients do. Each does one thing from its begin to its end.

    async def _connect(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port, limit=2**16), PATIENCE)

    async def _echo_some(self) -> None:
        reader, writer = await self._connect(self._echo)
        for _ in range(self._random.randrange(1, 5)):
            data = self._random.randbytes(self._random.choice((1, 64, 1400, 40_000)))
            writer.write(data)
            if await asyncio.wait_for(reader.readexactly(len(data)), PATIENCE) != data:
                raise SoakError("an echo was not what was sent")
        writer.close()

    async def _break_off(self) -> None:
        _, writer = await self._connect(self._random.choice((self._echo, self._files)))
        writer.write(b"large\n" * self._random.randrange(2))
        bound = writer.get_extra_info("socket")
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await asyncio.sleep(self._random.random() / 10)
        writer.transport.abort()

    async def _download(self) -> None:
        name = self._random.choice(tuple(_SIZES))
        reader, writer = await self._connect(self._files)
        writer.write(f"{name}\n".encode())
        data = await asyncio.wait_for(reader.read(-1), PATIENCE)
        if hashlib.sha256(data).digest() != self._hashes[name]:
            raise SoakError(f"a download of {name} has {len(data)} bytes, and not the right ones")
        writer.close()

    async def _read_slowly(self) -> None:
        reader, writer = await self._connect(self._files)
        writer.write(b"large\n")
        for _ in range(self._random.randrange(1, 8)):
            await asyncio.sleep(0.1)
            await asyncio.wait_for(reader.read(1000), PATIENCE)
        writer.transport.abort()

    async def _be_silent(self) -> None:
        _, writer = await self._connect(self._echo)
        await asyncio.sleep(self._random.random())
        writer.close()

    async def _talk(self) -> None:
        if self._options.workers > 1:
            return
        reader, writer = await self._connect(self._chat)
        said = f"word {self._random.getrandbits(64)}"
        writer.write(f"/nick n{self._random.getrandbits(32)}\n{said}\n/quit\n".encode())
        with suppress(asyncio.IncompleteReadError):
            await asyncio.wait_for(reader.read(-1), PATIENCE)
        writer.close()

    async def _send_datagrams(self) -> None:
        loop = asyncio.get_running_loop()
        bound = socket.socket(type=socket.SOCK_DGRAM)
        with bound:
            bound.setblocking(False)
            bound.connect(("127.0.0.1", self._echo))
            for _ in range(20):
                data = self._random.randbytes(64)
                await loop.sock_sendall(bound, data)
                # Not in the time that a busy machine takes, but one that is lost is never answered.
                if await asyncio.wait_for(loop.sock_recv(bound, 2000), PATIENCE) != data:
                    raise SoakError("a datagram came back as another")

    async def _client(self) -> None:
        """Do one thing after the other while there is load."""
        things: Sequence[tuple[Callable[[], Awaitable[None]], str, bool]] = (
            (self._echo_some, "echoes", True),
            (self._break_off, "resets", False),
            (self._download, "downloads", True),
            (self._read_slowly, "slow readers", False),
            (self._be_silent, "silent ones", True),
            (self._talk, "chats", True),
            (self._send_datagrams, "datagram peers", True),
        )
        while self._busy.is_set():
            thing, name, strict = self._random.choice(things)
            try:
                await thing()
            except (OSError, asyncio.IncompleteReadError) as error:
                if strict:
                    raise SoakError(f"{name}: {error or type(error).__name__}") from error
            except TimeoutError:
                raise SoakError(f"{name}: nothing came for {PATIENCE:g} s") from None
            self.done[name] += 1

    async def _load(self, seconds: float, *, upgrade: bool) -> None:
        """Put load on it for so long, with reloads, and with an upgrade in the middle."""
        self._busy.set()
        clients = [asyncio.create_task(self._client()) for _ in range(self._options.clients)]
        until = time.monotonic() + seconds
        upgraded, reloaded = not upgrade, False
        try:
            while (left := until - time.monotonic()) > 0 or not (upgraded and reloaded):
                done, _ = await asyncio.wait(
                    clients, timeout=max(0.0, min(left, seconds / 4)), return_when=asyncio.FIRST_COMPLETED
                )
                for each in done:
                    each.result()
                if not upgraded and until - time.monotonic() < seconds / 2:
                    upgraded = True
                    await self._run("upgrade")
                    self.done["upgrades"] += 1
                else:
                    reloaded = True
                    self._reloads += 1
                    self._write_config()
                    await self._run("reload")
                    self.done["reloads"] += 1
        finally:
            self._busy.clear()
            results = await asyncio.gather(*clients, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _quiet(self) -> Vitals:
        """Wait until nobody is there any more, and look."""
        deadline = time.monotonic() + PATIENCE
        while True:
            processes = await self._status()
            number = sum(listener["counts"]["open"] for each in processes for listener in each["listeners"])
            leaving = sum(each["state"] == "draining" for each in processes)
            if not (number or leaving):
                break
            if time.monotonic() > deadline:
                raise SoakError(f"{number} connections are still there, and {leaving} processes drain")
            await asyncio.sleep(0.5)
        vitals = [each["vitals"] for each in processes]
        return Vitals(
            len(processes), *(sum(each[name] for each in vitals) for name in ("descriptors", "memory", "calls"))
        )

    async def run(self) -> None:
        """Do it all. Raises `SoakError`."""
        words = ["-n", "--pidfile=", "netsvc", "--config", str(self._config), "--workers", str(self._options.workers)]
        log = self._directory / "log"
        with log.open("wb") as out:
            server = await asyncio.create_subprocess_exec(
                str(_SCRIPTS / "twistd"), *words, stdout=out, stderr=asyncio.subprocess.STDOUT
            )
        try:
            await self._wait_for(log, r"\bready$")
            await self._rounds()
        finally:
            server.send_signal(signal.SIGTERM)
            status = await asyncio.wait_for(server.wait(), PATIENCE)
        said = log.read_text("utf-8", "replace")
        if status != -signal.SIGTERM:
            raise SoakError(f"it ended with status {status}:\n{said[-2000:]}")
        if trace := re.search(r"Traceback|Unhandled", said):
            raise SoakError(f"its log has errors:\n{said[max(0, trace.start() - 500) :][:4000]}")

    async def _rounds(self) -> None:
        seconds = self._options.seconds
        each = max(2.0, min(60.0, seconds / 6))
        began = time.monotonic()
        # In the first round, everything is used for the first time; and who has taken over from another process has a
        # link to the one that stands in for it.
        firsts: dict[bool, Vitals] = {}
        # However long a round has taken on a busy machine, there is one with an upgrade.
        while time.monotonic() - began < seconds or True not in firsts:
            upgrade = bool(firsts) and time.monotonic() - began > seconds / 2
            await self._load(each, upgrade=upgrade)
            vitals = await self._quiet()
            self._say(f"{time.monotonic() - began:5.0f} s  {vitals}")
            first = firsts.setdefault(upgrade, vitals)
            if grown := judge(first, vitals):
                raise SoakError("; ".join(grown))

    @staticmethod
    async def _wait_for(log: Path, pattern: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not re.search(pattern, log.read_text("utf-8", "replace"), re.M):
            if time.monotonic() > deadline:
                raise SoakError(f"it is not ready:\n{log.read_text('utf-8', 'replace')[-2000:]}")
            await asyncio.sleep(0.05)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="for how long there is load (default: 600)")
    parser.add_argument("--workers", type=int, default=1, help="how many processes serve (default: 1)")
    parser.add_argument("--clients", type=int, default=40, help="how many clients at a time (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="what the clients do is drawn from it (default: 0)")
    return parser.parse_args(words)


def main() -> None:
    """Run it from the command line."""
    os.environ["PYTHONWARNINGS"] = "default"
    with tempfile.TemporaryDirectory(prefix="netsvc-soak-") as directory:
        soak = Soak(arguments(), Path(directory), lambda line: print(line, flush=True))
        try:
            asyncio.run(soak.run())
        except (SoakError, TimeoutError) as error:
            sys.exit(f"failed: {error or type(error).__name__}")
        finally:
            print(", ".join(f"{count} {name}" for name, count in sorted(soak.done.items())))


if __name__ == "__main__":
    main()
