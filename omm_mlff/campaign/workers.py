"""Independent tasks in this process, or spread over worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def spread(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    jobs: int,
    *,
    prepare: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """The result of every task as it is finished.

    Parameters
    ----------
    function : of a module's top level, so that a worker can import it
    jobs : worker processes, no more than there are tasks; 1 stays in this process and keeps the
        order
    prepare : called once in every process, before its first task; of a module's top level too
    """
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        if tasks and prepare is not None:
            prepare()
        for task in tasks:
            yield function(task)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=prepare) as pool:
        futures = [pool.submit(function, task) for task in tasks]
        for future in as_completed(futures):
            yield future.result()
