"""Processes that sum tensors, as threads of one: each is given what `over_processes` takes."""

import threading
from concurrent.futures import ThreadPoolExecutor


def in_turns(work):
    """Calls each of `work` with a `total`, all at once; gives what they return."""
    barrier, values = threading.Barrier(len(work), timeout=20), [None] * len(work)

    def run(place):
        def total(own):
            values[place] = own
            barrier.wait()
            found = sum(values)
            barrier.wait()
            return found

        return work[place](total)

    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(run, range(len(work))))
