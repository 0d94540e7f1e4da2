"""Asynchronous advantage actor-critic (A3C) on Pong.

Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", 2016 (arXiv 1602.01783),
algorithm S3, as the textbook chapter "Asynchronous Methods" writes it: one thread per core plays
Pong with its own copy of the network and changes the global one without waiting for the others.

    python a3c_pong.py                     train as the chapter does; Ctrl-C stops, draws the curve
    python a3c_pong.py --max-minutes 20    the same, for 20 minutes
    python a3c_pong.py --help              every setting

It prints a line for each game and leaves the curve, scores.csv and reward.png, in runs/<time>.
"""

import argparse
import contextlib
import csv
import dataclasses
import errno
import importlib.metadata
import json
import math
import multiprocessing
import os
import pathlib
import platform
import signal
import subprocess
import sys
import threading
import time
from typing import Literal, NamedTuple, get_args, get_origin

import matplotlib.figure
import numpy as np
import rich.console
import rich.progress

import pong_actor
from preprocessing import INPUT_SIZE

tf = None  # tensorflow.compat.v1, once `load_tensorflow` has run

# ----------------------------------------------------------------------------------------- settings


def setting(default, meaning):
    """A field of `Settings`: its default and its line in --help."""
    return dataclasses.field(default=default, metadata={"help": meaning})


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that can be set; the command line is made of it. In brackets: a default's origin."""

    env_id: str = setting("Pong-v0", "Gymnasium id of the Pong to play [chapter: game_env]")
    workers: int | None = setting(None, "threads; none: one per core [chapter: num_workers]")
    max_episodes: int = setting(100_000, "games to play [chapter: max_global_episodes]")
    max_steps: int | None = setting(None, "agent steps to play, of all workers together [ours]")
    max_minutes: float | None = setting(None, "minutes to train [ours]")
    until_score: float | None = setting(None, "running score, -21 to 21, to stop at [ours]")
    steps_per_update: int = setting(20, "steps of a rollout [chapter: global_iteration_update]")
    gamma: float = setting(0.9, "discount factor of the returns [chapter]")
    beta: float = setting(0.0001, "weight of the policy's entropy in the actor's loss [chapter]")
    lr_actor: float = setting(0.0001, "learning rate of the actor [chapter]")
    lr_critic: float = setting(0.0001, "learning rate of the critic [chapter]")
    lost_game_reward: float | None = setting(
        -20.0, "what a lost game's last reward is replaced by; none: nothing [chapter]"
    )
    seed: int | None = setting(None, "of all randomness; none: another each time [ours]")
    render: Literal["auto", "window", "never"] = setting(
        "auto", "show W_0's game; auto: where there is a screen [chapter: always]"
    )
    run_dir: str | None = setting(None, "folder to write to; none: a new one in runs/ [ours]")

    def check(self):
        """Raises ValueError, with one line for the user, where a value makes no sense."""
        must = {name: (lambda n: n >= 1, "at least 1") for name in
                ("workers", "max_episodes", "max_steps", "steps_per_update")}  # fmt: skip
        must |= {name: (lambda x: 0 < x < math.inf, "a number above 0") for name in
                 ("max_minutes", "lr_actor", "lr_critic")}  # fmt: skip
        must["gamma"] = lambda x: 0 <= x <= 1, "between 0 and 1"
        must["beta"] = lambda x: 0 <= x < math.inf, "0 or a number above"
        must["lost_game_reward"] = math.isfinite, "a number or none"
        must["until_score"] = lambda x: -21 <= x <= 21, "between -21 and 21"
        must["seed"] = lambda n: 0 <= n < 2**31, "between 0 and 2147483647"
        for name, (holds, words) in must.items():
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise ValueError(f"{option(name)} must be {words}, not {value}")


def option(name):
    """The command-line option of a field."""
    return "--" + name.replace("_", "-")


def shown(value):
    """A value as it is written on the command line."""
    return "none" if value is None else str(value)


def parse_settings(arguments):
    """The settings in a list of arguments; one line on stderr and status 2 for wrong ones."""

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            fail(message)

    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    for field in dataclasses.fields(Settings):
        kinds = get_args(field.type) or (field.type,)
        how = {"help": f"{field.metadata['help']} (default: {shown(field.default)})"}
        if get_origin(field.type) is Literal:
            how["choices"] = kinds
        else:
            how["type"], how["metavar"] = reader(*kinds), kinds[0].__name__.upper()
        parser.add_argument(option(field.name), default=field.default, **how)
    settings = Settings(**vars(parser.parse_args(arguments)))
    try:
        settings.check()
    except ValueError as error:
        fail(error)
    return settings


def reader(kind, none=None):
    """How a setting of this kind is read from the command line: as kind, or `none` if it may be."""

    def read(text):
        return None if none and text == "none" else kind(text)

    read.__name__ = kind.__name__  # argparse names it where the text is of another kind
    return read


def fail(message, status=2):
    """End the program with one line on stderr."""
    print(f"a3c_pong.py: {message}", file=sys.stderr)
    sys.exit(status)


# --------------------------------------------------------------------------------------- TensorFlow


def load_tensorflow():
    """Import TensorFlow as `tf`.

    It takes seconds and talks on stderr before any log level counts, so it is done when the
    settings are known to be good, and with that file descriptor pointing nowhere.
    """
    global tf
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # no gain on matrices of this size
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import tensorflow.compat.v1
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
    tf = tensorflow.compat.v1
    tf.logging.set_verbosity(tf.logging.ERROR)
    tf.disable_eager_execution()


def new_session():
    """A session whose work is done by the threads that call it."""
    one_thread = dict(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
    return tf.Session(config=tf.ConfigProto(**one_thread))


def make_callable(session, fetches, feeds):
    """A part of the graph as a function: values of feeds in, list of fetched tensors out.

    It runs on the calling thread and costs 10 us a call, where `Session.run` costs 100 and more.
    The way there is private to TensorFlow (Keras used it for years); where it is missing, the
    public way does the same, slower.
    """
    tensors = [fetch for fetch in fetches if isinstance(fetch, tf.Tensor)]
    operations = [fetch for fetch in fetches if not isinstance(fetch, tf.Tensor)]
    if not hasattr(session, "_make_callable_from_options"):
        run = session.make_callable(tensors + operations, feeds)
        return lambda *values: run(*values)[: len(tensors)]
    from tensorflow.core.protobuf import config_pb2

    options = config_pb2.CallableOptions(
        feed=[tensor.name for tensor in feeds],
        fetch=[tensor.name for tensor in tensors],
        target=[operation.name for operation in operations],
    )
    options.run_options.inter_op_thread_pool = -1  # the calling thread
    return session._make_callable_from_options(options)


# ----------------------------------------------------------------------------------------- networks


class ActorCriticNetwork:
    """The global network, or a worker's local copy with its losses and the traffic between them.

    A state is given by its active pixels. A pixel that is 0 adds nothing to `state @ kernel` and
    gets no gradient, so both are computed from the rows of the kernel that belong to a rollout's
    pixels: the same numbers from 100-300 rows instead of 6,400. The first layers of actor and
    critic see the same pixels, so their kernels stand side by side in one variable, where a row is
    one stretch of memory. All else is apart, as in the chapter.
    """

    UNITS = ACTOR_UNITS, CRITIC_UNITS = 300, 100

    def __init__(self, scope, session, num_actions, settings, globalAC=None):
        with tf.variable_scope(scope, use_resource=True):
            self.rows = tf.placeholder(tf.int32, [None], "rows")  # [U]
            self.s = tf.placeholder(tf.float32, [None, None], "state")  # [T + 1, U]
            self._build_net(num_actions)
            if globalAC is None:
                self._build_optimizers(settings)
            else:
                self.globalAC, self.pulled_at = globalAC, 0
                self._build_losses(settings)
                self._build_sync(session)

    def _build_net(self, num_actions):
        w_init, b_init = tf.random_normal_initializer(0.0, 0.1), tf.zeros_initializer()

        def network(name, layer, outputs):
            """A network from its layer's products on: (variables, output [T + 1, outputs])."""
            units = layer.shape[1]
            with tf.variable_scope(name):
                bias = tf.get_variable("bias", [units], initializer=b_init)
                head_kernel = tf.get_variable("head_kernel", [units, outputs], initializer=w_init)
                head_bias = tf.get_variable("head_bias", [outputs], initializer=b_init)
            layer = tf.nn.relu6(tf.nn.bias_add(layer, bias))
            return [bias, head_kernel, head_bias], tf.nn.bias_add(layer @ head_kernel, head_bias)

        self.kernel = tf.get_variable("kernel", [INPUT_SIZE, sum(self.UNITS)], initializer=w_init)
        self.kernel_rows = tf.gather(self.kernel, self.rows)  # [U, 400]
        l_a, l_c = tf.split(self.s @ self.kernel_rows, self.UNITS, axis=1)
        self.a_params, self.logits = network("actor_network", l_a, num_actions)
        self.c_params, self.v = network("critic_network", l_c, 1)  # state value [T + 1, 1]
        self.a_prob = tf.nn.softmax(self.logits)  # [T + 1, actions]

    def _build_optimizers(self, settings):
        """The two optimizers of the global network, and what goes with its kernel's rows."""
        self.actor_train = rmsprop(settings.lr_actor, "RMSPropOptimiserActor")
        self.critic_train = rmsprop(settings.lr_critic, "RMSPropOptimiserCritic")
        self.kernel_train = RowRMSProp(
            self.kernel, np.repeat([settings.lr_actor, settings.lr_critic], self.UNITS)
        )
        self.row_log = RowLog()

    def _build_losses(self, settings):
        """The chapter's losses, a number for each step of the rollout; the loss is their mean."""
        self.a_his = tf.placeholder(tf.int32, [None], "action")  # [T]
        self.rewards = tf.placeholder(tf.float32, [None], "discounted_rewards")  # [T]
        self.discounts = tf.placeholder(tf.float32, [None], "discounts")  # [T]
        v_s_ = tf.stop_gradient(self.v[-1, 0])  # value of the state after the last step
        v_target = self.rewards + self.discounts * v_s_
        td = v_target - self.v[:-1, 0]  # temporal difference error [T]
        self.c_losses = tf.square(td)
        # the chapter's log(softmax) is -inf at probability 0, its gradient NaN; this is neither
        log_prob = -tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=self.a_his, logits=self.logits[:-1]
        )  # [T]
        entropy = -tf.reduce_sum(self.a_prob * tf.log(self.a_prob + 1e-5), axis=1)[:-1]  # [T]
        self.a_losses = -(settings.beta * entropy + log_prob * tf.stop_gradient(td))

    def _build_sync(self, session):
        """Push, local gradients applied to the global network, and pull, the copy back."""
        theirs, params = self.globalAC, self.a_params + self.c_params
        mean = tf.placeholder(tf.float32, [None], "mean")  # [T], all 1 / T: makes losses their mean
        kernel_grad, *grads = tf.gradients(
            [self.a_losses, self.c_losses], [self.kernel_rows, *params], [mean, mean]
        )
        push = theirs.kernel_train.apply_gradients(kernel_grad, self.rows)
        push.append(theirs.actor_train.apply_gradients(zip(grads[:3], theirs.a_params)))
        push.append(theirs.critic_train.apply_gradients(zip(grads[3:], theirs.c_params)))

        kernel_rows = tf.gather(theirs.kernel, self.rows)
        values = [variable.read_value() for variable in theirs.a_params + theirs.c_params]
        pull = [tf.scatter_update(self.kernel, self.rows, kernel_rows).op]
        pull += [mine.assign(value).op for mine, value in zip(params, values)]

        rollout = [self.rows, self.s, self.a_his, self.rewards, self.discounts, mean]
        self._push = make_callable(session, push, rollout)
        self._pull = make_callable(session, [kernel_rows, *values[:3], *pull], [self.rows])
        self._catch_up = theirs.kernel_train.catch_up(session)

    def update_global(self, rollout, rewards, discounts):
        """Apply the local gradients of one rollout to the global network.

        Args:
            rollout: a `pong_actor.Rollout`.
            rewards, discounts: [T] float32, its returns as `discounted_returns` gives them.
        """
        row_log, steps = self.globalAC.row_log, len(rollout.actions)
        row_log.begin_update(rollout.rows, self._catch_up)
        states, mean = rollout.states.astype(np.float32), np.full(steps, 1 / steps, np.float32)
        self._push(rollout.rows, states, rollout.actions, rewards, discounts, mean)
        row_log.end_update(rollout.rows)

    def pull_global(self, policy):
        """Copy what has changed in the global network since the last pull.

        Args:
            policy: the actor's `pong_actor.PolicyWeights`; with the local network, what is written.
        """
        rows, self.pulled_at = self.globalAC.row_log.changed_since(self.pulled_at)
        kernel_rows, *values = self._pull(rows)
        policy.kernel[rows] = kernel_rows[:, : self.ACTOR_UNITS]
        for array, value in zip(policy[1:], values):
            array[...] = value


# ---------------------------------------------------------------------------------------- optimizer

# TF 1's RMSProp: epsilon stands inside the root, and mean squares start at ones. The decay is 0.9
# as float32 has it: powers of the double 0.9 would drift from what the dense optimizer multiplies.
DECAY, EPSILON = float(np.float32(0.9)), 1e-10


def rmsprop(learning_rate, name):
    """The chapter's optimizer, for all variables but the kernels over the pixels."""
    return tf.train.RMSPropOptimizer(learning_rate, DECAY, epsilon=EPSILON, name=name)


class RowRMSProp:
    """The same optimizer for the kernels over the pixels, touching only rows that got a gradient.

    The dense optimizer decays the mean square of every row at every update, and that is all it does
    to a row whose gradient is zero (momentum is 0). So a row touched again is decayed first for all
    the updates it missed, by `decay ** missed`: the same numbers, at the price of the rows touched.
    TensorFlow's own sparse RMSProp does not decay the rows it passes over, and Keras' starts at
    zero with epsilon outside the root: both are other optimizers.

    Workers update side by side without waiting for each other, as the chapter's do: where two read,
    compute and write the same row at once, what one of the two did to it is lost, its gradient and
    its decay. But a row's mean square and the number of the update that last touched it must not
    part: decayed with its old number left, it would be decayed again for the same updates, and
    numbered but not decayed, it would stay too large. So catching up, which changes both, is done
    under a lock. It is short, and the update itself, which follows, is not in it.
    """

    def __init__(self, kernel, learning_rates):
        """kernel: [6400, units], the global variable. learning_rates: [units], one per column."""
        self.kernel = kernel
        if len(set(learning_rates)) == 1:  # a scalar is multiplied four times as fast as a row
            learning_rates = learning_rates[0]
        self.learning_rates = tf.constant(learning_rates, tf.float32)
        ones = tf.ones(kernel.shape)
        self.mean_square = tf.get_variable("mean_square", initializer=ones, trainable=False)

    def catch_up(self, session):
        """A function that multiplies the mean squares of rows [n] by factors [n, 1]."""
        rows, factors = tf.placeholder(tf.int32, [None]), tf.placeholder(tf.float32, [None, 1])
        decayed = tf.gather(self.mean_square, rows) * factors
        operation = tf.scatter_update(self.mean_square, rows, decayed).op
        return make_callable(session, [operation], [rows, factors])

    def apply_gradients(self, g, rows):
        """Operations for one update of rows [U], caught up before, by gradients g [U, units]."""
        mean_square = DECAY * tf.gather(self.mean_square, rows) + (1 - DECAY) * tf.square(g)
        step = self.learning_rates * g * tf.math.rsqrt(mean_square + EPSILON)
        return [
            tf.scatter_update(self.mean_square, rows, mean_square).op,
            tf.scatter_update(self.kernel, rows, tf.gather(self.kernel, rows) - step).op,
        ]


class RowLog:
    """When an update last touched each row of the global kernels, and when it was in place."""

    def __init__(self):
        self.lock = threading.Lock()
        self.updates = 0
        self.touched_by = np.zeros(INPUT_SIZE, np.int64)  # number of the update
        self.clock = 1  # later than 0, "never pulled", so that a first pull takes every row
        self.changed_at = np.full(INPUT_SIZE, self.clock)  # by that clock

    def begin_update(self, rows, catch_up):
        """Number an update of rows [U] int32, and let them catch up with the updates they missed.

        catch_up: called with those that missed some [n] int32 and decay ** missed [n, 1] float32.
        """
        with self.lock:
            missed = self.updates - self.touched_by[rows]
            self.updates += 1
            self.touched_by[rows] = self.updates
            late = missed > 0
            catch_up(rows[late], (DECAY ** missed[late, np.newaxis]).astype(np.float32))

    def end_update(self, rows):
        """Say that the new weights of rows are in place.

        A pull that comes earlier copies what it finds, and again next time, this being later.
        """
        with self.lock:
            self.clock += 1
            self.changed_at[rows] = self.clock

    def changed_since(self, time):
        """The rows that have changed after that time, [n] int32, and the time now."""
        with self.lock:
            return (self.changed_at > time).nonzero()[0].astype(np.int32), self.clock


# ------------------------------------------------------------------------------------------ returns


def discounted_returns(rewards, terminal, gamma):
    """The returns of a rollout: R_t = r_t + gamma R_{t+1}, backwards from V of the state after it.

    V is the network's to say, so a return comes in two parts, rewards[t] + discounts[t] * V.
    Chapter: `for r in buffer_r[::-1]: v_s_ = r + gamma * v_s_`, from 0 at the end of a game.

    Args:
        rewards: list of T floats.
        terminal: whether the game is over.
        gamma: the discount factor.

    Returns:
        [2, T] float32: rewards and discounts.
    """
    v_s_, discount = 0.0, 0.0 if terminal else 1.0  # v_s_ + discount * V
    returns = []
    for r in reversed(rewards):
        v_s_, discount = r + gamma * v_s_, gamma * discount
        returns.append((v_s_, discount))
    return np.array(returns[::-1], np.float32).T


def learning_rewards(rollout, lost_game_reward):
    """The rewards to learn from, a list of T floats: the game's, but for the last of a lost game.

    Chapter: `if done and r <= 0: r = -20`. A game cut off by the frame limit is not a lost one.
    """
    rewards = rollout.rewards.tolist()
    if rollout.terminal and rewards[-1] <= 0 and lost_game_reward is not None:
        rewards[-1] = lost_game_reward
    return rewards


# ------------------------------------------------------------------------------------------ workers


class Worker:
    """A thread's agent: a local network, and an actor process that plays with its policy."""

    def __init__(self, name, AC, actors, run):
        """AC: its `ActorCriticNetwork`. actors: the `pong_actor.Actors` of all workers."""
        self.name, self.AC, self.actors, self.run = name, AC, actors, run
        self.total_step = 0

    def work(self):
        """The chapter's loop, a rollout at a time: play, learn, count, until the run stops."""
        coordinator, period = self.run.coordinator, self.run.settings.steps_per_update
        with coordinator.stop_on_exception():
            self._begin()
            while not coordinator.should_stop():
                try:
                    # as in the chapter: up to the worker's next multiple of 20, or the game's end
                    rollout = self.actor.play(period - self.total_step % period)
                except pong_actor.ActorDied as death:
                    if not coordinator.should_stop():
                        self.run.notices.append(self.actors.replace(self.name, death))
                        self._begin()
                    continue
                buffer_r = self._learn(rollout)
                self._count(rollout, buffer_r)

    def _begin(self):
        """Give the actor, the first one or one in a dead one's place, the policy; a game begins."""
        self.actor = self.actors[self.name]
        self.actors.share_core(self.name)
        self.AC.pulled_at = 0
        self.AC.pull_global(self.actor.policy)
        self.score = self.ep_r = 0

    def _learn(self, rollout):
        settings = self.run.settings
        buffer_r = learning_rewards(rollout, settings.lost_game_reward)
        returns = discounted_returns(buffer_r, rollout.terminal, settings.gamma)
        self.AC.update_global(rollout, *returns)
        self.AC.pull_global(self.actor.policy)
        return buffer_r

    def _count(self, rollout, buffer_r):
        steps = len(buffer_r)
        self.total_step += steps
        self.ep_r += sum(buffer_r)
        self.score += int(rollout.rewards.sum())
        if rollout.terminal or rollout.truncated:
            self.run.count(steps, (self.name, self.score, self.ep_r))
            self.score = self.ep_r = 0
        else:
            self.run.count(steps)


# ------------------------------------------------------------------------------------------ the run


class Episode(NamedTuple):
    """A row of scores.csv."""

    episode: int
    worker: str
    agent_steps: int  # of the whole run so far
    seconds: float  # of training so far
    score: int  # the game's, -21 to 21
    reward: float  # the chapter's, with its -20
    running_score: float
    running_reward: float  # the chapter's global_running_rate


def moving(mean, value):
    """The chapter's running mean; mean is None before the first value."""
    return value if mean is None else 0.99 * mean + 0.01 * value


class Run:
    """What the workers share besides the network: the counts, the curve, and when to stop."""

    def __init__(self, settings):
        self.settings = settings
        self.coordinator = tf.train.Coordinator()
        self.lock = threading.Lock()
        self.agent_steps = 0
        self.episodes = []  # the curve, a list of `Episode`
        self.notices = []  # lines for the user
        self.started = time.monotonic()
        self.stopped_because = None

    def seconds(self):
        """Seconds of training so far."""
        return time.monotonic() - self.started

    def count(self, steps, game=None):
        """Count a worker's steps, and the (worker, score, reward) of a game they ended."""
        with self.lock:
            self.agent_steps += steps
            if game and len(self.episodes) < self.settings.max_episodes:
                worker, score, reward = game
                last = self.episodes[-1] if self.episodes else None
                running_score = moving(last and last.running_score, score)
                running_reward = moving(last and last.running_reward, reward)
                where = len(self.episodes), worker, self.agent_steps, self.seconds()
                self.episodes.append(Episode(*where, score, reward, running_score, running_reward))
            self.look_at_limits()  # before another game can take the running score back

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

    def stop(self, reason):
        """Ask all workers to stop after the rollout they are at."""
        self.stopped_because = self.stopped_because or reason
        self.coordinator.request_stop()


def commit():
    """The commit of this script's checkout, with -dirty where it was changed; None elsewhere."""
    command = ["git", "-C", pathlib.Path(__file__).parent, "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


class RunFolder:
    """A run's folder: config.json, and scores.csv and reward.png, up to date as it goes on."""

    PLOTTED_EVERY = 60  # seconds

    def __init__(self, settings):
        """Make it. Raises OSError where that fails, FileExistsError where it holds a run."""
        self.path = pathlib.Path(settings.run_dir) if settings.run_dir else self._new()
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is not a folder", str(self.path))
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / "scores.csv", "x", newline="") as file:
            csv.writer(file).writerow(Episode._fields)
        self.rows, self.plotted = 0, time.monotonic()
        config = dict(settings=dataclasses.asdict(settings), command=sys.argv)
        config["commit"] = commit()
        config["machine"] = f"{multiprocessing.cpu_count()} cores, {platform.platform()}"
        packages = "tensorflow", "gymnasium", "ale-py", "numpy"
        config["versions"] = {name: importlib.metadata.version(name) for name in packages}
        (self.path / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    @staticmethod
    def _new():
        """A new folder under runs/, which no other run starting at this moment gets."""
        name = time.strftime("runs/%Y-%m-%d_%H-%M-%S")
        for path in map(pathlib.Path, [name] + [f"{name}_{k}" for k in range(2, 100)]):
            with contextlib.suppress(FileExistsError):
                path.mkdir(parents=True)
                return path
        raise FileExistsError(errno.EEXIST, "a hundred runs began this second", name)

    def discard(self):
        """Remove it again: the run has not begun."""
        (self.path / "scores.csv").unlink()
        (self.path / "config.json").unlink()
        with contextlib.suppress(OSError):  # it was the user's, and is not empty
            self.path.rmdir()

    def write(self, episodes, plot_now=False):
        """Append the new episodes to scores.csv, and now and then draw reward.png."""
        if len(episodes) > self.rows:
            with open(self.path / "scores.csv", "a", newline="") as file:
                for e in episodes[self.rows :]:
                    rounded = [round(x, 4) if isinstance(x, float) else x for x in e]
                    csv.writer(file).writerow(rounded)
                    self.rows += 1
        if plot_now or time.monotonic() - self.plotted > self.PLOTTED_EVERY:
            figure = matplotlib.figure.Figure(figsize=(8, 5), layout="constrained")
            draw_curve(figure.subplots(), episodes)
            figure.savefig(self.path / "reward.new.png")
            os.replace(self.path / "reward.new.png", self.path / "reward.png")  # never half of it
            self.plotted = time.monotonic()


# ------------------------------------------------------------------------------- what the user sees


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


# --------------------------------------------------------------------------------------------- main


def main(arguments=None):
    """The program: settings in, a trained network's curve out. Returns the exit status."""
    settings = parse_settings(arguments)
    signals = Signals()
    if settings.seed is None:  # drawn here, so that config.json has it
        settings = dataclasses.replace(settings, seed=int.from_bytes(os.urandom(3)))
    actors = folder = None
    try:
        try:
            num_actions = pong_actor.num_actions(settings.env_id)
            sizes = settings.steps_per_update, ActorCriticNetwork.ACTOR_UNITS, num_actions
            actors = pong_actor.Actors(settings.env_id, settings.seed, sizes)
            in_window = start_actors(actors, settings)
            folder = RunFolder(settings)
        except ValueError as error:
            fail(error)
        except FileExistsError:
            fail(f"{settings.run_dir} holds a run already; a new run needs a folder of its own")
        except OSError as error:
            fail(f"cannot write to {error.filename}: {error.strerror}")
        load_tensorflow()  # takes seconds, while the actors start
        run, session = Run(settings), new_session()
        workers = build(session, run, actors)
        signals.starting = False
        return train(run, workers, actors, folder, in_window, signals)
    except KeyboardInterrupt:  # a signal during start-up
        signals.starting = False
        if folder:
            folder.discard()
        return signals.status()
    except pong_actor.ActorsKeepDying as error:
        fail(error, status=1)
    finally:
        if actors:
            actors.close()


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

    def status(self):
        """The exit status they make: 130 for Ctrl-C, as shells have it, else 0."""
        return 130 if self[:1] == [signal.SIGINT] else 0


def start_actors(actors, settings):
    """Start an actor for each worker, W_0's in a window if wanted and possible; whether it is."""
    screen = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    in_window = settings.render == "window" or (settings.render == "auto" and screen)
    workers = settings.workers or multiprocessing.cpu_count()
    if in_window:
        actors.start("W_0", window=True)
        try:
            actors["W_0"].wait_until_ready()
        except pong_actor.ActorDied:
            if settings.render == "window":
                fail("--render window: there is no screen that the emulator can open a window on")
            in_window, actors.started = False, 0  # as if it had not been tried
    # In a window W_0 plays 60 frames a second and learns little, so that there is one worker more.
    for number in range(in_window, workers + in_window):
        actors.start(f"W_{number}")
    return in_window


def build(session, run, actors):
    """The graph, globalnet and a local copy for each worker, with initial weights; the workers."""
    tf.set_random_seed(actors.seed)
    num_actions, workers = actors.sizes[-1], []
    with tf.device("/cpu:0"):
        globalAC = ActorCriticNetwork("globalnet", session, num_actions, run.settings)
        for name in actors:
            AC = ActorCriticNetwork(name, session, num_actions, run.settings, globalAC)
            workers.append(Worker(name, AC, actors, run))
        session.run(tf.global_variables_initializer())
    return workers


def train(run, workers, actors, folder, in_window, signals):
    """Run the workers' threads until something stops them, showing and saving; the exit status."""
    console = rich.console.Console(highlight=False, markup=False, soft_wrap=True)
    cores = multiprocessing.cpu_count()
    console.print(f"{len(workers)} workers on {cores} cores, curve in {folder.path}, Ctrl-C stops")
    window, display = RewardWindow() if in_window else None, Display(console, run)
    if window and not window.figure:
        console.print("no window for the plot: Matplotlib finds no toolkit, such as python3-tk")
    threads = [threading.Thread(target=worker.work, name=worker.name) for worker in workers]
    run.started = time.monotonic()
    try:
        with display.bar:
            for thread in threads:
                thread.start()
            while not run.coordinator.wait_for_stop(0.25):
                if signals:
                    name = signal.Signals(signals[0]).name
                    run.stop("Ctrl-C" if name == "SIGINT" else name)
                    break
                run.look_at_limits()
                display.refresh()
                folder.write(run.episodes)
                if window:
                    window.refresh(run.episodes)
            stop_workers(threads, actors)
            display.refresh()
    finally:
        run.coordinator.request_stop()
        folder.write(run.episodes, plot_now=True)
    run.coordinator.join(threads)  # raises what a worker has raised
    played = f"{len(run.episodes):,} games, {run.agent_steps:,} steps in {duration(run.seconds())}"
    console.print(f"{run.stopped_because}: {played}; curve in {folder.path}/reward.png")
    status = signals.status()
    if window and set(signals) <= {signal.SIGINT}:
        window.leave_standing(run.episodes, signals)
    return status


def stop_workers(threads, actors):
    """Wait for the threads to end their rollouts; cut off what takes more than a second."""
    deadline = time.monotonic() + 1
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    actors.close()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
