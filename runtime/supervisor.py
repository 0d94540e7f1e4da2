"""The main thread of a run, which saves it and looks at limits and signals."""

import contextlib
import dataclasses
import signal
import time

from runtime import checkpoints
from runtime.curve import curve_arrays
from runtime.display import duration, new_display
from runtime.output import Complaint
from runtime.run import DIVERGED
from runtime.signals import suspend, when_suspended

NO_CHECKPOINT = "no checkpoint could be taken; it is retried at least every half minute"


class Supervisor:
    """A run's files, its limits and signals, looked after by the main thread.

    It waits for no output and no window: those have a thread and processes of their own.
    """

    PERIOD = 0.25  # seconds

    def __init__(self, run, workers, folder, actors, output, window, signals):
        """Begin to show the run.

        Args:
            run: the `Run`.
            workers: list of the script's workers.
            folder: the `RunFolder`.
            actors: the `Actors`.
            output: the `OutputThread`.
            window: the plot's `PlotWindow`, or None.
            signals: the process' `Signals`.
        """
        self.run, self.workers, self.folder, self.actors = run, workers, folder, actors
        self.output, self.window, self.signals = output, window, signals
        self.autosave = 60 * run.settings.autosave_minutes  # seconds
        self.saved, self.late = time.monotonic(), False
        self.failed = False  # whether a fault ended the run, or its last checkpoint is missing
        folder.begin_events(run.agent_steps, len(run.episodes))
        run.start()
        run.look_at_limits()
        if run.stopped_because:  # a resumed run may have nothing left to do
            options = " or ".join(limit.option for limit in run.limits() if limit.used >= 1)
            run.notices.append(f"nothing is left to do: a higher {options} lets the run continue")
        self.display = new_display(output, run, workers[0])
        when_suspended(self._suspend)
        output.show(self.display)

    def _suspend(self):
        self.output.show(None)
        suspend()
        self.output.show(self.display)

    def show_and_save(self, threads):
        """Save, and look at limits and signals, until the run stops; then end the threads.

        Returns:
            the threads that have ended.
        """
        run = self.run
        try:
            while not run.coordinator.wait_for_stop(self.PERIOD):
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
            kept = checkpoint and self.keep(checkpoint)
            self.display = None
            self.output.show(None)  # complaints would be lost with the alternate screen
            if run.failure:
                run.notices.append(Complaint(run.failure))
            if not kept:
                run.notices.append(Complaint(not_kept(self.folder.path)))
            self.failed = bool(run.failure) or not kept
        return [thread for thread in threads if not thread.is_alive()]

    def step(self):
        """Do what is due: look at limits, write, save."""
        run, folder = self.run, self.folder
        run.look_at_limits()
        self.attend()
        folder.write(run.episodes, run.take_measured())
        if time.monotonic() - self.saved > self.autosave:
            self.save()
        if self.window:
            run.notices.extend(self.window.look())

    def attend(self):
        """Do nothing; `ChiefSupervisor` does what a cluster needs."""

    def save(self):
        """Take and write a checkpoint. If none can be taken, try again within half a minute."""
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
        if not all(map(checkpoints.sane, checkpoint.arrays.values())):
            run.fail(DIVERGED.format(what="a weight", T=about["agent_steps"]))
            return False
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
        """Print the last line, and leave the plot on the screen until its window is closed."""
        run, path, notices = self.run, self.folder.path, self.run.notices
        games, steps = f"{len(run.episodes):,} games", f"{run.agent_steps:,} steps"
        played = f"{games}, {steps} in {duration(run.seconds())}"
        notices.append(f"{run.stopped_because}: {played}; curve in {path}/reward.png")
        if self.window and set(self.signals) <= {signal.SIGINT}:
            self._leave_standing()
        if self.window:
            self.window.close()
        self.output.end()

    def exit_status(self):
        """Return 1 after a fault, else the status that the signals give, 0 without one."""
        return 1 if self.failed else self.signals.status()

    def _leave_standing(self):
        """Show the final plot, as the chapter does, until it is closed or a signal comes."""
        window, received = self.window, len(self.signals)
        self.run.notices.extend(window.look())
        if window.open:
            window.draw_now()
            self.run.notices.append("the plot stands until its window is closed, or Ctrl-C")
        while window.open and len(self.signals) == received:
            time.sleep(0.05)
            self.run.notices.extend(window.look())


def not_kept(path):
    """Return a line about a run's last checkpoint, which could not or must not be written."""
    before = False
    with contextlib.suppress(OSError):
        before = bool(checkpoints.paths(path))
    what = "--resume uses the one before it" if before else "there is no other"
    return f"the last checkpoint was not written to {path}: {what}"


def stop_workers(threads, actors):
    """Wait for the threads to end their rollouts; end the actors of those that take over a second.

    A thread that waits for an answer from another machine is left where it is.
    """
    join_within(1, threads)
    for thread in threads:
        if thread.is_alive():
            actors[thread.name].close()
    join_within(5, threads)


def join_within(seconds, threads):
    """Wait for threads to end, so many seconds at most for all together."""
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
