"""The process of the plot's window.

A window's toolkit may block (a dialog, a screen that does not answer) or end the process (a screen
that is gone). So it has a process of its own, which reads scores.csv. The run's side of it is in
runtime/windows.py.

It prints a line each time it is about to ask the screen for something or has got an answer. A line
that begins with "!" is for the user. Its standard input asks it to draw now, or ends with the run.
"""

import contextlib
import json
import os
import select
import sys
import time

from runtime import plots
from runtime.curve import read_curve

REDRAWN_EVERY = 5  # seconds
SHARE = 0.05  # of a core, at most, for drawing: it takes the workers' time


def why_no_window(pyplot):
    """Choose Matplotlib's backend; return None, or why it opens no window, in words."""
    from matplotlib.backends import BackendFilter, backend_registry

    windowed = [name.lower() for name in backend_registry.list_builtin(BackendFilter.INTERACTIVE)]
    if wanted := os.environ.get("MPLBACKEND"):
        if wanted.lower() not in windowed:
            return f"MPLBACKEND is {wanted}, which opens none"
        try:
            pyplot.switch_backend(wanted)
        except (ImportError, RuntimeError) as error:
            return f"MPLBACKEND is {wanted}: {error}"
    elif (found := pyplot.get_backend().lower()) not in windowed:
        if found == "agg":
            return "Matplotlib finds no toolkit, such as python3-tk, or matplotlibrc asks for agg"
        return f"matplotlibrc asks for {found}, which opens none"
    return None


def main():
    """Show the plot of a run until its window is closed, or the run has gone."""
    folder, window = sys.argv[1], json.loads(sys.argv[2])
    plots.load_matplotlib(folder)
    from matplotlib import pyplot

    say("asks the screen")
    if why_not := why_no_window(pyplot):
        say(f"!no window for the plot: {why_not}")
        return
    figure = pyplot.figure(window["title"], figsize=(4, 4.5), layout="constrained")
    place(figure, window["shift"])
    plot, due = plots.CurvePlot(figure), 0.0

    def step():
        nonlocal due
        say("answers")
        asked = select.select([0], [], [], 0)[0]
        if asked and not os.read(0, 64):  # the run's process is gone
            pyplot.close(figure)
        elif asked or time.monotonic() > due:
            began = time.monotonic()
            with contextlib.suppress(OSError, ValueError):  # the folder is away for a while
                plot.update(read_curve(folder).episodes)
            figure.canvas.draw()
            now = time.monotonic()
            due = now + max(REDRAWN_EVERY, (now - began) / SHARE)

    timer = figure.canvas.new_timer(500)  # milliseconds; it runs while a dialog is open, too
    timer.add_callback(step)
    timer.start()
    pyplot.show()


def say(line):
    """Tell the run's process a line."""
    try:
        print(line, flush=True)
    except OSError:  # it is gone
        sys.exit()


def place(figure, shift):
    """Move the window beside W_0's, which is in the middle of the screen; shift: as `Window`'s."""
    tk = getattr(figure.canvas.manager, "window", None)
    if hasattr(tk, "wm_geometry"):
        width, height = tk.winfo_screenwidth(), tk.winfo_screenheight()
        x, y = min(width // 2 + 220 + shift, width - 410), height // 2 - 250 + shift
        tk.wm_geometry(f"+{max(0, x)}+{max(0, y)}")


if __name__ == "__main__":
    main()
