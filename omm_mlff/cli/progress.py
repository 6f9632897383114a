"""The progress bar of commands that run for a while; on standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def shown_progress(*, one_line: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """One line a task: what, how far, how long still.

    Where standard error is no terminal, a finished task prints one plain line.

    Parameters
    ----------
    one_line : it is all one task, whatever its label says as it goes on; the line stays
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        seen: set[str] = set()

        def plain(label: str, done: int, total: int) -> None:
            if done >= total and label not in seen:
                seen.add(label)
                console.print(label, style=None, highlight=False)

        yield plain
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=not one_line) as bar:
        tasks: dict[str, TaskID] = {}

        def live(label: str, done: int, total: int) -> None:
            # The checks of one system share a line; a run has one of its own.
            key = label.split(":")[0] if total < 100 else label
            if one_line:
                key = ""
            if key not in tasks:
                tasks[key] = bar.add_task(label, total=total)
            bar.update(tasks[key], completed=done, total=total, description=label)

        yield live
