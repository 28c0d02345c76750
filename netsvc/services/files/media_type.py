"""The media type of a file, by its name, and the charset of text, by its mark."""

from __future__ import annotations

import codecs
import re
from functools import lru_cache
from mimetypes import MimeTypes
from os.path import splitext

#: Without the files of the system, which would make the types depend on the machine.
_TYPES = MimeTypes(filenames=())
for _kind, _ending in (
    ("text/markdown", ".md"),
    ("image/webp", ".webp"),
    ("image/avif", ".avif"),
    ("font/woff2", ".woff2"),
    ("application/wasm", ".wasm"),
    ("text/javascript", ".js"),
    ("text/javascript", ".mjs"),
    ("application/gzip", ".gz"),
    ("application/zstd", ".zst"),
    ("application/x-bzip2", ".bz2"),
    ("application/x-xz", ".xz"),
):
    _TYPES.add_type(_kind, _ending)

#: What a text begins with that says its charset. Nothing else is certain.
_MARKS = (
    (codecs.BOM_UTF8, b"utf-8"),
    (codecs.BOM_UTF16_LE, b"utf-16le"),
    (codecs.BOM_UTF16_BE, b"utf-16be"),
    (b"\x84\x31\x95\x33", b"gb18030"),
)
#: Bytes of the longest mark.
MARK_SIZE = 4

_CHARSET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,39}")


def charset(value: str) -> str:
    """Check the name of a charset; `none` becomes an empty string. Raises `ValueError` with the accepted form."""
    if not _CHARSET.fullmatch(value):
        raise ValueError("the name of a charset, such as gb18030, or none")
    return "" if value.lower() == "none" else value


def media_type(path: bytes) -> bytes:
    """Return the media type of a file by its name, without a charset."""
    return _type_of(splitext(path)[1].lower())


@lru_cache(maxsize=256)
def _type_of(ending: bytes) -> bytes:
    return _TYPES.types_map[True].get(ending.decode("latin-1"), "application/octet-stream").encode()


def with_charset(kind: bytes, start: bytes, usual: bytes) -> bytes:
    """Add a charset to the type of a text: the one that its first bytes name, else the usual one, if there is one."""
    name = next((each for mark, each in _MARKS if start.startswith(mark)), usual)
    return b"%b; charset=%b" % (kind, name) if name else kind
