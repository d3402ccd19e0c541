"""What can be seen of the server's side while it is under load: the GPU, and the server's own counters."""

import re
import signal
import statistics
import subprocess
import urllib.error
import urllib.request

COUNTER = re.compile(r"^(\w+(?:_total|_sum|_count)) ([0-9.e+-]+)$", re.MULTILINE)


class Gpu:
    """Asks nvidia-smi four times a second for the share of time in which a kernel ran."""

    def __init__(self, index):
        self.query = ["nvidia-smi", f"--id={index}", "--format=csv,noheader,nounits"]
        self.sampling = None

    def name(self):
        command = [*self.query, "--query-gpu=name"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def start(self):
        command = [*self.query, "--query-gpu=utilization.gpu", "--loop-ms=250"]
        self.sampling = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def stop(self):
        """The mean since `start`, 0 to 1."""
        self.sampling.send_signal(signal.SIGTERM)
        output, _ = self.sampling.communicate()
        percents = [int(line) for line in output.split() if line.isdigit()]
        return statistics.fmean(percents) / 100 if percents else None


def counters_of(url):
    """Counters, sums and counts without labels of a server that has /metrics; nothing of another."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except (OSError, urllib.error.URLError):
        return {}
    return {name: float(value) for name, value in COUNTER.findall(text)}


def growth(before, after):
    return {name: value - before.get(name, 0.0) for name, value in after.items()}
