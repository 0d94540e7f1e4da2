"""What the user sees of a run: lines, a bar, W_0's game in the terminal, plots. No TensorFlow."""

import math
import time

import matplotlib.figure
import numpy as np
import rich.progress
from rich.segment import Segment
from rich.style import Style

from runtime.checkpoints import read_curve

# ------------------------------------------------------------------------------------------ plotted


def draw_curve(axes, episodes):
    """The chapter's plot, the moving reward by episode, with the moving true score beside it."""
    shown = episodes[:: 1 + len(episodes) // 5000]  # more points than pixels only take time
    numbers = [e.episode for e in shown]
    style = dict(marker="o", markersize=3) if len(shown) < 50 else {}
    axes.clear()
    axes.plot(numbers, [e.running_score for e in shown], label="moving true score", **style)
    if any(e.running_reward != e.running_score for e in shown):  # else one would hide the other
        axes.plot(numbers, [e.running_reward for e in shown], label="moving reward", **style)
    axes.set(xlabel="episode", ylabel="total moving reward")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)  # above, over no curve


def draw(picture, *folders):
    """Write a picture of the curve of a run, or of several runs'; the exit status."""
    figure = matplotlib.figure.Figure(figsize=(8, 5), layout="constrained")
    runs = [read_curve(folder) for folder in folders]
    if len(runs) == 1:
        draw_curve(figure.subplots(), runs[0][1])
    else:
        draw_comparison(figure, runs)
    figure.savefig(picture)
    return 0


def draw_comparison(figure, runs):
    """Runs side by side as in the paper's Figure 1: moving true score by minutes, and by steps.

    Args:
        figure: a Matplotlib figure, empty.
        runs: list of (label, list of `Episode`); runs of one label, seeds of it, share a colour.
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
    """The curve in a window beside W_0's, while the run goes on and after."""

    REDRAWN_EVERY = 5  # seconds; drawing takes the workers' time

    def __init__(self):
        """Open it, where Matplotlib finds a window toolkit (it falls back to agg, a picture)."""
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
        """Answer the window system, and now and then draw. Whether the window is open still."""
        if self.figure is None or not self.pyplot.fignum_exists(self.figure.number):
            return False
        if time.monotonic() - self.drawn > self.REDRAWN_EVERY:
            draw_curve(self.axes, episodes)
            self.figure.canvas.draw_idle()
            self.drawn = time.monotonic()
        self.figure.canvas.flush_events()
        return True

    def leave_standing(self, episodes, signals):
        """Show the final plot until the user closes it, as the chapter does, or a signal comes."""
        self.drawn, received = -math.inf, len(signals)
        if self.refresh(episodes):
            print("the plot stands until its window is closed, or Ctrl-C", flush=True)
            while self.refresh(episodes) and len(signals) == received:
                time.sleep(0.05)


# ------------------------------------------------------------------------------------------ written


class Display:
    """The chapter's line for each game and, on a terminal, a progress bar under them.

    It is there within a `with`, where `refresh` is to be called every PERIOD seconds.
    """

    PERIOD = 0.25

    def __init__(self, console, run):
        self.console, self.run, self.notices = console, run, 0
        self.games = len(run.episodes)  # of a run resumed, those before are not printed again

    def __enter__(self):
        self.bar = rich.progress.Progress(
            rich.progress.BarColumn(), rich.progress.TextColumn("{task.description}"),
            console=self.console, disable=not self.console.is_terminal, refresh_per_second=4,
        )  # fmt: skip
        self.task = self.bar.add_task("starting", total=1.0)
        self.bar.start()
        return self

    def __exit__(self, *exception):
        self.bar.stop()

    def refresh(self):
        """Print what is new, and move the bar."""
        for line in self.new_lines():
            self.console.print(line)
        text = f"{self.games:,} games, {self.speed()} steps/s"
        if self.run.episodes:
            text += f", running score {self.run.episodes[-1].running_score:.1f}"
        used, left = self.used_and_left()
        self.bar.update(self.task, completed=used, description=text + (left and f", {left} left"))

    def new_lines(self):
        """The lines of what has happened since the last call."""
        episodes, lines = self.run.episodes[self.games :], self.run.notices[self.notices :]
        self.notices += len(lines)
        self.games += len(episodes)
        for e in episodes:
            chapters = f"{e.worker} Ep: {e.episode} | Ep_r: {int(e.running_reward)}"
            lines.append(f"{chapters} | score: {e.score} (running {e.running_score:.1f})")
        return lines

    def speed(self):
        """Agent steps per second so far."""
        return f"{self.run.agent_steps / self.run.seconds():,.0f}"

    def used_and_left(self):
        """The share of the run that is over, and how long the rest takes, if that can be said."""
        used, seconds = min(1, max(used for used, _ in self.run.limits())), self.run.seconds()
        return used, duration(seconds / used - seconds) if used else ""


def duration(seconds):
    """Seconds as h:mm:ss."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


# --------------------------------------------------------------------------- a game in the terminal

SIDE = 80  # pixels, of the court as the network sees it
HALF_BLOCKS = np.array(list(" ▀▄█"))  # by: upper pixel + 2 * lower pixel
EIGHTHS = np.array(list(" ▁▂▃▄▅▆▇█"))


def court_rows(pixels, height):
    """A frame in half-block characters, two pixels in each.

    Args:
        pixels: [k] ints, the active pixels of a state; of frames stacked, the newest is shown.
        height: rows to take: 40, or 20, where two rows of pixels are one.

    Returns:
        list of `height` strings of 80 characters.
    """
    image = np.zeros(SIDE * SIDE, np.uint8)
    image[pixels[pixels < SIDE * SIDE]] = 1
    halves = image.reshape(2 * height, -1, SIDE).max(1)
    return joined(HALF_BLOCKS[halves[::2] + 2 * halves[1::2]])


def curve_rows(values, width, height):
    """A curve as the area under it, from its lowest value to its highest, but at least 1 more.

    Args:
        values: list of any number of numbers, but 0; if there are more than columns, samples of it.
        width, height: in characters.

    Returns:
        list of `height` strings of `width` characters.
    """
    shown = np.asarray(values)[np.linspace(0, len(values) - 1, width).round().astype(int)]
    share = (shown - shown.min()) / max(1, np.ptp(shown))
    eighths = 1 + (share * (8 * height - 1)).round().astype(int)
    return joined(EIGHTHS[np.clip(eighths - 8 * np.arange(height)[::-1, np.newaxis], 0, 8)])


def joined(characters):
    """Characters [rows, columns] as a list of strings."""
    return ["".join(row) for row in characters.tolist()]


class Clip:
    """Samples of a worker's play, to be watched at their own pace while it goes on at its.

    The worker's thread gives `see` its rollouts. When a clip has been shown, the next is made of
    what comes from one point to the next, or of LONGEST seconds of the game; the worker plays them
    within some hundredths of a second. Other rollouts are passed over.

    `wanted` goes from the viewer's thread to the worker's and back, and with it `rollouts`.
    """

    LONGEST = 10  # seconds of the game

    def __init__(self, pace):
        """pace: agent steps in a second of the game."""
        self.pace, self.rollouts = pace, []
        self.wanted = self.from_point = False  # from_point: rollouts start with one
        self.frames, self.began = [(np.empty(0, int), 0)], 0

    def see(self, rollout, score):
        """Keep a rollout, and the game's score before it, if a clip is wanted."""
        if not self.wanted:
            return
        self.rollouts.append(
            (rollout.rows.copy(), rollout.states.copy(), rollout.rewards.copy(), score)
        )
        point = rollout.rewards.any() or rollout.truncated
        steps = sum(len(states) - 1 for _, states, _, _ in self.rollouts)
        if point and not self.from_point:
            self.from_point, self.rollouts = True, []
        elif point or steps >= self.LONGEST * self.pace:
            self.wanted = False

    def now(self, seconds):
        """The frame to show at that time of a clock: its active pixels, and the game's score."""
        step = int((seconds - self.began) * self.pace)
        if step >= len(self.frames) and not self.wanted:
            if self.rollouts:
                self.frames, self.began, step = list(self._frames()), seconds, 0
                self.rollouts = []
            else:
                self.from_point, self.wanted = False, True
        return self.frames[min(step, len(self.frames) - 1)]

    def _frames(self):
        for rows, states, rewards, score in self.rollouts:
            for state, reward in zip(states[1:], rewards):
                score += int(reward)
                yield rows[state.nonzero()[0]], score


class TerminalView:
    """A court with figures and a curve beside it and lines below, on a screen of its own.

    At the end of the `with` the terminal shows again what it showed before. (Drawn in the midst of
    the scrolling lines, the court would be torn wherever the terminal is made narrower.)
    """

    COLUMNS = 100
    REPAINTED_EVERY = 5  # seconds, in case something else writes to the terminal
    INK, WALL, CURVE = map(Style.parse, ("#ffd7af on #303030", "#8a8a8a", "#d78700"))
    DIM = Style(dim=True)

    def __init__(self, console):
        self.console, self.screen = console, console.screen()
        self.size, self.painted_at = None, 0
        self.tell({})

    @classmethod
    def why_not(cls, console):
        """Why it cannot be shown there, for the user; None if it can."""
        if not console.file.isatty() or console.is_dumb_terminal:
            return "the output is no terminal that can draw"
        if console.options.ascii_only:
            return f"the terminal's encoding is {console.encoding}, not UTF-8"
        if console.width < cls.COLUMNS:
            return f"the terminal has {console.width} columns, and it takes {cls.COLUMNS}"
        return None

    def __enter__(self):
        self.screen.__enter__()
        return self

    def __exit__(self, *exception):
        self.screen.__exit__(*exception)

    def tell(self, figures, name="", curve=(), lines=()):
        """Change what stands around the court.

        Args:
            figures: dict of strings, name -> value.
            name, curve: what the curve shows, and a list of numbers; if empty, no curve is drawn.
            lines: list of strings; as many of the last as fit are shown.
        """
        self.told, self.around = (figures, name, curve, lines), None

    def show(self, pixels):
        """Show the frame of these active pixels. Only rows that have changed are written."""
        size, now = self.console.size, time.monotonic()
        if size != self.size or now - self.painted_at > self.REPAINTED_EVERY:
            self.size, self.around, self.painted_at = size, None, now
            self.painted = [None] * size.height
        court = 40 if size.height >= 44 else 20
        self.around = rows = self.around or self._around(court, *size)
        if size.width >= self.COLUMNS:
            ink = [Segment(row, self.INK) for row in court_rows(pixels, court)]
            left = [Segment("▄" * SIDE, self.WALL), *ink, Segment("▀" * SIDE, self.WALL)]
            rows = [[first, *rest] for first, rest in zip(left, rows)] + rows[len(left) :]
        with self.console:  # all at once
            for y, (row, before) in enumerate(zip(rows, self.painted)):
                if row != before:
                    self.console.update_screen_lines([row], y=y)
        self.painted = rows[: size.height]

    def _around(self, court, width, height):
        """The screen's rows, lists of `Segment`, but for the court's part where it has room."""
        figures, name, curve, lines = self.told
        left, gap = (SIDE, [Segment(" ")]) if width >= self.COLUMNS else (0, [])
        across = min(width - left - len(gap), 60)
        rows = [
            [Segment(name, self.DIM), Segment(f"{value:>{max(0, min(across, 24) - len(name))}}")]
            for name, value in figures.items()
        ]
        if len(curve):
            low, high = min(curve), max(curve)
            area = curve_rows(curve, across, max(1, min(16, court - len(rows) - 3)))
            rows += [[], [Segment(f"{max(high, low + 1):.1f} {name}", self.DIM)]]
            rows += [[Segment(row, self.CURVE)] for row in area]
            rows += [[Segment(f"{low:.1f} ".ljust(across, "─"), self.DIM)]]
        rows += [[]] * (court + 1 - len(rows))
        last = "Ctrl-C ends it" if left else f"the game takes {self.COLUMNS} columns"
        rows = [gap + row for row in rows + [[Segment(last, self.DIM)]]]
        room = max(0, height - len(rows))
        below = [[Segment(line)] for line in lines[len(lines) - room :]]
        below += [[]] * (room - len(below))
        rows = [Segment.adjust_line_length(row, width - left) for row in rows]
        return rows + [Segment.adjust_line_length(row, width) for row in below]


class TerminalDisplay(Display):
    """W_0's game in the terminal, with the run's figures, curve and last lines around it.

    All lines are printed when the view is gone.
    """

    PERIOD = 1 / 20
    TOLD_EVERY = 0.5  # seconds; figures that change faster cannot be read

    def __init__(self, console, run, clip):
        super().__init__(console, run)
        self.clip, self.view, self.lines, self.told_at = clip, TerminalView(console), [], 0

    def __enter__(self):
        self.view.__enter__()
        return self

    def __exit__(self, *exception):
        self.view.__exit__(*exception)
        if self.lines:
            self.console.out("\n".join(self.lines))

    def refresh(self):
        """Show the clip's frame that is due, and now and then the rest anew."""
        self.lines += self.new_lines()
        now = time.monotonic()
        pixels, score = self.clip.now(now)
        if now - self.told_at > self.TOLD_EVERY:
            self.told_at, episodes = now, self.run.episodes
            last = episodes[-1] if episodes else None
            figures = {
                "games": f"{self.games:,}",
                "steps/s": self.speed(),
                "running score": f"{last.running_score:.1f}" if last else "",
                "Ep_r": f"{last.running_reward:.1f}" if last else "",
                "time left": self.used_and_left()[1],
                "W_0's game": f"{score}",
            }
            curve = [e.running_score for e in episodes[:: 1 + len(episodes) // 1000]]
            self.view.tell(figures, "running score", curve, self.lines)
        self.view.show(pixels)


def new_display(console, run, worker, in_window):
    """The worker's game in the terminal if that is wanted and possible, else lines and a bar."""
    render, why_not = run.settings.render, TerminalView.why_not(console)
    if render == "terminal" and why_not:
        console.print(f"no view of {worker.name}'s game: {why_not}")
    if why_not or in_window or render not in ("auto", "terminal"):
        return Display(console, run)
    worker.clip = Clip(pace=60 / worker.actors.game.frames_per_step)
    return TerminalDisplay(console, run, worker.clip)
