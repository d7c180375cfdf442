"""How every command of this project behaves: one-line errors, exit codes, signals, output that can't be written or
encoded, ~ in paths."""

import contextlib
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import tyro

from model.config import InputError

# of batch systems and containers, of a terminal that closes, of SLURM before a time limit
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
NO_READER = 141  # as the shell shows a program that SIGPIPE ended


class Stopped(KeyboardInterrupt):
    """One of STOP_SIGNALS came. A command ends as on Ctrl-C, but for the exit code."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def run_command(
    main: Callable[[Any], None], options_type: type, *, prog: str, interrupted: str = "interrupted"
) -> None:
    """Parse the command line into `options_type` and call `main` with it; exit the process unless that goes well.

    Exit codes: 2 after bad input, and where a file can't be read or written, with one line on stderr; 128 + the signal
    after Ctrl-C (130) and STOP_SIGNALS (143 for SIGTERM), with the line `interrupted`; 141, without a word, where
    nobody reads the output any longer, as in `| head`.
    """
    _prepare_streams()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # while the command was loaded, see model/__init__.py
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code, said = 0, ""
    try:
        with _stop_signals_raised():
            main(_parse(options_type, prog))
            sys.stdout.flush()
    except InputError as error:
        code, said = 2, f"error: {_one_line(error)}"
    except KeyboardInterrupt as error:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # another Ctrl-C ends what is left, without a traceback
        code, said = 128 + getattr(error, "signum", signal.SIGINT), f"\n{interrupted}"
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            code, said = 2, f"error: {_one_line(_described(error))}"
        elif _flush("\n"):
            raise  # the pipe was another than that of the output
        else:
            code = NO_READER
    except SystemExit as end:
        _flush()
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        code = NO_READER  # rich exits with 1
    if said:
        with contextlib.suppress(OSError):
            print(said, file=sys.stderr)
    _flush()
    if code:
        sys.exit(code)


def printable(text: str) -> str:
    """`text` on one line, with escapes for what a terminal would act on or can't show: control and format characters,
    halves of surrogate pairs (bytes of a file name that are no UTF-8)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _one_line(text: object) -> str:
    return printable(" ".join(str(text).split()))


def _described(error: OSError) -> str:
    """Which file, what is wrong with it, and what helps."""
    file = f"{error.filename}: " if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"{file}{error.strerror or error}{': make room, then give the same command again' if full else ''}"


def _prepare_streams() -> None:
    """What is printed can always be encoded: a character that the locale lacks becomes `?`. A stream that was closed
    (`>&-`) reads or writes nothing."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, nowhere)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # stderr has escapes by itself


def _flush(more: str = "") -> bool:
    """Write what the output still holds back, and `more`; returns whether it could be written. If not, the output goes
    nowhere from now on: else the interpreter would try again at its end, and complain."""
    written = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.write(more)
            stream.flush()
        except OSError:
            written, more = False, ""
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    return written


@contextlib.contextmanager
def _stop_signals_raised() -> Iterator[None]:
    """STOP_SIGNALS raise `Stopped` in the main thread, but for those that are ignored already (nohup)."""

    def stop(signum: int, _: object) -> None:
        if not isinstance(sys.exception(), KeyboardInterrupt):  # else the end is under way: cleaning up goes on
            raise Stopped(signum)

    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    ours = [each for each, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for each in ours:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, before[each])


def _parse(options_type: type, prog: str) -> Any:
    boxed = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxed):
            options: Any = tyro.cli(options_type, prog=prog, config=(tyro.conf.DisallowNone,))
    except SystemExit as end:
        if end.code in (0, None):  # --help
            raise
    else:
        return replace(options, **{each.name: _expanded(getattr(options, each.name)) for each in fields(options)})
    # tyro draws a box of several lines; take the sentence out of it.
    text = " ".join(re.sub(r"[─│╭╮╰╯]", " ", boxed.getvalue()).split())
    text = re.split(r" Got errors:| Argument helptext:| For full helptext", text)[0]
    bad_value = re.search(r"Error parsing (\S+): no type matching (\S+) could be instantiated from (\[.*\])", text)
    if bad_value:
        option, kind, given = bad_value.groups()
        text = f"{option}: got {given}, but {kind} is expected"
    raise InputError(f"{text} ({prog} --help lists the options)")


def _expanded(value: Any) -> Any:
    """Option values with the home folder for a leading `~`, which the shell leaves in `--out=~/x`."""
    if isinstance(value, tuple):
        return tuple(map(_expanded, value))
    if isinstance(value, str | Path) and str(value).startswith("~"):
        return type(value)(os.path.expanduser(value))
    return value
