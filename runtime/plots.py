"""Pictures of curves."""

import contextlib
import io
import logging
import os
import shutil
import tempfile

from runtime.checkpoints import why, written_beside
from runtime.curve import read_curve

matplotlib = None  # the library, once `load_matplotlib` was called


def load_matplotlib(scratch="."):
    """Import Matplotlib, whatever the environment says of its backend and its cache.

    A picture needs no backend. A notebook's MPLBACKEND, which its children inherit, would raise. If
    no folder for the cache could be written, Matplotlib would print lines or raise.

    scratch: a folder that can be written. It is used if no temporary folder can.
    """
    global matplotlib
    if matplotlib:
        return
    ours = {name: os.environ.pop(name, None) for name in ("MPLBACKEND", "MPLCONFIGDIR")}
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with contextlib.ExitStack() as stack:
        cache = ours["MPLCONFIGDIR"] or os.path.expanduser("~")
        if os.access(cache, os.W_OK):
            if ours["MPLCONFIGDIR"]:
                os.environ["MPLCONFIGDIR"] = cache
        else:
            os.environ["MPLCONFIGDIR"] = stack.enter_context(temporary_folder(scratch))
        import matplotlib.figure
        import matplotlib.font_manager  # noqa: F401, writes the cache

    matplotlib.rcdefaults()  # a matplotlibrc may want programs that are not there
    os.environ.pop("MPLCONFIGDIR", None)
    os.environ.update({name: value for name, value in ours.items() if value is not None})


def temporary_folder(scratch):
    """Return a temporary folder, for a `with`; in `scratch` if nothing else can be written."""
    with contextlib.suppress(OSError):
        return tempfile.TemporaryDirectory()
    return tempfile.TemporaryDirectory(dir=scratch)


def thinned(episodes):
    """Return at most 5,000 of the games: more points than pixels only take time."""
    return episodes[:: 1 + len(episodes) // 5000]


class CurvePlot:
    """The curve of a run in two panels, which follow it.

    On top is the true score: a dot for each game, and the moving mean. Below is the chapter's plot,
    the moving reward by episode.
    """

    def __init__(self, figure):
        """Draw the empty panels. figure: Matplotlib's."""
        self.score_axes, self.reward_axes = figure.subplots(2, sharex=True)
        dots = dict(linestyle="", marker=".", color="C0", alpha=0.25, markeredgewidth=0)
        (self.scores,) = self.score_axes.plot([], [], label="a game's score", **dots)
        (self.score,) = self.score_axes.plot([], [], color="C0", label="moving mean")
        (self.reward,) = self.reward_axes.plot([], [], color="C1")
        self.score_axes.set(ylabel="true score")
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
        self.reward_axes.set(xlabel="step", ylabel="Total moving reward")  # the chapter's words
        self.reward_axes.xaxis.get_major_locator().set_params(integer=True)
        for axes in self.score_axes, self.reward_axes:
            axes.grid(alpha=0.3)
        self.limits = self._limits()

    def update(self, episodes):
        """Show these games, a list of `Episode`. What the user has zoomed stays as it is."""
        shown = thinned(episodes)
        numbers = [e.episode for e in shown]
        self.scores.set_data(numbers, [e.score for e in shown])
        self.score.set_data(numbers, [e.running_score for e in shown])
        self.reward.set_data(numbers, [e.running_reward for e in shown])
        for line in self.score, self.reward:
            line.set(marker="o" if len(shown) < 50 else "", markersize=3)
        if self._limits() != self.limits:
            return
        self.score_axes.set_xlim(-0.5, max([1, *numbers[-1:]]) + 0.5)
        for axes, line in (self.score_axes, self.scores), (self.reward_axes, self.reward):
            low, high = min(line.get_ydata(), default=-21), max(line.get_ydata(), default=-20)
            room = max(0.5, 0.05 * (high - low), 0.001 * abs(low))
            axes.set_ylim(low - room, high + room)
        self.limits = self._limits()

    def _limits(self):
        axes = self.score_axes, self.reward_axes
        return [limits for ax in axes for limits in (ax.get_xlim(), ax.get_ylim())]


def save_curve(episodes, file, suffix="png"):
    """Write the picture of a curve; Matplotlib is loaded.

    Args:
        episodes: list of `Episode`.
        file: a path, or a binary file.
        suffix: the picture's format, as a file's name ends.
    """
    picture = matplotlib.figure.Figure(figsize=(8, 6), layout="constrained")
    CurvePlot(picture).update(episodes)
    picture.savefig(file, format=suffix)


def draw(console, picture, *folders):
    """Write a picture of the curve of a run, or of several runs; return the exit status.

    Raises OSError, ValueError.
    """
    runs = [read_curve(folder) for folder in folders]
    load_matplotlib(picture.parent)
    suffix, content = picture.suffix[1:] or "png", io.BytesIO()
    try:
        if len(runs) == 1:
            save_curve(runs[0].episodes, content, suffix)
        else:
            comparison = matplotlib.figure.Figure(figsize=(8, 5), layout="constrained")
            draw_comparison(comparison, runs)
            comparison.savefig(content, format=suffix)
    except Exception as error:  # Matplotlib's may be any
        raise ValueError(f"{picture}: {why(error)}") from None
    exists = picture.exists()
    to_stdout = exists and os.path.samestat(picture.stat(), os.fstat(1))  # --draw /dev/stdout
    try:
        beside = picture.is_file() and os.access(picture.resolve().parent, os.W_OK)
        if to_stdout or (exists and not beside):
            picture.write_bytes(content.getvalue())
        else:  # if it cannot be written, the old one stays
            with written_beside(picture.resolve()) as unfinished:
                unfinished.write_bytes(content.getvalue())
                if exists:
                    shutil.copymode(picture, unfinished)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(picture)) from None
    if not to_stdout:
        console.print(f"{picture}: {len(runs)} {'curve' if len(runs) == 1 else 'curves'}")
    return 0


def draw_comparison(figure, runs):
    """Draw runs as in the paper's Figure 1: running score by minutes, and by steps.

    Args:
        figure: a Matplotlib figure, empty.
        runs: list of `Curve`. Those with the same label share a colour.
    """
    axes, labels = figure.subplots(1, 2, sharey=True), []
    for label, episodes in runs:
        labels += [] if label in labels else [label]
        shown = thinned(episodes)
        scores = [e.running_score for e in shown]
        minutes, millions = [e.seconds / 60 for e in shown], [e.agent_steps / 1e6 for e in shown]
        for ax, x in zip(axes, (minutes, millions)):
            ax.plot(x, scores, color=f"C{labels.index(label)}", linewidth=1)
    axes[0].set(xlabel="minutes", ylabel="running score")
    axes[1].set(xlabel="million agent steps")
    for ax in axes:
        ax.grid(alpha=0.3)
    for number, label in enumerate(labels):
        axes[0].plot([], [], color=f"C{number}", label=label)
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
