"""The main thread of a run, which shows and saves it and looks at limits and signals."""

import dataclasses
import signal
import sys
import time

import rich.console

from runtime import checkpoints
from runtime.actors import allowed_cores
from runtime.curve import curve_arrays
from runtime.display import duration, new_display
from runtime.plots import RewardWindow

NO_CHECKPOINT = "no checkpoint could be taken; it will be tried again every half minute"


class Supervisor:
    """A run's display, its plot and its files, kept up to date by the main thread."""

    def __init__(self, run, workers, folder, actors, in_window, signals):
        """Print the first line, and open the plot's window if in_window."""
        self.run, self.workers, self.folder, self.actors = run, workers, folder, actors
        self.signals = signals
        self.console = rich.console.Console(highlight=False, markup=False, soft_wrap=True)
        cores = len(allowed_cores())
        self.console.print(
            f"{len(workers)} workers on {cores} cores, curve in {folder.path} "
            f"(tensorboard --logdir {folder.path}), Ctrl-C stops"
        )
        self.window = RewardWindow() if in_window else None
        self.display = new_display(self.console, run, workers[0], in_window)
        if self.window and not self.window.figure:
            self.console.print(
                "no window for the plot: Matplotlib finds no toolkit, such as python3-tk"
            )
        self.autosave = 60 * run.settings.autosave_minutes  # seconds
        self.saved, self.late = time.monotonic(), False
        self.kept = False  # whether the last checkpoint was written
        folder.begin_events(run.agent_steps, len(run.episodes))
        run.start()
        run.look_at_limits()  # a resumed run may have nothing left to do

    def show_and_save(self, threads):
        """Show and save until the run stops; then end the workers' threads, and save once more.

        Returns:
            the threads that have ended.
        """
        run, display = self.run, self.display
        with display:
            try:
                while not run.coordinator.wait_for_stop(display.PERIOD):
                    if self.signals:
                        run.stop(self.signals.name())
                        break
                    self.step()
            finally:
                run.coordinator.request_stop()
                stop_workers(threads, self.actors)
                checkpoint = run.globalnet.snapshot(run, self.workers, last=True)
                self.actors.close()
                self.folder.write(run.episodes, run.take_measured(), plot_now=True)
                self.kept = checkpoint and self.keep(checkpoint)
                display.refresh()
        return [thread for thread in threads if not thread.is_alive()]

    def step(self):
        """Do what is due: look at limits, show, write, save."""
        run, folder = self.run, self.folder
        run.look_at_limits()
        self.attend()
        self.display.refresh()
        folder.write(run.episodes, run.take_measured())
        if time.monotonic() - self.saved > self.autosave:
            self.save()
        if self.window:
            self.window.refresh(run.episodes)

    def attend(self):
        """Do what a cluster's chief has to do besides."""

    def save(self):
        """Take and write a checkpoint. If that fails, try again within half a minute."""
        self.saved = time.monotonic()
        checkpoint = self.run.globalnet.snapshot(self.run, self.workers)
        if checkpoint:
            self.keep(checkpoint)
        else:  # an actor hangs, or a parameter server
            self.saved -= max(0, self.autosave - 30)
            if not self.late:
                self.run.notices.append(NO_CHECKPOINT)
        self.late = not checkpoint

    def keep(self, checkpoint):
        """Write a checkpoint, with the curve and the settings. Return whether that was possible."""
        run, about = self.run, checkpoint.about
        self.folder.write(run.episodes)  # scores.csv is never behind a checkpoint
        episodes = run.episodes[: about["games"]]
        checkpoint.arrays.update(curve_arrays(episodes))
        for name in "running_score", "running_reward":
            about[name] = getattr(episodes[-1], name) if episodes else None
        about.update(method=run.settings.method, actions=self.actors.game.num_actions)
        about.update(actors_started=self.actors.started, versions=checkpoints.versions())
        about.update(settings=dataclasses.asdict(run.settings))
        return self.folder.write_checkpoint(checkpoint)

    def plot(self):
        """Print the last line, and leave the plot on the screen until its window is closed.

        Returns:
            the exit status.
        """
        run, path = self.run, self.folder.path
        games, steps = f"{len(run.episodes):,} games", f"{run.agent_steps:,} steps"
        played = f"{games}, {steps} in {duration(run.seconds())}"
        self.console.print(f"{run.stopped_because}: {played}; curve in {path}/reward.png")
        status = self.signals.status()
        if not self.kept:
            print(
                f"a3c_pong.py: the last checkpoint could not be written to {path}: "
                "a resumed run goes on from the one before",
                file=sys.stderr,
            )
            status = 1
        if self.window and set(self.signals) <= {signal.SIGINT}:
            self.window.leave_standing(run.episodes, self.signals)
        return status


def stop_workers(threads, actors):
    """Wait for the threads to end their rollouts; end the actors of those that take over a second.

    A thread that waits for an answer from another machine is left where it is.
    """
    deadline = time.monotonic() + 1
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    for thread in threads:
        if thread.is_alive():
            actors[thread.name].close()
        thread.join(5)
