"""What the workers of a run share besides the network: counts, curve, limits, and a gate."""

import contextlib
import math
import threading
import time
from typing import NamedTuple

from runtime.cores import usable_cores
from runtime.curve import Episode
from runtime.graph import tf


class Gate:
    """A gate that workers pass for each rollout, and that closes for a checkpoint.

    A checkpoint is of a moment between two rollouts of every worker. So no update is half done, and
    each rollout played has been learned from and counted.
    """

    def __init__(self):
        self.changed, self.inside, self.shut = threading.Condition(), 0, False

    def __enter__(self):
        with self.changed:
            self.changed.wait_for(lambda: not self.shut)
            self.inside += 1

    def __exit__(self, *exception):
        with self.changed:
            self.inside -= 1
            self.changed.notify_all()

    @contextlib.contextmanager
    def left(self):
        """Stay outside for a while, within a `with gate:`."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    @contextlib.contextmanager
    def closed(self, seconds=3):
        """Let all workers out and none in; yield whether all came out within so many seconds."""
        with self.changed:
            self.shut = True
            empty = self.changed.wait_for(lambda: self.inside == 0, seconds)
        try:
            yield empty
        finally:
            with self.changed:
                self.shut = False
                self.changed.notify_all()


class EndedGame(NamedTuple):
    """A game that a worker has just played to its end."""

    worker: str
    score: int  # its own, -21 to 21
    reward: float  # the chapter's ep_r, with its -20


def moving(mean, value):
    """Return the chapter's moving mean with one more value; mean is None before the first."""
    return float(value) if mean is None else 0.99 * mean + 0.01 * value


class Limit(NamedTuple):
    """A reason to stop that the user set."""

    used: float  # the share of it that is used up; 1 and more: it is reached
    words: str  # for its end
    option: str


MEASURED_EVERY = 5  # seconds, for TensorBoard
DIVERGED = (
    "after {T:,} steps {what} is NaN, infinite or huge, so training ends; smaller learning rates "
    "may help; the checkpoints before are kept"
)


class Run:
    """The counts and the curve of a run, and its reasons to stop."""

    def __init__(self, settings, globalnet, notices=None):
        """Start with no game played.

        Args:
            settings: the run's.
            globalnet: the global network, which counts the steps, T.
            notices: list of lines for the user, to which the run's folder adds, too.
        """
        self.settings, self.globalnet = settings, globalnet
        self.coordinator = tf.train.Coordinator()
        self.lock, self.gate = threading.Lock(), Gate()
        # A thread that waited for a core between its pull and its push would push late.
        self.updating = threading.Semaphore(usable_cores())
        self.episodes = []  # the curve, a list of `Episode`
        self.notices = [] if notices is None else notices
        self.seconds_before = 0.0  # when the run was resumed
        self.measures = True  # whether updates are measured now and then
        self.measured = []  # (T, dict of figures)
        self.stopped_because = None
        self.failure = None  # a line for the user
        self.start()

    @property
    def agent_steps(self):
        """T: the steps of all workers together."""
        return self.globalnet.T

    def start(self):
        """Start the clock."""
        self.started = time.monotonic()
        self.last_measured = self.agent_steps, self.seconds()
        self.measure_at = self.seconds() + 1

    def seconds(self):
        """Return the seconds of training so far."""
        return self.seconds_before + time.monotonic() - self.started

    # ------------------------------------------------------------------------------------- counting

    def count(self, steps, game=None, figures=None):
        """Count a rollout.

        Args:
            steps: its number of steps.
            game: None, or the `EndedGame` that ended with it.
            figures: None, or what was measured of its update.

        Returns:
            T, the steps of all workers together, with these as the last of them.
        """
        with self.lock:
            T, games = self.globalnet.count(steps, game)
            for game in games:
                self.add_game(T, *game)
            if figures:
                self._add_measured(T, figures)
            self.look_at_limits()  # before another game can take the running score back
            return T

    def add_game(self, T, worker, score, reward):
        """Add a game that ended to the curve; the caller holds the lock."""
        # a game that ends after --until-score was reached could take the running score back
        until = self.settings.until_score
        last = self.episodes[-1] if self.episodes else None
        over = last and until is not None and last.running_score >= until
        if len(self.episodes) >= self.settings.max_global_episodes or over:
            return
        self.episodes.append(
            Episode(
                episode=len(self.episodes),
                worker=worker,
                agent_steps=T,
                seconds=self.seconds(),
                score=score,
                reward=reward,
                running_score=moving(last and last.running_score, score),
                running_reward=moving(last and last.running_reward, reward),
            )
        )
        self._see(score)

    def restore(self, episodes, seconds):
        """Continue with these games of the curve, and seconds of training."""
        self.episodes, self.seconds_before = episodes, seconds
        self.look_back()

    def look_back(self):
        """Compute `lost` of the global network from the curve."""
        self.globalnet.lost = 1.0
        for episode in self.episodes:
            self._see(episode.score)

    def _see(self, score):
        self.globalnet.lost = 0.9 * self.globalnet.lost + 0.1 * (21 - score) / 42

    # ------------------------------------------------------------------------------------ measuring

    def measuring_is_due(self):
        """Return whether to measure an update: once every few seconds, to the first who asks."""
        if not self.measures or self.seconds() < self.measure_at:
            return False
        with self.lock:
            due = self.seconds() >= self.measure_at
            self.measure_at = self.seconds() + MEASURED_EVERY
            return due

    def _add_measured(self, T, figures):
        for name, figure in figures.items():
            if not math.isfinite(figure):
                self.fail(DIVERGED.format(what=f"the {name.replace('_', ' ')}", T=T))
        (steps, seconds), now = self.last_measured, (T, self.seconds())
        figures["steps_per_second"] = (now[0] - steps) / (now[1] - seconds)
        self.last_measured = now
        if self.globalnet.diverged():
            self.fail(DIVERGED.format(what="a weight", T=T))
        self.measured.append((T, figures))

    def take_measured(self):
        """Return what was measured since the last call, a list of (T, dict of figures)."""
        with self.lock:
            measured, self.measured = self.measured, []
            return measured

    # --------------------------------------------------------------------------------------- limits

    def look_at_limits(self):
        """Stop the run if a limit is used up, or if a cluster's run is over."""
        for limit in self.limits():
            if limit.used >= 1:
                self.stop(limit.words)
        if self.globalnet.ended:
            self.stop(self.globalnet.ended)

    def limits(self):
        """Yield each `Limit` that is set."""
        settings = self.settings
        games = settings.max_global_episodes
        used = len(self.episodes) / games
        yield Limit(used, f"{games:,} games played", "--max-global-episodes")
        if steps := settings.max_steps:
            yield Limit(self.agent_steps / steps, f"{steps:,} steps played", "--max-steps")
        if minutes := settings.max_minutes:
            used = self.seconds() / (60 * minutes)
            yield Limit(used, f"{minutes:g} minutes over", "--max-minutes")
        if settings.until_score is not None and self.episodes:
            reached = self.episodes[-1].running_score >= settings.until_score
            words = f"running score {settings.until_score:g} reached"
            yield Limit(float(reached), words, "--until-score")

    def fail(self, why):
        """Stop the run because of a fault; why: a line for the user."""
        self.failure = self.failure or why
        self.stop("failed")

    def stop(self, reason):
        """Ask all workers to stop after their present rollout."""
        self.stopped_because = self.stopped_because or reason
        self.coordinator.request_stop()
