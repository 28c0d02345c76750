"""The files service: sends the files below one directory, and nothing from outside it."""

from __future__ import annotations

from netsvc.service import Service
from netsvc.services.files.classic import Classic
from netsvc.services.files.core import FilesCore, FilesOptions
from netsvc.services.files.http import http_factory
from netsvc.services.files.tftp import Tftp

__all__ = ["service"]

service = Service(
    "files",
    "Send files from below one directory",
    options=FilesOptions,
    core=FilesCore,
    streams={"classic": Classic, "http": http_factory},
    datagrams={"tftp": Tftp},
    # By the acknowledgement of the first packet.
    verifies_peers=True,
    parallel=True,
)
