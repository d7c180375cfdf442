"""How every command of this project behaves: one-line errors, exit codes, Ctrl-C."""

import contextlib
import io
import re
import sys
from collections.abc import Callable
from typing import Any

import tyro

from model.config import InputError


def run_command(
    main: Callable[[Any], None], options_type: type, *, prog: str, interrupted: str = "interrupted"
) -> None:
    """Parse the command line into `options_type`, call `main` with it and exit the process.

    Exit code 0; 2 after bad input, with one line on stderr; 130 after Ctrl-C, with the line `interrupted`.
    """
    try:
        main(_parse(options_type, prog))
    except InputError as error:
        message = " ".join(str(error).split())
        print(f"error: {printable(message)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(130)


def printable(text: str) -> str:
    """`text` on one line, with escapes for what a terminal would act on or can't show: control and format characters,
    halves of surrogate pairs (bytes of a file name that are no UTF-8)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _parse(options_type: type, prog: str) -> Any:
    boxed = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxed):
            return tyro.cli(options_type, prog=prog, config=(tyro.conf.DisallowNone,))
    except SystemExit as end:
        if end.code in (0, None):  # --help
            raise
    # tyro draws a box of several lines; take the sentence out of it.
    text = " ".join(re.sub(r"[─│╭╮╰╯]", " ", boxed.getvalue()).split())
    text = re.split(r" Got errors:| Argument helptext:| For full helptext", text)[0]
    bad_value = re.search(r"Error parsing (\S+): no type matching (\S+) could be instantiated from (\[.*\])", text)
    if bad_value:
        option, kind, given = bad_value.groups()
        text = f"{option}: got {given}, but {kind} is expected"
    raise InputError(f"{text} ({prog} --help lists the options)")
