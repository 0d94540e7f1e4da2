"""A run over several machines, on TensorFlow's own cluster, which TF_CONFIG describes.

The parameter server of task 0 is where everybody meets. It holds the kernel, its mean squares and
when a row was last touched, T, and what the members of the cluster tell each other; the other
variables are spread over all parameter servers. `Board` is the part that does not depend on the
method, `Parameters` all of it, as a graph each process builds for itself: variables of one name
are the same variables. `Link` is a process' session with them, which outlives them.

Updates take turns. One is short, the gathering and scattering of rows, and in a critical section
it is there whole or not at all: no row is torn, no update is lost to another, what numbers an
update and counts its steps also orders the games, and a checkpoint is of a moment between two.
"""

import contextlib
import errno
import json
import os
import socket
import sys
import threading
import time
import traceback
from typing import NamedTuple

import numpy as np

from runtime.graph import make_callable, tf

serving = False  # whether this process has a server
kept = []  # this process' server and sessions, for they cannot be taken apart without noise

# ---------------------------------------------------------------------------------------- TF_CONFIG

JOBS = "ps", "chief", "worker"
EXAMPLE = (
    '{"cluster": {"ps": ["HOST:PORT"], "chief": ["HOST:PORT"], "worker": ["HOST:PORT", ...]}, '
    '"task": {"type": "ps", "index": 0}}'
)


class Cluster(NamedTuple):
    """Who is in the cluster, and which of them this process is."""

    addresses: dict  # job -> list of "host:port"
    job: str
    index: int

    def task(self, job=None, index=None):
        """The name TensorFlow has for a task, by default this process' own."""
        return f"/job:{job or self.job}/task:{self.index if index is None else index}"

    def where(self, job=None, index=None):
        """A task's name and address, for the user."""
        address = self.addresses[job or self.job][self.index if index is None else index]
        return f"{self.task(job, index)} at {address}"

    def first_worker(self):
        """The number of its first worker, W_n: no two in the cluster have the same."""
        return WORKERS_EACH * (self.index + 1) if self.job == "worker" else 0


WORKERS_EACH = 100  # numbers set aside for a process


def described(text):
    """The `Cluster` that a TF_CONFIG describes. Raises ValueError, with one line for the user."""
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ValueError(f"TF_CONFIG is not JSON: {error}") from None
    cluster = config.get("cluster") if isinstance(config, dict) else None
    task = config.get("task") if isinstance(config, dict) else None
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise ValueError(f"TF_CONFIG must be like {EXAMPLE}")
    for job, addresses in cluster.items():
        if job not in JOBS:
            raise ValueError(f"TF_CONFIG: a cluster has ps, chief and worker, not {job!r}")
        if not isinstance(addresses, list):
            raise ValueError(f"TF_CONFIG: {job} must be a list of addresses, not {addresses!r}")
        for address in addresses:
            split_address(address)
    addresses = {job: cluster.get(job, []) for job in JOBS}
    if not addresses["ps"]:
        raise ValueError("TF_CONFIG: the cluster needs a ps, a parameter server")
    if len(addresses["chief"]) != 1:
        raise ValueError(f"TF_CONFIG: the cluster needs one chief, not {len(addresses['chief'])}")
    every = [address for job in JOBS for address in addresses[job]]
    for address in every:
        if every.count(address) > 1:
            raise ValueError(f"TF_CONFIG: {address} is there twice")
    job, index = task.get("type"), task.get("index")
    if job not in JOBS:
        raise ValueError(f"TF_CONFIG: task type must be ps, chief or worker, not {job!r}")
    if type(index) is not int:
        raise ValueError(f"TF_CONFIG: task index must be a whole number, not {index!r}")
    if not 0 <= index < len(addresses[job]):
        there = f"there are {len(addresses[job])}, numbered from 0"
        raise ValueError(f"TF_CONFIG: the cluster has no {job} {index}: {there}")
    return Cluster(addresses, job, index)


def split_address(address):
    """(host, port) of "host:port". Raises ValueError, with one line for the user."""
    host, colon, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(f"TF_CONFIG: an address is HOST:PORT, not {address!r}")
    return host.strip("[]"), int(port)


def check_port(cluster):
    """Raises ValueError, with one line for the user, where its port is taken on this machine.

    TensorFlow itself would share it with another server, without a word.
    """
    _, port = split_address(cluster.addresses[cluster.job][cluster.index])
    try:
        probe = socket.socket(socket.AF_INET6)
    except OSError:  # Python was built with IPv6, and the kernel has none
        probe = socket.socket(socket.AF_INET)
    with probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError as error:
            why = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror
            line = f"{cluster.task()} of TF_CONFIG cannot listen on port {port} of this machine"
            raise ValueError(f"{line}: {why}") from None


def answers(address):
    """Whether something listens there."""
    try:
        with socket.create_connection(split_address(address), timeout=1):
            return True
    except OSError:
        return False


def start_server(cluster):
    """Start this process' `tf.distribute.Server`."""
    global serving
    serving = True
    spec = {job: addresses for job, addresses in cluster.addresses.items() if addresses}
    # One thread an operation: the process' other sessions share the server's, and must sum in
    # the order of a run alone to have its numbers.
    config = tf.ConfigProto(intra_op_parallelism_threads=1)
    kept.append(tf.distribute.Server(spec, cluster.job, cluster.index, config=config))


# ------------------------------------------------------------------------- on the parameter servers


class Board:
    """What the members tell each other; variables on the first parameter server.

    Each run that the chief begins or goes on with is an incarnation of the weights, with a number
    of its own. Who finds another one than he knows has nothing any more that counts.
    """

    def __init__(self):
        self.graph = tf.Graph()
        with self.graph.as_default(), tf.device("/job:ps/task:0/cpu:0"):
            with tf.variable_scope("cluster", use_resource=True):
                self.incarnation = number("incarnation")  # 0 while there is none
                self.T, self.T_max = number("T"), number("T_max")
                self.joined = number("joined")  # worker processes so far
                self.beat = tf.get_variable("beat", [], tf.float64)  # the chief's, by this clock
                self.beta = tf.get_variable("beta", [], tf.float64)  # which the chief knows
                self.settings = tf.get_variable("settings", [], tf.string, tf.zeros_initializer)
                self.ended = tf.get_variable("ended", [], tf.string, tf.zeros_initializer)
            self.variables = tf.global_variables()
            self.calls = {}  # name -> (fetches, feeds)
            self._build()

    def _build(self):
        self._build_state()
        joined = tf.identity(self.joined.assign_add(1))
        self.calls["join"] = [joined, self.settings.read_value()], []

    def _build_state(self):
        there = []
        for variable in self.variables:
            with tf.device(variable.device):
                there.append(variable.is_initialized())
        self.calls["ready"] = [tf.reduce_all(tf.stack(there))], []
        self.calls["settings"] = [self.settings.read_value()], []
        state = [v.read_value() for v in (self.incarnation, self.T, self.T_max, self.ended)]
        self.calls["state"] = [*state, tf.timestamp() - self.beat.read_value()], []


def number(name, shape=(), value=0):
    """A variable of int64."""
    initializer = tf.constant_initializer(value)
    return tf.get_variable(name, shape, tf.int64, initializer, trainable=False)


class Parameters(Board):
    """The board, and the global network of a method with its optimizers."""

    def __init__(self, network, num_actions, settings, cluster):
        """network: the method's class, a `Network`."""
        self.network, self.num_actions, self.run_settings = network, num_actions, settings
        self.tasks, self.tasks_of = len(cluster.addresses["ps"]), {}
        super().__init__()

    def _build(self):
        with tf.device(self._place):
            self.net = self.network("globalnet", None, self.num_actions, self.run_settings)
        self.params = self.net.net.all_params()
        self.kernel, self.mean_square = self.net.net.kernel, self.net.kernel_train.mean_square
        self.target = getattr(self.net, "target", None)
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
        with tf.variable_scope("W_0"):  # the optimizers' variables are named as in a run alone
            self._build_exchange()
        self.variables = tf.global_variables()
        self.by_name = {v.op.name: v for v in self.variables}
        self.arrays = {n: v for n, v in self.by_name.items() if not n.startswith("cluster/")}
        self._build_state()
        self._build_chiefs()

    def _place(self, operation):
        """The device of an operation: the variables of each network are on a task of their own.

        The kernels over the pixels, 99 of 100 bytes, are on the first, together.
        """
        task = 0
        if operation.type == "VarHandleOp":
            for part in operation.name.split("/"):
                if part.endswith("_network"):
                    task = self.tasks_of.setdefault(part, 1 + len(self.tasks_of)) % self.tasks
        return f"/job:ps/task:{task}/cpu:0"

    def beginning(self, board, arrays, updates):
        """What `begin` is fed: values for all variables, in their order.

        Args:
            board: dict of numbers and strings for the board's own.
            arrays: a checkpoint's.
            updates: how many there have been.
        """
        values = dict(incarnation=0, beat=0.0, ended="", updates=updates) | board
        values["touched_by"] = arrays["row_log/touched_by"]
        # what of the target is older than the kernel is not known: next time, all is copied
        values.update(refreshed_by=np.full(self.kernel.shape[:1], updates), refreshed_at=-1)
        values = {f"cluster/{name}": value for name, value in values.items()} | arrays
        return [np.array(values[name], v.dtype.base_dtype.as_numpy_dtype)
                for name, v in self.by_name.items()]  # fmt: skip

    def _going(self):
        """An operation that fails where the caller's incarnation is not at work."""
        going = tf.equal(self.incarnation.read_value(), self.mine)
        going &= tf.equal(self.ended.read_value(), "")
        going &= self.T.read_value() < self.T_max.read_value()
        return tf.raw_ops.Assert(condition=going, data=["held"])

    def _build_exchange(self):
        """Push a rollout's gradients, count its steps, and pull: in one call."""
        units, dtype = int(self.kernel.shape[1]), self.kernel.dtype.base_dtype
        rows = tf.placeholder(tf.int32, [None], "rows")  # [U]
        kernel_grad = tf.placeholder(dtype, [None, units], "kernel_grad")  # [U, units]
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
            with tf.control_dependencies([self._update(before, rows, kernel_grad, grads)]):
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
        fed = [self.mine, rows, kernel_grad, *grads, self.net.annealed, steps, *ended, since]
        self.calls["exchange"] = [T, age, self.beta.read_value(), *pulled], fed
        self.calls["pull"] = self._build_pull(since), [since]

    def _update(self, before, rows, kernel_grad, grads):
        """An operation: the optimizers' update after so many others."""
        missed = before - tf.gather(self.touched_by, rows)
        power = tf.pow(tf.constant(self.net.kernel_train.decay, tf.float64), tf.to_double(missed))
        factors = tf.cast(power, self.mean_square.dtype.base_dtype)[:, tf.newaxis]
        with tf.control_dependencies([self.net.kernel_train.decay_rows(rows, factors)]):
            push = self.net.apply_gradients(kernel_grad, rows, grads)
        with tf.control_dependencies(push):
            return tf.no_op()

    def _refresh(self, before, T, updates):
        """Operations that bring the target network up to date if T has passed I_target's multiple.

        Only rows that have changed since the last time are copied.
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
        for theirs, mine in zip(self.target.all_params(), self.params):
            with tf.device(theirs.device):
                copies.append(theirs.assign(tf.where(due, mine, theirs)).op)
        return copies

    def _build_pull(self, since):
        """Fetches: updates so far, rows changed since that many, their values, the params.

        The number is read first: what changes meanwhile counts as later, and comes again.
        """
        now = self.updates.read_value()
        fetches = [now]
        with tf.control_dependencies([now]):
            logs = [(self.touched_by, self.kernel, self.params)]
            if self.target:
                logs += [(self.refreshed_by, self.target.kernel, self.target.all_params())]
            for log, kernel, params in logs:
                rows = tf.to_int32(tf.where(log.read_value() > since)[:, 0])
                with tf.control_dependencies([rows]):
                    fetches += [rows, tf.gather(kernel, rows)]
                    fetches += [read(variable) for variable in params]
        return fetches

    def _build_chiefs(self):
        """What only the chief calls."""
        value, beta = tf.placeholder(tf.int64, [], "value"), tf.placeholder(tf.float64, [], "beta")
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
            T, told = self.T.read_value(), self.beta.assign(beta).op
            games = self.games.dequeue_many(self.games.size())
        self.calls["collect"] = [T, *games, told], [self.mine, beta]

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
    """As many of a number as there are in the vector `like`."""
    return tf.fill(tf.shape(like), value)


def read(variable):
    """A variable's value, read where it is."""
    with tf.device(variable.device):
        return variable.read_value()


# ------------------------------------------------------------------------------- a process' session


class Lost(Exception):
    """A call did not get through, or what it is about is not there any more."""


class Held(Exception):
    """The parameter servers refuse a call: the caller's incarnation is not at work."""


CALL_SECONDS = 60  # after which one counts as lost; longer than cables are unplugged in passing
PATIENCE = 10  # seconds without a sign of the chief until workers wait for it


class Link:
    """A process' session with the parameter servers, made anew when it is lost.

    What holds up a worker's thread, it waits for here.
    """

    def __init__(self, cluster, board, stopped):
        """board: a `Board`. stopped: whether the run is, a function."""
        self.cluster, self.board, self.stopped = cluster, board, stopped
        self.lock, self.connecting = threading.Lock(), threading.Lock()
        self.session, self.callables = None, {}
        self.pending = {}  # thread -> since when it waits for an answer
        self.incarnation, self.ended = 0, ""
        self.settings = None  # the run's, as the chief has written them
        self.other_run = self.chief_missing = False
        self.told = None  # whom the user knows to be missing

    def call(self, name, *values):
        """What a call of the board gives. Raises Lost, Held."""
        errors, me = tf.errors, threading.get_ident()
        self.pending[me] = time.monotonic()
        session = None
        try:
            session, callables = self._connected()
            return callables[name](*values)
        except errors.InvalidArgumentError as error:
            raise Held(str(error)) from None
        except errors.OpError as error:
            if self.session is session:
                self.session = None
            raise Lost(str(error)) from None
        finally:
            del self.pending[me]

    def _connected(self):
        """The session, a new one if need be, and its callables. Raises Lost."""
        with self.connecting:
            if self.session is None:
                address = self.cluster.addresses["ps"][0]
                if not answers(address):
                    time.sleep(0.2)
                    raise Lost(f"{address} does not answer")
                config = tf.ConfigProto(device_filters=["/job:ps"])  # the others may come later
                session = tf.Session(f"grpc://{address}", self.board.graph, config)
                self.callables = {
                    name: make_callable(session, *how, CALL_SECONDS)
                    for name, how in self.board.calls.items()
                }
                self.session = session
                kept.append((session, self.callables))
            return self.session, self.callables

    def state(self):
        """(incarnation, T, T_max, ended, the chief's age); incarnation 0 where nothing is begun."""
        if not self.call("ready")[0]:
            return 0, 0, 0, "", 0.0
        incarnation, T, T_max, ended, age = self.call("state")
        return int(incarnation), int(T), int(T_max), ended.decode(), float(age)

    def over(self):
        """Whether there is nothing more to do here: the run is over, or it is another one."""
        return self.stopped() or bool(self.ended) or self.other_run

    def wait_until_going(self):
        """Come back when the run is at work, or when it is `over`."""
        with self.lock:
            while not self.over():
                with contextlib.suppress(Lost, Held):
                    incarnation, T, T_max, self.ended, age = self.state()
                    self.chief_missing = not self.ended and (not incarnation or age > PATIENCE)
                    if not self.ended and not self.chief_missing and T < T_max:
                        if incarnation != self.incarnation:
                            (settings,) = self.call("settings")
                            self.other_run = self.settings not in (None, settings)
                            self.settings, self.incarnation = settings, incarnation
                        return
                time.sleep(0.1)

    def exchange(self, *values):
        """The answer to a push, or None: it was lost. values: as `Parameters` has its feeds."""
        try:
            answer = self.call("exchange", *values)
        except (Lost, Held):
            self.wait_until_going()
            return None
        if answer[1] > PATIENCE:
            self.wait_until_going()
        return answer

    def notices(self):
        """Lines for the user about whom this process waits for; each once."""
        missing, now = None, time.monotonic()
        if any(now - since > 3 for since in list(self.pending.values())) or self.session is None:
            servers = enumerate(self.cluster.addresses["ps"])
            silent = [k for k, address in servers if not answers(address)]
            missing = ", ".join(self.cluster.where("ps", k) for k in silent) or None
        elif self.chief_missing and self.cluster.job != "chief":
            missing = self.cluster.where("chief", 0)
        if missing == self.told:
            return []
        self.told = missing
        return [f"waiting for {missing}" if missing else "all are there: going on"]


def attended(work, link):
    """What `work` returns, done in a thread, so that a signal can interrupt the caller's wait.

    Meanwhile the user is told whom the link waits for.
    """
    done = []

    def do():
        try:
            done.append((work(), None))
        except Exception as error:
            done.append((None, error))

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.25)
        for line in link.notices():
            print(line, flush=True)
    result, error = done[0]
    if error:
        raise error
    return result


def join(cluster):
    """Wait for the chief's run: (the worker process' number in it, the settings as JSON)."""
    link = Link(cluster, Board(), lambda: False)

    def work():
        while True:
            link.wait_until_going()
            with contextlib.suppress(Lost, Held):
                if not link.ended:
                    joined, settings = link.call("join")
                    return int(joined), settings
            time.sleep(0.5)
            link.ended = ""  # of a run that is over: another one may begin

    return attended(work, link)


# ------------------------------------------------------------------------------- a parameter server


LINGER = 5  # seconds in which workers hear of the end


def serve(cluster, signals):
    """Be a parameter server until the run is over or a signal comes; the exit status."""
    port = split_address(cluster.addresses["ps"][cluster.index])[1]
    print(f"{cluster.task()} listens on port {port} of all this machine's addresses", flush=True)
    link = Link(cluster, Board(), lambda: bool(signals))

    def watch():
        while not link.over():
            with contextlib.suppress(Lost, Held):
                incarnation, _, _, link.ended, age = link.state()
                link.chief_missing = not link.ended and (not incarnation or age > PATIENCE)
            time.sleep(0.5)

    try:
        attended(watch, link)
        print(f"the chief has ended the run: {link.ended}", flush=True)
        time.sleep(LINGER)
    except KeyboardInterrupt:
        print("this parameter server ends; what it held is lost but for the last checkpoint")
    return signals.status()


@contextlib.contextmanager
def leaving():
    """End the process as an exception says, at once where TensorFlow's server runs.

    It cannot be shut down, and threads may be waiting for an answer that never comes.
    """
    try:
        yield
    except BaseException as end:
        if not serving:
            raise
        status = end.code if isinstance(end, SystemExit) else 1
        if not isinstance(end, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)
