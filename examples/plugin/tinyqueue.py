"""A small work queue: jobs are put into it, and worker threads run them one after the other.

An ordinary library: it knows nothing about tracing.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Job", "Queue"]


class Job:
    """One call, waiting for a worker."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args
        self.result: Any = None
        self.error: Exception | None = None
        self._done = threading.Event()

    def run(self) -> None:
        """Call the function and keep what it returns or raises."""
        try:
            self.result = self.function(*self.args)
        except Exception as error:
            self.error = error
        finally:
            self._done.set()

    def wait(self) -> Any:
        """Wait for the job's end; return its result or raise its error."""
        self._done.wait()
        if self.error is not None:
            raise self.error
        return self.result


class Queue:
    """A queue with its worker threads, which live until `close()`."""

    def __init__(self, workers: int = 1) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._workers = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for worker in self._workers:
            worker.start()

    def put(self, function: Callable[..., Any], *args: Any) -> Job:
        """Let a worker call `function(*args)`."""
        job = Job(function, args)
        self._jobs.put(job)
        return job

    def close(self) -> None:
        """Let the workers end when they have run what is in the queue."""
        for _ in self._workers:
            self._jobs.put(None)
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
