"""One training run of ResNet-9: config, data, net, optimiser, loop. Imports torch and data libraries only."""

import os
import signal
import sys


def _begin_command() -> None:
    """What must be in order while a command of this package is being loaded, until `run_command` takes over."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    try:
        os.getcwd()
    except FileNotFoundError:  # torch would fail, without a word about why
        sys.stderr.write("error: the current folder was removed: change to one that is there\n")
        sys.exit(2)


if sys.argv[0] == "-m":  # so it is while `python -m` looks for the module
    _begin_command()
