"""One thread that computes for a widget, the most urgent first, and lets go of what nobody waits for any longer."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Hashable

from ..batching import Cancelled, OnStep, give_back

SHOW_PROGRESS_AFTER = 0.5  # seconds


class Job:
    """Work that a `Worker` runs. It is itself the `on_step` callback of what is computed: (done, total)."""

    def __init__(
        self, worker: Worker, key: Hashable, work: Callable[[Job], None], urgency: int, what: str
    ) -> None:
        self.worker, self.key, self.work, self.urgency, self.what = worker, key, work, urgency, what
        self.started = 0.0

    def __call__(self, done: int = 1, total: int = 1) -> None:
        """Move the progress bar. Raises Cancelled where this job was replaced, or a more urgent one waits."""
        if self.worker.outdated(self):
            raise Cancelled
        if self.urgency <= Worker.SOON and time.perf_counter() - self.started > SHOW_PROGRESS_AFTER:
            self.worker.progress(self.what, done / max(total, 1))


class Worker:
    """One thread that computes for a widget, the most urgent first, so that nothing blocks.

    A job is a function that is given its `Job`, to be called between portions of the work. Where a newer job has the
    same key, that call ends the older one. So compute, call it, then show: what is shown is then never older than what
    was asked. It also ends a job for which a more urgent one has come; that job is begun anew afterwards, so what
    takes long has to keep what it has done so far.

    Args:
        failed: called with (error, key) when a job raises.
        progress: called with what is done, and which fraction of it, for jobs of more than half a second; with
            ("", 1.0) when any job ends.
    """

    NOW, SOON, LATER = 0, 1, 2

    def __init__(
        self,
        failed: Callable[[Exception, Hashable], None] = lambda error, key: None,
        progress: Callable[[str, float], None] = lambda what, done: None,
    ) -> None:
        self.failed, self.progress = failed, progress
        self._jobs: dict[Hashable, Job] = {}  # in the order in which they were asked for
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(
        self, key: Hashable, work: Callable[[Job], None], urgency: int = NOW, what: str = "computing"
    ) -> None:
        """Ask for a job; one with the same key is given up. `what` stands beside the bar. Returns at once."""
        with self._changed:
            if self._closed:
                return
            self._jobs.pop(key, None)
            self._jobs[key] = Job(self, key, work, urgency, what)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="zfkit widget", daemon=True)
                self._thread.start()
                _WORKERS.add(self)
            self._changed.notify_all()

    def outdated(self, job: Job) -> bool:
        """Was this job given up, or has a more urgent one come?"""
        with self._changed:
            replaced = self._jobs.get(job.key) is not job
            return replaced or any(other.urgency < job.urgency for other in self._jobs.values())

    def wait(self, timeout: float | None = 60.0, urgency: int = SOON) -> bool:
        """Until no job of this urgency or a higher one is left; False if that took longer than `timeout` s."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not any(job.urgency <= urgency for job in self._jobs.values()), timeout
            )

    def close(self, timeout: float = 5.0) -> None:
        """Drop all jobs and end the thread."""
        with self._changed:
            self._closed = True
            self._jobs.clear()
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if self._closed:
                    return
                job = min(self._jobs.values(), key=lambda job: job.urgency)  # the oldest of the most urgent
            job.started, ended = time.perf_counter(), True
            try:
                job.work(job)
            except Cancelled:
                ended = False  # where it is still wanted, it only gave way, and is begun anew
            except Exception as error:
                self.failed(error, job.key)
            self.progress("", 1.0)
            if time.perf_counter() - job.started > SHOW_PROGRESS_AFTER:
                give_back()
            with self._changed:
                if ended and self._jobs.get(job.key) is job:
                    del self._jobs[job.key]
                self._changed.notify_all()


_WORKERS: weakref.WeakSet[Worker] = weakref.WeakSet()


@atexit.register
def _close_workers() -> None:
    for worker in list(_WORKERS):  # a thread inside torch while Python ends would crash it
        worker.close()


def pause(step: OnStep, seconds: float) -> None:
    """Do nothing for so long; `step`, a `Job`, ends the pause where another job has to come first."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.01))
        step(1, 1)
