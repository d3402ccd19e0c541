"""What can be seen of the server's side while it is under load: the GPU, and the server's own counters."""

import re
import statistics
import subprocess
import urllib.request

import gevent

COUNTER = re.compile(r"^(\w+(?:_total|_sum|_count)) ([0-9.e+-]+)$", re.MULTILINE)


class Gpu:
    """Asks nvidia-smi every second for the share of time in which a kernel ran."""

    def __init__(self, index):
        self.index = index
        self.name = self.query("name")

    def query(self, field):
        command = ["nvidia-smi", f"--id={self.index}", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def start(self):
        self.percents = []
        self.sampling = gevent.spawn(self.sample)

    def sample(self):
        while True:
            self.percents.append(float(self.query("utilization.gpu")))
            gevent.sleep(1)

    def stop(self):
        """The mean since `start`, 0 to 1; None without a sample."""
        self.sampling.kill()
        return statistics.fmean(self.percents) / 100 if self.percents else None


def counters_of(url):
    """Counters, sums and counts without labels of a server that has /metrics; nothing of another."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    return {name: float(value) for name, value in COUNTER.findall(text)}


def growth(before, after):
    return {name: value - before.get(name, 0.0) for name, value in after.items()}
