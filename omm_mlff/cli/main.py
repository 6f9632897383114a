"""The command `omm-mlff`: finds the subcommand, turns exceptions into exit codes.

Exit codes: 0 approved or done, 1 rejected or not recommended, 2 bad input or usage, 3 undecided,
4 the validation itself failed, 130 interrupted. Only a verdict ends in 1: no exception does.

A subcommand is a file of its own here, holding a `click.Command` named as the file. Its callback
returns its exit code, or None for 0. Nothing heavy is imported before a subcommand is called.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

import click

from omm_mlff import __version__
from omm_mlff.errors import OmmMlffError

FAILED = 4
INTERRUPTED = 130

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
STORAGE_ERRORS = DISK_FULL | {errno.EACCES, errno.EPERM, errno.EROFS}

COMMANDS = {
    "validate": "Run a model in OpenMM and judge whether it is safe to use.",
    "compare": "Put finished validations side by side: a table, a picture, a report.",
    "simulate": "Run dynamics with a model, recording every step.",
    "convert": "Write recorded trajectories as DCD, XTC or extended XYZ.",
    "export": "Write a student as a TorchScript file for openmm-torch users.",
    "models": "List the models that ship, with their cards.",
    "systems": "List the systems that ship, with their reference labels.",
    "bench": "Time models side by side, with native force fields and other programs.",
    "prove": "Try validation on potentials whose truth is known.",
    "distill": "Sample, label and train: make a student from a teacher.",
    "doctor": "Check that this installation can run what it is asked to.",
}
"""Name of each subcommand and the line that stands for it in the list."""


class Unbreakable:
    """A standard stream whose reader may go away: what it would have read is then dropped.

    `omm-mlff validate ... | head -3` goes on to its verdict and ends in the verdict's exit code.

    Parameters
    ----------
    stream : where everything goes while somebody reads it
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or drop what nobody reads any more."""
        self._or_drop(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Hand on what is held, or drop it."""
        self._or_drop(self._stream.flush)

    def _or_drop(self, action: Callable[[], object]) -> None:
        try:
            action()
        except BrokenPipeError:
            _discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _unbreakable_streams() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        stream if stream is None else Unbreakable(stream) for stream in before
    )
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class LazyGroup(click.Group):
    """A group that imports a subcommand when it is called, not when it is listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"omm_mlff.cli.{cmd_name}")
        command = getattr(module, cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module.__name__}.{cmd_name} is not a click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.exceptions.NoSuchCommand(args[0], possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 approved or done, 1 rejected or not recommended, 2 bad input or usage, "
    "3 undecided, 4 the validation itself failed, 130 interrupted.",
)
@click.option(
    "--debug",
    is_flag=True,
    envvar="OMM_MLFF_DEBUG",
    help="Show the traceback of an error.  [env: OMM_MLFF_DEBUG]",
)
@click.version_option(__version__, prog_name="omm-mlff")
def command_line(debug: bool) -> None:
    """Is this machine-learned force field safe to run in OpenMM?

    Start with: omm-mlff validate --model tiny
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Parameters
    ----------
    arguments : without the program's name; None takes them from `sys.argv`

    Returns
    -------
    the exit code
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    context: click.Context | None = None
    try:
        # Not click's own `main`: it ends a broken pipe in 1, which means REJECTED here.
        with _unbreakable_streams(), command_line.make_context("omm-mlff", words) as context:
            code = command_line.invoke(context)
            sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return _flushed(stop.exit_code)
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("\ninterrupted", err=True)
        return INTERRUPTED
    except OmmMlffError as error:
        _explain(error, str(error), context)
        return error.exit_code
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            return _unexpected()
        _explain(error, _storage_failure(error), context)
        _discard(sys.stdout)
        return FAILED
    except BaseException:  # the command line's edge: whatever it is, it must not end in 1
        return _unexpected()
    return 0 if code is None else int(code)


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
    except OSError as error:
        click.echo(f"error: {_storage_failure(error)}", err=True)
        _discard(sys.stdout)
        return FAILED
    return code


def _explain(error: BaseException, message: str, context: click.Context | None) -> None:
    """One line on the error stream; the traceback before it where it was asked for."""
    if context is not None and context.params.get("debug"):
        traceback.print_exception(error)
    click.echo(f"error: {' '.join(message.split())}", err=True)


def _unexpected() -> int:
    traceback.print_exc()
    click.echo("error: this is a defect of omm-mlff, not of the model: please report it", err=True)
    return FAILED


def _storage_failure(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in DISK_FULL:
        return f"the disk is full{where}; what was finished is kept: free some space, run again"
    return f"cannot write{where}: {error.strerror}; choose a folder that is writable"


def _discard(stream: TextIO) -> None:
    """Send what a stream still holds nowhere, so that closing it does not fail again."""
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
