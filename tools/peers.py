#!/usr/bin/env python3
"""Times sdrt beside what a user of PyTorch would run, on one NVIDIA card: SD 1.5 at 512x512 or SDXL at
1024x1024, guidance on.

    python tools/peers.py run RECORD.jsonl [--model sd15|sdxl] [--only sdrt,eager,..] [--batches 1,2,4,8]
                              [--steps 50] [--sdrt COMMAND]
    python tools/peers.py report RECORD.jsonl [--model sd15|sdxl] [--table FILE.md] [--chart FILE.svg]

`run` starts a process for each way and adds a line of JSON to the record for each stage and number of pictures as
soon as it is measured, so that calls for parts make one record, and one that was cut off leaves what it had. Let
each call time sdrt too: ratios are to the sdrt of the same call. torch.compile takes minutes for each number.
Models may share a record: each has a table of its own.

    fp32           diffusers as it comes: TF32 in convolutions, not in matrix products; 1 picture only
    eager          the same in fp16, NCHW
    channels-last  the same, U-Net and VAE in channels_last
    graph          the same, each text encoder, U-Net and VAE decoder in a CUDA graph of its own
    compile        torch.compile(mode="reduce-overhead") of each, channels_last, fused QKV
    sdrt           `sdrt bench`, whose stages hold more: peers_report.py says what

Needs tools/requirements.txt. `report` needs neither those nor a GPU.
"""

import argparse
import datetime
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time

from peers_report import MODELS, NAMES, chart, read_records, table

STAGES = ("text_encode", "unet_step", "vae_decode", "image")


def card_and_driver():
    query = ["nvidia-smi", "--id=0", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"peers.py: no NVIDIA card to measure on: {error}")
    return answer.strip().split(", ")


def time_sdrt(arguments):
    """The rows of `sdrt bench`."""
    sdrt = shlex.split(arguments.sdrt)
    version = subprocess.run([*sdrt, "--version"], check=True, capture_output=True, text=True).stdout.split()[-1]
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "bench.jsonl")
        command = [*sdrt, "bench", "--random-weights", arguments.model, "--device", "cuda", "--dtype", "f16"]
        command += ["--images", arguments.batches, "--steps", str(arguments.steps), "--json", str(file)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        lines = file.read_text().splitlines()
    for row in map(json.loads, lines):
        if row["stage"] in STAGES:
            kept = ("stage", "images", "steps", "median_ms", "min_ms", "max_ms", "repeats")
            yield {**{key: row[key] for key in kept}, "versions": {"sdrt": version}}


def time_pytorch(way, arguments):
    """The rows of peers_pytorch.py, as they come."""
    batches = "1" if way == "fp32" else arguments.batches
    command = [sys.executable, str(pathlib.Path(__file__).with_name("peers_pytorch.py")), way]
    command += ["--model", arguments.model, "--batches", batches]
    command += ["--steps", str(arguments.steps), "--seconds", str(arguments.seconds)]
    # A cache of its own, so that the first calls tell what compiling costs.
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
                else:
                    sys.stderr.write(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def run(arguments):
    card, driver = card_and_driver()
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    stamp = {"run": date, "card": card, "driver": driver, "model": arguments.model}
    failed = []
    with arguments.record.open("a", buffering=1) as record:
        for way in arguments.only.split(","):
            print(f"== {NAMES[way]}", flush=True)
            start = time.monotonic()
            try:
                for row in time_sdrt(arguments) if way == "sdrt" else time_pytorch(way, arguments):
                    record.write(json.dumps({**stamp, "way": way, **row}) + "\n")
                    first = f", the first call {row['first_s']:.1f} s" if "first_s" in row else ""
                    print(f"{row['stage']:12} {row['images']} {row['median_ms']:10.3f} ms{first}", flush=True)
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"peers.py: {way}: {error}", file=sys.stderr)
                failed.append(way)
            print(f"   {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        sys.exit("peers.py: not measured to the end: " + ", ".join(failed))


def report(arguments):
    records = read_records(arguments.record)
    if arguments.model:
        if arguments.model not in records:
            sys.exit(f"peers.py: {arguments.record} has nothing of {arguments.model}")
        records = {arguments.model: records[arguments.model]}
    markdown = "\n".join(map(table, records.values()))
    if arguments.table:
        arguments.table.write_text(markdown)
    else:
        print(markdown, end="")
    if arguments.chart:
        arguments.chart.write_text(chart(next(iter(records.values()))))


def ways(text):
    unknown = [way for way in text.split(",") if way not in NAMES]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return text


def batches(text):
    if not all(number.isdigit() and int(number) > 0 for number in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers of pictures, such as 1,4")
    return text


def main():
    parser = argparse.ArgumentParser(description="Times sdrt beside PyTorch on one card.")
    commands = parser.add_subparsers(required=True)
    measure = commands.add_parser("run", help="measure, and add to the record")
    measure.add_argument("record", type=pathlib.Path)
    measure.add_argument("--model", choices=MODELS, default="sd15")
    measure.add_argument("--only", type=ways, default=",".join(NAMES), help="ways to measure, in this order")
    measure.add_argument("--batches", type=batches, default="1,2,4,8", help="pictures at once")
    measure.add_argument("--steps", type=int, default=50, help="steps of a whole picture")
    measure.add_argument("--seconds", type=float, default=2.0, help="for each measurement in PyTorch, about")
    measure.add_argument("--sdrt", default="target/release/sdrt", help="command that runs sdrt")
    measure.set_defaults(command=run)
    show = commands.add_parser("report", help="a table and a chart from a record")
    show.add_argument("record", type=pathlib.Path)
    show.add_argument("--model", choices=MODELS, help="this one alone; default: all that are in the record")
    show.add_argument("--table", type=pathlib.Path, help="Markdown; default: on stdout")
    show.add_argument("--chart", type=pathlib.Path, help="SVG, of the first model")
    show.set_defaults(command=report)
    arguments = parser.parse_args()
    try:
        arguments.command(arguments)
    except OSError as error:
        sys.exit(f"peers.py: {error}")


if __name__ == "__main__":
    main()
