"""Asynchronous advantage actor-critic (A3C) on Pong, and the chapter's three methods beside it.

Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", 2016 (arXiv 1602.01783), after
the textbook chapter "Asynchronous Methods": one thread per core trains with its own copy of the
network. All update the global network without a lock. Here each thread's game of Pong is played by
an actor, a process of its own.

    python a3c_pong.py                     train as the chapter does; Ctrl-C stops, draws the curve
    python a3c_pong.py --preset rally      train with the settings that win
    python a3c_pong.py --max-minutes 20    train for 20 minutes
    python a3c_pong.py --resume RUN        continue the run in that folder
    python a3c_pong.py --play RUN          show what a run has learned; --evaluate measures it
    TF_CONFIG=... python a3c_pong.py       run one process of a cluster (cluster/README.md)
    python a3c_pong.py --help              every setting

A run prints a line for each game. It writes its curve (scores.csv, reward.png) and checkpoints to
runs/<time>.
"""

from runtime.signals import Signals, quiet_until_handled

if __name__ == "__main__":
    quiet_until_handled()  # so that Ctrl-C during the imports prints no traceback

import contextlib
import dataclasses
import functools
import sys
import threading
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from cluster.config import cluster_member
from cluster.launch import ChiefLaunch, WorkerLaunch, serve
from cluster.server import leaving
from runtime import command_line, playback
from runtime.actors import ActorDied
from runtime.command_line import ABOVE_0, AT_LEAST_1, FINITE, NOT_NEGATIVE, between, setting
from runtime.global_network import Head
from runtime.graph import load_tensorflow, new_session, tf
from runtime.launch import Launch
from runtime.output import open_standard_streams
from runtime.run import EndedGame, Run

# ----------------------------------------------------------------------------------------- settings


@dataclasses.dataclass(frozen=True)
class Settings:
    """The chapter's constants, under its names, and further settings.

    Each is an option, except the scope. The brackets name the source of a default.
    """

    game_env: str = setting("Pong-v0", "Gymnasium id of the Pong to play [chapter]")
    num_workers: int | None = setting(
        None,
        "threads, one more beside a window; none: one per core [chapter]",
        between(1, 256),
        changeable=True,
    )
    max_global_episodes: int = setting(
        100_000, "games to play [chapter]", AT_LEAST_1, changeable=True
    )
    global_network_scope: ClassVar[str] = "globalnet"  # in every checkpoint's names: no option
    global_iteration_update: int = setting(
        20, "steps of a rollout, after which a worker updates [chapter]", between(1, 2000)
    )
    gamma: float = setting(0.9, "discount factor of the returns [chapter]", between(0, 1))
    beta: float = setting(
        0.0001, "weight of the policy's entropy in the actor's loss [chapter]", NOT_NEGATIVE
    )
    lr_actor: float = setting(0.0001, "learning rate of the actor [chapter]", ABOVE_0)
    lr_critic: float = setting(0.0001, "learning rate of the critic [chapter]", ABOVE_0)
    lost_game_reward: float | None = setting(
        -20.0, "last reward of a lost game; none: the game's own [chapter]", FINITE
    )
    preset: Literal["chapter", "rally"] = setting(
        "chapter", "a set of defaults for the settings that are not given [ours]"
    )
    method: Literal["a3c", "one-step-q", "one-step-sarsa", "n-step-q"] = setting(
        "a3c", "one of the chapter's four methods [chapter: its code is A3C]"
    )
    frames: int = setting(1, "number of latest frames in a state [chapter: one]", between(1, 8))
    gae_lambda: float = setting(
        1.0,
        "a3c: lambda of generalized advantage estimation [1 gives the chapter's returns]",
        between(0, 1),
    )
    pull: Literal["after", "before", "both"] = setting(
        "after", "when a worker pulls: after its update, before it, or both [chapter: after]"
    )
    cut_at_points: bool = setting(False, "returns end at each point scored [chapter: no]")
    beta_power: float = setting(
        0.0,
        "beta is multiplied by ((21 - recent score) / 42) ** beta_power; 0: constant; recent: a "
        "moving mean of some 10 games [ours]",
        NOT_NEGATIVE,
    )
    rate_falls_below: float = setting(
        1.0, "value of (21 - recent score) / 42 below which the learning rates fall [ours]", ABOVE_0
    )
    rate_power: float = setting(
        0.0,
        "if x = (21 - recent score) / 42 / rate_falls_below is below 1, the learning rates are "
        "multiplied by max(0.01, x) ** rate_power; 0: constant [ours]",
        NOT_NEGATIVE,
    )
    lr_q: float = setting(
        0.0001, "learning rate of a Q-network [ours: that of a3c; paper: 0.0001 to 0.01]", ABOVE_0
    )
    anneal_steps: int | None = setting(
        None,
        "agent steps in which the learning rates fall to 0; none: never [paper: in the whole run]",
        AT_LEAST_1,
    )
    loss: Literal["auto", "mean", "sum"] = setting(
        "auto",
        "mean or sum over a rollout's steps; auto: mean for a3c, sum for Q "
        "[chapter: mean in the code of a3c, sum in the pseudo-code of Q]",
    )
    rmsprop_decay: float = setting(
        0.9, "decay of RMSProp's mean squares [chapter: TensorFlow's]", between(0, 1)
    )
    rmsprop_epsilon: float = setting(
        1e-10, "added under RMSProp's root [chapter: TensorFlow's]", ABOVE_0
    )
    target_steps: int = setting(
        10_000,
        "agent steps between copies to the target network [paper: 40,000 frames, 4 a step]",
        AT_LEAST_1,
    )
    epsilon_frames: int = setting(
        4_000_000,
        "frames in which epsilon falls from 1 to its final value [paper, section 5.1]",
        AT_LEAST_1,
    )
    max_steps: int | None = setting(
        None,
        "agent steps of all workers together, at which to stop [ours]",
        AT_LEAST_1,
        changeable=True,
    )
    max_minutes: float | None = setting(
        None, "minutes of training, after which to stop [ours]", ABOVE_0, changeable=True
    )
    until_score: float | None = setting(
        None, "running score at which to stop [ours]", between(-21, 21), changeable=True
    )
    seed: int | None = setting(
        None, "seed of all randomness; none: another each time [ours]", between(0, 2**31 - 1)
    )
    render: Literal["auto", "window", "terminal", "never"] = setting(
        "auto",
        "show W_0's game; auto: on a screen, else in the terminal [chapter: always]",
        changeable=True,
    )
    run_dir: str | None = setting(None, "folder to write to; none: a new one in runs/ [ours]")
    autosave_minutes: float = setting(
        3.0, "minutes between checkpoints [ours]", ABOVE_0, changeable=True
    )


# What `--preset rally` changes. Returns end at every point, and a rollout is long enough for the
# rally that leads to it.
RALLY = dict(
    frames=2,
    global_iteration_update=120,
    cut_at_points=True,
    lost_game_reward=None,
    gamma=1.0,
    loss="sum",
    rmsprop_decay=0.975,
    rmsprop_epsilon=5e-5,
    max_steps=10_000_000,
)
# A Q method's rates fall to 0 within the run. With constant ones the noise in Q exceeds the gaps
# between actions.
RALLY_Q = RALLY | dict(anneal_steps=10_000_000)
# Each preset lists the settings that it changes for a method.
PRESETS = {
    "chapter": {},
    "rally": {
        # The entropy's weight falls as the score rises. Above a score of +10.5 the rates fall, too.
        "a3c": RALLY
        | dict(
            pull="both",
            gae_lambda=0.95,
            lr_actor=5e-4,
            lr_critic=2e-3,
            beta=0.02,
            beta_power=3.0,
            rate_falls_below=0.25,
            rate_power=0.5,
        ),
        "n-step-q": RALLY_Q | dict(lr_q=5e-4),
        # A point comes some 50 steps after the stroke that made it. Each copy to the target network
        # carries the point's value one step back. So copies are frequent.
        "one-step-q": RALLY_Q | dict(gamma=0.99, lr_q=1e-3, target_steps=2000),
        # SARSA scores 2 to 5 points more with a smaller gamma and newer copies (four seeds).
        "one-step-sarsa": RALLY_Q | dict(gamma=0.95, lr_q=1e-3, target_steps=500),
    },
}

# The chapter's preprocessing_image is in preprocessing.py, with active_pixels, its faster form.

# ----------------------------------------------------------------------------------------- networks


class RolloutFeeds:
    """The placeholders of an update: a rollout's states and actions, and its returns.

    A state is given by its active pixels. A pixel that is 0 adds nothing to `s @ kernel`, and its
    row of the kernel gets no gradient. So an update needs the rows of the pixels that are on in the
    rollout, 100 to 300 of 6,400.

    n steps have n + 1 states. The last is the state after the rollout, whose value the returns may
    need. `step_weights` are the states' weights in the losses. The last state's weight is 0.
    """

    def __init__(self, dtype, sums):
        """Create the placeholders. sums: True: a loss is a sum over the steps; False: a mean."""
        self.dtype, self.sums = dtype, sums
        self.rows = tf.placeholder(tf.int32, [None], "rows")  # [U]: the pixels that are on
        self.s = tf.placeholder(dtype, [None, None], "state")  # [n + 1, U] of 0 and 1
        self.a_his = tf.placeholder(tf.int32, [None], "action")  # [n + 1]
        self.discounted = tf.placeholder(dtype, [None, 1], "discounted")  # [n + 1, 1]
        self.value_weights = tf.placeholder(dtype, [None, None], "value_weights")  # [n + 1, n + 1]
        self.step_weights = tf.placeholder(dtype, [None, 1], "step_weights")  # [n + 1, 1]
        self.beta = tf.placeholder(dtype, [], "beta")

    def placeholders(self):
        """Return the placeholders in the order of `values`."""
        return [
            self.rows,
            self.s,
            self.a_his,
            self.discounted,
            self.value_weights,
            self.step_weights,
            self.beta,
        ]

    def values(self, rollout, returns, beta):
        """Return the placeholders' values for a rollout, its `Returns` and the entropy's weight."""
        steps = len(rollout.actions)
        states = rollout.states.astype(self.dtype)
        actions = np.append(rollout.actions, np.int32(rollout.next_action))
        discounted = np.zeros((steps + 1, 1), self.dtype)
        discounted[:-1, 0] = returns.discounted
        value_weights = np.zeros((steps + 1, steps + 1), self.dtype)
        value_weights[:-1, 1:] = returns.value_weights
        step_weights = np.zeros((steps + 1, 1), self.dtype)
        step_weights[:-1] = 1 if self.sums else 1 / steps
        return [
            rollout.rows,
            states,
            actions,
            discounted,
            value_weights,
            step_weights,
            np.asarray(beta, self.dtype),
        ]

    def v_target(self, v):
        """Return the targets [n + 1, 1], given the values [n + 1, 1] of the states."""
        return self.discounted + self.value_weights @ tf.stop_gradient(v)

    def reduce(self, x):
        """Return the chapter's reduce_mean of x [n + 1, 1] over the steps, or their sum."""
        return tf.reduce_sum(self.step_weights * x)

    def mean(self, loss):
        """Return the mean over the steps, given the result of `reduce`."""
        return loss / tf.reduce_sum(self.step_weights)


class ActorCriticNetwork:
    """A worker's network, as in the chapter: an actor (the policy) and a critic.

    The chapter builds this graph once for each worker. Here all workers share it, and each feeds
    it the weights of its own `LocalCopy`. So it is built as fast for many workers as for one.

    The first layers of actor and critic see the same pixels. So their kernels stand side by side in
    one variable, `kernel`, and a row of it is one stretch of memory. Other weights are separate.
    """

    POLICY_UNITS, CRITIC_UNITS = 300, 100
    UNITS = POLICY_UNITS + CRITIC_UNITS
    CHOOSES_AHEAD = False  # whether the action after a rollout is chosen before the update
    HAS_TARGET = False  # whether a target network stands beside the global network

    @classmethod
    def heads(cls, settings, num_actions):
        """Return a dict of the name of a network -> its `Head`."""
        return {
            "actor_network": Head(cls.POLICY_UNITS, num_actions, settings.lr_actor),
            "critic_network": Head(cls.CRITIC_UNITS, 1, settings.lr_critic),
        }

    def __init__(self, globalnet, num_actions, settings):
        """Build the losses, the local gradients, the push and the pull.

        Args:
            globalnet: the global network, already built.
            num_actions: 6 in Pong.
            settings: the run's.
        """
        self.globalnet = globalnet
        self.lambda_ = settings.gae_lambda
        with tf.name_scope("local"):
            self.params = globalnet.local_params()  # fed; of the kernel only U rows, [U, 400]
            self.feeds = feeds = RolloutFeeds(globalnet.dtype, sums=settings.loss == "sum")
            self.s, self.a_his = feeds.s, feeds.a_his
            self.a_prob, self.log_a_prob, self.v, self.a_params, self.c_params = self._build_net()
            self.v_target = feeds.v_target(self.v)

            td = tf.subtract(self.v_target, self.v, name="temporal_difference_error")  # [n + 1, 1]
            with tf.name_scope("critic_loss"):
                self.c_loss = feeds.reduce(tf.square(td))

            with tf.name_scope("actor_loss"):
                taken = tf.one_hot(self.a_his, num_actions, dtype=globalnet.dtype)
                log_prob = tf.reduce_sum(self.log_a_prob * taken, axis=1, keepdims=True)
                exp_v = log_prob * tf.stop_gradient(td)  # only the critic learns from td itself
                entropy = -tf.reduce_sum(
                    self.a_prob * tf.log(self.a_prob + 1e-5), axis=1, keepdims=True
                )  # exploration
                self.exp_v = feeds.beta * entropy + exp_v
                self.a_loss = feeds.reduce(-self.exp_v)

            with tf.name_scope("local_grad"):
                self.a_grads = tf.gradients(self.a_loss, self.a_params)
                self.c_grads = tf.gradients(self.c_loss, self.c_params)
                # in the kernel the actor's columns learn from a_loss, the critic's from c_loss
                losses = [self.a_loss, self.c_loss]
                (self.product_grad,) = tf.gradients(losses, [self.product])  # [n + 1, 400]
                kernel_grad = tf.matmul(self.s, self.product_grad, transpose_a=True)  # [U, 400]

        figures = {  # for TensorBoard
            "policy_loss": feeds.mean(self.a_loss),
            "value_loss": feeds.mean(self.c_loss),
            "entropy": feeds.mean(feeds.reduce(entropy)),
            "gradient_norm": tf.linalg.global_norm([kernel_grad, *self.a_grads, *self.c_grads]),
        }
        with tf.name_scope("sync"):  # push: the gradients; pull: into a LocalCopy
            # the kernel's gradient is s^T @ product_grad; the kernel has its own RMSProp
            push = globalnet.push_rows(feeds.rows, self.s, self.product_grad)
            push += globalnet.push("actor_network", self.a_grads)  # by actor_train
            push += globalnet.push("critic_network", self.c_grads)  # by critic_train
            self.sync = globalnet.connect(self.params, feeds.placeholders(), push, figures)

    def _build_net(self):
        """Return a_prob and its logarithm, [n + 1, actions], v [n + 1, 1], and parameters."""
        self.product = self.s @ self.params.kernel  # [n + 1, 400]
        units = [self.POLICY_UNITS, self.CRITIC_UNITS]
        a_product, c_product = tf.split(self.product, units, axis=1)
        a_params = self.params.heads["actor_network"]
        c_params = self.params.heads["critic_network"]
        logits = two_layers(a_product, *a_params)
        a_prob = tf.nn.softmax(logits)
        # the chapter's log(a_prob) is -inf at probability 0, and its gradient NaN; this is finite
        log_a_prob = tf.nn.log_softmax(logits)
        v = two_layers(c_product, *c_params)  # state value
        return a_prob, log_a_prob, v, a_params, c_params

    def update_global(self, local, rollout, returns, game=None, measure=False):  # run local
        """Apply the local gradients of a rollout to the global network.

        In a cluster the call also counts the steps and the game. The server answers with the rows
        that changed. The next `pull_global` copies them into the worker's `LocalCopy`.

        Args:
            local: the worker's `LocalCopy`, with which the gradients are computed.
            rollout: a `pong_actor.Rollout`.
            returns: its `Returns`.
            game: None, or the `EndedGame` that ended with it.
            measure: whether to return losses, entropy and the gradient's norm.

        Returns:
            these as a dict of name -> number, or None.
        """
        fed = self.feeds.values(rollout, returns, self.globalnet.beta())
        return self.sync.push(local, rollout, fed, game, measure)

    def pull_global(self, local):  # run local
        """Copy the weights that changed in the global network into a worker's `LocalCopy`."""
        self.sync.pull(local)

    # choose_action is in the actor's process: pong_actor.Player.choose_action.

    @staticmethod
    def exploration(settings, number, frames_per_step):
        """Return a function of T that returns None: A3C draws from its policy, without epsilon."""
        return lambda T: None


def two_layers(product, bias, head_kernel, head_bias):
    """Return the chapter's two dense layers, relu6 and linear; product: s @ kernel."""
    layer = tf.nn.relu6(tf.nn.bias_add(product, bias))
    return tf.nn.bias_add(layer @ head_kernel, head_bias)


class QNetwork:
    """The base of the chapter's three Q methods: one network, whose outputs are Q(s, a).

    It is the actor's without the softmax. The global network has a target network beside it, which
    is an older copy of it. A worker plays epsilon-greedily. Push and pull are A3C's.
    """

    UNITS = POLICY_UNITS = 300
    CHOOSES_AHEAD = False
    HAS_TARGET = True
    lambda_: ClassVar[int]  # 0: one-step targets, 1: n-step targets
    FINAL_EPSILONS = 0.1, 0.01, 0.5  # paper, section 5.1
    PROBABILITIES = 0.4, 0.3, 0.3

    @classmethod
    def heads(cls, settings, num_actions):
        """Return a dict of the name of the network -> its `Head`."""
        return {"q_network": Head(cls.POLICY_UNITS, num_actions, settings.lr_q)}

    def __init__(self, globalnet, num_actions, settings):
        """Build the loss, the local gradients, the push and the pull; as `ActorCriticNetwork`."""
        self.globalnet = globalnet
        with tf.name_scope("local"):
            # the pseudo-code accumulates gradients over the steps: a sum
            self.feeds = feeds = RolloutFeeds(globalnet.dtype, sums=settings.loss != "mean")
            self.s, self.a_his = feeds.s, feeds.a_his
            self.params = globalnet.local_params()
            target = globalnet.target_params(feeds.rows)
            self.q, product, self.q_params = self._build_net(self.params)
            self.target_q, _, _ = self._build_net(target)
            self.v_target = feeds.v_target(self.bootstrap_values())
            self.q_loss = feeds.reduce(tf.square(self.v_target - self.taken(self.q)))
            product_grad, *self.q_grads = tf.gradients(self.q_loss, [product, *self.q_params])
            kernel_grad = tf.matmul(self.s, product_grad, transpose_a=True)  # [U, 300]

        figures = {
            "q_loss": feeds.mean(self.q_loss),
            "gradient_norm": tf.linalg.global_norm([kernel_grad, *self.q_grads]),
        }
        push = globalnet.push_rows(feeds.rows, self.s, product_grad)
        push += globalnet.push("q_network", self.q_grads)
        self.sync = globalnet.connect(self.params, feeds.placeholders(), push, figures, target)

    def _build_net(self, params):
        """Return Q [n + 1, actions], the first layer's product, and the parameters after it."""
        product = self.s @ params.kernel  # [n + 1, 300]
        q_params = params.heads["q_network"]
        return two_layers(product, *q_params), product, q_params

    def taken(self, q):
        """Return Q of the action taken in each state, [n + 1, 1], from Q [n + 1, actions]."""
        return tf.expand_dims(tf.gather(q, self.a_his, batch_dims=1), 1)

    def bootstrap_values(self):
        """Return max_a Q(s, a; target), [n + 1, 1]."""
        return tf.reduce_max(self.target_q, axis=1, keepdims=True)

    update_global = ActorCriticNetwork.update_global
    pull_global = ActorCriticNetwork.pull_global

    @classmethod
    def exploration(cls, settings, number, frames_per_step):
        """Return a function from T to a worker's epsilon, which falls from 1 to its final value.

        Args:
            settings: the run's.
            number: the worker's.
            frames_per_step: the mean number of frames of an agent step.
        """
        draw = np.random.default_rng([settings.seed, number, 1])
        final = draw.choice(cls.FINAL_EPSILONS, p=cls.PROBABILITIES)
        steps = settings.epsilon_frames / frames_per_step
        return lambda T: final + (1 - final) * max(0, 1 - T / steps)


class OneStepQ(QNetwork):
    """y = r + gamma max_a' Q(s', a'; target)."""

    lambda_ = 0


class OneStepSarsa(QNetwork):
    """y = r + gamma Q(s', a'; target), where a' is the action taken in s'."""

    lambda_ = 0
    CHOOSES_AHEAD = True

    def bootstrap_values(self):
        """Return Q(s, a; target) of the action taken in each state, [n + 1, 1]."""
        return self.taken(self.target_q)


class NStepQ(QNetwork):
    """R = r_t + gamma r_{t+1} + ... + gamma^n max_a Q(s_{t+n}, a; target)."""

    lambda_ = 1


METHODS = {
    "a3c": ActorCriticNetwork,
    "one-step-q": OneStepQ,
    "one-step-sarsa": OneStepSarsa,
    "n-step-q": NStepQ,
}

# ------------------------------------------------------------------------------------------ returns


def learning_rewards(rollout, lost_game_reward):
    """Return a rollout's n rewards, floats; the last of a lost game is replaced.

    Chapter: `if done and r <= 0: r = -20`. A game cut off by the frame limit is not a lost one.
    """
    rewards = rollout.rewards.tolist()
    if rollout.terminal and rewards[-1] <= 0 and lost_game_reward is not None:
        rewards[-1] = lost_game_reward
    return rewards


class Returns(NamedTuple):
    """The two parts of the targets of n steps: v_target = discounted + value_weights @ V[1:].

    The network adds the second part, as it computes the values V [n + 1] of the states.
    """

    discounted: np.ndarray  # [n] float64, discounted sums of rewards
    value_weights: np.ndarray  # [n, n] float64


def lambda_returns(buffer_r, ends, gamma, lambda_):
    """Return the parts of G_t = r_t + gamma ((1 - lambda) V_{t+1} + lambda G_{t+1}), a `Returns`.

    The recursion starts with G_n = V_n and runs backwards. At an end G_t = r_t. With lambda 1 it is
    the chapter's, `for r in buffer_r[::-1]: v_s_ = r + gamma * v_s_`. With lambda 0 it gives the
    targets of the one-step methods. G_t - V_t is the advantage of generalized advantage estimation
    (arXiv 1506.02438).

    Args:
        buffer_r: [n] floats, the rewards.
        ends: [n] bools, whether the return is cut after a step.
        gamma, lambda_: numbers from 0 to 1.
    """
    decayed, value_weights = discounting(tuple(ends), gamma, lambda_)
    return Returns(decayed @ buffer_r, value_weights)


@functools.lru_cache(maxsize=8)  # nearly all of the chapter's rollouts have 20 steps and no end
def discounting(ends, gamma, lambda_):
    """Return two matrices, [n, n] float64, that give G from the rewards and from V[1:].

    Row t of the first has (gamma lambda) ** (k - t) in column k, from k = t to the next end, and
    else 0. The second has column k multiplied by the factor of V_{k+1} in G_k. That is 0 at an end,
    else gamma in the last step, else gamma (1 - lambda).

    Args:
        ends: tuple of n bools.
        gamma, lambda_: numbers from 0 to 1.
    """
    ends, steps = np.array(ends, bool), np.arange(len(ends))
    distance = steps - steps[:, np.newaxis]
    stretch = np.cumsum(ends) - ends  # number of ends before each step
    powers = (gamma * lambda_) ** steps.astype(float)
    decayed = np.triu(powers[np.maximum(distance, 0)])
    decayed *= stretch == stretch[:, np.newaxis]
    discounts = np.where(ends, 0, gamma * (1 - lambda_))
    discounts[-1] = 0 if ends[-1] else gamma
    return decayed, decayed * discounts


# ------------------------------------------------------------------------------------------ workers


class Worker:
    """A thread's agent: a local network, and an actor process that plays with its policy."""

    def __init__(self, name, AC, actors, run):
        """Create the worker. `begin` gives it an actor, whose memory holds the local weights.

        Args:
            name: "W_n".
            AC: the `ActorCriticNetwork`, or a Q-network.
            actors: the `Actors` of all workers.
            run: the `Run` that the workers share.
        """
        self.name, self.AC, self.actors, self.run = name, AC, actors, run
        number = int(name.removeprefix("W_"))
        self.epsilon = AC.exploration(run.settings, number, actors.game.frames_per_step)
        self.clip = None  # a `Clip`, if its play is shown in the terminal
        self.actor = self.local = None
        self.saved_game = None  # the state of a game to continue
        self.total_step = self.score = self.ep_r = 0

    def work(self):
        """Run the chapter's loop until the run stops. One pass plays a rollout, not a step."""
        run, settings = self.run, self.run.settings
        with run.coordinator.stop_on_exception():
            while not run.coordinator.should_stop():  # run.count stops it after the last game
                try:
                    if self.actor is None:
                        self.begin()
                    with run.gate:  # which closes while a checkpoint is taken
                        rollout = self.play()  # to the next multiple of global_iteration_update
                        buffer_r = learning_rewards(rollout, settings.lost_game_reward)  # the -20
                        v_target = self.returns(rollout, buffer_r)  # the network adds V to it
                        ended = self.add_up(rollout, buffer_r)
                        with run.updating:  # one thread per core, so that none waits for a core
                            if settings.pull in ("before", "both"):
                                self.AC.pull_global(self.local)  # newest weights for the gradient
                            figures = self.AC.update_global(
                                self.local, rollout, v_target, ended, run.measuring_is_due()
                            )
                            if settings.pull in ("after", "both"):
                                self.AC.pull_global(self.local)  # to play with the newest weights
                        # adds to T, and an ended game to the curve (global_running_rate)
                        T = run.count(len(buffer_r), ended, figures)
                        # whether the rollout passed a multiple of target_steps; A3C has no target
                        if T % settings.target_steps < len(buffer_r):
                            self.AC.globalnet.refresh_target()
                except ActorDied as death:
                    self.replace_actor(death)

    def begin(self):
        """Set up a new actor (the first, or a replacement): send it the weights and its game."""
        actor = self.actors[self.name]
        actor.wait_until_ready()
        self.actors.share_core(self.name)
        self.local = self.AC.globalnet.local_copy(actor.policy)
        self.AC.pull_global(self.local)
        if self.saved_game is None or actor.window:  # a window begins with a new game
            self.score = self.ep_r = 0
        else:
            actor.restore(self.saved_game)
        self.actor = actor  # from here on a checkpoint asks the actor for its game
        self.saved_game = None

    def play(self):
        """Return a rollout, to the next multiple of global_iteration_update or the game's end."""
        period = self.run.settings.global_iteration_update
        steps = period - self.total_step % period
        epsilon = self.epsilon(self.AC.globalnet.T)
        # in a window a rollout of 20 steps takes a second, and a checkpoint must not wait for it
        with self.run.gate.left() if self.actor.window else contextlib.nullcontext():
            rollout = self.actor.play(steps, epsilon)
        if self.clip:
            self.clip.add(rollout, self.score)
        return rollout

    def returns(self, rollout, buffer_r):
        """Return the `Returns` of a rollout with these rewards."""
        settings = self.run.settings
        ends = [settings.cut_at_points and r != 0 for r in buffer_r]
        ends[-1] = ends[-1] or rollout.terminal
        return lambda_returns(buffer_r, ends, settings.gamma, self.AC.lambda_)

    def add_up(self, rollout, buffer_r):
        """Add a rollout to its game's sums; return the `EndedGame` if the game is over, or None."""
        self.total_step += len(buffer_r)
        self.ep_r += sum(buffer_r)
        self.score += int(rollout.rewards.sum())
        if not (rollout.terminal or rollout.truncated):
            return None
        ended = EndedGame(self.name, self.score, self.ep_r)
        self.score = self.ep_r = 0
        return ended

    def replace_actor(self, death):
        """Replace a dead actor by one with a new game."""
        if not self.run.coordinator.should_stop():
            with self.run.gate:
                self.actor = self.saved_game = None  # before `replace`, which may fail
                self.run.notices.append(self.actors.replace(self.name, death))


# --------------------------------------------------------------------------------------------- main


def build(launch):
    """Build the global network and the workers; return the `Run` and the list of workers.

    launch: a `Launch`, `ChiefLaunch` or `WorkerLaunch`.
    """
    settings = launch.settings
    network = METHODS[settings.method]
    actors = launch.start_actors(network.UNITS, network.POLICY_UNITS, network.CHOOSES_AHEAD)
    load_tensorflow()  # takes seconds, while the actors start
    session = new_session()
    tf.set_random_seed(settings.seed)

    with tf.device("/cpu:0"):
        unbuilt = launch.global_network(session)
        with unbuilt.placed():  # here, or on a cluster's parameter servers
            rate = unbuilt.rate  # a factor, 1 unless the rates fall
            rmsprop = dict(decay=settings.rmsprop_decay, epsilon=settings.rmsprop_epsilon)
            actor_train = tf.train.RMSPropOptimizer(
                settings.lr_actor * rate, name="RMSPropOptimiserActor", **rmsprop
            )
            critic_train = tf.train.RMSPropOptimizer(
                settings.lr_critic * rate, name="RMSPropOptimiserCritic", **rmsprop
            )
            q_train = tf.train.RMSPropOptimizer(  # only the Q methods use this one
                settings.lr_q * rate, name="RMSPropOptimiserQ", **rmsprop
            )
            trains = dict(actor_network=actor_train, critic_network=critic_train, q_network=q_train)
            w_init = functools.partial(tf.random_normal_initializer, 0.0, 0.1)
            heads = network.heads(settings, actors.game.num_actions)
            scope = settings.global_network_scope
            globalnet = unbuilt.build(scope, heads, trains, w_init, network.HAS_TARGET)

        run = Run(settings, globalnet, launch.notices)
        AC = network(globalnet, actors.game.num_actions, settings)  # the graph of all workers
        workers = []
        for name in actors:  # W_0, W_1, ...
            workers.append(Worker(name, AC, actors, run))
        session.run(tf.global_variables_initializer())

    globalnet.refresh_target()
    return run, workers


def train(launch):
    """Train until the run stops, and plot its curve; return the exit status."""
    run, workers = build(launch)
    launch.begin(run, workers)  # a resumed run continues from its checkpoint
    supervisor = launch.supervisor(run, workers)

    coordinator = run.coordinator
    worker_threads = []
    for worker in workers:
        t = threading.Thread(target=worker.work, name=worker.name, daemon=True)
        t.start()
        worker_threads.append(t)
    # Blocks until the run stops. A thread that waits for another machine is left out of the result.
    worker_threads = supervisor.show_and_save(worker_threads)
    coordinator.join(worker_threads)  # raises a worker's exception
    supervisor.plot()
    return supervisor.exit_status()


def main(arguments=None):
    """Run the program: train, or play, evaluate or draw a run. Return the exit status."""
    command, given = command_line.parse(Settings, PRESETS, __doc__, arguments)
    signals = Signals()
    if command.draw or command.play is not None or command.evaluate is not None:
        return playback.main(command, given, signals)
    member = cluster_member(given)  # as TF_CONFIG says; None: this process is alone
    if member is None:
        launch = Launch(command, given, Settings, signals)
    elif member.job == "ps":
        return serve(member, signals)
    elif member.job == "worker":
        launch = WorkerLaunch(member, given, Settings, signals)
    else:
        launch = ChiefLaunch(member, command, given, Settings, signals)
    with launch:
        return train(launch)


if __name__ == "__main__":
    open_standard_streams()
    with leaving():
        sys.exit(main())
