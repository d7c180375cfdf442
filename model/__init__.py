"""One training run of ResNet-9: config, data, net, optimiser, loop. Imports torch and data libraries only."""

import signal
import sys

if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # A command of this package is being loaded: until `run_command` takes over, Ctrl-C ends it without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
