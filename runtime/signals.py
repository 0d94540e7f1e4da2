"""The signals that ask a run to stop."""

import os
import signal


class Signals(list):
    """The numbers of the signals received. During start-up, a signal raises KeyboardInterrupt."""

    def __init__(self):
        super().__init__()
        self.starting = True
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup leaves SIGHUP so
                signal.signal(number, self._receive)

    def _receive(self, number, frame):
        self.append(number)
        if number == signal.SIGHUP:  # the terminal is gone: write to nowhere
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        if self.starting:
            raise KeyboardInterrupt

    def name(self):
        """Return the first signal's name, as the user knows it."""
        name = signal.Signals(self[0]).name
        return "Ctrl-C" if name == "SIGINT" else name

    def status(self):
        """Return the exit status they make: 130 for Ctrl-C, as in shells, else 0."""
        return 130 if self[:1] == [signal.SIGINT] else 0
