#!/usr/bin/env python3
"""Writes tests/fixtures/AREA from tools/fixtures/AREA.py, for all areas or those named.

    pip install -r tools/requirements.txt
    python tools/make_fixtures.py [AREA ...]
"""

import importlib.util
import os
import pathlib
import sys

# Before torch starts: with more threads its sums are cut otherwise, and the last bits differ.
os.environ["OMP_NUM_THREADS"] = "1"

TOOLS = pathlib.Path(__file__).resolve().parent
GENERATORS = {path.stem: path for path in sorted((TOOLS / "fixtures").glob("*.py"))}


def load(path):
    spec = importlib.util.spec_from_file_location(f"fixtures_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(areas):
    unknown = [area for area in areas if area not in GENERATORS]
    if unknown:
        sys.exit(f"no generator named {', '.join(unknown)}; there are {', '.join(GENERATORS)}")
    for area in areas or GENERATORS:
        out = TOOLS.parent / "tests" / "fixtures" / area
        out.mkdir(parents=True, exist_ok=True)
        load(GENERATORS[area]).make(out)
        size = sum(path.stat().st_size for path in out.iterdir())
        print(f"{area}: {size / 1024:.0f} kB in {out}")


if __name__ == "__main__":
    main(sys.argv[1:])
