"""What the user sees of a run: a line for each game, a bar, windows, the plot. No TensorFlow."""

import math
import time

import rich.progress


def draw_curve(axes, episodes):
    """The chapter's plot, the moving reward by episode, with the moving true score beside it."""
    shown = episodes[:: 1 + len(episodes) // 5000]  # more points than pixels only take time
    numbers = [e.episode for e in shown]
    style = dict(marker="o", markersize=3) if len(shown) < 50 else {}
    axes.clear()
    axes.plot(numbers, [e.running_score for e in shown], label="moving true score", **style)
    axes.plot(numbers, [e.running_reward for e in shown], label="moving reward", **style)
    axes.set(xlabel="episode", ylabel="total moving reward")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)  # above, over no curve


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


class Display:
    """The chapter's line for each game and, on a terminal, a progress bar under them."""

    def __init__(self, console, run):
        self.console, self.run, self.games, self.notices = console, run, 0, 0
        self.bar = rich.progress.Progress(
            rich.progress.BarColumn(), rich.progress.TextColumn("{task.description}"),
            console=console, disable=not console.is_terminal, refresh_per_second=4,
        )  # fmt: skip
        self.task = self.bar.add_task("starting", total=1.0)

    def refresh(self):
        """Print what is new, and move the bar."""
        run, episodes = self.run, self.run.episodes[self.games :]
        lines = run.notices[self.notices :]
        self.notices += len(lines)
        self.games += len(episodes)
        for e in episodes:
            chapters = f"{e.worker} Ep: {e.episode} | Ep_r: {int(e.running_reward)}"
            lines.append(f"{chapters} | score: {e.score} (running {e.running_score:.1f})")
        for line in lines:
            self.console.print(line)
        used, seconds = min(1, max(used for used, _ in run.limits())), run.seconds()
        text = f"{self.games:,} games, {run.agent_steps / seconds:,.0f} steps/s"
        if run.episodes:
            text += f", running score {run.episodes[-1].running_score:.1f}"
        if used:
            text += f", {duration(seconds / used - seconds)} left"
        self.bar.update(self.task, completed=used, description=text)


def duration(seconds):
    """Seconds as h:mm:ss."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"
