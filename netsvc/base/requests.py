"""Logs a line for each request of a connection, of which there may be tens of thousands a second."""

from __future__ import annotations

from time import time

from twisted.logger import Logger, LogLevel

#: The field of an event that may wait for others, for a fraction of a second, to be written together with them.
GATHERED = "netsvc_gathered"

_INFO = LogLevel.info


def log_request(log: Logger, line: str, /, **fields: object) -> None:
    """Log `line`, with fields for observers that read events rather than lines. In the reactor's thread.

    The event is the one that `log.info("{line}", ...)` would make, which takes longer than sending a small file.
    """
    fields["log_logger"] = log
    fields["log_level"] = _INFO
    fields["log_namespace"] = log.namespace
    fields["log_source"] = log.source
    fields["log_format"] = "{line}"
    fields["log_time"] = time()
    fields["line"] = line
    fields[GATHERED] = True
    log.observer(fields)
