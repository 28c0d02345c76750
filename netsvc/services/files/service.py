"""Declares the files service."""

from __future__ import annotations

from netsvc.service import Service
from netsvc.services.files.classic import Classic
from netsvc.services.files.core import FilesCore, FilesOptions

__all__ = ["service"]

service = Service(
    "files",
    "Send files from below one directory",
    options=FilesOptions,
    core=FilesCore,
    streams={"classic": Classic},
    parallel=True,
)
