"""What a run prints and draws, in a thread of its own.

Output may block (Ctrl-S, a pipe that nobody reads) or fail (a full disk, a lost terminal).
Training, saving, limits and signals must not wait for it. So the main thread adds lines to a list,
and only the thread here writes.
"""

import errno
import os
import select
import sys
import threading
import time
import traceback

import rich.console

from runtime.checkpoints import why


class Stream:
    """A text stream to standard output or standard error. It never raises.

    Text that cannot be written is lost. The next text that can be written begins with a line about
    that.
    """

    def __init__(self, number, like):
        """Make one. number: the file descriptor; like: Python's stream, for its encoding."""
        self.number = number
        self.encoding = getattr(like, "encoding", None) or "utf-8"
        self.failed = None  # why the last text was lost
        self.tell = None  # a function that is told why, the first time
        self.written = 0  # bytes, by which a slow stream differs from a stuck one

    def write(self, text):
        """Write a text, without a buffer."""
        if self.failed:
            text = f"\n(lines are missing here: {self.failed})\n{text}"
        content = text.encode(self.encoding, "backslashreplace")
        try:
            while content:
                try:
                    count = os.write(self.number, content)
                except BlockingIOError:  # the shell or another program made it so
                    select.select([], [self.number], [])
                    continue
                self.written += count
                content = content[count:]
            self.failed = None
        except OSError as error:
            self.failed = why(error)
            if self.tell:
                self.tell(self.failed)
                self.tell = None
            if error.errno in (errno.EPIPE, errno.EIO, errno.EBADF):  # for good
                self.write = lambda text: None

    def flush(self):
        """Do nothing: there is no buffer."""

    def isatty(self):
        """Return whether it is a terminal."""
        try:
            return os.isatty(self.number)
        except OSError:
            return False

    def fileno(self):
        """Return the file descriptor."""
        return self.number


def new_console():
    """Return a console on standard output. A file gets plain lines, whatever FORCE_COLOR says."""
    for name in "COLUMNS", "LINES":  # rich would print nothing into a width of 0
        if not os.environ.get(name, "0").strip("0"):
            os.environ.pop(name, None)
    file = Stream(1, sys.stdout)
    plain = dict(highlight=False, markup=False, emoji=False, soft_wrap=True)
    return rich.console.Console(file=file, force_terminal=file.isatty(), **plain)


class Complaint(str):
    """A line that goes to standard error."""


class OutputThread(threading.Thread):
    """The thread that prints lines and shows a `Display`."""

    PERIOD = 0.1  # seconds between looks at the lines, while there is no display
    PATIENCE = 0.7  # seconds without a byte written, after which the output is stuck

    def __init__(self, lines):
        """Start it. lines: a list of lines for the user, to which other threads add."""
        super().__init__(name="output", daemon=True)
        self.lines, self.told = lines, 0
        self.console = new_console()
        # a copy, as standard error itself is kept back while TensorFlow is imported
        self.complaints = Stream(os.dup(2), sys.stderr)
        self.console.file.tell = lambda why: self.complaints.write(
            f"a3c_pong.py: the output fails: {why}; the run continues\n"
        )
        self.display = None  # the one to show
        self.shown = None  # the one that is on the screen
        self.over = False
        self.stuck_at = None  # how many bytes were written when a wait was given up
        self.changed, self.never = threading.Event(), threading.Event()
        self.start()

    def new_lines(self):
        """Return the lines since the last call. Complaints are written to standard error here."""
        lines = self.lines[self.told :]
        self.told += len(lines)
        for line in lines:
            if isinstance(line, Complaint):
                self.complaints.write(f"a3c_pong.py: {line}\n")
        return [line for line in lines if not isinstance(line, Complaint)]

    def run(self):
        """Print and draw until `end`."""
        while True:
            self.changed.clear()
            display, over = self.display, self.over
            try:
                if display:
                    self._show(display)
                for line in self.new_lines():
                    self.console.print(line)
            except Exception:  # a fault in what draws does not end the training
                self.complaints.write(traceback.format_exc())
                self.lines.append(Complaint("the display failed; training continues without it"))
                self.display = None
            self.shown = None
            if over:
                return
            self.changed.wait(self.PERIOD)

    def _show(self, display):
        self.shown = display
        with display:
            while self.display is display:
                self.changed.clear()
                display.refresh()
                self.changed.wait(display.PERIOD)
            display.refresh()

    def show(self, display):
        """Show a display from now on; None: none, once all that it shows is printed."""
        self.display = display
        self.changed.set()
        self._wait(lambda: self.shown is display)

    def end(self):
        """Wait until all is written, or the output is stuck."""
        self.display, self.over = None, True
        self.changed.set()
        self._wait(lambda: not self.is_alive())

    def _wait(self, holds):
        """Wait until something holds, unless the output is stuck."""
        stream, before = self.console.file, self.stuck_at
        while not holds() and stream.written != before:
            before, until = stream.written, time.monotonic() + self.PATIENCE
            while not holds() and time.monotonic() < until:
                self.never.wait(0.02)
        self.stuck_at = None if holds() else stream.written


def open_standard_streams():
    """Open standard input, output and error to nowhere if they are closed, as a daemon's may be.

    Else the next files that are opened get their numbers, and what is printed goes there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the smallest number that is free, this one
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))
    for stream in sys.stdout, sys.stderr:
        stream.reconfigure(errors="backslashreplace")  # for what the encoding does not have
