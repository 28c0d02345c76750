"""What a plan says of the whole process, beside its limits, while it is written: who wrote it how, and what is wrong.

The command line and the configuration file have the same names for it: `--admin-token FILE` is `token` in `[admin]`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from netsvc.address import Address, parse_address
from netsvc.admin.reach import check_admin
from netsvc.config.written import Given, Written
from netsvc.plan import ACCESS_FORMS, DEFAULT_DRAIN, LOG_FORMS, MOST_WORKERS, AdminUse
from netsvc.settings import seconds, whole_number

__all__ = ["ADMIN_PARTS", "LONGEST_DRAIN", "Process"]

#: Seconds.
LONGEST_DRAIN = 86400

#: What `--admin-…` and `[admin]` have beside the address.
ADMIN_PARTS = ("token", "ca")


class Process:
    """Collects it. What is said later wins. `mistakes` gets what is wrong; `state` is of systemd, if nobody sets it."""

    def __init__(self, mistakes: list[str], environment: Mapping[str, str] = os.environ) -> None:
        self.drain = DEFAULT_DRAIN
        self.workers = 1
        self.workers_written = Written("--workers")
        self.log = "text"
        self.access = "log"
        self._mistakes = mistakes
        self._environment = environment
        self._state: str | None = None
        self._admin: Given | None = None
        self._admin_parts: dict[str, Given] = {}

    def set(self, name: str, value: str, written: Written) -> None:
        """Set what has this name, `log` say: an option of the command line, or a key of the file."""
        try:
            getattr(self, f"_set_{name}")(value, written)
        except ValueError as error:
            self._mistakes.append(written.valued(value).mistake(error))

    def _set_drain(self, value: str, written: Written) -> None:
        self.drain = read_drain(value)

    def _set_workers(self, value: str, written: Written) -> None:
        self.workers_written = written
        try:
            self.workers = _usable_cores() if value == "auto" else whole_number(1, MOST_WORKERS)(value)
        except ValueError as error:
            raise ValueError(f"{error}, or auto: one for each core") from None

    def _set_log(self, value: str, written: Written) -> None:
        if value not in LOG_FORMS:
            raise ValueError(f"the log is {' or '.join(LOG_FORMS)}")
        self.log = value

    def _set_access(self, value: str, written: Written) -> None:
        self.access = value if value in ACCESS_FORMS else _path(value, f"{', '.join(ACCESS_FORMS)}, or a file")

    def _set_state(self, value: str, written: Written) -> None:
        self._state = _path(value, "a directory")

    def admin(self, address: str, written: Written) -> None:
        """Set the address of the admin page. It is judged when all is known."""
        self._admin = Given(address, written)

    def admin_part(self, name: str, file: str, written: Written) -> None:
        """Set the file of the `ADMIN_PARTS` that has this name."""
        try:
            self._admin_parts[name] = Given(_path(file, "a file"), written)
        except ValueError as error:
            self._mistakes.append(written.valued(file).mistake(error))

    def state(self) -> str | None:
        """Return the directory for what is to be kept: that of systemd (systemd.exec(5)), if no other was named."""
        return self._state or self._environment.get("STATE_DIRECTORY", "").partition(":")[0] or None

    def judge(self, in_use: Collection[Address] = ()) -> AdminUse | None:
        """Return what is to be known of the admin page, if there is one and all of it is right.

        Of addresses that are `in_use` the files are not read again.
        """
        admin = self._admin
        if admin is None:
            self._mistakes += [part.written.mistake(_ADDRESSLESS) for part in self._admin_parts.values()]
            return None
        files = {name: str(part.value) for name, part in self._admin_parts.items()}
        try:
            address = parse_address(str(admin.value), "stream")
        except ValueError as error:
            self._mistakes.append(admin.written.valued(admin.value).mistake(error))
            return None
        use = AdminUse(address, files.get("token"), files.get("ca"), admin.written.prefix)
        mistakes = [] if address in in_use else check_admin(use)
        self._mistakes += mistakes
        return None if mistakes else use


_ADDRESSLESS = "there is no admin page that this could be of; give its address as well, --admin or address in [admin]"


def read_drain(value: Any) -> float:
    """Read how many seconds conversations have to end. Raises `ValueError` with the accepted form."""
    return seconds(0, LONGEST_DRAIN)(value)


def _path(value: str, form: str) -> str:
    """Return the absolute path: a daemon leaves the directory where it was started."""
    if not value or "\0" in value:
        raise ValueError(f"write {form}")
    return os.path.abspath(value)


def _usable_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cores)
