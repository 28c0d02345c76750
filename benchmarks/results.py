"""What a run found, as plain data, and the arithmetic of medians and ratios over its rounds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.errors import BenchError

__all__ = ["Reading", "Results", "Row", "Spread", "spread"]


@dataclass(frozen=True)
class Reading:
    """One measurement: one peer in one round of one case.

    `value` is what the case compares. Times are in seconds or, where the name says so, microseconds; `memory` is in
    resident bytes; CPU seconds are those of the measured time only; `background` is bytes a second beside it.
    """

    case: str
    peer: str
    round: int
    value: float
    operations: float = 0
    seconds: float = 0
    p50_us: float = 0
    p99_us: float = 0
    server_cpu: float = 0
    generator_cpu: float = 0
    memory: int = 0
    lost: int = 0
    background: float = 0


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, and their range."""

    median: float
    lowest: float
    highest: float


def spread(numbers: Iterable[float]) -> Spread:
    """Return the median and the range. There must be at least one number."""
    sorted_numbers = sorted(numbers)
    return Spread(median(sorted_numbers), sorted_numbers[0], sorted_numbers[-1])


@dataclass(frozen=True)
class Row:
    """What all rounds of one peer in one case come to.

    `ratio` is the peer's value to the base's in the same round, None when no round has both; `cpu_ratio` is the same of
    the server's CPU for an operation. CPU is in seconds an
    operation; busy is CPU seconds a second, 1.0 for a whole core: when the generator's is near 1 and the server's is
    not, the row shows the generator's limit.
    """

    peer: str
    value: Spread
    ratio: Spread | None
    cpu_ratio: Spread | None
    rate: Spread
    rounds: int
    p50_us: float
    p99_us: float
    server_cpu: Spread
    generator_cpu: float
    server_busy: float
    generator_busy: float
    memory: int
    lost: int
    background: float


def _value(reading: Reading) -> float:
    return reading.value


def _cpu(reading: Reading) -> float:
    return reading.server_cpu / (reading.operations or 1)


@dataclass
class Results:
    """A whole run: where and when, its options, what was read, which peers were skipped and what failed, by line."""

    machine: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def cases(self) -> list[str]:
        """List the cases that have readings, in the order in which they were run."""
        return list(dict.fromkeys(reading.case for reading in self.readings))

    def peers(self, case: str) -> list[str]:
        """List the peers of a case, in the order in which they were run first."""
        return list(dict.fromkeys(reading.peer for reading in self.readings if reading.case == case))

    def ratio(self, case: str, peer: str, base: str, of: Callable[[Reading], float] = _value) -> Spread | None:
        """Compare two peers round by round, by their values or by what else `of` returns."""
        by_round: dict[int, dict[str, float]] = {}
        for reading in self.readings:
            if reading.case == case:
                by_round.setdefault(reading.round, {})[reading.peer] = of(reading)
        ratios = [values[peer] / values[base] for values in by_round.values() if peer in values and values.get(base)]
        return spread(ratios) if ratios else None

    def row(self, case: str, peer: str, base: str) -> Row:
        """Sum up a peer in a case. It must have a reading there."""
        chosen = [reading for reading in self.readings if (reading.case, reading.peer) == (case, peer)]

        def per(amount: str, unit: str) -> list[float]:
            return [getattr(reading, amount) / (getattr(reading, unit) or 1) for reading in chosen]

        return Row(
            peer=peer,
            value=spread(reading.value for reading in chosen),
            ratio=self.ratio(case, peer, base),
            cpu_ratio=self.ratio(case, peer, base, _cpu),
            rate=spread(per("operations", "seconds")),
            rounds=len(chosen),
            p50_us=median(reading.p50_us for reading in chosen),
            p99_us=median(reading.p99_us for reading in chosen),
            server_cpu=spread(per("server_cpu", "operations")),
            generator_cpu=median(per("generator_cpu", "operations")),
            server_busy=median(per("server_cpu", "seconds")),
            generator_busy=median(per("generator_cpu", "seconds")),
            memory=max(reading.memory for reading in chosen),
            lost=sum(reading.lost for reading in chosen),
            background=median(reading.background for reading in chosen),
        )

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read what `write` wrote. Raises `BenchError`."""
        try:
            plain = json.loads(path.read_text())
            plain["readings"] = [Reading(**reading) for reading in plain["readings"]]
            return cls(**plain)
        except OSError as error:
            raise BenchError(f"{path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise BenchError(f"{path} does not hold the results of a run: {error}") from None
