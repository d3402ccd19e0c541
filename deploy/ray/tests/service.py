"""The application as `serve run` runs it: on this machine, with replicas on its CPUs."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import yaml

FOLDER = Path(__file__).resolve().parent.parent
SDRT = os.environ.get("SDRT_BIN", str(FOLDER.parent.parent / "target/release/sdrt"))
MOST_REPLICAS = 3
START_SECONDS = 120


def configuration(port):
    """That of the repository, with the demo model, small replicas and an autoscaler in a hurry."""
    content = yaml.safe_load((FOLDER / "config.yaml").read_text())
    content["http_options"] = {"host": "127.0.0.1", "port": port}
    (application,) = content["applications"]
    application["args"] = {
        "command": [SDRT, "serve", "--device", "cpu"],
        "environment": {"RAYON_NUM_THREADS": "1"},
        "ready_within": START_SECONDS,
    }
    router, replica = application["deployments"]
    # Shares of a CPU are for Ray's bookkeeping: all of this has to find room on two.
    router["ray_actor_options"] = replica["ray_actor_options"] = {"num_cpus": 0.1}
    replica |= {"max_ongoing_requests": 8, "max_queued_requests": 24}
    replica["autoscaling_config"] |= {
        "max_replicas": MOST_REPLICAS,
        "target_ongoing_requests": 4,
        "metrics_interval_s": 0.5,
        "look_back_period_s": 2,
        "upscale_delay_s": 1,
        "downscale_delay_s": 3,
    }
    return content


class Service:
    def __init__(self, runner, url):
        self.runner, self.url = runner, url

    def replicas(self):
        """The sdrt processes of this service; the parent of each is Ray's process of its replica."""
        found = []
        for process in psutil.Process(self.runner.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if SDRT in process.cmdline()[:2] and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


@contextlib.contextmanager
def running(folder):
    if not os.access(SDRT, os.X_OK):
        raise RuntimeError(f"{SDRT} is not there: build it, or name another in SDRT_BIN")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file, log = folder / "config.yaml", folder / "serve.log"
    file.write_text(yaml.safe_dump(configuration(port)))
    environment = os.environ | {
        "HOME": str(folder),
        "RAY_ADDRESS": "local",
        "RAY_USAGE_STATS_ENABLED": "0",
        # A machine that is busy with other things starts a proxy in more than the 5 s that Serve gives it.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(START_SECONDS),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with log.open("wb") as output:
        runner = subprocess.Popen(
            ["serve", "run", file], cwd=FOLDER, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    service = Service(runner, f"http://127.0.0.1:{port}")
    try:
        wait_until_ready(service, log)
        yield service
    finally:
        runner.send_signal(signal.SIGINT)
        try:
            runner.wait(60)
        except subprocess.TimeoutExpired:
            for process in psutil.Process(runner.pid).children(recursive=True):
                process.kill()
            runner.kill()
            raise


def wait_until_ready(service, log):
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return urllib.request.urlopen(f"{service.url}/ready", timeout=10).close()
        except OSError as error:
            if time.monotonic() > deadline or service.runner.poll() is not None:
                raise RuntimeError(f"{error}; the log of Ray Serve:\n{log.read_text()[-4000:]}") from error
        time.sleep(0.5)
