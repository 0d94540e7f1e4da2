"""The global network on parameter servers, for one process of a cluster.

It has the interface of `runtime.global_network.GlobalNetwork`. `snapshot` and `restore` are the
chief's alone (cluster/chief.py). The local copies are in this process, and with a Q method they
have a target network each. Their gradients are fetched, and one call sends them with the rollout's
counts. Its answer brings the rows that changed.
"""

import contextlib
import threading

import numpy as np

from cluster.link import Held, Link, Lost
from cluster.parameters import Parameters
from pong_actor import PolicyWeights
from runtime.global_network import LocalCopy, Schedule
from runtime.graph import make_callable

NEVER = 2**62  # an update's number, after which no row has changed


class RemoteNetwork(Schedule):
    """The global network on parameter servers."""

    dtype = "float32"

    def __init__(self, cluster, session, settings):
        """Build nothing yet.

        Args:
            cluster: the `Cluster` that this process is in.
            session: the local one, which computes the gradients.
            settings: the run's.
        """
        self.parameters = Parameters(settings, cluster)
        self.link = Link(cluster, self.parameters)
        self.session, self.settings = session, settings
        self.rate = self.parameters.net.rate
        self.lock = threading.Lock()
        self.incarnation = 0
        self.lost_is_told = True  # by the chief, who knows all games

    def placed(self):
        """Enter the graph of the parameter servers, and a device there."""
        return self.parameters.placed()

    def build(self, scope, heads, *how):
        """Build the parameter servers' graph, as `GlobalVariables.build`; return the network."""
        self.parameters.build(scope, heads, *how)
        return self

    def local_params(self):
        """Return placeholders for a local copy, as `Params.placeholders`."""
        return self.parameters.net.local_params()

    def target_params(self, rows):
        """Return placeholders for a local copy of the target network."""
        return self.local_params()

    def push(self, name, gradients):
        """Return what is fetched to push gradients of a network: the gradients."""
        return list(gradients)

    def push_rows(self, rows, s, product_grad):
        """Return what is fetched to push the gradient of rows of the kernel: one of its factors.

        The other, the states, is known here. Their product has ten times the bytes.
        """
        return [product_grad]

    def connect(self, *how):
        """Return the workers' `RemoteConnection`; the arguments are its."""
        return RemoteConnection(self, *how)

    def local_copy(self, policy):
        """Return a worker's `RemoteCopy`; policy: its actor's `PolicyWeights`."""
        return RemoteCopy(self.parameters.net, policy)

    def begin(self, run):
        """Have the link stop waiting when the run stops. The chief has begun the run."""
        self.link.stopped = run.coordinator.should_stop

    def count(self, steps, game):
        """Return T, and no game to number here: the push has counted, and the chief numbers."""
        return self.T, []

    def diverged(self):
        """Return False: the chief looks at the weights of each checkpoint."""
        return False

    def refresh_target(self):
        """Do nothing: the parameter servers refresh the target network."""

    def variables(self):
        """Return a dict of name -> variable of all that a checkpoint holds."""
        return self.parameters.arrays

    def saw(self, T, incarnation):
        """Note T, which grows, except with another incarnation of the weights."""
        with self.lock:
            if incarnation != self.incarnation:
                self.incarnation, self.T = incarnation, 0
            self.T = max(self.T, T)

    @property
    def ended(self):
        """Why the run is over, in words; None if it is not."""
        if self.link.other_run:
            return "the chief has begun another run: starting again with its settings"
        if self.link.ended:
            return f"the chief has ended the run: {self.link.ended}"
        return None


class RemoteCopy(LocalCopy):
    """A worker's own weights, and those of a target network if there is one."""

    def __init__(self, net, policy):
        """Make the arrays.

        Args:
            net: the parameter servers' `GlobalVariables`.
            policy: the actor's `PolicyWeights`.
        """
        super().__init__(net.params, policy)
        self.target = None
        if net.target:
            zeros = PolicyWeights(*map(np.zeros_like, policy))
            self.target = LocalCopy(net.target, zeros)
        self.incarnation, self.answer = 0, None

    def values(self, rows):
        """Return those of `LocalCopy`, then the same of the target network."""
        return super().values(rows) + (self.target.values(rows) if self.target else [])

    def take_answer(self, updates, rows, kernel_rows, *others):
        """Copy what a pull brought: what changed up to a number of updates."""
        self.pulled_at = int(updates) + 1  # 0 is for a pull of every row
        self.take(rows, kernel_rows, others[: len(self.others)])
        if self.target:
            rows, kernel_rows, *others = others[len(self.others) :]
            self.target.take(rows, kernel_rows, others)


class RemoteConnection:
    """The workers' push to the parameter servers, and their pull from there."""

    def __init__(self, globalnet, params, feeds, push, figures, target=None):
        """Make the functions; the arguments are those of `runtime.global_network.Connection`."""
        self.globalnet, self.link, self.figures = globalnet, globalnet.link, list(figures)
        session = globalnet.session
        for fed in [params, target] if target else [params]:
            feeds = [*feeds, *fed.all()]
        self._gradients = make_callable(session, push, feeds)
        self._measure = make_callable(session, [*figures.values(), *push], feeds)
        # if a worker pulls only before its update, the answer to its last one is too old by then
        self.keeps_answer = globalnet.settings.pull != "before"

    def push(self, local, rollout, fed, game, measure):
        """Push the gradients of a rollout, and count its steps and the game it ended.

        The answer is kept for the next pull. A push that got no answer counts for nothing.

        Args:
            local: the worker's `RemoteCopy`.
            rollout: a `pong_actor.Rollout`.
            fed: list of values for `feeds`.
            game: None, or the `EndedGame` that ended with it.
            measure: whether to measure the update.

        Returns:
            a dict of name -> number if it was measured, else None.
        """
        globalnet, figures = self.globalnet, None
        fed = [*fed, *local.values(rollout.rows)]
        if measure:
            values = self._measure(*fed)
            figures = dict(zip(self.figures, map(float, values)))
            gradients = values[len(figures) :]
        else:
            gradients = self._gradients(*fed)
        rate = np.float32(globalnet.rate_now())
        records = [[field] for field in game] if game else ([], [], [])
        kinds = object, np.int64, np.float64
        ended = (np.array(record, kind) for record, kind in zip(records, kinds))
        since = local.pulled_at - 1 if self.keeps_answer else NEVER
        steps = np.int64(len(rollout.actions))
        sent = rollout.rows, rollout.states, *gradients, rate, steps, *ended, np.int64(since)
        answer = self.link.exchange(np.int64(local.incarnation), *sent)
        if answer:
            T, _, lost, *answer = answer
            globalnet.saw(int(T), local.incarnation)
            if globalnet.lost_is_told:
                globalnet.lost = float(lost)
        local.answer = answer if self.keeps_answer else None
        return figures

    def pull(self, local):
        """Copy what changed since the last pull into a worker's `RemoteCopy`.

        It is the answer to the push before. Without one the parameter servers are asked, and the
        call blocks until they answer. If the run is over, nothing is copied.
        """
        answer, local.answer = local.answer, None
        while not answer:
            if self.link.incarnation != local.incarnation:
                local.incarnation, local.pulled_at = self.link.incarnation, 0
            if self.link.over():
                return
            with contextlib.suppress(Lost, Held):
                if local.incarnation:
                    answer = self.link.call("pull", np.int64(local.pulled_at - 1))
            if not answer:
                self.link.wait_until_going()
        local.take_answer(*answer)
