#!/usr/bin/env python3
"""Puts one server of OpenAI's image interface under load, and records what came of it.

    python tools/load_test/run.py --url http://127.0.0.1:7860 --users 64 --seconds 120 --record RECORD.json
    python tools/load_test/run.py --url http://127.0.0.1:7860 --arrival-rate 6 --seconds 120 --record RECORD.json

With --users the load is closed: each of them asks for one picture after the other. With --arrival-rate it is open.
Every answer is checked to have a picture of the right size. A 429 is no error: its sender comes again after
Retry-After. What ends within the seconds of measurement counts, whenever it began. Exits with 1 where there were
errors. Needs requirements.txt. `report.py` compares records.
"""

# Locust replaces Python's blocking calls by gevent's, so it comes first.
import locustfile
import gevent
from locust.env import Environment

import argparse
import datetime
import resource
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import observe
import workload
from record import PERCENTILES, Record, Recorder

PROGRESS_SECONDS = 10


def measure(arguments):
    gpu = observe.Gpu(arguments.gpu) if arguments.gpu is not None else None
    recorder = Recorder()
    environment = Environment(
        user_classes=[locustfile.users_of(arguments)], host=arguments.url, parsed_options=arguments
    )
    environment.events.request.add_listener(recorder.finished)
    runner = environment.create_local_runner()
    users = arguments.users or 1
    runner.start(users, spawn_rate=users)
    gevent.sleep(arguments.warm_up)

    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    counters = observe.counters_of(arguments.url)
    if gpu:
        gpu.start()
    recorder.on, start = True, time.perf_counter()
    while (left := start + arguments.seconds - time.perf_counter()) > 0:
        gevent.sleep(min(left, PROGRESS_SECONDS))
        print_progress(recorder, time.perf_counter() - start)
    recorder.on, seconds, unfinished = False, time.perf_counter() - start, locustfile.Painter.under_way
    gpu_busy = gpu.stop() if gpu else None
    counters = observe.growth(counters, observe.counters_of(arguments.url))
    runner.quit()
    return Record(
        server=arguments.name or arguments.url,
        date=date,
        card=gpu.name if gpu else None,
        users=None if arguments.arrival_rate else users,
        arrival_rate=arguments.arrival_rate,
        think_time=arguments.think_time,
        steps=list(arguments.steps),
        size=list(arguments.size),
        kinds=arguments.kinds,
        guidance_scale=arguments.guidance_scale,
        warm_up=arguments.warm_up,
        seconds=seconds,
        rejected=recorder.rejected,
        errors=dict(recorder.errors),
        unfinished=unfinished,
        gpu_busy=gpu_busy,
        counters=counters,
        answers=recorder.sorted_answers(),
    )


def print_progress(recorder, seconds):
    rate, errors = len(recorder.answers) / seconds, recorder.errors.total()
    print(
        f"{seconds:5.0f} s: {len(recorder.answers)} pictures, {rate:.2f}/s,"
        f" {recorder.rejected} answers of 429, {errors} errors",
        flush=True,
    )


def print_summary(record):
    times = [(percent, record.percentile(percent)) for percent in PERCENTILES]
    shown = ", ".join(f"p{percent} {seconds:.2f} s" for percent, seconds in times if seconds is not None)
    busy = f"; GPU busy {record.gpu_busy:.1%}" if record.gpu_busy is not None else ""
    print(f"{record.server}: {record.pictures_per_second():.2f} pictures a second; {shown or 'no pictures'}{busy}")
    for message, number in record.errors.items():
        print(f"{number} times: {message}", file=sys.stderr)


def wait_until_ready(url, seconds):
    """Waits for the server's /ready; a server without one has to answer something."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"{url}/ready", timeout=10).close()
            return
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return
            why = error
        except OSError as error:
            why = error
        if time.monotonic() > deadline:
            sys.exit(f"run.py: {url}/ready: {why}; after {seconds:g} s the server is not ready")
        time.sleep(0.5)


def main():
    parser = argparse.ArgumentParser(description="Puts a server of OpenAI's image interface under load.")
    parser.add_argument("--url", required=True, type=lambda url: url.rstrip("/"), help="of the server, without /v1")
    parser.add_argument("--users", type=int, help="closed load: as many requests at once, at most")
    workload.add_arguments(parser)
    parser.add_argument("--seconds", type=float, default=120, help="of measurement")
    parser.add_argument(
        "--warm-up", type=float, default=20, metavar="S", help="seconds under load that do not count"
    )
    parser.add_argument("--ready-within", type=float, default=300, metavar="S", help="wait as long for the server")
    parser.add_argument("--gpu", type=int, help="NVIDIA card whose utilisation is recorded")
    parser.add_argument("--name", help="of the server, in reports; default: the URL")
    parser.add_argument("--record", required=True, type=Path, help="JSON file")
    arguments = parser.parse_args()
    if (arguments.users is None) == (arguments.arrival_rate is None):
        parser.error("give --users for closed load or --arrival-rate for open")
    if arguments.users is not None and arguments.users < 1:
        parser.error("--users takes 1 or more")

    # A connection for every user: the usual limit is 1024 files.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    wait_until_ready(arguments.url, arguments.ready_within)
    try:
        record = measure(arguments)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"run.py: nvidia-smi, which --gpu needs: {error}")
    record.write(arguments.record)
    print_summary(record)
    if record.errors:
        sys.exit(1)


if __name__ == "__main__":
    main()
