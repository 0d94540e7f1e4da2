"""A run: what its workers share besides the network, and how it is begun, kept and gone on with."""

import contextlib
import dataclasses
import functools
import os
import signal
import threading
import time

import numpy as np

import pong_actor
from preprocessing import INPUT_SIZE
from runtime import checkpoints
from runtime.checkpoints import Episode
from runtime.command_line import CHANGEABLE, fail, option, resumed_settings
from runtime.display import draw_curve, duration
from runtime.graph import global_variables, make_callable, tf

# ------------------------------------------------------------------------------------------ the run


class Gate:
    """Which workers go through for each rollout, and which closes for a checkpoint.

    A checkpoint is of a moment between two rollouts of every worker: no update is half done, and
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
        """Let all come out and none in; whether all came out within so many seconds."""
        with self.changed:
            self.shut = True
            empty = self.changed.wait_for(lambda: self.inside == 0, seconds)
        try:
            yield empty
        finally:
            with self.changed:
                self.shut = False
                self.changed.notify_all()


def moving(mean, value):
    """The chapter's running mean; mean is None before the first value."""
    return float(value) if mean is None else 0.99 * mean + 0.01 * value


MEASURED_EVERY = 5  # seconds, for TensorBoard


class Run:
    """What the workers share besides the network: the counts, the curve, and when to stop."""

    def __init__(self, settings):
        self.settings = settings
        self.coordinator = tf.train.Coordinator()
        self.lock, self.gate = threading.Lock(), Gate()
        self.agent_steps = 0
        self.episodes = []  # the curve, a list of `Episode`
        self.lost = 1.0  # the share of points lost lately: 1 at a score of -21, 0 at 21
        self.notices = []  # lines for the user
        self.seconds_before = 0.0  # when the run was resumed
        self.measured = []  # (agent steps, dict of figures)
        self.stopped_because = None
        self.start()

    def start(self):
        """Start the clock."""
        self.started = time.monotonic()
        self.last_measured = self.agent_steps, self.seconds()
        self.measure_at = self.seconds() + 1

    def restore(self, arrays, about):
        """Go on with a checkpoint's curve and counts."""
        self.episodes = checkpoints.curve_of(arrays)
        self.look_back()
        self.agent_steps, self.seconds_before = about["agent_steps"], about["seconds"]

    def seconds(self):
        """Seconds of training so far."""
        return self.seconds_before + time.monotonic() - self.started

    def measuring_is_due(self):
        """Whether an update is to be measured; of those that ask, the first is told so."""
        if self.seconds() < self.measure_at:
            return False
        with self.lock:
            due = self.seconds() >= self.measure_at
            self.measure_at = self.seconds() + MEASURED_EVERY
            return due

    def add_measured(self, figures):
        """Add the figures of an update."""
        with self.lock:
            (steps, seconds), now = self.last_measured, (self.agent_steps, self.seconds())
            figures["steps_per_second"] = (now[0] - steps) / (now[1] - seconds)
            self.last_measured = now
            self.measured.append((self.agent_steps, figures))

    def take_measured(self):
        """What has been measured since the last call."""
        with self.lock:
            measured, self.measured = self.measured, []
            return measured

    def annealed(self):
        """How much of their way to 0 the learning rates have gone, 0 to 1."""
        steps = self.settings.anneal_steps
        return min(1, self.agent_steps / steps) if steps else 0

    def beta(self):
        """The entropy's weight by now: who loses less explores less."""
        return self.settings.beta * self.lost**self.settings.beta_power

    def count(self, steps, game=None):
        """Count a worker's steps, and the (worker, score, reward) of a game they ended.

        Returns the workers' steps together, T, with these as the last of them.
        """
        with self.lock:
            self.agent_steps += steps
            T = self.agent_steps
            if game:
                self._add_episode(T, *game)
            self.look_at_limits()  # before another game can take the running score back
            return T

    def _add_episode(self, T, worker, score, reward):
        # those that end after the game that reached --until-score could take it back
        over = self.stopped_because and self.settings.until_score is not None
        if len(self.episodes) < self.settings.max_episodes and not over:
            last = self.episodes[-1] if self.episodes else None
            running_score = moving(last and last.running_score, score)
            running_reward = moving(last and last.running_reward, reward)
            where = len(self.episodes), worker, T, self.seconds()
            self.episodes.append(Episode(*where, score, reward, running_score, running_reward))
            self._see(score)

    def look_back(self):
        """Find by the curve what share of the points has been lost lately."""
        self.lost = 1.0
        for episode in self.episodes:
            self._see(episode.score)

    def _see(self, score):
        self.lost = 0.9 * self.lost + 0.1 * (21 - score) / 42

    def look_at_limits(self):
        """Stop where one is used up."""
        for used, words in self.limits():
            if used >= 1:
                self.stop(words)

    def limits(self):
        """For each limit set: how much of it is used up, 1 being all, and words for that."""
        settings = self.settings
        yield len(self.episodes) / settings.max_episodes, f"{settings.max_episodes:,} games played"
        if settings.max_steps:
            yield self.agent_steps / settings.max_steps, f"{settings.max_steps:,} steps played"
        if settings.max_minutes:
            used = self.seconds() / (60 * settings.max_minutes)
            yield used, f"{settings.max_minutes:g} minutes over"
        if settings.until_score is not None and self.episodes:
            reached = self.episodes[-1].running_score >= settings.until_score
            yield float(reached), f"running score {settings.until_score:g} reached"

    def attend(self, folder, display):
        """What the main thread is to do now and then, besides showing and saving."""

    def stop(self, reason):
        """Ask all workers to stop after the rollout they are at."""
        self.stopped_because = self.stopped_because or reason
        self.coordinator.request_stop()


# -------------------------------------------------------------------------------------- checkpoints

# What a run resumed needs to go on exactly: weights and mean squares, the row log, the curve, the
# counts, and of each worker its counts and its actor's game. A window's game is not kept: W_0 is at
# it for a second and more at a time, and begins another one.


class Snapshots:
    """What makes a checkpoint of the run, for which it holds up the workers as briefly as it can.

    Copying kernels and mean squares, 20 MB and more, takes 40 ms and more. So it is done while the
    workers go on, and when they stand still only the rows are copied again that have changed
    meanwhile.
    """

    def __init__(self, session, run, workers):
        globalAC, variables = workers[0].AC.globalAC, global_variables()
        self.run, self.workers, self.row_log = run, workers, globalAC.row_log
        kernels = [globalAC.net.kernel.op.name, globalAC.kernel_train.mean_square.op.name]
        kernels = {name: variables.pop(name) for name in kernels}
        self.kernels = {name: np.empty(v.shape, v.dtype.as_numpy_dtype)
                        for name, v in kernels.items()}  # fmt: skip
        rows = tf.placeholder(tf.int32, [None])
        gathered = [tf.gather(kernel, rows) for kernel in kernels.values()]
        self._rows = make_callable(session, gathered, [rows])
        self.names = list(variables)
        self._others = make_callable(session, [v.read_value() for v in variables.values()], [])
        self.pulled_at = 0

    def _pull(self):
        """Copy the rows that have changed since the last time."""
        rows, self.pulled_at = self.row_log.changed_since(self.pulled_at)
        for array, values in zip(self.kernels.values(), self._rows(rows)):
            array[rows] = values

    def take(self):
        """The (arrays, about) of a checkpoint, or None if a worker could not be held up.

        The arrays hold until the next one is taken.
        """
        for _ in range(2):  # in the second time the workers do less than in the first
            self._pull()
        with self.run.gate.closed() as empty:
            return self._take() if empty else None

    def take_last(self):
        """The same when no worker's thread is left."""
        self.pulled_at = 0  # one may have failed in the middle of an update
        return self._take()

    def _take(self):
        run, playing, counts = self.run, {}, {}
        for worker in self.workers:
            actor = worker.actor
            if actor and not actor.window:
                actor.ask_for_state()
                playing[worker] = actor
        self._pull()
        arrays = self.kernels | {name: np.array(x) for name, x in zip(self.names, self._others())}
        arrays["row_log/touched_by"] = self.row_log.touched_by.copy()
        for worker in self.workers:
            game = worker.game  # which it is to go on with, and has not begun with
            if worker in playing:
                game = None
                with contextlib.suppress(pong_actor.ActorDied):  # its worker will find out
                    game = playing[worker].state()
            if game is not None:
                arrays[f"actor/{worker.name}"] = game
            score, ep_r = (0, 0) if game is None else (worker.score, worker.ep_r)
            counts[worker.name] = dict(total_step=worker.total_step, score=score, ep_r=ep_r)
        about = dict(updates=self.row_log.updates, agent_steps=run.agent_steps)
        about.update(seconds=run.seconds(), games=len(run.episodes), workers=counts)
        return arrays, about


def misfit(method, arrays, about):
    """What keeps a checkpoint from this method's graph, in words, or None."""
    if about["method"] != method:
        return f"it is of the method {about['method']}, not {method}"
    for name, variable in global_variables().items():
        if name not in arrays or list(arrays[name].shape) != variable.shape.as_list():
            return f"it is of another network: {name}"
    return None


def restore(session, workers, run, arrays, about):
    """Go on from a checkpoint that fits."""
    initializers = {name: v.initializer for name, v in global_variables().items()}
    values = {operation.inputs[1]: arrays[name] for name, operation in initializers.items()}
    session.run(list(initializers.values()), values)
    row_log = workers[0].AC.globalAC.row_log
    row_log.touched_by[:], row_log.updates = arrays["row_log/touched_by"], about["updates"]
    run.restore(arrays, about)
    then, now = about["versions"]["ale-py"], checkpoints.versions()["ale-py"]
    if then != now:
        run.notices.append(f"ale-py was {then} and is {now}: every worker begins a new game")
    for worker in workers:
        for name, count in about["workers"].get(worker.name, {}).items():
            setattr(worker, name, count)
        if then == now:
            worker.game = arrays.get(f"actor/{worker.name}")


def keep(snapshot, run, actors, folder):
    """Write a snapshot as a checkpoint; whether that was possible."""
    arrays, about = snapshot
    folder.write(run.episodes)  # scores.csv is never behind a checkpoint
    episodes = run.episodes[: about["games"]]
    arrays.update(checkpoints.curve_arrays(episodes))
    for name in "running_score", "running_reward":
        about[name] = getattr(episodes[-1], name) if episodes else None
    about.update(method=run.settings.method, actions=actors.game.num_actions)
    about.update(actors_started=actors.started)
    about.update(settings=dataclasses.asdict(run.settings), versions=checkpoints.versions())
    return folder.write_checkpoint(arrays, about)


def resume(path, given, notices):
    """A run to go on with: (its `RunFolder`, its settings, its newest checkpoint or None).

    Raises ValueError, InUse, OSError.
    """
    for name in given:
        if name not in CHANGEABLE:
            raise ValueError(f"{option(name)} belongs to the run: it cannot change on the way")
    folder = checkpoints.RunFolder.existing(path, notices, draw_curve)
    kept = None
    if checkpoints.paths(path):
        kept = checkpoints.load_newest(path)
        notices.extend(kept[3])
    else:
        notices.append(f"{path} has no checkpoint yet: the run begins at its beginning")
    settings = resumed_settings(folder, kept[2]["settings"] if kept else {}, given, notices)
    return folder, settings, kept


def go_on(run, folder, kept, restore):
    """Bring the run to where its newest checkpoint that fits was taken, its files too.

    restore: called with arrays and about.
    """
    path = None
    if kept:
        fits = functools.partial(misfit, run.settings.method)
        if fits(*kept[1:3]):
            try:
                kept = checkpoints.load_newest(folder.path, fits)
            except ValueError as error:
                fail(error)
            run.notices.extend(kept[3])
        path, arrays, about, _ = kept
        restore(arrays, about)
        played = f"{about['games']:,} games, {about['agent_steps']:,} steps"
        run.notices.append(f"going on from {path}: {played} in {duration(about['seconds'])}")
    folder.go_on(path, dataclasses.asdict(run.settings), run.episodes, run.agent_steps)


# --------------------------------------------------------------------------- beginning and stopping


class Signals(list):
    """The signals that asked the run to stop. During start-up, one raises KeyboardInterrupt."""

    def __init__(self):
        super().__init__()
        self.starting = True
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves SIGHUP
                signal.signal(number, self._receive)

    def _receive(self, number, frame):
        self.append(number)
        if number == signal.SIGHUP:  # there is no terminal to write to any more
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        if self.starting:
            raise KeyboardInterrupt

    def name(self):
        """The first one's, as the user knows it."""
        name = signal.Signals(self[0]).name
        return "Ctrl-C" if name == "SIGINT" else name

    def status(self):
        """The exit status they make: 130 for Ctrl-C, as shells have it, else 0."""
        return 130 if self[:1] == [signal.SIGINT] else 0


def new_actors(network, settings):
    """The `pong_actor.Actors` of a run, none of them started. network: the method's class."""
    game = pong_actor.game(settings.env_id)
    inputs = settings.frames * INPUT_SIZE
    sizes = settings.steps_per_update, inputs, network.POLICY_UNITS
    return pong_actor.Actors(game, settings.seed, sizes, network.CHOOSES_AHEAD)


def start_actors(actors, settings, first=0):
    """Start an actor for each worker, W_0's in a window if wanted and possible; whether it is.

    first: the first worker's number.
    """
    screen = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    in_window = settings.render == "window" or (settings.render == "auto" and screen)
    workers = settings.workers or len(pong_actor.allowed_cores())
    if in_window:
        actors.start("W_0", window=True)
        try:
            actors["W_0"].wait_until_ready()
        except pong_actor.ActorDied:
            if settings.render == "window":
                fail("--render window: there is no screen that the emulator can open a window on")
            in_window, actors.started = False, actors.started - 1  # as if it had not been tried
    # In a window W_0 plays 60 frames a second and learns little, so that there is one worker more.
    for number in range(in_window, workers + in_window):
        actors.start(f"W_{first + number}")
    return in_window


def start_later(workers):
    """A thread for each worker, which does not keep the process from ending."""
    return [threading.Thread(target=w.work, name=w.name, daemon=True) for w in workers]


def stop_workers(threads, actors):
    """Wait for the threads to end their rollouts; cut off what takes more than a second.

    One that waits for an answer from another machine is left where it is.
    """
    deadline = time.monotonic() + 1
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    for thread in threads:
        if thread.is_alive():
            actors[thread.name].close()
        thread.join(5)
