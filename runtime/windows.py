"""The windows of a run: where they lie, and the run's side of the plot's."""

import contextlib
import fcntl
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from pong_actor import Window
from runtime.actors import SCREEN_ANSWERS

held = {}  # the number of the place of this process -> the open file that locks it


def window_of(run):
    """Return the `Window` for W_0's game of a run: its title, and a place that no other run has.

    run: the run's folder, or what else is played.
    """
    return Window(title(run, "W_0 - The Arcade Learning Environment"), 40 * free_place())


def title(run, text):
    """Return a window's title, in which what is not UTF-8 in a folder's name is shown as `?`."""
    return f"{run}: {text}".encode(errors="replace").decode()


def free_place():
    """Return the smallest number that no other process of this user holds, and hold it."""
    for number in held:
        return number
    for number in range(10):
        with contextlib.suppress(OSError):  # it is held, or no file or no lock can be made here
            path = pathlib.Path(tempfile.gettempdir(), f"a3c_pong-{os.getuid()}-window-{number}")
            file = open(path, "w")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held[number] = file
            return number
    return 0


class PlotWindow:
    """The run's side of the plot's window, which never waits for it."""

    def __init__(self, folder, shift):
        """Start the window's process.

        Args:
            folder: the run's, in which scores.csv is.
            shift: as `Window`'s.
        """
        about = dict(title=title(folder, "A3C on Pong"), shift=shift)
        command = [sys.executable, "-m", "runtime.plot_window", os.path.abspath(folder)]
        self.process = subprocess.Popen(
            [*command, json.dumps(about)],
            cwd=pathlib.Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # toolkits talk there
            start_new_session=True,  # the terminal's Ctrl-C does not reach it
        )
        os.set_blocking(self.process.stdout.fileno(), False)
        self.asked = False  # whether it has asked the screen for something
        self.answered_at = time.monotonic()
        self.open = True

    def look(self):
        """Look at what the window's process does; return lines for the user."""
        if not self.open:
            return []
        said = b""
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self.process.stdout.fileno(), 4096):
                said += more
        now = time.monotonic()
        if said:
            self.asked, self.answered_at = True, now
        lines = said.decode(errors="replace").splitlines()
        lines = [line[1:] for line in lines if line.startswith("!")]
        if lines:  # why there is no window
            self.close()
            return lines
        status = self.process.poll()
        if status is not None:
            self.open = False
            if status:
                lines.append("the plot's window is gone; reward.png and scores.csv continue")
        elif self.asked and now - self.answered_at > SCREEN_ANSWERS:
            self.close()
            lines.append("no window for the plot: the screen does not answer")
        return lines

    def draw_now(self):
        """Have the last games drawn."""
        with contextlib.suppress(OSError):
            self.process.stdin.write(b"draw\n")
            self.process.stdin.flush()

    def close(self):
        """End the window."""
        self.open = False
        self.process.kill()
        self.process.wait()
