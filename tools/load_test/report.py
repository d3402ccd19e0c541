#!/usr/bin/env python3
"""Compares records of run.py: a Markdown table and an SVG chart.

    python tools/load_test/report.py BASELINE.json RECORD.json .. [--table FILE.md] [--chart FILE.svg]

Ratios are to the first record. Needs no package.
"""

import argparse
import sys
from pathlib import Path

from chart import chart
from record import PERCENTILES, Record


def read(path):
    try:
        return Record.read(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"report.py: {path} is no record of run.py: {error!r}")


def comparable(records):
    """Exits where records are of different work."""
    for name in ("steps", "size", "kinds", "guidance_scale", "card"):
        values = [getattr(record, name) for record in records]
        if any(value != values[0] for value in values):
            sys.exit(f"report.py: the records differ in {name}, and cannot be compared: {values}")


def load(record):
    if record.arrival_rate:
        return f"{record.arrival_rate:g} arrivals a second"
    return f"{record.users} users"


def conditions(record):
    """What all records have in common, for a caption."""
    kinds = "" if list(record.kinds) == ["generate"] else f", {', '.join(record.kinds)}"
    steps = ", ".join(map(str, record.steps))
    card = f"; one {record.card}" if record.card else ""
    return f"{record.size[0]}x{record.size[1]}, steps of {steps} mixed{kinds}, guidance {record.guidance_scale:g}{card}"


def ratio(value, first, digits=2):
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + (f" ({value / first:.2f}x)" if first and value is not first else "")


def table(records):
    first = records[0]
    head = ["server", "load", "pictures/s", *(f"p{percent}, s" for percent in PERCENTILES), "429", "errors"]
    head += ["at the end under way", "GPU busy", "measured"]
    lines = [head, ["---"] * len(head)]
    for record in records:
        base = None if record is first else first
        line = [record.server, load(record)]
        line += [ratio(record.pictures_per_second(), base and base.pictures_per_second())]
        line += [ratio(record.percentile(percent), base and base.percentile(percent)) for percent in PERCENTILES]
        line += [f"{record.rejected}", f"{sum(record.errors.values())}", f"{record.unfinished}"]
        line += ["-" if record.gpu_busy is None else f"{record.gpu_busy:.1%}"]
        lines.append([*line, f"{record.seconds:.0f} s from {record.date[:16].replace('T', ' ')}"])
    cells = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{conditions(first)}. In brackets: times the first line's.\n\n{cells}\n\n{by_steps(records)}"


def by_steps(records):
    """p50 and p95 of the pictures of each number of steps: who waits for whom."""
    steps = records[0].steps
    lines = [["p50 / p95, s", *(f"{number} steps" for number in steps)], ["---"] * (1 + len(steps))]
    for record in records:
        times = [(record.percentile(50, number), record.percentile(95, number)) for number in steps]
        cells = ["-" if p50 is None else f"{p50:.2f} / {p95:.2f}" for p50, p95 in times]
        lines.append([f"{record.server}, {load(record)}", *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description="Compares records of run.py.")
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--table", type=Path, help="Markdown; default: on stdout")
    parser.add_argument("--chart", type=Path, help="SVG")
    arguments = parser.parse_args()
    records = [read(path) for path in arguments.records]
    comparable(records)
    try:
        if arguments.table:
            arguments.table.write_text(table(records))
        else:
            print(table(records), end="")
        if arguments.chart:
            loads = [load(record) for record in records]
            # Where all have one load, the caption says it once.
            same = len(set(loads)) == 1
            names = [of.server if same else f"{of.server}, {at}" for of, at in zip(records, loads, strict=True)]
            caption = ", ".join([conditions(records[0]), *(loads[:1] if same else [])])
            arguments.chart.write_text(chart(dict(zip(names, records, strict=True)), caption))
    except OSError as error:
        sys.exit(f"report.py: {error}")


if __name__ == "__main__":
    main()
