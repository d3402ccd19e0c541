"""The load test against its stub server; the baseline server too, where diffusers is installed."""

import contextlib
import importlib.util
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import xml.etree.ElementTree
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent
ROOT = FOLDER.parent.parent
sys.path.insert(0, str(FOLDER))
from record import Record  # noqa: E402
from request_batching import RequestBatcher  # noqa: E402
from workload import Workload, check_answer  # noqa: E402


@contextlib.contextmanager
def server(script, *options):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, FOLDER / script, "--port", str(port), *options])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def load(url, record, *options):
    """Runs run.py for two seconds; gives its exit status and the record."""
    command = [sys.executable, FOLDER / "run.py", "--url", url, "--record", record]
    command += ["--seconds", "2", "--warm-up", "0.5", "--size", "64x64", *options]
    return subprocess.run(command, check=False).returncode, Record.read(record)


def test_closed_load(tmp_path):
    """Eight users who get an answer after 0.1 s get 80 a second."""
    with server("stub_server.py", "--delay", "0.1") as url:
        status, record = load(url, tmp_path / "record.json", "--users", "8", "--kinds", "generate,stream,edit")
    assert status == 0 and not record.errors and record.rejected == 0
    assert 40 < record.pictures_per_second() <= 80
    assert 0.1 <= record.percentile(50) < 0.3
    assert {steps for steps, _ in record.answers} == {20, 25, 50}


def test_open_load(tmp_path):
    """Arrivals do not wait for answers: 40 a second, though each takes half a second."""
    with server("stub_server.py", "--delay", "0.5") as url:
        status, record = load(url, tmp_path / "record.json", "--arrival-rate", "40", "--seconds", "4")
    assert status == 0
    assert 20 < record.pictures_per_second() < 60
    assert record.unfinished > 5


def test_rejections_are_no_errors(tmp_path):
    with server("stub_server.py", "--reject", "0.5") as url:
        status, record = load(url, tmp_path / "record.json", "--users", "20")
    assert status == 0 and not record.errors
    assert record.rejected > 0 and record.answers


def test_a_wrong_size_is_an_error(tmp_path):
    request = Workload(size=(64, 64)).draw()
    with server("stub_server.py") as url:
        wait(url)
        body = json.dumps(json.loads(request.body) | {"size": "64x32"}).encode()
        post = urllib.request.Request(url + request.path, body, {"Content-Type": request.content_type})
        answer = urllib.request.urlopen(post).read()
    check_answer(request, (64, 32), answer)
    with pytest.raises(ValueError, match="64x32 pixels, not 64x64"):
        check_answer(request, (64, 64), answer)
    with pytest.raises(ValueError, match="no valid picture"):
        check_answer(request, (64, 64), answer[: len(answer) // 2])


def test_report(tmp_path):
    with server("stub_server.py", "--delay", "0.05") as url:
        load(url, tmp_path / "one.json", "--users", "2", "--name", "one & only")
        load(url, tmp_path / "two.json", "--users", "4", "--name", "two")
    files = {name: tmp_path / name for name in ("one.json", "two.json", "table.md", "chart.svg")}
    command = [sys.executable, FOLDER / "report.py", files["one.json"], files["two.json"]]
    subprocess.run([*command, "--table", files["table.md"], "--chart", files["chart.svg"]], check=True)
    assert "| two | 4 users |" in files["table.md"].read_text()
    texts = [element.text for element in xml.etree.ElementTree.parse(files["chart.svg"]).iter() if element.text]
    assert "one & only, 2 users" in texts and "two, 4 users" in texts


def batches_of(jobs, max_batch, max_wait):
    """What a batcher calls `paint` with, for (key, job) submitted at once, and the seconds until all are done."""
    batches = []

    def paint(key, jobs):
        batches.append((key, jobs))
        return [2 * job for job in jobs]

    batcher = RequestBatcher(paint, max_batch, max_wait)
    start = time.monotonic()
    futures = [batcher.submit(key, job) for key, job in jobs]
    threading.Thread(target=batcher.run, daemon=True).start()
    assert [future.result(timeout=10) for future in futures] == [2 * job for _, job in jobs]
    return batches, time.monotonic() - start


def test_full_batches_do_not_wait():
    batches, seconds = batches_of([("a", 1), ("b", 2), ("a", 3), ("b", 4)], max_batch=2, max_wait=5)
    assert batches == [("a", [1, 3]), ("b", [2, 4])]
    assert seconds < 1


def test_others_wait_for_company():
    batches, seconds = batches_of([("a", 1), ("a", 2), ("b", 3)], max_batch=3, max_wait=0.3)
    assert batches == [("a", [1, 2]), ("b", [3])]
    assert 0.3 <= seconds < 2


def test_a_failing_batch_harms_no_other():
    def paint(key, jobs):
        if key == "bad":
            raise RuntimeError("no such picture")
        return jobs

    batcher = RequestBatcher(paint, max_batch=1, max_wait=1)
    bad, good = batcher.submit("bad", 1), batcher.submit("good", 2)
    threading.Thread(target=batcher.run, daemon=True).start()
    assert good.result(timeout=10) == 2
    with pytest.raises(RuntimeError, match="no such picture"):
        bad.result(timeout=10)


def wait(url):
    for _ in range(100):
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{url}/ready").close()
        time.sleep(0.1)
    raise TimeoutError(url)


@pytest.mark.skipif(not importlib.util.find_spec("diffusers"), reason="needs tools/requirements.txt")
def test_baseline_server(tmp_path):
    options = (
        "--model",
        str(ROOT / "models/tiny"),
        "--device",
        "cpu",
        "--warm-up-size",
        "64x64",
        "--max-batch",
        "4",
    )
    with server("baseline_server.py", *options) as url:
        status, record = load(url, tmp_path / "record.json", "--users", "6", "--steps", "2,3", "--sampler", "ddim")
    assert status == 0 and record.answers
