"""Pictures one after the other: while one is computed, the next ones are read and the last ones written, in threads.

Pillow decodes and encodes without holding Python's lock. Torch is called from the caller's thread only: a second thread
would bring a second set of torch's own threads, and they would be in each other's way.
"""

import errno
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from hrnet_fast.apps.pictures import BadPicture
from hrnet_fast.files import AlreadyThere

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
AHEAD = 4  # pictures that wait for their turn, and as many that wait to be written


class Outcome(NamedTuple):
    """What became of a picture."""

    item: Any
    problem: str | None  # why it has no result
    disk_full: bool = False  # nor will the others have one


def run(
    items: Iterable[Any],
    load: Callable[[Any], Any],
    compute: Callable[[Any, Any], Any],
    save: Callable[[Any, Any], None],
    workers: int = 2,
) -> Iterator[Outcome]:
    """``save(item, compute(item, load(item)))`` of every item, in their order; at most AHEAD results are kept.

    A BadPicture of ``load`` or ``compute``, and an OSError of ``save``, are the outcome of that item. Other exceptions
    end it all; so does closing the generator. What has been begun is finished then.
    """
    reading: deque[tuple[Any, Future]] = deque()
    writing: deque[tuple[Any, Future | Outcome]] = deque()
    rest = iter(items)
    with (
        ThreadPoolExecutor(workers, "reader", _give_way) as readers,
        ThreadPoolExecutor(workers, "writer", _give_way) as writers,
    ):
        try:
            while True:
                while len(reading) < AHEAD and (item := next(rest, rest)) is not rest:
                    reading.append((item, readers.submit(load, item)))
                if not reading:
                    break
                item, future = reading.popleft()
                try:
                    result = compute(item, future.result())
                    writing.append((item, writers.submit(save, item, result)))
                except BadPicture as error:
                    writing.append((item, Outcome(item, str(error))))
                except (MemoryError, RuntimeError) as error:
                    if not _is_memory(error):
                        raise
                    writing.append((item, Outcome(item, "not enough memory for a picture of its size")))
                while len(writing) > AHEAD or (writing and _is_done(writing[0][1])):
                    yield _outcome(*writing.popleft())
            while writing:
                yield _outcome(*writing.popleft())
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
            writers.shutdown(wait=False, cancel_futures=True)


def _give_way() -> None:
    """A lower priority for the calling thread. Where one of torch's threads has to wait for a core, all others wait too."""
    if sys.platform != "linux":  # elsewhere priorities are those of processes
        return
    try:
        if os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR):
            lower = max(1, os.sched_getparam(0).sched_priority - 1)
            os.sched_setparam(0, os.sched_param(lower))
        else:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10))
    except OSError:  # not allowed here: slower, and that is all
        pass


def _is_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "allocate memory" in str(error)  # what torch's allocator for CPUs raises has no type of its own


def _is_done(result: Future | Outcome) -> bool:
    return isinstance(result, Outcome) or result.done()


def _outcome(item: Any, result: Future | Outcome) -> Outcome:
    if isinstance(result, Outcome):
        return result
    try:
        result.result()
    except AlreadyThere as error:
        return Outcome(item, f"{error.filename} exists already; --force overwrites it")
    except OSError as error:
        return Outcome(item, f"the result cannot be written ({error.strerror or error})", error.errno in _NO_SPACE)
    return Outcome(item, None)
