"""Pictures of curves, and the reward plot in a window."""

import math
import time

import matplotlib.figure

from runtime.curve import read_curve


def draw_curve(axes, episodes):
    """Draw the chapter's plot, the moving reward by episode, and the moving true score.

    Args:
        axes: Matplotlib's; what they show is cleared.
        episodes: list of `Episode`.
    """
    shown = episodes[:: 1 + len(episodes) // 5000]  # more points than pixels only take time
    numbers = [e.episode for e in shown]
    style = dict(marker="o", markersize=3) if len(shown) < 50 else {}
    axes.clear()
    axes.plot(numbers, [e.running_score for e in shown], label="moving true score", **style)
    if any(e.running_reward != e.running_score for e in shown):  # else one line hides the other
        axes.plot(numbers, [e.running_reward for e in shown], label="moving reward", **style)
    axes.set(xlabel="episode", ylabel="total moving reward")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)  # above the curves


def draw(picture, *folders):
    """Write a picture of the curve of a run, or of several runs; return the exit status.

    Raises OSError, ValueError.
    """
    figure = matplotlib.figure.Figure(figsize=(8, 5), layout="constrained")
    runs = [read_curve(folder) for folder in folders]
    if len(runs) == 1:
        draw_curve(figure.subplots(), runs[0][1])
    else:
        draw_comparison(figure, runs)
    figure.savefig(picture)
    return 0


def draw_comparison(figure, runs):
    """Draw runs as in the paper's Figure 1: moving true score by minutes, and by steps.

    Args:
        figure: a Matplotlib figure, empty.
        runs: list of (label, list of `Episode`). Runs with the same label share a colour.
    """
    axes, labels = figure.subplots(1, 2, sharey=True), []
    for label, episodes in runs:
        labels += [] if label in labels else [label]
        shown = episodes[:: 1 + len(episodes) // 5000]
        scores = [e.running_score for e in shown]
        minutes, millions = [e.seconds / 60 for e in shown], [e.agent_steps / 1e6 for e in shown]
        for ax, x in zip(axes, (minutes, millions)):
            ax.plot(x, scores, color=f"C{labels.index(label)}", linewidth=1)
    axes[0].set(xlabel="minutes", ylabel="moving true score")
    axes[1].set(xlabel="million agent steps")
    for ax in axes:
        ax.grid(alpha=0.3)
    for number, label in enumerate(labels):
        axes[0].plot([], [], color=f"C{number}", label=label)
    figure.legend(loc="outside upper left", ncols=2, frameon=False)


class RewardWindow:
    """The curve in a window beside W_0's, during the run and after it."""

    REDRAWN_EVERY = 5  # seconds; drawing takes the workers' time

    def __init__(self):
        """Open the window, if Matplotlib finds a toolkit; else it falls back to agg, a picture."""
        from matplotlib import pyplot

        self.pyplot, self.figure, self.drawn = pyplot, None, -math.inf
        if pyplot.get_backend().lower() != "agg":
            pyplot.ion()
            self.figure = pyplot.figure("A3C on Pong", figsize=(4, 3), layout="constrained")
            self.axes = self.figure.subplots()
            tk = getattr(self.figure.canvas.manager, "window", None)
            if hasattr(tk, "wm_geometry"):  # W_0's is in the middle of the screen
                width, height = tk.winfo_screenwidth(), tk.winfo_screenheight()
                tk.wm_geometry(f"+{min(width // 2 + 220, width - 420)}+{height // 2 - 170}")

    def refresh(self, episodes):
        """Answer the window system, and now and then draw; return whether the window is open."""
        if self.figure is None or not self.pyplot.fignum_exists(self.figure.number):
            return False
        if time.monotonic() - self.drawn > self.REDRAWN_EVERY:
            draw_curve(self.axes, episodes)
            self.figure.canvas.draw_idle()
            self.drawn = time.monotonic()
        self.figure.canvas.flush_events()
        return True

    def leave_standing(self, episodes, signals):
        """Show the final plot, as the chapter does, until it is closed or a signal comes."""
        self.drawn, received = -math.inf, len(signals)
        if self.refresh(episodes):
            print("the plot stands until its window is closed, or Ctrl-C", flush=True)
            while self.refresh(episodes) and len(signals) == received:
                time.sleep(0.05)
