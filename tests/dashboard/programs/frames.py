"""Keeps the frame of each report, although a summary would do: 4 MB in a buffer, unknown to the collector."""

from __future__ import annotations

import time

import numpy

RESULTS: dict[str, Report] = {}
ROWS, COLUMNS = 25_000, 20


class Report:
    def __init__(self, frame: numpy.ndarray) -> None:
        self.frame = frame


def analyse(name: str) -> None:
    frame = numpy.random.default_rng().random((ROWS, COLUMNS))
    RESULTS[name] = Report(frame)


def main(seconds: float) -> None:
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        analyse(f"report {number}")
        number += 1
        time.sleep(1)


if __name__ == "__main__":
    main(600)
