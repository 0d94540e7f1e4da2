"""What a process does that trains as a member of a cluster, in another way than one that is alone.

`cluster.py` has what they meet at, the parameter servers, and the way there.
"""

import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
import types

import numpy as np

import pong_actor
from cluster import parameter_server as cluster
from runtime.command_line import CHANGEABLE, Settings, fail, option, shown
from runtime.graph import global_variables, load_tensorflow, make_callable, new_session, tf
from runtime.run import Run, go_on, new_actors, start_actors, start_later, stop_workers

# -------------------------------------------------------------------------------------- the network


class Replica:
    """Before a method's class: a local copy whose global network is on parameter servers.

    `update_global` takes the gradients only. They go out with the counts of the rollout, in the
    one call of `share`, which brings back what has changed.
    """

    def _build_traffic(self, session, feeds, kernel_grad, grads):
        gradients = [kernel_grad, *grads]
        self._gradients = make_callable(session, gradients, feeds)
        self._measure = make_callable(session, [*self.measured.values(), *gradients], feeds)
        copies, fed = [], []
        for net in [self.net, self.target] if hasattr(self, "target") else [self.net]:
            rows = tf.placeholder(tf.int32, [None])
            kernel_rows = tf.placeholder(self.DTYPE, [None, net.kernel.shape[1]])
            copies.append(tf.scatter_update(net.kernel, rows, kernel_rows).op)
            values = [tf.placeholder(self.DTYPE, mine.shape) for mine in net.all_params()]
            copies += [mine.assign(value).op for mine, value in zip(net.all_params(), values)]
            fed += [rows, kernel_rows, *values]
        self._copy = make_callable(session, copies, fed)
        self.link, self.incarnation = self.globalAC.link, 0

    def target_q(self):
        """The target network's Q for each state and action, by a copy of its own."""
        with tf.variable_scope("target"):
            self.target = self._build_net()
        return self.target.outputs["q_network"]

    def update_global(self, rollout, rewards, weights, *, annealed=0.0, beta=None, measured=None):
        fed = self._fed(rollout, rewards, weights, annealed, beta)
        if measured is None:
            gradients = self._gradients(*fed)
        else:
            figures = self._measure(*fed)
            measured.update(zip(self.measured, map(float, figures)))
            gradients = figures[len(self.measured) :]
        self.pushed = rollout.rows, *gradients, np.float32(annealed)

    def share(self, run, policy, steps, game):
        """Push, count, and pull; a rollout that the cluster has lost counts for nothing."""
        records = [[field] for field in game] if game else ([], [], [])
        kinds = object, np.int64, np.float64
        ended = (np.array(record, kind) for record, kind in zip(records, kinds))
        fed = *self.pushed, np.int64(steps), *ended, np.int64(self.pulled_at - 1)
        answer = self.link.exchange(np.int64(self.incarnation), *fed)
        if answer is None:
            T = 0
            self.pull_global(policy)
        else:
            T, _, run.told_beta, *pulled = answer
            self._take(pulled, policy)
        run.saw(int(T), self.incarnation)

    def pull_global(self, policy):
        """The same as a method's own, but that it waits until somebody is there to answer."""
        while True:
            if self.link.incarnation != self.incarnation:
                self.incarnation, self.pulled_at = self.link.incarnation, 0
            if self.link.over():
                return
            if self.incarnation:
                with contextlib.suppress(cluster.Lost, cluster.Held):
                    return self._take(self.link.call("pull", np.int64(self.pulled_at - 1)), policy)
            self.link.wait_until_going()

    def _take(self, pulled, policy):
        updates, *values = pulled
        self.pulled_at = updates + 1  # 0 is for a pull of every row
        self._copy(*values)
        rows, kernel_rows, *params = values
        self._hand_over(policy, rows, kernel_rows, params)


# ------------------------------------------------------------------------------------------ the run


class MemberRun(Run):
    """What the workers of one process of a cluster share."""

    def __init__(self, settings, member, network, num_actions):
        """member: the `cluster.Cluster`. network: the method's class."""
        super().__init__(settings)
        parameters = cluster.Parameters(network, num_actions, settings, member)
        self.link = cluster.Link(member, parameters, self.coordinator.should_stop)
        self.incarnation, self.told_beta = 0, settings.beta

    def beta(self):
        """The chief's, who knows all games."""
        return self.told_beta

    def saw(self, T, incarnation):
        """Told of T, which does not go back but with another incarnation of the weights."""
        with self.lock:
            if incarnation != self.incarnation:
                self.incarnation, self.agent_steps = incarnation, 0
            self.agent_steps = max(self.agent_steps, T)
        if self.link.other_run:
            self.stop("the chief has begun another run: starting again with its settings")
        elif self.link.ended and not self.stopped_because:
            self.stop(f"the chief has ended the run: {self.link.ended}")

    def measuring_is_due(self):
        """The chief alone measures."""
        return False


class ChiefRun(MemberRun):
    """The chief's: it begins the run on the parameter servers, and keeps its curve and weights.

    A thread of its own fetches T and the games that have ended, and where the parameter servers
    have lost the run, brings them back to the last checkpoint.
    """

    COLLECTED_EVERY = 0.25  # seconds

    beta, measuring_is_due = Run.beta, Run.measuring_is_due

    def __init__(self, settings, member, network, num_actions):
        super().__init__(settings, member, network, num_actions)
        about = dict(agent_steps=0, updates=0, games=0, joined=0)
        self.kept = initial_arrays(network, num_actions, settings), about  # the last checkpoint

    def restore(self, arrays, about):
        super().restore(arrays, about)
        self.kept = arrays, about

    def begin(self, arrays, about):
        """Put weights and counts on the parameter servers, and let the workers begin.

        arrays, about: as a checkpoint has them. Raises cluster.Lost.
        """
        self.kept = arrays, about
        link, settings = self.link, dataclasses.asdict(self.settings)
        for name in CHANGEABLE + ("run_dir",):  # no worker's concern
            settings.pop(name)
        begin = dict(T=about["agent_steps"], T_max=self.settings.max_steps or 2**62)
        begin.update(joined=about.get("joined", 0), settings=json.dumps(settings))
        begin.update(beta=self.beta())
        link.call("halt")
        link.call("begin", *link.board.beginning(begin, arrays, about["updates"]))
        incarnation = time.time_ns()
        link.call("go", np.int64(incarnation))
        link.settings, link.incarnation = link.call("settings")[0], incarnation

    def begin_when_possible(self, *kept):
        """The same, however long it takes."""
        while not self.coordinator.should_stop():
            try:
                return self.begin(*kept)
            except (cluster.Lost, cluster.Held):
                time.sleep(0.2)

    def start_collecting(self):
        self.cut_to, self.collected, self.collecting = None, threading.Event(), threading.Lock()
        self.collector = threading.Thread(target=self._collect_all, daemon=True)
        self.collector.start()

    def stop_collecting(self):
        self.collected.set()
        self.collector.join()

    def _collect_all(self):
        with self.coordinator.stop_on_exception():
            while not self.collected.wait(self.COLLECTED_EVERY):
                try:
                    self.collect()
                except (cluster.Lost, cluster.Held):
                    with contextlib.suppress(cluster.Lost, cluster.Held):
                        if self.link.state()[0] != self.link.incarnation:
                            self._begin_again()

    def collect(self):
        """Number the games that have ended. Raises cluster.Lost, cluster.Held."""
        with self.collecting:  # or the games of two calls might be numbered out of order
            incarnation = self.link.incarnation
            T, *games = self.link.call("collect", np.int64(incarnation), np.float64(self.beta()))
            self.saw(int(T), incarnation)
            with self.lock:
                for T, worker, score, reward in zip(*games):
                    self._add_episode(int(T), worker.decode(), int(score), float(reward))
                    self.look_at_limits()

    def _begin_again(self):
        """Go back to the last checkpoint, the curve too."""
        arrays, about = self.kept
        with self.lock:  # before they begin, who are told how to explore by what it says
            del self.episodes[about["games"] :]
            self.look_back()
        self.begin(arrays, about)
        with self.lock:
            self.cut_to = about["games"]
            back = f"{about['games']:,} games, {about['agent_steps']:,} steps"
            self.notices.append(
                f"the parameter server begins again with the last checkpoint: {back}"
            )

    def attend(self, folder, display):
        """Say whom the run waits for; cut the files back where the run was."""
        self.notices.extend(self.link.notices())
        if self.cut_to is not None:
            display.games, self.cut_to = self.cut_to, None
            folder.cut_back(self.episodes, self.agent_steps)


class ChiefSnapshots:
    """What makes a checkpoint of a cluster's run: of a moment between two updates.

    Games that are being played are not in it: who goes on with it begins new ones.
    """

    SECONDS = 10  # that a parameter server may take to answer

    def __init__(self, run):
        self.run = run

    def take(self):
        """The (arrays, about) of a checkpoint, or None where there is no answer in time."""
        return self._within_seconds(self._take)

    def take_last(self):
        """The same, and the end of the run for the whole cluster."""
        return self._within_seconds(self._take_last)

    def _within_seconds(self, work):
        done = []
        thread = threading.Thread(target=lambda: done.append(work()), daemon=True)
        thread.start()
        thread.join(self.SECONDS)
        return done[0] if done else None

    def _take_last(self):
        run = self.run
        run.stop_collecting()
        with contextlib.suppress(cluster.Lost, cluster.Held):
            run.link.call("end", run.stopped_because or "it has failed")
            return self._take()

    def _take(self):
        run, board = self.run, self.run.link.board
        with contextlib.suppress(cluster.Lost, cluster.Held):
            incarnation, T, updates, joined, touched_by, *values = run.link.call("snapshot")
            if incarnation != run.link.incarnation:
                return None
            run.collect()  # the games up to then
            arrays = dict(zip(board.arrays, values))
            arrays["row_log/touched_by"] = touched_by
            with run.lock:
                games = sum(e.agent_steps <= int(T) for e in run.episodes)
            about = dict(updates=int(updates), agent_steps=int(T), joined=int(joined))
            about.update(games=games, seconds=run.seconds(), workers={})
            run.kept = dict(arrays), dict(about)
            return arrays, about


def initial_arrays(network, num_actions, settings):
    """What the global network starts with: the arrays that a checkpoint of it has."""
    with tf.Graph().as_default(), tf.device("/cpu:0"):
        tf.set_random_seed(settings.seed)
        session = new_session()
        globalAC = network("globalnet", session, num_actions, settings)
        AC = network("W_0", session, num_actions, settings, globalAC)  # makes the optimizers' too
        session.run(tf.global_variables_initializer())
        AC.at_steps(-1, 0)
        arrays = session.run(global_variables())
        arrays["row_log/touched_by"] = globalAC.row_log.touched_by
    return arrays


def build_member(run, actors, network, build_workers):
    """The graph of one process of a cluster; its workers. build_workers: the script's."""
    with tf.device("/cpu:0"):
        theirs = types.SimpleNamespace(link=run.link, annealed=tf.placeholder(tf.float32, []))
        network = type(network.__name__, (Replica, network), {})
        return build_workers(network, new_session(), run, actors, theirs)


# -------------------------------------------------------------------------------------- the process


def cluster_member(given):
    """What TF_CONFIG makes of this process, a `cluster.Cluster`, or None where it is not set."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        return None
    try:
        member = cluster.described(text)
        cluster.check_port(member)
        if (given.get("workers") or len(pong_actor.allowed_cores())) > cluster.WORKERS_EACH:
            raise ValueError(f"a process of a cluster has at most {cluster.WORKERS_EACH} --workers")
    except ValueError as error:
        fail(error)
    return member


def lead(run, actors, network, build_workers, resumed):
    """Begin a cluster's run, or go on with it, as its chief; the workers.

    resumed: None, or the folder and the newest checkpoint of the run to go on with.
    """
    link = run.link
    if resumed:
        with link.board.graph.as_default():
            go_on(run, *resumed, run.restore)
    cluster.attended(lambda: run.begin_when_possible(*run.kept), link)
    run.saw(run.agent_steps, link.incarnation)
    workers = build_member(run, actors, network, build_workers)
    run.start_collecting()
    return workers


def serve_cluster(member, given, signals, methods, build_workers):
    """Be a parameter server or a worker process; the exit status.

    methods, build_workers: the script's.
    """
    try:
        load_tensorflow()
        cluster.start_server(member)
        if member.job == "ps":
            return cluster.serve(member, signals)
        status, again = work_for_chief(member, given, signals, methods, build_workers)
    except KeyboardInterrupt:
        return signals.status()
    except pong_actor.ActorsKeepDying as error:
        fail(error, status=1)
    if again and not signals:
        os.execv(sys.executable, sys.orig_argv)
    return status


def work_for_chief(member, given, signals, methods, build_workers):
    """Be a worker process of a cluster: (the exit status, whether to begin again)."""
    joined, chiefs = cluster.join(member)
    settings = worker_settings(json.loads(chiefs), given)
    network = methods[settings.method]
    with contextlib.closing(new_actors(network, settings)) as actors:
        actors.started = joined * 10_000  # other games than any process before it has played
        start_actors(actors, settings, member.first_worker())
        run = MemberRun(settings, member, network, actors.game.num_actions)
        run.link.settings = chiefs
        workers = build_member(run, actors, network, build_workers)
        signals.starting = False
        names = ", ".join(actors)
        print(f"{member.task()} trains with {names}; games and curve are the chief's", flush=True)
        train_for_chief(run, workers, actors, signals)
    return signals.status(), run.link.other_run


def worker_settings(chiefs, given):
    """A worker process' settings: the chief's. What it was told otherwise, it says on a line."""
    settings = dataclasses.replace(Settings(**chiefs), workers=given.get("workers"), render="never")
    for name, value in given.items():
        if name in chiefs and value != chiefs[name]:
            line = f"{option(name)} is the chief's to say: it is {shown(chiefs[name])}"
            print(f"{line}, not {shown(value)}", flush=True)
    return settings


def train_for_chief(run, workers, actors, signals):
    """Run a worker process' threads until the chief ends the run, or a signal comes."""
    threads, told = start_later(workers), 0
    for thread in threads:
        thread.start()
    while not run.coordinator.wait_for_stop(0.25):
        if signals:
            run.stop(f"{signals.name()}: this worker leaves, the others go on")
        run.notices.extend(run.link.notices())
        for line in run.notices[told:]:
            print(line, flush=True)
        told = len(run.notices)
    stop_workers(threads, actors)
    run.coordinator.join([t for t in threads if not t.is_alive()])
    print(run.stopped_because, flush=True)
