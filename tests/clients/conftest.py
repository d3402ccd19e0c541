"""A server of target/release/sdrt on a free port."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SDRT = os.environ.get("SDRT_BIN", ROOT / "target/release/sdrt")
READY = re.compile(r"ready at (http://[^/]+)/")


def serve(*flags):
    """Yields the address of a server, and ends the server."""
    command = [SDRT, "serve", "--device", "cpu", "--port", "0", *flags]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        address = next((match[1] for line in server.stderr if (match := READY.search(line))), None)
        assert address, f"{command} did not start"
        # Nobody reads on, and what nobody reads must not fill the pipe.
        drain = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
        yield address
        server.terminate()
        assert server.wait(60) == 0
        drain.wait(10)
    finally:
        server.kill()


@pytest.fixture(scope="session")
def emoji():
    """The model inside sdrt."""
    yield from serve("--api-key", "secret")


@pytest.fixture(scope="session")
def tiny():
    """Random weights, for requests whose pictures nobody looks at."""
    limits = ["--max-images", "2", "--max-pixels", "4096", "--max-steps", "4", "--max-body", "100000"]
    yield from serve("--model", ROOT / "models/tiny", *limits)
