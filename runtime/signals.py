"""The signals that ask a run to stop."""

import os
import signal


def quiet_until_handled():
    """Let Ctrl-C end the process without a traceback, until there are `Signals`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


class Signals(list):
    """The numbers of the signals received. During start-up, the first raises KeyboardInterrupt."""

    # batch systems send SIGUSR1 some time before they kill
    NUMBERS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1

    def __init__(self):
        super().__init__()
        self.starting = True
        for number in self.NUMBERS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup leaves SIGHUP so
                signal.signal(number, self._receive)

    def _receive(self, number, frame):
        self.append(number)
        if number == signal.SIGHUP:  # the terminal is gone: write to nowhere
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        if self.starting:
            self.starting = False  # a second one must not interrupt the clean-up
            raise KeyboardInterrupt(number)

    def name(self):
        """Return the first signal's name, as the user knows it."""
        name = signal.Signals(self[0]).name
        return "Ctrl-C" if name == "SIGINT" else name

    def status(self):
        """Return the exit status they make: 130 for Ctrl-C, as in shells, else 0."""
        return status_of(self)


def status_of(numbers):
    """Return the exit status that signals make, of which the first counts."""
    return 130 if list(numbers[:1]) == [signal.SIGINT] else 0


def when_suspended(handle):
    """Have handle() called at a Ctrl-Z. It must leave the screen in order, and call `suspend`."""
    if signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:
        signal.signal(signal.SIGTSTP, lambda number, frame: handle())


def suspend():
    """Stop the process until the shell's `fg` or `bg` continues it. Do nothing without a shell."""
    handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTSTP)  # which the kernel drops where no shell could continue it
    signal.signal(signal.SIGTSTP, handler)
