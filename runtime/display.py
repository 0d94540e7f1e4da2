"""A run as its user sees it: lines, a bar, and W_0's game in the terminal."""

import time

import numpy as np
import rich.progress
from rich.segment import Segment
from rich.style import Style

from runtime.actors import NO_SCREEN

# ------------------------------------------------------------------------------------------ written


class Display:
    """The chapter's line for each game and, on a terminal, a progress bar below the lines.

    It is shown within a `with`, in which `refresh` is called every PERIOD seconds. All of it
    happens in the thread that prints, an `OutputThread`.
    """

    PERIOD = 0.25

    def __init__(self, console, run, notices):
        """Make one. notices: a function that returns the new lines for the user."""
        self.console, self.run, self.notices = console, run, notices
        self.games = len(run.episodes)  # a resumed run's earlier games are not printed again

    def __enter__(self):
        # so narrow that the terminal's ^C does not push it into a second line
        columns = rich.progress.BarColumn(20), rich.progress.TextColumn("{task.description}")
        self.bar = rich.progress.Progress(
            *columns,
            console=self.console,
            disable=not self.console.is_terminal,
            auto_refresh=False,
        )
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
        self.bar.refresh()

    def new_lines(self):
        """Return the lines of the notices and games since the last call."""
        episodes, lines = self.run.episodes[self.games :], self.notices()
        self.games += len(episodes)
        for e in episodes:
            lines.append(game_line(e))
        return lines

    def speed(self):
        """Return the agent steps per second so far."""
        return f"{self.run.agent_steps / self.run.seconds():,.0f}"

    def used_and_left(self):
        """Return the share of the run that is over, and the time left, or "" if it is unknown."""
        used, seconds = min(1, max(limit.used for limit in self.run.limits())), self.run.seconds()
        return used, duration(seconds / used - seconds) if used else ""


def game_line(episode):
    """Return the chapter's line for a game, with its true score and the running score."""
    e = episode
    chapters = f"{e.worker} Ep: {e.episode} | Ep_r: {int(e.running_reward)}"
    return f"{chapters} | score: {e.score} (running {e.running_score:.1f})"


def counted(number, noun):
    """Return a number of things in words."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds):
    """Return seconds as h:mm:ss."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


# --------------------------------------------------------------------------- a game in the terminal

SIDE = 80  # pixels of the court, as the network gets it
HALF_BLOCKS = np.array(list(" ▀▄█"))  # by: upper pixel + 2 * lower pixel
EIGHTHS = np.array(list(" ▁▂▃▄▅▆▇█"))


def court_rows(pixels, height):
    """Return a frame in half-block characters, two pixels in each.

    Args:
        pixels: [k] ints, the active pixels of a state. Of stacked frames the newest is shown.
        height: its number of rows: 40, or 20, in which two rows of pixels are one.

    Returns:
        list of `height` strings of 80 characters.
    """
    image = np.zeros(SIDE * SIDE, np.uint8)
    image[pixels[pixels < SIDE * SIDE]] = 1
    halves = image.reshape(2 * height, -1, SIDE).max(1)
    return joined(HALF_BLOCKS[halves[::2] + 2 * halves[1::2]])


def curve_rows(values, width, height):
    """Return a curve as the area under it, from its lowest value to its highest.

    A curve that rises by less than 1 is drawn as if the highest were 1 above the lowest.

    Args:
        values: list of at least one number; of more numbers than columns, samples are drawn.
        width, height: in characters.

    Returns:
        list of `height` strings of `width` characters.
    """
    shown = np.asarray(values)[np.linspace(0, len(values) - 1, width).round().astype(int)]
    share = (shown - shown.min()) / max(1, np.ptp(shown))
    eighths = 1 + (share * (8 * height - 1)).round().astype(int)
    return joined(EIGHTHS[np.clip(eighths - 8 * np.arange(height)[::-1, np.newaxis], 0, 8)])


def joined(characters):
    """Return characters [rows, columns] as a list of strings."""
    return ["".join(row) for row in characters.tolist()]


class Clip:
    """Samples of a worker's play, shown at the game's pace while the worker plays on at its own.

    The worker's thread gives `see` its rollouts. When a clip has been shown, the next is made of
    the rollouts from one point to the next, or of LONGEST seconds of the game. The worker plays
    those within some hundredths of a second. Other rollouts are passed over.

    Two threads use it without a lock, and `wanted` says whose turn it is. While it is True, only
    the worker's thread changes `rollouts`; while it is False, only the viewer's does.
    """

    LONGEST = 10  # seconds of the game

    def __init__(self, pace):
        """pace: agent steps per second of the game."""
        self.pace, self.rollouts = pace, []
        self.wanted = self.from_point = False  # from_point: rollouts start with one
        self.frames, self.began = [(np.empty(0, int), 0)], 0

    def add(self, rollout, score):
        """Keep a rollout and the game's score before it, if a clip is wanted."""
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
        """Return the frame to show at that time of a clock: its active pixels, and the score."""
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
    """A court, with figures and a curve beside it and lines below, on the alternate screen.

    At the end of the `with` the terminal shows again what it showed before. Among scrolling lines
    the court would be torn as soon as the terminal is made narrower.
    """

    COLUMNS = 100  # from which on the figures stand beside the court, not in a line below it
    ROWS = 2 + 20  # of the court with its walls
    REPAINTED_EVERY = 5  # seconds, in case something else writes to the terminal
    INK, WALL, CURVE = map(Style.parse, ("#ffd7af on #303030", "#8a8a8a", "#d78700"))
    DIM = Style(dim=True)

    def __init__(self, console):
        self.console, self.screen = console, None
        self.size, self.painted_at = None, 0
        self.tell({})

    @classmethod
    def why_not(cls, console, columns=SIDE):
        """Return why the view cannot be shown on a console, for the user; None if it can.

        columns: how many are wanted, SIDE or COLUMNS.
        """
        if not console.file.isatty() or console.is_dumb_terminal:
            return "the output is no terminal that can draw"
        if console.options.ascii_only:
            return f"the terminal's encoding is {console.encoding}, not UTF-8"
        if console.width < columns:
            return f"the terminal has {console.width} columns, and the game needs {columns}"
        rows = cls.ROWS if console.width >= cls.COLUMNS else cls.ROWS + 1
        if console.height < rows:
            return f"the terminal has {console.height} rows, and the game needs {rows}"
        return None

    def __enter__(self):
        self.screen = self.console.screen()
        self.screen.__enter__()
        self.size = None
        return self

    def __exit__(self, *exception):
        self.screen.__exit__(*exception)

    def tell(self, figures, name="", curve=(), lines=()):
        """Change the figures, the curve and the lines around the court.

        Args:
            figures: dict of strings, name -> value.
            name, curve: the curve's title, and a list of numbers; if empty, no curve is drawn.
            lines: list of strings, of which the last are shown, as many as fit.
        """
        self.figures, self.name, self.curve, self.lines = figures, name, curve, lines
        self.around = None  # to be made anew

    def show(self, pixels):
        """Show the frame of these active pixels. Only rows that changed are written."""
        size, now = self.console.size, time.monotonic()
        if size != self.size or now - self.painted_at > self.REPAINTED_EVERY:
            self.size, self.around, self.painted_at = size, None, now
            self.painted = [None] * size.height
        height = 40 if size.height >= 44 else 20
        beside = size.width >= self.COLUMNS
        court = []
        if size.width >= SIDE and size.height >= height + (2 if beside else 3):
            ink = [Segment(row, self.INK) for row in court_rows(pixels, height)]
            court = [Segment("▄" * SIDE, self.WALL), *ink, Segment("▀" * SIDE, self.WALL)]
        if self.around is None:
            self.around = self._around(len(court), beside)
        rows = self.around
        if court and beside:
            rows = [[first, *rest] for first, rest in zip(court, rows)] + rows[len(court) :]
        elif court:
            rows = [[*Segment.adjust_line_length([row], size.width)] for row in court] + rows
        with self.console:  # all at once
            for y, (row, before) in enumerate(zip(rows, self.painted)):
                if row != before:
                    self.console.update_screen_lines([row], y=y)
        self.painted = rows[: size.height]

    def _around(self, court, beside):
        """Return the screen's rows, lists of `Segment`, without the court.

        Args:
            court: the court's rows; 0 if there is no room for it.
            beside: whether figures and curve stand beside the court.
        """
        (width, height), lines = self.size, self.lines
        if court and not beside:
            figures = [f"{name} {value}" for name, value in self.figures.items()]
            line = [Segment("  ".join(["Ctrl-C ends it", *figures]), self.DIM)]
            rows = [Segment.adjust_line_length(line, width)]
            room = height - court - 1
        else:
            left = SIDE if court else 0
            rows = self._figures(court or min(20, height), width - left)
            needs = f"the game needs {SIDE} columns, {self.ROWS + (not beside)} rows"
            rows.append([Segment("Ctrl-C ends it" if court else needs, self.DIM)])
            if court:
                rows = [[Segment(" "), *row] for row in rows]
            rows = [Segment.adjust_line_length(row, width - left) for row in rows]
            room = max(0, height - len(rows))
        below = [[Segment(line)] for line in lines[max(0, len(lines) - room) :]]
        below += [[]] * (room - len(below))
        return rows + [Segment.adjust_line_length(row, width) for row in below]

    def _figures(self, court, width):
        """Return the rows beside a court of so many rows, but for the last: figures and curve."""
        curve, across = self.curve, max(1, min(width - 1, 60))
        rows = [
            [Segment(name, self.DIM), Segment(f"{value:>{max(0, min(across, 24) - len(name))}}")]
            for name, value in self.figures.items()
        ]
        if len(curve) and court >= len(rows) + 6:
            low, high = min(curve), max(curve)
            area = curve_rows(curve, across, max(1, min(16, court - len(rows) - 5)))
            rows += [[], [Segment(f"{max(high, low + 1):.1f} {self.name}", self.DIM)]]
            rows += [[Segment(row, self.CURVE)] for row in area]
            rows += [[Segment(f"{low:.1f} ".ljust(across, "─"), self.DIM)]]
        rows += [[]] * (court - 1 - len(rows))
        return rows[: court - 1]


class TerminalDisplay(Display):
    """W_0's game in the terminal, with the run's figures, curve and last lines around it.

    At the end of the `with` all lines are printed.
    """

    PERIOD = 1 / 20
    TOLD_EVERY = 0.5  # seconds; figures that change faster cannot be read

    def __init__(self, console, run, notices, clip):
        super().__init__(console, run, notices)
        self.clip, self.view, self.lines, self.told_at = clip, TerminalView(console), [], 0

    def __enter__(self):
        self.view.__enter__()
        return self

    def __exit__(self, *exception):
        self.view.__exit__(*exception)
        for first in range(0, len(self.lines), 1000):  # in parts, so that `_wait` sees progress
            self.console.out("\n".join(self.lines[first : first + 1000]))
        self.lines = []

    def refresh(self):
        """Show the clip's frame that is due, and now and then new figures."""
        self.lines += self.new_lines()
        now = time.monotonic()
        pixels, score = self.clip.now(now)
        if now - self.told_at > self.TOLD_EVERY:
            self.told_at, episodes = now, self.run.episodes
            last = episodes[-1] if episodes else None
            figures = {
                "W_0's game": f"{score}",
                "games": f"{self.games:,}",
                "steps/s": self.speed(),
                "running score": f"{last.running_score:.1f}" if last else "",
                "Ep_r": f"{last.running_reward:.1f}" if last else "",
                "time left": self.used_and_left()[1],
            }
            curve = [e.running_score for e in episodes[:: 1 + len(episodes) // 1000]]
            self.view.tell(figures, "running score", curve, self.lines)
        self.view.show(pixels)


def new_display(output, run, worker):
    """Return a display with the worker's game, if that is wanted and possible, or without.

    output: the `OutputThread` that will show it.
    """
    render, console = run.settings.render, output.console
    if worker.actors[worker.name].window or render not in ("auto", "terminal"):
        return Display(console, run, output.new_lines)
    no_window = worker.actors.no_window
    columns = SIDE if render == "terminal" else TerminalView.COLUMNS
    if why_not := TerminalView.why_not(console, columns):
        reasons = ", and ".join(filter(None, [no_window, why_not]))
        run.notices.append(f"{worker.name}'s game is not shown: {reasons}")
        return Display(console, run, output.new_lines)
    if no_window and no_window != NO_SCREEN:
        run.notices.append(f"{worker.name}'s game is shown here: {no_window}")
    worker.clip = Clip(pace=60 / worker.actors.game.frames_per_step)
    return TerminalDisplay(console, run, output.new_lines, worker.clip)
