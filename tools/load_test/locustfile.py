"""The load as Locust's users, for `run.py` and for Locust's own page: `locust -f tools/load_test/locustfile.py`."""

import random
import sys
from pathlib import Path

import gevent
from gevent.pool import Group
from locust import FastHttpUser, events, task

sys.path.insert(0, str(Path(__file__).resolve().parent))
import workload  # noqa: E402

# Where a 429 does not say when to come back.
RETRY_SECONDS = 1.0


class Painter(FastHttpUser):
    abstract = True
    # Of all users together: their seeds must not meet.
    workload = None
    under_way = 0

    def __init__(self, environment):
        self.network_timeout = environment.parsed_options.request_timeout
        super().__init__(environment)

    def paint(self):
        """Sends a request and checks its answer; gives the seconds to wait before the next."""
        Painter.under_way += 1
        try:
            return self.send()
        finally:
            Painter.under_way -= 1

    def send(self):
        request, key = self.workload.draw(), self.environment.parsed_options.api_key
        with self.client.post(
            request.path,
            data=request.body,
            headers={"Content-Type": request.content_type} | ({"Authorization": f"Bearer {key}"} if key else {}),
            name=f"{request.kind}, {request.steps} steps",
            context={"steps": request.steps},
            catch_response=True,
        ) as answer:
            error = self.error_of(request, answer)
            if error:
                answer.failure(error)
            else:
                answer.success()
        if answer.status_code == 429:
            return float(answer.headers.get("retry-after", RETRY_SECONDS))
        return 0

    def error_of(self, request, answer):
        if answer.status_code == 0:
            return f"no answer: {answer.error!r}"
        if answer.status_code != 200:
            return f"{answer.status_code}: {(answer.text or '')[:200]}"
        try:
            # Unpacking a picture takes milliseconds, in which no other user would be served.
            arguments = (request, self.workload.size, answer.content)
            gevent.get_hub().threadpool.apply(workload.check_answer, arguments)
        except ValueError as error:
            return str(error)
        return None


class Person(Painter):
    """Closed load: the next request follows the answer to the last, or comes when a 429 says."""

    @task
    def work(self):
        gevent.sleep(self.paint() or self.environment.parsed_options.think_time)


class Arrivals(Painter):
    """Open load: requests arrive whether or not others are answered. Several such users are one Poisson process."""

    concurrency = 100_000

    def on_start(self):
        self.under_way = Group()
        self.random = random.Random(self.workload.random.random())

    @task
    def arrive(self):
        users = self.environment.runner.target_user_count
        gevent.sleep(self.random.expovariate(self.environment.parsed_options.arrival_rate / users))
        self.under_way.spawn(self.paint)

    def on_stop(self):
        self.under_way.kill()


def users_of(options):
    """The class of users for this load, which all draw from one mix."""
    Painter.workload = workload.of_arguments(options)
    return Arrivals if options.arrival_rate else Person


@events.init_command_line_parser.add_listener
def add_arguments(parser):
    workload.add_arguments(parser)


@events.init.add_listener
def choose_users(environment, **_):
    environment.user_classes = [users_of(environment.parsed_options)]
