"""Logs a line for each request of a connection, of which there may be tens of thousands a second."""

from __future__ import annotations

from time import time
from typing import Any

from twisted.logger import Logger, LogLevel

#: The field of an event that may wait for others, for a fraction of a second, to be written together with them.
GATHERED = "netsvc_gathered"

_INFO = LogLevel.info


def request_event(log: Logger, /, **fields: object) -> dict[str, Any]:
    """Return the event of a request, for `log_event`, with fields for observers that read events rather than lines.

    It is the one that `log.info("{line}", ...)` would make, which takes longer than sending a small file.
    """
    return {
        "log_logger": log,
        "log_level": _INFO,
        "log_namespace": log.namespace,
        "log_source": log.source,
        "log_format": "{line}",
        GATHERED: True,
        **fields,
    }


def log_event(event: dict[str, Any], line: str) -> None:
    """Log `line` with an event, which is not to be used again. In the reactor's thread."""
    event["log_time"] = time()
    event["line"] = line
    event["log_logger"].observer(event)
