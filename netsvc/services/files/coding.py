"""Which content coding of a file a client gets: Accept-Encoding (RFC 9110, section 12.5.3). Touches no file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

#: Content codings, the one that is usually the smallest first, and what is added to a file's name for each.
ENDINGS: Mapping[str, bytes] = {"br": b".br", "zstd": b".zst", "gzip": b".gz"}
#: The file as it is.
IDENTITY = "identity"

#: Bytes of the header's value; with more, it is taken for one that accepts no coding.
_LONGEST = 1024
_ELEMENT = re.compile(
    rb"[ \t]*+([!#$%&'*+.^_`|~0-9A-Za-z-]++)[ \t]*+(?:;[ \t]*+[qQ]=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)[ \t]*+)?"
)


def accepted_codings(values: Sequence[bytes]) -> tuple[str, ...]:
    """Return the codings that a client accepts, by the values of Accept-Encoding, its favourites first.

    Codings that it likes equally are in our order. `IDENTITY` is one of them, the last if it is not mentioned, unless
    the client refuses it. An element that is malformed is ignored.
    """
    if not values:
        return (IDENTITY,)
    value = b",".join(values)
    return (IDENTITY,) if len(value) > _LONGEST else _accepted(value)


@lru_cache(maxsize=256)
def _accepted(value: bytes) -> tuple[str, ...]:
    weights: dict[str, float] = {}
    for part in value.split(b","):
        found = _ELEMENT.fullmatch(part)
        if found is not None:
            name = found[1].decode("ascii").lower()
            # Section 8.4.1.3.
            weights[name.removeprefix("x-") if name == "x-gzip" else name] = float(found[2] or b"1")
    others = weights.get("*")
    known = {name: weights.get(name, others or 0.0) for name in ENDINGS}
    # Not mentioned, it is accepted, but anything else is preferred.
    known[IDENTITY] = weights.get(IDENTITY, 0.0001 if others is None else others)
    return tuple(sorted((name for name, weight in known.items() if weight), key=lambda name: -known[name]))
