"""The protocol of the control sockets: UNIX sockets, at the places of `netsvc.control.location`. Linux only.

A request is a line: the name of a command, and its arguments. The answer is objects of JSON, one a line:
`{"out": text}` and `{"err": text}` for the two output streams of the client, then `{"status": number}`.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Sequence
from typing import Any

from netsvc.plan.answer import Answer
from netsvc.plan.status import MOST_SHOWN, ORDERS, ConnectionQuery, ListenerStatus, ProcessStatus, read_status

#: Bytes of a request.
LONGEST_REQUEST = 1024
#: Bytes of an answer.
LONGEST_ANSWER = 1 << 20
#: Bytes of a status, which is one line of an answer.
LONGEST_STATUS = LONGEST_ANSWER - 1000

#: Of SO_PEERCRED: process, user and group (unix(7)).
_CREDENTIALS = struct.Struct("3i")


def answer_bytes(answer: Answer) -> bytes:
    """Encode an answer."""
    stream = "err" if answer.status else "out"
    lines = [json.dumps({stream: line}).encode() + b"\n" for line in answer.lines]
    last = json.dumps({"status": answer.status}).encode() + b"\n"
    size = len(last)
    for number, line in enumerate(lines):
        size += len(line)
        if size > LONGEST_ANSWER - 100:
            lines[number:] = [json.dumps({stream: f"{len(lines) - number} more lines"}).encode() + b"\n"]
            break
    return b"".join([*lines, last])


def read_answer(data: bytes) -> Answer:
    """Decode an answer. Raises `ValueError` if it is not complete."""
    lines: list[str] = []
    try:
        *records, last = [json.loads(line) for line in data.splitlines()]
        for record in records:
            [text] = record.values()
            lines.append(str(text))
        return Answer(int(last["status"]), lines)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("not an answer") from error


def peer_process(connected: socket.socket) -> tuple[int, int]:
    """Return the pid and the user id of the process at the other end. Raises `OSError`.

    The pid is 0 if the process cannot be seen from here, in another container.
    """
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, user, _ = _CREDENTIALS.unpack(credentials)
    return int(pid), int(user)


def query_words(query: ConnectionQuery) -> str:
    """Encode a query as the arguments of the command `status`."""
    written = {"most": query.most, "order": query.order, "words": query.words}
    return json.dumps(written, separators=(",", ":"))


def read_query(words: Sequence[str]) -> ConnectionQuery:
    """Decode the arguments of `status`, which may be empty. Raises `ValueError`."""
    asked: Any = json.loads(" ".join(words) or "{}")
    if not isinstance(asked, dict):
        raise ValueError
    most, order, wanted = asked.get("most", 100), asked.get("order", "rate"), asked.get("words", [])
    # True is an int to Python.
    if type(most) is not int or order not in ORDERS or not isinstance(wanted, list):
        raise ValueError
    return ConnectionQuery(max(0, min(most, MOST_SHOWN)), order, tuple(map(str, wanted)))


def read_statuses(answer: Answer) -> tuple[list[ProcessStatus], list[ListenerStatus]]:
    """Decode the answer to `status`: all processes, and the counts of processes that have ended.

    Raises `ValueError` if it is anything else.
    """
    try:
        [line] = answer.lines
        read = json.loads(line)
        ended = ProcessStatus("", 0, 0.0).to_json() | {"listeners": read["departed"]}
        return [read_status(each) for each in read["processes"]], read_status(ended).listeners
    except (KeyError, TypeError) as error:
        raise ValueError("not a status") from error
