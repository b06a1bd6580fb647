"""A pool of threads that goes on with those it has when the kernel gives no more."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor


class Pool(ThreadPoolExecutor):
    """As `ThreadPoolExecutor`, whose `submit` raises midway when no thread can be started.

    Its first thread is there from the beginning, so that what is submitted is always done.
    """

    def __init__(self, max_workers: int, thread_name_prefix: str) -> None:
        super().__init__(max_workers, thread_name_prefix)
        self.submit(int)

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._threads:
                raise
