"""A running netsvc, as its status tells of it; and one that answers commands, in a thread."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from typing import Any

from netsvc.cli.processes import CommandTarget, by_pid
from netsvc.control.location import abstract_config_name, abstract_pid_name, config_keys
from netsvc.control.protocol import answer_bytes
from netsvc.plan.answer import Answer
from netsvc.plan.status import (
    ConnectionStatus,
    Counts,
    LimitStatus,
    ListenerStatus,
    ProcessStatus,
    RefusalStatus,
    Vitals,
)

#: The abstract name of a process.
pid_name = abstract_pid_name
#: Seconds that no test waits for unless something is broken.
PATIENCE = 60.0
#: No process has such numbers, and no other run of tests on this machine: a pid has at most 22 bits.
_numbers = count(1_000_000_000 + os.getpid() * 1000)

ECHO = ListenerStatus(
    "echo",
    "tcp",
    "127.0.0.1:9001",
    "stream",
    "9001",
    counts=Counts(12345, 2, 5000, 7000, refused=Counter(rate=3, peer=1)),
    limits=[LimitStatus("connections", "1000", "process", chosen=False, reports=False)],
)
CHAT = ListenerStatus("chat", "line", "[::]:9002", "stream", "9002", False, "it is \x1b[2J gone", tls=True, proxy=True)


def connection(number: int, worker: int = 0, **fields: Any) -> ConnectionStatus:
    one = ConnectionStatus(
        f"{4242 + worker}-{number}",
        "echo",
        "tcp",
        "127.0.0.1:9001",
        "stream",
        f"192.0.2.{number}:5000",
        60.0 * number,
        10,
        20,
    )
    return one._replace(**fields)


def process(worker: int = 0, connections: Sequence[ConnectionStatus] = (), **fields: Any) -> ProcessStatus:
    refusal = RefusalStatus(86400.0 + worker, "echo", "tcp", "127.0.0.1:9001", "192.0.2.9:1", "rate", "refused")
    vitals = Vitals(0.0003, 0.012, 40 + worker, 1024, 54_000_000, 10.0)
    listeners = [
        replace(each, counts=replace(each.counts, refused=Counter(each.counts.refused))) for each in (ECHO, CHAT)
    ]
    one = ProcessStatus("1.2", 4242 + worker, 1000.0, worker, "ready", [], vitals, listeners, [*connections], [refusal])
    return replace(one, **fields)


def status(*processes: ProcessStatus, departed: Sequence[ListenerStatus] = ()) -> Answer:
    """Write an answer as the command `status` does."""
    gone = replace(process(), listeners=[*departed]).to_json()["listeners"]
    return Answer(0, [json.dumps({"processes": [each.to_json() for each in processes], "departed": gone})])


def control_names(config: str) -> list[str]:
    """Return the abstract names of the process of a file."""
    return [abstract_config_name(key) for key in config_keys(config)]


def connected(target: CommandTarget) -> socket.socket | None:
    """Connect to the first socket of a target at which a process listens; return None if there is none."""
    for name in target.names:
        connection = socket.socket(socket.AF_UNIX)
        with suppress(OSError):
            connection.connect(name)
            return connection
        connection.close()
    return None


def unused_pids(number: int) -> int:
    """Return the first of so many numbers, one after the other, that no process has."""
    first, *_ = (next(_numbers) for _ in range(number))
    return first


@contextmanager
def answering(
    reply: Callable[[str], Answer | bytes], name: str | None = None, pid: int | None = None
) -> Iterator[CommandTarget]:
    """Answer commands in a thread: what `reply` makes of each line. The name is nobody else's."""
    name = name or pid_name(unused_pids(1))
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(name)
    listening.listen()
    ended = threading.Event()

    def serve() -> None:
        while True:
            connection, _ = listening.accept()
            if ended.is_set():
                connection.close()
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        # Who asks may be gone, for it looks whom it has met.
        with connection, suppress(OSError):
            connection.settimeout(PATIENCE)
            if line := connection.recv(2000):
                answer = reply(line.decode().rstrip("\n"))
                connection.sendall(answer if isinstance(answer, bytes) else answer_bytes(answer))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield by_pid(os.getpid() if pid is None else pid, name)
    finally:
        ended.set()
        with socket.socket(socket.AF_UNIX) as wake:
            wake.connect(name)
        thread.join(PATIENCE)
        listening.close()
