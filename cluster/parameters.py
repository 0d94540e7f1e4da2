"""The variables on the parameter servers, and the calls that change them, as one graph."""

import contextlib

import numpy as np

from runtime.global_network import GlobalVariables
from runtime.graph import tf


class Board:
    """Variables on the first parameter server, through which the processes exchange state.

    Each run that the chief begins or continues is an incarnation of the weights, with a number of
    its own. A process that reads a different incarnation number must discard everything computed
    for the old one.
    """

    def __init__(self):
        self.graph = tf.Graph()
        with self.graph.as_default(), tf.device("/job:ps/task:0/cpu:0"):
            with tf.variable_scope("cluster", use_resource=True):
                self.incarnation = number("incarnation")  # 0 while there is none
                self.T, self.T_max = number("T"), number("T_max")
                self.joined = number("joined")  # worker processes so far
                self.beat = tf.get_variable("beat", [], tf.float64)  # the chief's, by this clock
                self.lost = tf.get_variable("lost", [], tf.float64)  # which the chief knows
                self.settings = tf.get_variable("settings", [], tf.string, tf.zeros_initializer)
                self.ended = tf.get_variable("ended", [], tf.string, tf.zeros_initializer)
            self.variables = tf.global_variables()
            self.calls = {}  # name -> (fetches, feeds)
            self._build_state()
            joined = tf.identity(self.joined.assign_add(1))
            self.calls["join"] = [joined, self.settings.read_value()], []

    def _build_state(self):
        initialised = []
        for variable in self.variables:
            with tf.device(variable.device):
                initialised.append(variable.is_initialized())
        self.calls["ready"] = [tf.reduce_all(tf.stack(initialised))], []
        self.calls["settings"] = [self.settings.read_value()], []
        state = [v.read_value() for v in (self.incarnation, self.T, self.T_max, self.ended)]
        self.calls["state"] = [*state, tf.timestamp() - self.beat.read_value()], []


def number(name, shape=(), value=0):
    """Create a variable of int64."""
    initializer = tf.constant_initializer(value)
    return tf.get_variable(name, shape, tf.int64, initializer, trainable=False)


class Parameters(Board):
    """The board, and the global network of a method with its optimizers."""

    def __init__(self, settings, cluster):
        """cluster: the `Cluster`."""
        super().__init__()
        self.run_settings = settings
        self.tasks, self.tasks_of = len(cluster.addresses["ps"]), {}
        with self.placed():
            self.net = GlobalVariables(settings)

    @contextlib.contextmanager
    def placed(self):
        """Enter the graph and the device of the first parameter server."""
        with self.graph.as_default(), tf.device("/job:ps/task:0/cpu:0"):
            yield

    def build(self, *how):
        """Create the global network, and build the calls. how: as for `GlobalVariables.build`."""
        with tf.device(self._place):
            self.net.build(*how)
        params = self.net.params
        self.params, self.kernel = params.others(), params.kernel
        self.mean_square, self.target = self.net.kernel_train.mean_square, self.net.target
        inputs = [int(self.kernel.shape[0])]
        with tf.variable_scope("cluster", use_resource=True):
            self.updates, self.touched_by = number("updates"), number("touched_by", inputs)
            if self.target:
                self.refreshed_by = number("refreshed_by", inputs)  # the target's rows
                self.refreshed_at = number("refreshed_at", value=-1)
        self.section = tf.CriticalSection(shared_name="updates")
        kinds = [tf.int64, tf.string, tf.int64, tf.float64]  # T, worker, score, reward
        self.games = tf.FIFOQueue(-1, kinds, [[]] * 4, shared_name="games")
        self.mine = tf.placeholder(tf.int64, [], "mine")  # the incarnation the caller knows
        self._build_exchange()
        self.variables = tf.global_variables()
        self.by_name = {v.op.name: v for v in self.variables}
        self.arrays = self.net.variables()  # what a checkpoint holds, name -> variable
        self._build_state()
        self._build_chiefs()

    def _place(self, operation):
        """Return the device of an operation.

        The variables of each network are on a task of their own. The kernel over the pixels, 99 of
        100 bytes, is on the first task.
        """
        task = 0
        if operation.type == "VarHandleOp":
            for part in operation.name.split("/"):
                if part.endswith("_network"):
                    task = self.tasks_of.setdefault(part, 1 + len(self.tasks_of)) % self.tasks
        return f"/job:ps/task:{task}/cpu:0"

    def beginning(self, board, arrays, updates):
        """Return what `begin` is fed: values for all variables, in their order.

        Args:
            board: dict of numbers and strings for the board's own variables.
            arrays: a checkpoint's.
            updates: the number of updates so far.
        """
        values = dict(incarnation=0, beat=0.0, ended="", updates=updates) | board
        values["touched_by"] = arrays["row_log/touched_by"]
        # which rows of the target are older than the kernel's is not known: the next refresh
        # copies all
        values.update(refreshed_by=np.full(self.kernel.shape[:1], updates), refreshed_at=-1)
        values = {f"cluster/{name}": value for name, value in values.items()} | arrays
        return [np.array(values[name], v.dtype.base_dtype.as_numpy_dtype)
                for name, v in self.by_name.items()]  # fmt: skip

    def _going(self):
        """Return an operation that fails if the caller's incarnation is not being trained."""
        going = tf.equal(self.incarnation.read_value(), self.mine)
        going &= tf.equal(self.ended.read_value(), "")
        going &= self.T.read_value() < self.T_max.read_value()
        return tf.raw_ops.Assert(condition=going, data=["held"])

    def _build_exchange(self):
        """Build the call that pushes a rollout's gradients, counts its steps, and pulls."""
        units, dtype = int(self.kernel.shape[1]), self.kernel.dtype.base_dtype
        rows = tf.placeholder(tf.int32, [None], "rows")  # [U]
        states = tf.placeholder(tf.uint8, [None, None], "states")  # [n + 1, U]
        product_grad = tf.placeholder(dtype, [None, units], "product_grad")  # [n + 1, units]
        s = tf.cast(states, dtype)
        grads = []
        for variable in self.params:
            with tf.device(variable.device):
                grads.append(tf.placeholder(dtype, variable.shape))
        steps = tf.placeholder(tf.int64, [], "steps")
        ended = [tf.placeholder(kind, [None]) for kind in (tf.string, tf.int64, tf.float64)]

        def update():
            with tf.control_dependencies([self._going()]):
                before = self.updates.read_value()
                T = self.T.read_value() + steps
            with tf.control_dependencies([self._update(before, rows, s, product_grad, grads)]):
                log = [tf.scatter_update(self.touched_by, rows, fill(rows, before + 1)).op]
            with tf.control_dependencies(log):
                done = [self.updates.assign(before + 1).op, self.T.assign(T).op]
                done.append(self.games.enqueue_many([fill(ended[0], T), *ended]))
                if self.target:
                    done += self._refresh(T - steps, T, before + 1)
            with tf.control_dependencies(done):
                return tf.identity(T)

        T = self.section.execute(update)
        since = tf.placeholder(tf.int64, [], "since")
        age = tf.timestamp() - self.beat.read_value()
        with tf.control_dependencies([T]):
            pulled = self._build_pull(since)
        fed = [self.mine, rows, states, product_grad, *grads, self.net.rate, steps, *ended]
        fed.append(since)
        self.calls["exchange"] = [T, age, self.lost.read_value(), *pulled], fed
        self.calls["pull"] = self._build_pull(since), [since]

    def _update(self, before, rows, s, product_grad, grads):
        """Return an operation: the optimizers' update, after `before` others."""
        missed = before - tf.gather(self.touched_by, rows)
        power = tf.pow(tf.constant(self.net.kernel_train.decay, tf.float64), tf.to_double(missed))
        factors = tf.cast(power, self.mean_square.dtype.base_dtype)[:, tf.newaxis]
        with tf.control_dependencies([self.net.kernel_train.decay_rows(rows, factors)]):
            push = self.net.push_rows(rows, s, product_grad)
            for name, variables in self.net.params.heads.items():
                mine, grads = grads[: len(variables)], grads[len(variables) :]
                push += self.net.push(name, mine)
        with tf.control_dependencies(push):
            return tf.no_op()

    def _refresh(self, before, T, updates):
        """Return operations that refresh the target network if T has passed an I_target multiple.

        Only rows that changed since the last refresh are copied.
        """
        every = self.run_settings.target_steps
        due = before // every < T // every
        changed = due & (self.touched_by.read_value() > self.refreshed_at.read_value())
        rows = tf.to_int32(tf.where(changed)[:, 0])
        copies = [
            tf.scatter_update(self.target.kernel, rows, tf.gather(self.kernel, rows)).op,
            tf.scatter_update(self.refreshed_by, rows, fill(rows, updates)).op,
        ]
        with tf.control_dependencies([rows]):  # which were found by its old value
            copies.append(self.refreshed_at.assign(tf.where(due, updates, self.refreshed_at)).op)
        for theirs, mine in zip(self.target.others(), self.params):
            with tf.device(theirs.device):
                copies.append(theirs.assign(tf.where(due, mine, theirs)).op)
        return copies

    def _build_pull(self, since):
        """Return fetches: updates so far, rows changed since that many, their values, the others.

        The number is read first. What changes meanwhile counts as later, and is pulled again.
        """
        now = self.updates.read_value()
        fetches = [now]
        with tf.control_dependencies([now]):
            logs = [(self.touched_by, self.kernel, self.params)]
            if self.target:
                logs += [(self.refreshed_by, self.target.kernel, self.target.others())]
            for log, kernel, params in logs:
                rows = tf.to_int32(tf.where(log.read_value() > since)[:, 0])
                with tf.control_dependencies([rows]):
                    fetches += [rows, tf.gather(kernel, rows)]
                    fetches += [read(variable) for variable in params]
        return fetches

    def _build_chiefs(self):
        """Build the calls that only the chief makes."""
        value, lost = tf.placeholder(tf.int64, [], "value"), tf.placeholder(tf.float64, [], "lost")
        beats = self.beat.assign(tf.timestamp()).op

        def halt():
            with tf.control_dependencies([self.incarnation.assign(0).op]):
                return tf.identity(tf.constant(0))

        with tf.control_dependencies([self.section.execute(halt)]):
            dropped = self.games.dequeue_many(self.games.size())[0]
        self.calls["halt"] = [tf.size(dropped)], []

        initializers = [v.initializer for v in self.variables]
        values = [operation.inputs[1] for operation in initializers]
        self.calls["begin"] = [tf.constant(0), *initializers], values
        self.calls["go"] = [tf.constant(0), self.incarnation.assign(value).op, beats], [value]

        same = tf.equal(self.incarnation.read_value(), self.mine)
        with tf.control_dependencies([tf.raw_ops.Assert(condition=same, data=["another"]), beats]):
            T, told = self.T.read_value(), self.lost.assign(lost).op
            games = self.games.dequeue_many(self.games.size())
        self.calls["collect"] = [T, *games, told], [self.mine, lost]

        def copy():
            numbers = [v.read_value() for v in (self.incarnation, self.T, self.updates)]
            numbers += [self.joined.read_value(), self.touched_by.read_value()]
            return [tf.identity(x) for x in numbers + [read(v) for v in self.arrays.values()]]

        self.calls["snapshot"] = list(self.section.execute(copy)), []
        reason = tf.placeholder(tf.string, [], "reason")

        def end():
            with tf.control_dependencies([self.ended.assign(reason).op]):
                return tf.identity(tf.constant(0))

        self.calls["end"] = [self.section.execute(end)], [reason]


def fill(like, value):
    """Return a vector of a number, as long as the vector `like`."""
    return tf.fill(tf.shape(like), value)


def read(variable):
    """Return a variable's value, read on its own device."""
    with tf.device(variable.device):
        return variable.read_value()
