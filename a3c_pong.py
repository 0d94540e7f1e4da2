"""Asynchronous advantage actor-critic (A3C) on Pong, and the chapter's three methods beside it.

Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", 2016 (arXiv 1602.01783), as the
textbook chapter "Asynchronous Methods" writes it: one thread per core plays Pong with its own copy
of the network and changes the global one without waiting for the others.

    python a3c_pong.py                     train as the chapter does; Ctrl-C stops, draws the curve
    python a3c_pong.py --max-minutes 20    the same, for 20 minutes
    python a3c_pong.py --resume RUN        go on with the run in that folder
    python a3c_pong.py --play runs/NAME    show what a run has learned; --evaluate measures it
    TF_CONFIG=... python a3c_pong.py       be one of several machines' processes (see the README)
    python a3c_pong.py --help              every setting

It prints a line for each game and leaves the curve, scores.csv and reward.png, and checkpoints to
go on from, in runs/<time>.
"""

import dataclasses
import functools
import os
import signal
import sys
import threading
import time
from typing import Any, NamedTuple

import numpy as np
import rich.console

import pong_actor
from cluster import member as members
from cluster import parameter_server as cluster
from preprocessing import INPUT_SIZE
from runtime import checkpoints
from runtime import playback as watch
from runtime.command_line import Settings, fail, parse_settings
from runtime.display import RewardWindow, draw, draw_curve, duration, new_display
from runtime.graph import load_tensorflow, make_callable, new_session, tf
from runtime.run import (
    Run,
    Signals,
    Snapshots,
    go_on,
    keep,
    new_actors,
    restore,
    resume,
    start_actors,
    start_later,
    stop_workers,
)

# ----------------------------------------------------------------------------------------- networks


def w_init(number):
    """The chapter's initialiser. number: its seed, beside the run's, so that order is no matter."""
    return tf.random_normal_initializer(0.0, 0.1, seed=number)


class Head(NamedTuple):
    """What a network has for itself: a layer over the pixels, and outputs over that."""

    units: int  # of the layer
    outputs: int
    learning_rate: float


class Net(NamedTuple):
    """The variables and outputs of networks that see the same state."""

    kernel: Any  # [inputs, units]: the kernels of their first layers, side by side
    kernel_rows: Any  # [U, units]: those of a rollout's pixels
    params: dict  # name -> its other variables: bias, head_kernel, head_bias
    outputs: dict  # name -> [T + 1, outputs]

    def all_params(self):
        """All variables but the kernel, in one list."""
        return [variable for group in self.params.values() for variable in group]


class Network:
    """The global network, or a worker's local copy with its losses and the traffic between them.

    A state is given by its active pixels. A pixel that is 0 adds nothing to `state @ kernel` and
    gets no gradient, so both are computed from the rows of the kernel that belong to a rollout's
    pixels: the same numbers from 100-300 rows instead of 6,400. Where a method has two networks,
    an actor and a critic, their first layers see the same pixels, so that their kernels stand side
    by side in one variable, where a row is one stretch of memory. All else is apart.

    What makes a method is in the classes below: its networks (`heads`, the policy's first), its
    losses (`_build_losses`), what a state is worth to a return that ends before the game does
    (`bootstrap_values`), how far returns look ahead (`lambda_`), and how the actor explores
    (`exploration`, `CHOOSES_AHEAD`). Where the global network is on other machines, the traffic is
    another one, `members.Replica`.
    """

    DTYPE = "float32"
    POLICY_UNITS = 300  # of the chapter's actor, and of the Q-networks
    CHOOSES_AHEAD = False  # whether the action after a rollout is chosen before the update

    def __init__(self, scope, session, num_actions, settings, globalAC=None):
        """globalAC: for a local copy, the global network."""
        self.num_actions, self.settings, self.globalAC = num_actions, settings, globalAC
        with tf.variable_scope(scope, use_resource=True, dtype=self.DTYPE):
            self.rows = tf.placeholder(tf.int32, [None], "rows")  # [U]
            self.s = tf.placeholder(self.DTYPE, [None, None], "state")  # [T + 1, U]
            self.net = self._build_net()
            if globalAC is None:
                self._build_global(session)
            else:
                self.pulled_at = 0
                self._build_sync(session)

    def _build_net(self):
        """A `Net` for the state, of new variables or, where the scope is reused, of its own."""
        b_init = tf.zeros_initializer()
        inputs, units = INPUT_SIZE * self.settings.frames, [h.units for h in self.heads().values()]
        kernel = tf.get_variable("kernel", [inputs, sum(units)], initializer=w_init(0))
        net = Net(kernel, tf.gather(kernel, self.rows), {}, {})
        layers = tf.split(self.s @ net.kernel_rows, units, axis=1)  # [T + 1, n]
        heads = self.heads().items()
        for number, (layer, (name, (n, outputs, _))) in enumerate(zip(layers, heads), 1):
            with tf.variable_scope(name):
                bias = tf.get_variable("bias", [n], initializer=b_init)
                shape = [n, outputs]
                head_kernel = tf.get_variable("head_kernel", shape, initializer=w_init(number))
                head_bias = tf.get_variable("head_bias", [outputs], initializer=b_init)
            layer = tf.nn.relu6(tf.nn.bias_add(layer, bias))
            net.params[name] = [bias, head_kernel, head_bias]
            net.outputs[name] = tf.nn.bias_add(layer @ head_kernel, head_bias)
        return net

    def _build_global(self, session):
        """The optimizers: the chapter's for each network, and the same for the kernel's rows."""
        settings, heads = self.settings, self.heads()
        self.annealed = tf.placeholder(tf.float32, [], "annealed")  # 0 to 1
        self.trains = {
            name: tf.train.RMSPropOptimizer(
                head.learning_rate * (1 - self.annealed), settings.rmsprop_decay,
                epsilon=settings.rmsprop_epsilon, name=f"RMSPropOptimiser_{name}",
            ) for name, head in heads.items()
        }  # fmt: skip
        rates = np.concatenate([np.full(h.units, h.learning_rate) for h in heads.values()])
        self.kernel_train = RowRMSProp(self.net.kernel, rates, 1 - self.annealed, settings)
        self.row_log = RowLog(int(self.net.kernel.shape[0]))

    def _build_sync(self, session):
        """Push, local gradients applied to the global network, and pull, the copy back."""
        # a rollout's steps, and one more for the state after it, which counts for nothing: a slice
        # here costs another one in the gradient
        self.a_his = tf.placeholder(tf.int32, [None], "action")  # [T + 1]
        rewards = tf.placeholder(self.DTYPE, [None, 1], "rewards")  # [T + 1, 1]
        weights = tf.placeholder(self.DTYPE, [None, None], "weights")  # [T + 1, T + 1]
        each = tf.placeholder(self.DTYPE, [None, 1], "each")  # [T + 1, 1]: of a step in the loss
        self.beta = tf.placeholder(self.DTYPE, [], "beta")
        self.v_target = rewards + weights @ tf.stop_gradient(self.bootstrap_values())
        losses = self._build_losses()
        terms = [term for terms in losses.values() for term in terms]
        # of the loss, the sum over steps and terms of each * weight * term: tf.gradients multiplies
        # by what it is given in the third place, which saves the product and its gradient
        kernel_grad, *grads = tf.gradients(
            [term for term, _ in terms],
            [self.net.kernel_rows, *self.net.all_params()],
            [each * weight for _, weight in terms],
        )
        figures = {name: sum(term * weight for term, weight in terms)
                   for name, terms in losses.items()} | self.figures()  # fmt: skip
        self.measured = {name: tf.reduce_mean(figure[:-1]) for name, figure in figures.items()}
        self.measured["gradient_norm"] = tf.linalg.global_norm([kernel_grad, *grads])
        returns = [rewards, weights, each, self.beta]
        feeds = [self.rows, self.s, self.a_his, *returns, self.globalAC.annealed]
        self._build_traffic(session, feeds, kernel_grad, grads)

    def _build_traffic(self, session, feeds, kernel_grad, grads):
        """Functions that push the gradients of what is fed, and pull."""
        theirs = self.globalAC
        push = theirs.apply_gradients(kernel_grad, self.rows, grads)

        kernel_rows = tf.gather(theirs.net.kernel, self.rows)
        copies = [variable.read_value() for variable in theirs.net.all_params()]
        pull = [tf.scatter_update(self.net.kernel, self.rows, kernel_rows).op]
        pull += [mine.assign(copy).op for mine, copy in zip(self.net.all_params(), copies)]

        self._push = make_callable(session, push, feeds)
        self._push_and_measure = make_callable(session, [*self.measured.values(), *push], feeds)
        self._pull = make_callable(session, [kernel_rows, *copies[:3], *pull], [self.rows])
        self._catch_up = theirs.kernel_train.catch_up(session)

    def apply_gradients(self, kernel_grad, rows, grads):
        """Operations for one update of the global network, rows [U] of its kernel caught up before.

        kernel_grad, grads: [U, units], and those of `Net.all_params`.
        """
        push = self.kernel_train.apply_gradients(kernel_grad, rows)
        for name, group in self.net.params.items():
            mine, grads = grads[: len(group)], grads[len(group) :]
            push.append(self.trains[name].apply_gradients(zip(mine, group)))
        return push

    def update_global(self, rollout, rewards, weights, *, annealed=0.0, beta=None, measured=None):
        """Apply the local gradients of one rollout to the global network.

        Args:
            rollout: a `pong_actor.Rollout`.
            rewards, weights: [T] and [T, T], its returns as `lambda_returns` gives them.
            annealed: 0 to 1, how much of their way to 0 the learning rates have gone.
            beta: the entropy's weight; None: the setting's.
            measured: dict to write the update's losses and the like to, for TensorBoard.
        """
        row_log = self.globalAC.row_log
        row_log.begin_update(rollout.rows, self._catch_up)
        fed = self._fed(rollout, rewards, weights, annealed, beta)
        if measured is None:
            self._push(*fed)
        else:
            measured.update(zip(self.measured, map(float, self._push_and_measure(*fed))))
        row_log.end_update(rollout.rows)

    def _fed(self, rollout, rewards, weights, annealed, beta):
        """The values that a push is fed."""
        steps = len(rollout.actions)
        states = rollout.states.astype(self.DTYPE)
        actions = np.append(rollout.actions, np.int32(rollout.next_action))
        padded = [np.zeros((steps + 1, n), self.DTYPE) for n in (1, steps + 1, 1)]
        padded[0][:-1, 0], padded[1][:-1, 1:] = rewards, weights
        padded[2][:-1] = 1 if self.sums() else 1 / steps
        beta = np.asarray(self.settings.beta if beta is None else beta, self.DTYPE)
        return rollout.rows, states, actions, *padded, beta, np.float32(annealed)

    def pull_global(self, policy):
        """Copy what has changed in the global network since the last pull.

        Args:
            policy: the actor's `pong_actor.PolicyWeights`; with the local network, what is written.
        """
        rows, self.pulled_at = self.globalAC.row_log.changed_since(self.pulled_at)
        kernel_rows, *params = self._pull(rows)
        self._hand_over(policy, rows, kernel_rows, params)

    def _hand_over(self, policy, rows, kernel_rows, params):
        """Give the actor what has changed."""
        policy.kernel[rows] = kernel_rows[:, : self.POLICY_UNITS]
        for array, value in zip(policy[1:], params):
            array[...] = value

    def share(self, run, policy, steps, game):
        """Let the other workers know of a rollout, and learn of theirs.

        Args:
            run: the `Run`, to count in.
            policy: as for `pull_global`.
            steps: of the rollout.
            game: None, or the (worker, score, reward) of one that ended with it.
        """
        self.pull_global(policy)
        T = run.count(steps, game)
        self.at_steps(T - steps, T)

    def at_steps(self, before, after):
        """Told of every stretch of T, the workers' steps together, after it was played."""

    def sums(self):
        """Whether a loss is the sum over a rollout's steps, or their mean."""
        return self.settings.loss == "sum"

    def _build_losses(self):
        """Name of a loss -> its terms, [T + 1, 1], and what each counts, a number or [T + 1, 1].

        The gradient is told so, not asked for a sum: TensorFlow's gradients of sums and products
        look at shapes at every update.
        """
        raise NotImplementedError

    def figures(self):
        """What else to measure, beside the losses: name -> tensor."""
        return {}

    def exploration(self, number, seed, frames_per_step):
        """A function from T to a worker's epsilon; None where it draws from the policy."""
        return lambda T: None


class ActorCriticNetwork(Network):
    """The chapter's: an actor, the policy, and a critic, which says what a state is worth."""

    def heads(self):
        """Name of a network -> its `Head`."""
        settings, units = self.settings, self.POLICY_UNITS
        return {
            "actor_network": Head(units, self.num_actions, settings.lr_actor),
            "critic_network": Head(100, 1, settings.lr_critic),
        }

    @property
    def lambda_(self):
        """1, the chapter's, or another: generalized advantage estimation."""
        return self.settings.gae_lambda

    def _build_net(self):
        net = super()._build_net()
        self.a_params, self.c_params = net.params.values()
        self.logits, self.v = net.outputs.values()  # [T + 1, actions], and state value [T + 1, 1]
        self.a_prob = tf.nn.softmax(self.logits)
        return net

    def bootstrap_values(self):
        """[T + 1, 1]"""
        return self.v

    def _build_losses(self):
        """The chapter's losses: td ** 2, and -(log_prob * td + beta * entropy)."""
        td = self.v_target - self.v  # temporal difference error [T + 1, 1]
        # the chapter's log(softmax) is -inf at probability 0, its gradient NaN; this is neither
        minus_log_prob = tf.expand_dims(tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=self.a_his, logits=self.logits
        ), 1)  # [T + 1, 1]  # fmt: skip
        ones = tf.ones([self.num_actions, 1], self.DTYPE)
        self.entropy = -(self.a_prob * tf.log(self.a_prob + 1e-5)) @ ones  # [T + 1, 1]
        return {
            "policy_loss": [(minus_log_prob, tf.stop_gradient(td)), (self.entropy, -self.beta)],
            "value_loss": [(tf.square(td), 1)],
        }

    def figures(self):
        return {"entropy": self.entropy}


class QNetwork(Network):
    """What the chapter's three Q methods share: the actor's layer with a linear output, Q(s, a).

    The global network has a target network beside it, a copy that is made again whenever T has
    gone another `target_steps`. The actor is epsilon-greedy, with an epsilon of its own.
    """

    def heads(self):
        """Name of the network -> its `Head`."""
        return {"q_network": Head(self.POLICY_UNITS, self.num_actions, self.settings.lr_q)}

    def _build_global(self, session):
        super()._build_global(session)
        with tf.variable_scope("target") as self.target_scope:
            self.target = target = self._build_net()
        pairs = [(target.kernel, self.net.kernel)]
        pairs += zip(target.all_params(), self.net.all_params())
        copy = [theirs.assign(mine.read_value()).op for theirs, mine in pairs]
        if session:  # else it is on parameter servers, which see to that
            self.refresh_target = make_callable(session, copy, [])

    def target_q(self):
        """The target network's Q for each state and action, [T + 1, actions]."""
        with tf.variable_scope(self.globalAC.target_scope, reuse=True):
            return self._build_net().outputs["q_network"]

    def bootstrap_values(self):
        """max_a Q(s, a) of the target network, [T + 1, 1]."""
        return tf.reduce_max(self.target_q(), axis=1, keepdims=True)

    def _build_losses(self):
        q = self.taken(self.net.outputs["q_network"])
        return {"q_loss": [(tf.square(self.v_target - q), 1)]}

    def taken(self, q):
        """Q [T + 1, actions] of the action taken in each state, [T + 1, 1]."""
        return tf.expand_dims(tf.gather(q, self.a_his, batch_dims=1), 1)

    def at_steps(self, before, after):
        """Refresh the target network where T has passed a multiple of I_target."""
        if before // self.settings.target_steps < after // self.settings.target_steps:
            self.globalAC.refresh_target()

    def sums(self):
        """They accumulate gradients, in the chapter's pseudo-code."""
        return self.settings.loss != "mean"

    def exploration(self, number, seed, frames_per_step):
        """Epsilon-greedy: from 1 to a value drawn for this worker (paper, section 5.1)."""
        final = np.random.default_rng([seed, number, 1]).choice(EPSILONS, p=EPSILON_PROBABILITIES)
        steps = self.settings.epsilon_frames / frames_per_step
        return lambda T: final + (1 - final) * max(0, 1 - T / steps)


class OneStepQ(QNetwork):
    """y = r + gamma max_a' Q(s', a'; target)."""

    lambda_ = 0


class OneStepSarsa(QNetwork):
    """y = r + gamma Q(s', a'; target) with the a' that is taken then, chosen before the update."""

    lambda_ = 0
    CHOOSES_AHEAD = True

    def bootstrap_values(self):
        """Q(s, a) of the target network for the action taken there, [T + 1, 1]."""
        return self.taken(self.target_q())


class NStepQ(QNetwork):
    """R = r_t + gamma r_{t+1} + ... + gamma^n max_a Q(s_{t+n}, a; target)."""

    lambda_ = 1


# the paper's distribution of the epsilons that threads end with
EPSILONS, EPSILON_PROBABILITIES = (0.1, 0.01, 0.5), (0.4, 0.3, 0.3)
METHODS = {
    "a3c": ActorCriticNetwork,
    "one-step-q": OneStepQ,
    "one-step-sarsa": OneStepSarsa,
    "n-step-q": NStepQ,
}

# ---------------------------------------------------------------------------------------- optimizer


class RowRMSProp:
    """TF 1's RMSProp for the kernels over the pixels, touching only rows that got a gradient.

    Epsilon stands inside the root, and mean squares start at ones. The dense optimizer decays the
    mean square of every row at every update, and that is all it does to a row whose gradient is
    zero (momentum is 0). So a row touched again is decayed first for all the updates it missed, by
    `decay ** missed`: the same numbers, at the price of the rows touched. TensorFlow's own sparse
    RMSProp does not decay the rows it passes over, and Keras' starts at zero with epsilon outside
    the root: both are other optimizers.

    Workers update side by side without waiting for each other, as the chapter's do: where two read,
    compute and write the same row at once, what one of the two did to it is lost, its gradient and
    its decay. But a row's mean square and the number of the update that last touched it must not
    part: decayed with its old number left, it would be decayed again for the same updates, and
    numbered but not decayed, it would stay too large. So catching up, which changes both, is done
    under a lock. It is short, and the update itself, which follows, is not in it.
    """

    def __init__(self, kernel, learning_rates, scale, settings):
        """kernel: [inputs, units], the global variable. learning_rates: [units], times a scalar."""
        self.kernel, self.dtype = kernel, kernel.dtype.base_dtype
        if len(set(learning_rates)) == 1:  # a scalar is multiplied four times as fast as a row
            learning_rates = learning_rates[0]
        # float32, as the dense optimizer has them: powers of the double 0.9 would drift from its
        self.learning_rates = tf.cast(np.float32(learning_rates) * scale, self.dtype)
        self.decay = float(np.float32(settings.rmsprop_decay))
        self.epsilon = float(np.float32(settings.rmsprop_epsilon))
        ones = tf.ones(kernel.shape, self.dtype)
        self.mean_square = tf.get_variable("mean_square", initializer=ones, trainable=False)

    def catch_up(self, session):
        """A function that decays the mean squares of rows [n] for the updates [n] they missed."""
        rows, factors = tf.placeholder(tf.int32, [None]), tf.placeholder(self.dtype, [None, 1])
        decay = self.decay_rows(rows, factors)
        run, dtype = make_callable(session, [decay], [rows, factors]), factors.dtype
        return lambda rows, missed: run(
            rows, (self.decay ** missed[:, np.newaxis]).astype(dtype.as_numpy_dtype)
        )

    def decay_rows(self, rows, factors):
        """An operation that multiplies the mean squares of rows [n] by factors [n, 1]."""
        decayed = tf.gather(self.mean_square, rows) * factors
        return tf.scatter_update(self.mean_square, rows, decayed).op

    def apply_gradients(self, g, rows):
        """Operations for one update of rows [U], caught up before, by gradients g [U, units]."""
        old = tf.gather(self.mean_square, rows)
        mean_square = self.decay * old + (1 - self.decay) * tf.square(g)
        step = self.learning_rates * g * tf.math.rsqrt(mean_square + self.epsilon)
        return [
            tf.scatter_update(self.mean_square, rows, mean_square).op,
            tf.scatter_update(self.kernel, rows, tf.gather(self.kernel, rows) - step).op,
        ]


class RowLog:
    """When an update last touched each row of the global kernels, and when it was in place."""

    def __init__(self, inputs):
        """inputs: how many rows there are."""
        self.lock = threading.Lock()
        self.updates = 0
        self.touched_by = np.zeros(inputs, np.int64)  # number of the update
        self.clock = 1  # later than 0, "never pulled", so that a first pull takes every row
        self.changed_at = np.full(inputs, self.clock)  # by that clock

    def begin_update(self, rows, catch_up):
        """Number an update of rows [U] int32, and let them catch up with the updates they missed.

        catch_up: called with those that missed some [n] int32 and how many [n] int64.
        """
        with self.lock:
            missed = self.updates - self.touched_by[rows]
            self.updates += 1
            self.touched_by[rows] = self.updates
            late = missed > 0
            catch_up(rows[late], missed[late])

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


@functools.lru_cache(maxsize=8)  # the most are of a whole rollout without an end
def discounting(ends, gamma, lambda_):
    """What rewards and values count for in the returns of `lambda_returns`.

    Args:
        ends: bytes, one a step, 1 where nothing that comes after it counts for it.

    Returns:
        two [T, T] float64: of rewards, and of values.
    """
    ends = np.frombuffer(ends, bool)
    distance = np.arange(len(ends)) - np.arange(len(ends))[:, np.newaxis]
    episode = np.cumsum(ends) - ends  # its number, for each step: the step that ends it included
    decayed = np.triu((gamma * lambda_) ** np.maximum(distance, 0.0))
    decayed *= episode == episode[:, np.newaxis]
    discounts = np.where(ends, 0, gamma * (1 - lambda_))
    discounts[-1] = 0 if ends[-1] else gamma
    return decayed, decayed * discounts


def lambda_returns(rewards, ends, gamma, lambda_):
    """The targets of a rollout, G_t = r_t + gamma ((1 - lambda) V_{t+1} + lambda G_{t+1}).

    Backwards from G_T = V_T; after an end there is nothing more, G_t = r_t. With lambda 1 they are
    the chapter's, `for r in buffer_r[::-1]: v_s_ = r + gamma * v_s_`, with lambda 0 those of its
    one-step methods, and less V_t they are generalized advantage estimation (arXiv 1506.02438).

    What a state is worth, V, is a network's to say, so they come in two parts: G = rewards +
    weights @ V[1:], where V has T + 1 numbers, the last for the state after the rollout.

    Args:
        rewards: [T] floats.
        ends: [T] bools, whether nothing that comes after a step counts for it.
        gamma, lambda_: numbers from 0 to 1.

    Returns:
        rewards [T] and weights [T, T], float64.
    """
    decayed, weights = discounting(np.asarray(ends, bool).tobytes(), gamma, lambda_)
    return decayed @ rewards, weights


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
        self.clip = None  # where its play is watched, a `Clip`
        self.actor = self.game = None  # game: the state of one, to go on with
        self.total_step = self.score = self.ep_r = 0
        number = int(name.removeprefix("W_"))
        self.epsilon = AC.exploration(number, actors.seed, actors.game.frames_per_step)

    def work(self):
        """The chapter's loop, a rollout at a time: play, learn, count, until the run stops."""
        coordinator = self.run.coordinator
        with coordinator.stop_on_exception():
            while not coordinator.should_stop():
                try:
                    if self.actor is None:
                        self._begin()
                    with self.run.gate:
                        rollout = self._play()
                        buffer_r = self._learn(rollout)
                        if self.clip:
                            self.clip.see(rollout, self.score)
                        self._count(rollout, buffer_r)
                except pong_actor.ActorDied as death:
                    if not coordinator.should_stop():
                        with self.run.gate:
                            self.run.notices.append(self.actors.replace(self.name, death))
                            self.actor = self.game = None

    def _begin(self):
        """Give the actor, the first one or one in a dead one's place, the policy and a game."""
        actor = self.actors[self.name]
        actor.wait_until_ready()
        self.actors.share_core(self.name)
        self.AC.pulled_at = 0
        self.AC.pull_global(actor.policy)
        if self.game is None or actor.window:
            self.score = self.ep_r = 0
        else:
            actor.restore(self.game)
        self.actor, self.game = actor, None  # from here on it may be asked for its state

    def _play(self):
        """As in the chapter: up to the worker's next multiple of 20, or to the game's end."""
        period = self.run.settings.steps_per_update
        how = period - self.total_step % period, self.epsilon(self.run.agent_steps)
        if not self.actor.window:
            return self.actor.play(*how)
        with self.run.gate.left():  # it takes a second, with the preset rally six
            return self.actor.play(*how)

    def _learn(self, rollout):
        settings = self.run.settings
        buffer_r = learning_rewards(rollout, settings.lost_game_reward)
        ends = [settings.cut_at_points and r != 0 for r in buffer_r]
        ends[-1] = ends[-1] or rollout.terminal
        returns = lambda_returns(buffer_r, ends, settings.gamma, self.AC.lambda_)
        measured = {} if self.run.measuring_is_due() else None
        now = dict(annealed=self.run.annealed(), beta=self.run.beta())
        self.AC.update_global(rollout, *returns, **now, measured=measured)
        if measured:
            self.run.add_measured(measured)
        return buffer_r

    def _count(self, rollout, buffer_r):
        steps = len(buffer_r)
        self.total_step += steps
        self.ep_r += sum(buffer_r)
        self.score += int(rollout.rewards.sum())
        game = None
        if rollout.terminal or rollout.truncated:
            game = self.name, self.score, self.ep_r
            self.score = self.ep_r = 0
        self.AC.share(self.run, self.actor.policy, steps, game)


# ------------------------------------------------------------------------------------------ the run


def build(session, run, actors):
    """The graph, globalnet and a local copy for each worker, with initial weights; the workers."""
    tf.set_random_seed(actors.seed)
    network = METHODS[run.settings.method]
    with tf.device("/cpu:0"):
        globalAC = network("globalnet", session, actors.game.num_actions, run.settings)
        workers = build_workers(network, session, run, actors, globalAC)
    workers[0].AC.at_steps(-1, 0)
    return workers


def build_workers(network, session, run, actors, globalAC):
    """A worker for each actor, with a local copy of its own; all variables get initial values."""
    workers = []
    for name in actors:
        AC = network(name, session, actors.game.num_actions, run.settings, globalAC)
        workers.append(Worker(name, AC, actors, run))
    session.run(tf.global_variables_initializer())
    return workers


NO_CHECKPOINT = "no checkpoint could be taken; it will be tried again every half minute"


def train(run, workers, actors, folder, snapshots, in_window, signals):
    """Run the workers' threads until something stops them, showing and saving; the exit status."""
    console = rich.console.Console(highlight=False, markup=False, soft_wrap=True)
    cores = len(pong_actor.allowed_cores())
    console.print(f"{len(workers)} workers on {cores} cores, curve in {folder.path} "
                  f"(tensorboard --logdir {folder.path}), Ctrl-C stops")  # fmt: skip
    window = RewardWindow() if in_window else None
    display = new_display(console, run, workers[0], in_window)
    if window and not window.figure:
        console.print("no window for the plot: Matplotlib finds no toolkit, such as python3-tk")
    threads = start_later(workers)
    run.start()
    folder.begin_events(tf.Event, run.agent_steps, len(run.episodes))
    autosave, saved, late = 60 * run.settings.autosave_minutes, time.monotonic(), False
    run.look_at_limits()  # one resumed may have nothing left to do
    with display:
        for thread in threads:
            thread.start()
        try:
            while not run.coordinator.wait_for_stop(display.PERIOD):
                if signals:
                    run.stop(signals.name())
                    break
                run.look_at_limits()
                run.attend(folder, display)
                display.refresh()
                folder.write(run.episodes, run.take_measured())
                if time.monotonic() - saved > autosave:
                    saved = time.monotonic()
                    taken = snapshots.take()
                    if taken:
                        keep(taken, run, actors, folder)
                    else:  # an actor hangs, or a parameter server
                        saved -= max(0, autosave - 30)
                        if not late:
                            run.notices.append(NO_CHECKPOINT)
                    late = not taken
                if window:
                    window.refresh(run.episodes)
        finally:
            run.coordinator.request_stop()
            stop_workers(threads, actors)
            taken = snapshots.take_last()
            actors.close()
            folder.write(run.episodes, run.take_measured(), plot_now=True)
            kept = taken and keep(taken, run, actors, folder)
            display.refresh()
    run.coordinator.join([t for t in threads if not t.is_alive()])  # raises what one has raised
    played = f"{len(run.episodes):,} games, {run.agent_steps:,} steps in {duration(run.seconds())}"
    console.print(f"{run.stopped_because}: {played}; curve in {folder.path}/reward.png")
    status = signals.status()
    if not kept:
        print(f"a3c_pong.py: the last checkpoint could not be written to {folder.path}: "
              "a resumed run goes on from the one before", file=sys.stderr)  # fmt: skip
        status = 1
    if window and set(signals) <= {signal.SIGINT}:
        window.leave_standing(run.episodes, signals)
    return status


# --------------------------------------------------------------------------------------------- main


def main(arguments=None):
    """The program: settings in, a trained network's curve out. Returns the exit status."""
    command, given = parse_settings(arguments, __doc__)
    signals, notices = Signals(), []
    if command.draw or command.play is not None or command.evaluate is not None:
        return show(command, given, signals)
    actors = folder = None
    member = members.cluster_member(given)
    if member and member.job != "chief":
        return members.serve_cluster(member, given, signals, METHODS, build_workers)
    try:
        try:
            if command.resume:
                folder, settings, kept = resume(command.resume, given, notices)
            else:
                settings, kept = Settings(**given), None
            if settings.seed is None:  # drawn here, so that config.json has it
                settings = dataclasses.replace(settings, seed=int.from_bytes(os.urandom(3)))
            network = METHODS[settings.method]
            actors = new_actors(network, settings)
            if kept:  # other games for workers that have none to go on with
                actors.started = kept[2]["actors_started"]
            in_window = start_actors(actors, settings)
            if folder is None:
                asked = dataclasses.asdict(settings)
                folder = checkpoints.RunFolder.new(asked, notices, draw_curve)
        except (ValueError, checkpoints.InUse) as error:
            fail(error)
        except OSError as error:
            where = f"cannot write to {error.filename}: " if error.filename else ""
            fail(where + checkpoints.why(error))
        load_tensorflow()  # takes seconds, while the actors start
        resumed = (folder, kept) if command.resume else None
        if member:
            cluster.start_server(member)
            run = members.ChiefRun(settings, member, network, actors.game.num_actions)
            run.notices = notices
            workers = members.lead(run, actors, network, build_workers, resumed)
            snapshots = members.ChiefSnapshots(run)
        else:
            run, session = Run(settings), new_session()
            run.notices = notices
            workers = build(session, run, actors)
            if resumed:
                go_on(run, *resumed, functools.partial(restore, session, workers, run))
            snapshots = Snapshots(session, run, workers)
        signals.starting = False
        return train(run, workers, actors, folder, snapshots, in_window, signals)
    except KeyboardInterrupt:  # a signal during start-up
        signals.starting = False
        if folder and not command.resume:
            folder.discard()
        return signals.status()
    except pong_actor.ActorsKeepDying as error:
        fail(error, status=1)
    finally:
        if actors:
            actors.close()


def show(command, given, signals):
    """Draw, play, record or evaluate; the exit status."""
    try:
        if command.draw:
            return draw(*command.draw)
        return watch.main(command, signals, **given)
    except KeyboardInterrupt:
        return 128 + signals[0]  # as shells have it
    except (OSError, ValueError) as error:
        fail(error)
    except watch.Failed as error:
        fail(error, status=1)


if __name__ == "__main__":
    with cluster.leaving():
        sys.exit(main())
