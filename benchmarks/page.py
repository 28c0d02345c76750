"""Writes docs/benchmarks.md: what was measured, where, and how to measure it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.charts import Group
from benchmarks.results import Results
from benchmarks.tables import GENERATOR_BOUND, Table, tables

__all__ = ["page"]

_INTRODUCTION = """\
# Benchmarks

netsvc against its peers, on one machine in one run: the systems take turns within each of {rounds} rounds, for
{seconds:g} s each after a warm-up. A figure is the median of the rounds. The ratio is a peer's figure to netsvc's in
the same round, with its median and its range: machines drift, and ratios hold better than figures. This page is
written by the command, not by hand:

```sh
pip install -e '.[bench]'
apt-get install nginx-light ngircd inspircd atftpd gcc     # what is absent is skipped
python -m benchmarks --output docs
```
"""

_METHOD = f"""\
## How it is measured

- Server and load generator have a core each. The generators are written in C (`benchmarks/c`). They poll without ever
  sleeping: a client that sleeps measures its own wake-ups. They check that what comes back is what it should be.
- *CPU s/million* is what the server used in user and kernel mode for a million operations (for each GiB where that is
  said), *generator's* is the same for the generator, without its polls that found nothing. *busy* is the share of
  its core that the server / the generator used. {GENERATOR_BOUND} marks a row where the generator was the limit:
  the server can do more.
- *MiB* is the resident memory of the server and its children; the kernel's socket buffers are not in it.
- netsvc runs as users run it, limits and logging on: `twistd -n --pidfile= --logfile=FILE netsvc …`. Its peers
  *Twisted*, *asyncio*, *uvloop* and *C* are the least code that echoes, without limits or a log; *netsvc's reactor* is
  the same Twisted code on that reactor, so that its difference to netsvc is what limits, counting and log cost.
  *netsvc, no limits* has all default limits lifted, *netsvc, every limit* has all that there are, far from the load.
- Files: nginx with `sendfile on`, one worker and an access log. In the cases named HTTP all speak HTTP/1.1, and each
  writes a line for each request (http.server to a file as well); in the others netsvc speaks the classic protocol (a
  name, the bytes, the end), over a new connection for each file. The files are in the page cache.
- TFTP: one download of 32 MiB after another, into a receive buffer of 4 MiB. atftpd and py3tftp have their defaults;
  py3tftp also accepts uploads.
- Chat: netsvc with `--chat-rate 1000000 --chat-burst 1000000 --chat-members 2000`, history on; ngircd with
  `MaxPenaltyTime = 0` and InspIRCd with no flood limit, both without look-ups; `twistd words` with its room and
  its users made in a file, because its own options for these fail on Python 3. Everybody is in one room, one member
  speaks, messages have 64 bytes. An operation is a delivery; p50 and p99 are from the sending of a message to its last
  delivery.
- Start-up is from the start of the process to the first answer on a connection (InspIRCd answers once a second).
- Two workers: where the machine has no third core, both run on one, and what counts is the CPU time a request.
"""


def page(results: Results, drawn: Sequence[Group]) -> str:
    """Return the page's text. `drawn` are the charts that lie in `benchmarks/` beside it."""
    options = {"rounds": 0, "seconds": 0.0, **results.options}
    blocks = [_INTRODUCTION.format(rounds=options["rounds"], seconds=options["seconds"])]
    blocks.append("## Where\n\n" + "\n".join(f"- {name}: {text}" for name, text in results.machine.items()) + "\n")
    found = {table.phase.key: table for table in tables(results)}
    shown: set[str] = set()
    for group in drawn:
        parts = [f"## {group.title}\n\n![{group.title}](benchmarks/{group.name}.svg)\n"]
        for key in group.keys:
            if key in found and key not in shown:
                shown.add(key)
                parts.append("\n".join(_markdown(found[key])) + "\n")
        blocks.append("\n".join(parts))
    ends = [f"- skipped: {peer}: {reason}" for peer, reason in results.skipped.items()]
    ends += [f"- failed: {line}" for line in results.failures]
    if ends:
        blocks.append("## Not measured\n\n" + "\n".join(ends) + "\n")
    return "\n".join([*blocks, _METHOD])


def _markdown(table: Table) -> Iterator[str]:
    yield f"### {table.phase.title}"
    yield ""
    yield "| " + " | ".join(table.headings) + " |"
    yield "|---" + "|---:" * (len(table.headings) - 1) + "|"
    for row in table.rows:
        yield "| " + " | ".join(table.cells(row)) + " |"
    for note in table.notes:
        yield ""
        yield f"{note}."
