"""The global network on parameter servers, as one process of a cluster sees it.

It has the interface of `runtime.global_network.GlobalNetwork`. `snapshot` and `restore` are the
chief's alone (cluster/chief.py). The local copies are in this process. Their gradients are fetched,
and one call sends them with the rollout's counts. Its answer brings the rows that changed.
"""

import contextlib
import threading

import numpy as np

from cluster.link import Held, Link, Lost
from cluster.parameters import Parameters
from runtime.global_network import share_of_annealing
from runtime.graph import make_callable, tf

NEVER = 2**62  # an update's number, after which no row has changed


class RemoteNetwork:
    """The global network on parameter servers."""

    dtype = "float32"

    def __init__(self, cluster, session, settings):
        """Build nothing yet.

        Args:
            cluster: the `Cluster` that this process is in.
            session: the local one, in which the local copies are.
            settings: the run's.
        """
        self.parameters = Parameters(settings, cluster)
        self.link = Link(cluster, self.parameters)
        self.session, self.settings = session, settings
        self.annealed = self.parameters.net.annealed
        self.lock = threading.Lock()
        self.incarnation = self.T = 0
        self.beta = settings.beta
        self.beta_is_told = True  # by the chief, who knows all games

    def placed(self):
        """Enter the graph of the parameter servers, and a device there."""
        return self.parameters.placed()

    def build(self, scope, heads, *how):
        """Build the parameter servers' graph, as `GlobalVariables.build`; return the network."""
        self.parameters.build(scope, heads, *how)
        return self

    def new_copy(self):
        """Create the variables of a local copy in the current variable scope; `Params`."""
        return self.parameters.net.new_copy()

    def target_params(self):
        """Create the variables of a local copy of the target network; `Params`."""
        with tf.variable_scope("target"):
            return self.new_copy()

    def push(self, name, gradients):
        """Return what is fetched to push gradients of a network: the gradients."""
        return list(gradients)

    def push_rows(self, rows, s, pixels_grad):
        """Return what is fetched to push the gradient of rows of the kernel: one of its factors.

        The other, the states, is known here. Their product has ten times the bytes.
        """
        return [pixels_grad]

    def connect(self, *how):
        """Return a worker's `RemoteConnection`; the arguments are its."""
        return RemoteConnection(self, *how)

    def begin(self, run):
        """Let the run's end be the link's. The chief has begun the run."""
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


class RemoteConnection:
    """A worker's push to the parameter servers, and its pull from there."""

    def __init__(self, globalnet, params, feeds, push, figures, target=None):
        """Make the functions; the arguments are those of `runtime.global_network.Connection`."""
        self.globalnet, self.link, self.figures = globalnet, globalnet.link, list(figures)
        session = globalnet.session
        self._gradients = make_callable(session, push, feeds)
        self._measure = make_callable(session, [*figures.values(), *push], feeds)
        copies, fed = [], []
        for mine in [params, target] if target else [params]:
            changed = tf.placeholder(tf.int32, [None])
            kernel_rows = tf.placeholder(mine.kernel.dtype.base_dtype, [None, mine.kernel.shape[1]])
            copies.append(tf.scatter_update(mine.kernel, changed, kernel_rows).op)
            values = [tf.placeholder(v.dtype.base_dtype, v.shape) for v in mine.others()]
            copies += [v.assign(value).op for v, value in zip(mine.others(), values)]
            fed += [changed, kernel_rows, *values]
        self._copy = make_callable(session, copies, fed)
        self.nothing = np.empty(0, np.int32), np.empty([0, params.kernel.shape[1]], np.float32), []
        self.incarnation, self.answer = 0, None
        # if a worker pulls before its update, the answer to its last one is too old by then
        self.keeps_answer = globalnet.settings.pull == "after"
        self.start_anew()

    def start_anew(self):
        """Let the next pull take every row: the actor is a new one."""
        self.pulled_at = 0

    def push(self, rollout, feed_dict, game, measure):
        """Push the gradients of a rollout, and count its steps and the game it ended.

        The answer is kept for the next pull. A push that got no answer counts for nothing.

        Args:
            rollout: a `pong_actor.Rollout`.
            feed_dict: list of values for `feeds`.
            game: None, or the `EndedGame` that ended with it.
            measure: whether to measure the update.

        Returns:
            a dict of name -> number if it was measured, else None.
        """
        globalnet, figures = self.globalnet, None
        if measure:
            values = self._measure(*feed_dict)
            figures = dict(zip(self.figures, map(float, values)))
            gradients = values[len(figures) :]
        else:
            gradients = self._gradients(*feed_dict)
        annealed = np.float32(share_of_annealing(globalnet.settings, globalnet.T))
        records = [[field] for field in game] if game else ([], [], [])
        kinds = object, np.int64, np.float64
        ended = (np.array(record, kind) for record, kind in zip(records, kinds))
        since = self.pulled_at - 1 if self.keeps_answer else NEVER
        steps = np.int64(len(rollout.actions))
        fed = rollout.rows, rollout.states, *gradients, annealed, steps, *ended, np.int64(since)
        answer = self.link.exchange(np.int64(self.incarnation), *fed)
        if answer:
            T, _, beta, *answer = answer
            globalnet.saw(int(T), self.incarnation)
            if globalnet.beta_is_told:
                globalnet.beta = float(beta)
        self.answer = answer if self.keeps_answer else None
        return figures

    def pull(self):
        """Copy what changed since the last pull into the local copy.

        It is the answer to the push before. Without one the parameter servers are asked, and the
        call blocks until they answer or the run is over.

        Returns:
            (rows [n] int32, their values [n, units], the variables of the first network), for the
            actor; if the run is over, nothing of each.
        """
        if self.answer:
            answer, self.answer = self.answer, None
            return self._take(answer)
        while True:
            if self.link.incarnation != self.incarnation:
                self.incarnation, self.pulled_at = self.link.incarnation, 0
            if self.link.over():
                return self.nothing
            if self.incarnation:
                with contextlib.suppress(Lost, Held):
                    return self._take(self.link.call("pull", np.int64(self.pulled_at - 1)))
            self.link.wait_until_going()

    def _take(self, answer):
        updates, *values = answer
        self.pulled_at = updates + 1  # 0 is for a pull of every row
        self._copy(*values)
        rows, kernel_rows, *others = values
        return rows, kernel_rows, others
