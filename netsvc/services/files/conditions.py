"""Conditional requests and ranges of HTTP (RFC 9110, sections 13 and 14). Touches no file.

A validator is that of one representation: its entity tag, and when it was modified.
"""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Sequence
from email.utils import formatdate
from functools import lru_cache
from time import strptime
from typing import NamedTuple

from netsvc.http.request import Request

#: Ranges in one request; with more, the whole file is sent.
MOST_RANGES = 32
#: Bytes that the head of a part takes at least. A file is sent whole if its parts would be longer.
PART_OVERHEAD = 80
#: Nanoseconds after a change in which another one may leave the same time: until then a tag is weak.
TICK = 1_000_000_000

#: Blanks are not given back: neighbours would share a long row of them in all ways.
_RANGE = re.compile(rb"\s*+(?:(\d{1,999})\s*+-\s*+(\d{1,999})?|-\s*+(\d{1,999}))\s*+")
_TAGS = re.compile(rb'\s*+,?\s*+((?:W/)?"[\x21\x23-\x7e\x80-\xff]*+")\s*+')
#: The three forms of a date (RFC 9110, section 5.6.7).
_DATES = ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y")


class Validator(NamedTuple):
    """The entity tag of a representation, whether it is weak, and when it was modified, in seconds."""

    tag: bytes
    is_weak: bool
    modified: int

    @property
    def written(self) -> bytes:
        """The tag as it is sent."""
        return b"W/" + self.tag if self.is_weak else self.tag


def validator(size: int, modified: int, now: int, coding: str = "") -> Validator:
    """Return the validator of a file by its size and the time of its change; times are in nanoseconds.

    It is the same for a copy with the same time, and another one for each content coding.
    """
    suffix = f"-{coding}" if coding else ""
    return Validator(
        f'"{modified:x}-{size:x}{suffix}"'.encode("ascii"), now - modified < TICK, modified // 1_000_000_000
    )


@lru_cache(maxsize=1024)
def parse_date(value: bytes) -> int | None:
    """Return the seconds of an HTTP date; None for what is none."""
    text = value.decode("latin-1").strip()
    for form in _DATES:
        try:
            return timegm(strptime(text, form))
        except (ValueError, OverflowError):
            continue
    return None


@lru_cache(maxsize=1024)
def http_date(seconds: int) -> bytes:
    """Return an HTTP date."""
    return formatdate(max(0, seconds), usegmt=True).encode("ascii")


def check_conditions(request: Request, current: Validator) -> int:
    """Return 200 if the request is to be carried out, 304, or 412, in the order of RFC 9110, section 13.2.2.

    `request` is GET or HEAD.
    """
    if (wanted := _joined(request, b"if-match")) is not None:
        if not _matches(wanted, current, strongly=True):
            return 412
    elif (since := _date_of(request, b"if-unmodified-since")) is not None and current.modified > since:
        return 412
    if (known := _joined(request, b"if-none-match")) is not None:
        return 304 if _matches(known, current, strongly=False) else 200
    if (since := _date_of(request, b"if-modified-since")) is not None and current.modified <= since:
        return 304
    return 200


def wanted_ranges(request: Request, current: Validator, size: int) -> list[tuple[int, int]] | None:
    """Return the ranges to send, each as the first byte and the one after its last; none if the request has none.

    None is returned for the whole file, and an empty list if no range can be satisfied (416). Ranges that overlap are
    joined; there are never more bytes than the file has.
    """
    values = request.values(b"range")
    if len(values) != 1 or request.method != b"GET" or not _range_applies(request, current):
        return None
    unit, _, specification = values[0].partition(b"=")
    if unit.strip().lower() != b"bytes":
        return None
    ranges = _parse_ranges(specification, size)
    if ranges is None or len(ranges) < 2:
        return ranges
    joined = _joined_ranges(ranges)
    if len(joined) > 1 and sum(stop - start + PART_OVERHEAD for start, stop in joined) > size:
        return None
    return joined


def _range_applies(request: Request, current: Validator) -> bool:
    """Evaluate If-Range (RFC 9110, section 13.1.5): a part of another version would corrupt the client's file."""
    values = request.values(b"if-range")
    if not values:
        return True
    value = values[0]
    if len(values) > 1:
        return False
    if value.lstrip().startswith((b'"', b"W/")):
        return _matches(value, current, strongly=True)
    return not current.is_weak and parse_date(value) == current.modified


def _parse_ranges(specification: bytes, size: int) -> list[tuple[int, int]] | None:
    ranges = []
    parts = [part for part in specification.split(b",", 2 * MOST_RANGES) if part.strip()]
    if not 0 < len(parts) <= MOST_RANGES:
        return None
    for part in parts:
        found = _RANGE.fullmatch(part)
        if found is None:
            return None
        first, last, suffix = (None if group is None else int(group) for group in found.groups())
        if first is None:
            start, stop = max(0, size - (suffix or 0)), size
        elif last is not None and last < first:
            return None
        else:
            start, stop = first, size if last is None else min(size, last + 1)
        if start < stop:
            ranges.append((start, stop))
    return ranges


def _joined_ranges(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ranges that overlap or touch, in the order of the file; others stay as they were asked for."""
    ordered = sorted(ranges)
    joined = [ordered[0]]
    for start, stop in ordered[1:]:
        if start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return list(ranges) if len(joined) == len(ranges) else joined


def _joined(request: Request, name: bytes) -> bytes | None:
    values = request.values(name)
    return b",".join(values) if values else None


def _date_of(request: Request, name: bytes) -> int | None:
    values = request.values(name)
    return parse_date(values[0]) if len(values) == 1 else None


def _matches(value: bytes, current: Validator, *, strongly: bool) -> bool:
    """Return whether a list of entity tags, or `*`, matches (RFC 9110, section 8.8.3.2)."""
    if value.strip() == b"*":
        return True
    if strongly and current.is_weak:
        return False
    at = 0
    while (found := _TAGS.match(value, at)) is not None:
        tag = found[1]
        if tag == current.tag or (not strongly and tag == b"W/" + current.tag):
            return True
        at = found.end()
    return False
