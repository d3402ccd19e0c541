"""What a load test measured: kept while it runs, written as JSON, read again by the report."""

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

PERCENTILES = (50, 95, 99)


@dataclass
class Record:
    """One server under one load.

    `answers` are [steps, seconds] of every picture that came within the `seconds` of measurement, quickest first;
    `unfinished` requests were under way at its end; `card` and `gpu_busy`, the share of time in which the GPU ran a
    kernel, are None where no NVIDIA card was looked at; `counters` is how far the server's own had grown.
    """

    server: str
    date: str
    card: str | None
    users: int | None
    arrival_rate: float | None
    think_time: float
    steps: list[int]
    size: list[int]
    kinds: dict[str, float]
    guidance_scale: float
    warm_up: float
    seconds: float
    rejected: int
    errors: dict[str, int]
    unfinished: int
    gpu_busy: float | None
    counters: dict[str, float]
    answers: list[list[float]]

    def pictures_per_second(self):
        return len(self.answers) / self.seconds

    def percentile(self, percent, steps=None):
        """Seconds within which that share of the pictures came (nearest rank); None without pictures."""
        seconds = [took for of, took in self.answers if steps in (None, of)]
        return seconds[math.ceil(percent / 100 * len(seconds)) - 1] if seconds else None

    def write(self, path):
        summary = {
            "pictures": len(self.answers),
            "pictures_per_second": self.pictures_per_second(),
            "seconds_per_picture": {f"p{percent}": self.percentile(percent) for percent in PERCENTILES},
        }
        path.write_text(json.dumps({"summary": summary, **asdict(self)}) + "\n")

    @classmethod
    def read(cls, path):
        content = json.loads(Path(path).read_text())
        content.pop("summary")
        return cls(**content)


class Recorder:
    """Counts what ends while it is on."""

    def __init__(self):
        self.on = False
        self.answers, self.errors, self.rejected = [], Counter(), 0

    def finished(self, *, response, response_time, exception, context, **_):
        """A listener of Locust's `request` event."""
        if not self.on:
            return
        if exception is None:
            self.answers.append([context["steps"], response_time / 1e3])
        elif response.status_code == 429:
            self.rejected += 1
        else:
            self.errors[str(exception)] += 1

    def sorted_answers(self):
        return sorted(self.answers, key=lambda answer: answer[1])
