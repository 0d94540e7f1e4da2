"""The global network: its variables and optimizers, and how workers push to it and pull from it.

There are two kinds with one interface. `GlobalNetwork` lives in this process, and
`cluster.network.RemoteNetwork` on parameter servers. A script makes one of them, and need not
know which.

While the graph is built, the global network gives the operations that push and pull:

    placed()            the graph and device on which to make its optimizers
    build(...)          its variables, from names, shapes and rates
    rate                placeholder: what the learning rates are multiplied by
    local_params()      placeholders for a worker's local copy
    target_params(rows) the target network
    push(), push_rows() the operations (in a cluster, the fetches) that push gradients
    connect(...)        the workers' connection: its functions `push` and `pull`

While it is trained:

    local_copy(policy)  a worker's own weights
    T, lost             the steps of all workers together, and (21 - recent score) / 42
    beta(), rate_now()  what follows from them: the entropy's weight, and the value of `rate`
    diverged()          whether the weights are NaN, infinite or huge
    count(...)          count the steps of a rollout
    refresh_target()    copy the weights to the target network
    variables()         name -> variable of all that a checkpoint holds
    snapshot(), restore()

A state is given by its active pixels. A pixel that is 0 adds nothing to `state @ kernel` and gets
no gradient. So both are computed from the rows of the kernel that belong to a rollout's pixels:
the same numbers from 100 to 300 rows instead of 6,400.
"""

import contextlib
from typing import Any, NamedTuple

import numpy as np

from preprocessing import INPUT_SIZE
from runtime.actors import GamesInPlay
from runtime.checkpoints import Checkpoint, sane
from runtime.graph import make_callable, on_cpu, tf
from runtime.optimizer import RowLog, RowRMSProp


class Head(NamedTuple):
    """One network of a method: a layer over the pixels, and outputs over that layer."""

    units: int  # of the layer
    outputs: int
    learning_rate: float


class Params(NamedTuple):
    """The parameters of a method's networks in the graph: variables, or what is fed or gathered."""

    kernel: Any  # [inputs, units]: the kernels of the first layers, side by side
    heads: dict  # name of a network -> its bias, head_kernel and head_bias

    def others(self):
        """Return all parameters but the kernel, in one list."""
        return [param for head in self.heads.values() for param in head]

    def all(self):
        """Return the kernel and all other parameters, in one list."""
        return [self.kernel, *self.others()]

    def placeholders(self):
        """Return `Params` of placeholders, of which the kernel has only some rows, [U, units]."""

        def placeholder(param, shape):
            return tf.placeholder(param.dtype.base_dtype, shape)

        kernel = placeholder(self.kernel, [None, self.kernel.shape[1]])
        heads = {
            name: [placeholder(param, param.shape) for param in head]
            for name, head in self.heads.items()
        }
        return Params(kernel, heads)


class LocalCopy:
    """A worker's own weights: arrays, which it feeds to the graph that all workers share.

    The policy's arrays are in the memory that the worker shares with its actor. So a pull also
    gives the actor its new policy.
    """

    def __init__(self, params, policy):
        """Start with what is in the memory.

        Args:
            params: the global `Params`, of which the policy's are the first.
            policy: the actor's `PolicyWeights`.
        """
        self.kernel = policy.kernel  # [inputs, units]
        more = params.others()[len(policy) - 1 :]
        self.others = [*policy[1:], *(np.zeros(p.shape, p.dtype.as_numpy_dtype) for p in more)]
        self.pulled_at = 0  # never: the next pull takes every row

    def values(self, rows):
        """Return a list of the kernel's rows [U], [U, units], and the other arrays."""
        return [self.kernel.take(rows, 0), *self.others]

    def take(self, rows, kernel_rows, others):
        """Copy new values of some rows [n] of the kernel, [n, units], and of all others."""
        self.kernel[rows] = kernel_rows
        for array, value in zip(self.others, others):
            array[...] = value


def new_params(inputs, heads, dtype, w_init=None):
    """Create the variables of networks in the current variable scope.

    Args:
        inputs: the number of inputs of a state.
        heads: dict of the name of a network -> its `Head`.
        dtype: "float32" or "float64".
        w_init: a function of a seed that returns the initialiser of a kernel. None: zeros.

    Returns:
        `Params`.
    """

    def kernel_init(seed):
        return w_init(seed=seed) if w_init else tf.zeros_initializer()

    def variable(name, shape, initializer):
        return tf.get_variable(name, shape, dtype, on_cpu(initializer))

    units, params = sum(head.units for head in heads.values()), {}
    kernel = variable("kernel", [inputs, units], kernel_init(0))
    for seed, (name, head) in enumerate(heads.items(), 1):
        with tf.variable_scope(name):
            params[name] = [
                variable("bias", [head.units], tf.zeros_initializer()),
                variable("head_kernel", [head.units, head.outputs], kernel_init(seed)),
                variable("head_bias", [head.outputs], tf.zeros_initializer()),
            ]
    return Params(kernel, params)


class Schedule:
    """T and the recent score, from which the entropy's weight and the rates' factor follow."""

    T = 0  # the steps of all workers together
    lost = 1.0  # (21 - recent score) / 42, from 0 to 1

    def beta(self):
        """Return the weight of the entropy."""
        return self.settings.beta * self.lost**self.settings.beta_power

    def rate_now(self):
        """Return the factor of the learning rates, 0 to 1."""
        annealed = self.T / self.settings.anneal_steps if self.settings.anneal_steps else 0
        # without a least value the rates would be 0 once every point is won
        fallen = min(1, max(0.01, self.lost / self.settings.rate_falls_below))
        return max(0, 1 - annealed) * fallen**self.settings.rate_power


class GlobalVariables:
    """What both kinds of global network are made of: variables, optimizers, and their updates."""

    def __init__(self, settings, dtype="float32"):
        self.settings, self.dtype = settings, dtype
        self.rate = tf.placeholder(tf.float32, [], "rate")  # 0 to 1
        self.target = None

    def build(self, scope, heads, optimizers, w_init, has_target):
        """Create the variables of the networks, and those of their optimizers.

        Args:
            scope: their variable scope.
            heads: dict of the name of a network -> its `Head`.
            optimizers: dict of the name of a network -> its `tf.train.RMSPropOptimizer`.
            w_init: a function of a seed that returns the initialiser of a kernel.
            has_target: whether a target network stands beside them.
        """
        settings, self.scope, self.optimizers = self.settings, scope, optimizers
        self.inputs, self.heads = INPUT_SIZE * settings.frames, heads
        with tf.variable_scope(scope, use_resource=True):
            self.params = new_params(self.inputs, heads, self.dtype, w_init)
            rates = [np.full(head.units, head.learning_rate) for head in heads.values()]
            self.kernel_train = RowRMSProp(
                self.params.kernel,
                np.concatenate(rates),
                self.rate,
                settings.rmsprop_decay,
                settings.rmsprop_epsilon,
            )
            if has_target:
                with tf.variable_scope("target"):
                    self.target = new_params(self.inputs, heads, self.dtype)
        for name, variables in self.params.heads.items():  # here, for their names: globalnet/...
            self.push(name, [tf.zeros_like(variable) for variable in variables])

    def push(self, name, gradients):
        """Return operations that apply gradients of a network, in the order of `Params`."""
        pairs = zip(gradients, self.params.heads[name])
        return [self.optimizers[name].apply_gradients(pairs)]

    def push_rows(self, rows, s, product_grad):
        """Return operations that apply the gradient of rows of the kernel, `s^T @ product_grad`.

        Args:
            rows: [U] int32.
            s: [n + 1, U], the states.
            product_grad: [n + 1, units], the gradient of `s @ kernel`.
        """
        gradient = tf.matmul(s, product_grad, transpose_a=True)
        return self.kernel_train.apply_gradients(gradient, rows)

    def local_params(self):
        """Return placeholders for a local copy, as `Params.placeholders`."""
        return self.params.placeholders()

    def target_is_copied(self):
        """Return operations that copy the weights to the target network."""
        pairs = [(self.target.kernel, self.params.kernel)]
        pairs += zip(self.target.others(), self.params.others())
        return [theirs.assign(mine.read_value()).op for theirs, mine in pairs]

    def variables(self):
        """Return a dict of name -> variable: the weights, and the optimizers' mean squares."""
        every = {variable.op.name: variable for variable in tf.global_variables()}
        return {name: v for name, v in every.items() if name.startswith(f"{self.scope}/")}


class GlobalNetwork(Schedule, GlobalVariables):
    """The global network of this process."""

    ended = None  # in a cluster: why the run is over, or None

    def __init__(self, session, settings, dtype="float32"):
        super().__init__(settings, dtype)
        self.session = session

    def placed(self):
        """Enter the graph and the device of its variables and optimizers: the present ones."""
        return contextlib.nullcontext()

    def build(self, *how):
        """Create variables and optimizers, as `GlobalVariables.build`; return the network."""
        super().build(*how)
        self.row_log = RowLog(self.inputs)
        self.catch_up = self.kernel_train.catch_up(self.session)
        self.copier = Copier(self)
        if self.target:
            self._refresh_target = make_callable(self.session, self.target_is_copied(), [])
        return self

    def target_params(self, rows):
        """Return the `Params` of the target network, with rows [U] of its kernel."""
        return Params(tf.gather(self.target.kernel, rows), self.target.heads)

    def connect(self, *how):
        """Return the workers' `Connection`; the arguments are its."""
        return Connection(self, *how)

    def local_copy(self, policy):
        """Return a worker's `LocalCopy`; policy: its actor's `PolicyWeights`."""
        return LocalCopy(self.params, policy)

    def begin(self, run):
        """Do nothing. In a cluster, the chief sends weights and counts to the parameter servers."""

    def count(self, steps, game):
        """Count the steps of a rollout.

        Returns:
            T, and a list of the ended games to number here: none or the one given.
        """
        self.T += steps
        return self.T, [game] if game else []

    def diverged(self):
        """Return whether the training has failed: a weight, but for the kernel's, is not sane."""
        return not all(map(sane, self.copier.others().values()))

    def refresh_target(self):
        """Copy the weights to the target network, if there is one."""
        if self.target:
            self._refresh_target()

    def snapshot(self, run, workers, last=False):
        """Return the weights and counts of this moment as a `Checkpoint`.

        Copying the kernel and its mean squares, 20 MB and more, takes 40 ms and more. So it is done
        while the workers run. Once they stand still, only rows that changed meanwhile are copied.

        Args:
            run: the `Run`, whose gate holds the workers.
            workers: list of the script's workers.
            last: whether the workers' threads have ended.

        Returns:
            a `Checkpoint`, or None if a worker could not be held within some seconds. Its arrays
            are valid until the next snapshot.
        """
        if last:
            self.copier.copied_at = 0  # a worker may have failed in the middle of an update
            return self._taken(run, workers)
        for _ in range(2):  # less has changed when the second copy begins
            self.copier.copy_rows()
        with run.gate.closed() as empty:
            return self._taken(run, workers) if empty else None

    def _taken(self, run, workers):
        games = GamesInPlay(workers)  # their actors save side by side with what follows
        arrays = self.copier.copy()
        arrays["row_log/touched_by"] = self.row_log.touched_by.copy()
        saved, counts = games.wait()
        about = dict(updates=self.row_log.updates, agent_steps=self.T, seconds=run.seconds())
        return Checkpoint(arrays | saved, about | dict(games=len(run.episodes), workers=counts))

    def restore(self, checkpoint):
        """Load weights and counts from a `Checkpoint` that has all `variables()`."""
        initializers = {name: v.initializer for name, v in self.variables().items()}
        values = {op.inputs[1]: checkpoint.arrays[name] for name, op in initializers.items()}
        self.session.run(list(initializers.values()), values)
        self.row_log.touched_by[:] = checkpoint.arrays["row_log/touched_by"]
        self.row_log.updates = checkpoint.about["updates"]
        self.T = checkpoint.about["agent_steps"]


class Copier:
    """Copies of the global network's variables, of which the large ones are kept up to date."""

    def __init__(self, globalnet):
        variables, self.row_log = globalnet.variables(), globalnet.row_log
        large = globalnet.params.kernel, globalnet.kernel_train.mean_square
        large = {variable.op.name: variables.pop(variable.op.name) for variable in large}
        self.kernels = {
            name: np.empty(v.shape, v.dtype.as_numpy_dtype) for name, v in large.items()
        }
        rows = tf.placeholder(tf.int32, [None])
        gathered = [tf.gather(kernel, rows) for kernel in large.values()]
        self._rows = make_callable(globalnet.session, gathered, [rows])
        self.names = list(variables)
        values = [variable.read_value() for variable in variables.values()]
        self._others = make_callable(globalnet.session, values, [])
        self.copied_at = 0

    def copy_rows(self):
        """Copy the rows that changed since the last copy."""
        rows, self.copied_at = self.row_log.changed_since(self.copied_at)
        for array, values in zip(self.kernels.values(), self._rows(rows)):
            array[rows] = values

    def copy(self):
        """Return a dict of name -> array of all variables."""
        self.copy_rows()
        return self.kernels | self.others()

    def others(self):
        """Return a dict of name -> array of all variables but the two large ones."""
        return {name: np.array(value) for name, value in zip(self.names, self._others())}


class Connection:
    """The workers' push to the global network of this process, and their pull from there."""

    def __init__(self, globalnet, params, feeds, push, figures, target=None):
        """Make the two functions.

        Args:
            globalnet: the `GlobalNetwork`.
            params: the `Params` that `local_params` gave.
            feeds: list of placeholders of a push, the rows [U] of a rollout first.
            push: list of operations that `GlobalNetwork.push` and `push_rows` gave.
            figures: dict of name -> scalar tensor, what to measure now and then.
            target: the `Params` that `target_params` gave; in a cluster they are fed, too.
        """
        self.globalnet, self.figures = globalnet, list(figures)
        session, rows = globalnet.session, feeds[0]
        feeds = [*feeds, *params.all(), globalnet.rate]
        self._push = make_callable(session, push, feeds)
        self._push_and_measure = make_callable(session, [*figures.values(), *push], feeds)
        others = [variable.read_value() for variable in globalnet.params.others()]
        pull = [tf.gather(globalnet.params.kernel, rows), *others]
        self._pull = make_callable(session, pull, [rows])

    def push(self, local, rollout, fed, game, measure):
        """Push the gradients of a rollout.

        Args:
            local: the worker's `LocalCopy`.
            rollout: a `pong_actor.Rollout`.
            fed: list of values for `feeds`.
            game: what a cluster counts in the same call; not used here.
            measure: whether to measure the update.

        Returns:
            a dict of name -> number if it was measured, else None.
        """
        globalnet, figures = self.globalnet, None
        fed = [*fed, *local.values(rollout.rows), np.float32(globalnet.rate_now())]
        globalnet.row_log.begin_update(rollout.rows, globalnet.catch_up)
        if measure:
            figures = dict(zip(self.figures, map(float, self._push_and_measure(*fed))))
        else:
            self._push(*fed)
        globalnet.row_log.end_update(rollout.rows)
        return figures

    def pull(self, local):
        """Copy what changed since the last pull into a worker's `LocalCopy`."""
        rows, local.pulled_at = self.globalnet.row_log.changed_since(local.pulled_at)
        kernel_rows, *others = self._pull(rows)
        local.take(rows, kernel_rows, others)
