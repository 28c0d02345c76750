"""The settings of the whole process: one table for the command line, the configuration file, the help and the schema.

`--admin-token FILE` on the command line is `token` in `[admin]` of the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from netsvc.base.values import seconds, whole_number
from netsvc.options import Setting
from netsvc.plan.plan import ACCESS_FORMS, DEFAULT_DRAIN, LOG_FORMS, MOST_WORKERS, access_form

#: The group of entry points that declare services.
GROUP = "netsvc.services"

#: Seconds.
LONGEST_DRAIN = 86400

#: Bytes of a path and of each name in it, without the NUL at the end (linux/limits.h).
_LONGEST_PATH, _LONGEST_NAME = 4095, 255


def _path(form: str) -> Callable[[str], str]:
    """Accept a path, and make it absolute: a daemon leaves the directory where it was started."""

    def coerce(value: str) -> str:
        if not value or "\0" in value:
            raise ValueError(form)
        path = os.path.abspath(value)
        encoded = os.fsencode(path)
        if len(encoded) > _LONGEST_PATH or any(len(name) > _LONGEST_NAME for name in encoded.split(b"/")):
            raise ValueError(f"{form} of at most {_LONGEST_NAME} bytes, in a path of at most {_LONGEST_PATH}")
        return path

    return coerce


_drain = seconds(0, LONGEST_DRAIN)
_workers = whole_number(1, MOST_WORKERS)
_file = _path("the name of a file")
_access_path = _path('the name of a file, which may follow "combined:" or "common:"')
_directory = _path("the name of a directory")


def _access(value: str) -> str:
    form, path = access_form(value)
    return f"{form}:{_access_path(path)}" if form else _access_path(path)


#: In the order of the help and of the file.
SETTINGS: Mapping[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("drain", False, DEFAULT_DRAIN, "Grace period of open conversations at shutdown", "SECONDS", _drain),
        Setting(
            "workers",
            False,
            1,
            "Number of processes that share the ports; auto: one for each core",
            "NUMBER",
            _workers,
            ("auto",),
        ),
        Setting("log", False, "text", "Format of the log; json writes one object a line", "FORMAT", None, LOG_FORMS),
        Setting(
            "access",
            False,
            "log",
            "Where the record of each connection goes: log, off (nowhere), or a file; "
            "combined:FILE or common:FILE is for each request of HTTP instead",
            "FILE",
            _access,
            ACCESS_FORMS,
        ),
        Setting("debug", True, False, "Log each exception of a protocol with the data that the protocol received"),
        Setting(
            "state",
            False,
            None,
            "Directory for persistent data, created if missing; by default the systemd unit's",
            "DIR",
            _directory,
        ),
        Setting(
            "admin", False, None, "Serve the admin page, metrics and API here; a bare port is local", "ADDRESS", str
        ),
        Setting("admin-token", False, None, "File with the token that its clients must send", "FILE", _file),
        Setting(
            "admin-ca",
            False,
            None,
            "File with the CA certificates (PEM) that sign client certificates",
            "FILE",
            _file,
        ),
    )
}

#: Names that no protocol and no option of a service may have: they are options of a command that serves it alone,
#: `--<service>-limit` and keys of its table in a configuration file.
RESERVED = frozenset({*SETTINGS, "limit", "limits", "listen", "serve", "service"})


def key_of(name: str) -> tuple[str, ...]:
    """Return the key of a setting in a configuration file: `("admin", "token")`."""
    return tuple(name.split("-"))
