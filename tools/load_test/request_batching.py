"""Dynamic batching of whole requests, as serving frameworks do it for models that answer in one call."""

import threading
import time
from collections import defaultdict, deque
from concurrent.futures import Future
from dataclasses import dataclass, field


@dataclass
class Waiting:
    job: object
    future: Future = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class RequestBatcher:
    """Jobs of one key wait until there are `max_batch` of them or the first has waited for `max_wait` seconds.

    `paint(key, jobs)` gives a result for each job. It is called on one thread, `run`, for the batch whose first job
    came first; a batch that fails gives all of its jobs the exception. Cancelling a future takes back a job that waits.
    """

    def __init__(self, paint, max_batch, max_wait):
        self.paint, self.max_batch, self.max_wait = paint, max_batch, max_wait
        self.queues = defaultdict(deque)
        self.changed = threading.Condition()

    def submit(self, key, job):
        """A Future of the job's result."""
        waiting = Waiting(job)
        with self.changed:
            self.queues[key].append(waiting)
            self.changed.notify()
        return waiting.future

    def run(self):
        while True:
            key, batch = self.next_batch()
            batch = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
            if not batch:
                continue
            try:
                results = self.paint(key, [waiting.job for waiting in batch])
            except Exception as error:
                for waiting in batch:
                    waiting.future.set_exception(error)
            else:
                for waiting, result in zip(batch, results, strict=True):
                    waiting.future.set_result(result)

    def next_batch(self):
        """Waits until a batch is full or due."""
        with self.changed:
            while True:
                now = time.monotonic()
                # When each batch is due: at once where it is full.
                due = {
                    key: queue[0].since + (0 if len(queue) >= self.max_batch else self.max_wait)
                    for key, queue in self.queues.items()
                }
                ready = [key for key, at in due.items() if at <= now]
                if ready:
                    key = min(ready, key=lambda key: self.queues[key][0].since)
                    return key, self.take(key)
                self.changed.wait(min(due.values()) - now if due else None)

    def take(self, key):
        queue = self.queues[key]
        batch = [queue.popleft() for _ in range(min(self.max_batch, len(queue)))]
        if not queue:
            del self.queues[key]
        return batch
