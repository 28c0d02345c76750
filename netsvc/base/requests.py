"""Logs a line for each request of a connection, of which there may be tens of thousands a second."""

from __future__ import annotations

from collections.abc import Mapping
from time import time

from twisted.logger import Logger, LogLevel

#: The field of an event that may wait for others, for a fraction of a second, to be written together with them.
GATHERED = "netsvc_gathered"


def log_request(log: Logger, line: str, fields: Mapping[str, object]) -> None:
    """Log `line`, with fields for observers that read events rather than lines. In the reactor's thread.

    The event is the one that `log.info("{line}", ...)` would make, which takes longer than sending a small file.
    """
    log.observer(
        {
            "log_logger": log,
            "log_level": LogLevel.info,
            "log_namespace": log.namespace,
            "log_source": log.source,
            "log_format": "{line}",
            "log_time": time(),
            GATHERED: True,
            "line": line,
            **fields,
        }
    )
