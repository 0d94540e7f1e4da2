"""The start of a run in a process of a cluster: a parameter server, the chief, or a worker."""

import contextlib
import dataclasses
import json
import os
import sys
import time

from cluster.chief import ChiefNetwork, ChiefSupervisor
from cluster.config import check_workers, split_address
from cluster.link import Held, Link, Lost, attended
from cluster.network import RemoteNetwork
from cluster.parameters import Board
from cluster.server import start_server
from runtime.actors import new_actors, start_actors
from runtime.command_line import option, shown, user_errors
from runtime.graph import load_tensorflow
from runtime.launch import Launch, Starting
from runtime.output import OutputThread
from runtime.supervisor import stop_workers

LINGER = 5  # seconds in which workers hear of the run's end


def serve(cluster, signals):
    """Be a parameter server until the run is over or a signal comes; return the exit status."""
    try:
        load_tensorflow()
        start_server(cluster)
    except KeyboardInterrupt:
        return signals.status()
    lines = []
    output = OutputThread(lines)
    try:
        port = split_address(cluster.addresses["ps"][cluster.index])[1]
        lines.append(f"{cluster.task()} listens on port {port} of all this machine's addresses")
        link = Link(cluster, Board())
        link.stopped = lambda: bool(signals)

        def watch():
            while not link.over():
                with contextlib.suppress(Lost, Held):
                    link.look()
                time.sleep(0.5)

        attended(watch, link, lines)
    except KeyboardInterrupt:
        lines.append(
            "this parameter server stops: updates since the chief's last checkpoint are lost"
        )
    else:
        lines.append(f"the chief has ended the run: {link.ended}")
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(LINGER)
    signals.starting = False  # a second signal changes nothing
    output.end()
    return signals.status()


class ChiefLaunch(Launch):
    """The start of a cluster's run by its chief."""

    SUPERVISOR = ChiefSupervisor
    CONTINUES_GAMES = False  # they are not in a cluster's checkpoints

    def __init__(self, cluster, *how):
        """cluster: the `Cluster`; the other arguments are those of `Launch`."""
        self.cluster = cluster
        super().__init__(*how)

    def find_settings(self):
        """Return the settings, as `Launch.find_settings`, if a cluster allows so many workers."""
        settings = super().find_settings()
        check_workers(settings.num_workers)
        return settings

    def global_network(self, session):
        """Return the global network, on the parameter servers."""
        start_server(self.cluster)
        return ChiefNetwork(self.cluster, session, self.settings)


class WorkerLaunch(Starting):
    """The start of a worker process, to be used in a `with` as `Launch` is."""

    def __init__(self, cluster, given, Settings, signals):
        """Note what the user asked for.

        Args:
            cluster: the `Cluster`.
            given, Settings, signals: as for `Starting`.
        """
        super().__init__(Settings, given, signals)
        self.cluster = cluster

    def __enter__(self):
        """Wait for the chief's run, and take its settings."""
        self.output = OutputThread(self.notices)
        try:
            load_tensorflow()
            start_server(self.cluster)
            self.joined, self.chiefs = join(self.cluster, self.notices)
            chiefs = json.loads(self.chiefs)
            with user_errors():
                self.settings = worker_settings(self.Settings, chiefs, self.given, self.notices)
        except KeyboardInterrupt:
            sys.exit(self.signals.status())
        return self

    def __exit__(self, kind, error, traceback):
        super().__exit__(kind, error, traceback)
        if error is None and self.globalnet.link.other_run and not self.signals:
            os.execv(sys.executable, sys.orig_argv)

    def start_actors(self, units, policy_units, ahead):
        """Start the actors; the arguments are those of `Launch.start_actors`."""
        with user_errors():
            self.actors = new_actors(self.settings, units, policy_units, ahead)
        self.actors.started = self.joined * 10_000  # other games than any process before it played
        start_actors(self.actors, self.settings, first=self.cluster.first_worker())
        return self.actors

    def global_network(self, session):
        """Return the global network, on the parameter servers."""
        self.globalnet = RemoteNetwork(self.cluster, session, self.settings)
        self.globalnet.link.settings = self.chiefs
        return self.globalnet

    def begin(self, run, workers):
        """Say who trains here."""
        run.globalnet.begin(run)
        run.measures = False  # the chief alone does
        self.signals.starting = False
        names, task = ", ".join(self.actors), self.cluster.task()
        self.notices.append(f"{task} trains with {names}; games and curve are the chief's")

    def supervisor(self, run, workers):
        """Return the `Follower`, this process' supervisor."""
        return Follower(run, self.actors, self.signals)


class Follower:
    """The main thread of a worker process, which waits until the chief ends the run."""

    def __init__(self, run, actors, signals):
        self.run, self.actors, self.signals = run, actors, signals

    def show_and_save(self, threads):
        """Say who is waited for, until the run is over or a signal comes; end the threads."""
        run = self.run
        while not run.coordinator.wait_for_stop(0.25):
            if self.signals:
                run.stop(f"{self.signals.name()}: this worker leaves, the others continue")
            run.look_at_limits()
            run.notices.extend(run.globalnet.link.notices())
        stop_workers(threads, self.actors)
        return [thread for thread in threads if not thread.is_alive()]

    def plot(self):
        """Print why the run is over. The plot is the chief's."""
        self.run.notices.append(self.run.stopped_because)

    def exit_status(self):
        """Return the status that the signals give, 0 without one."""
        return self.signals.status()


def join(cluster, lines):
    """Wait for the chief's run.

    lines: as for `attended`.

    Returns:
        the worker process' number in it, and the settings as JSON.
    """
    link = Link(cluster, Board())

    def work():
        while True:
            link.wait_until_going()
            with contextlib.suppress(Lost, Held):
                if not link.ended:
                    joined, settings = link.call("join")
                    return int(joined), settings
            time.sleep(0.5)
            link.ended = ""  # of a run that is over: another one may begin

    return attended(work, link, lines)


def worker_settings(Settings, chiefs, given, lines):
    """Return a worker process' settings, which are the chief's.

    lines: list, to which this adds a line for each setting that the user gave otherwise.
    """
    own = dict(num_workers=given.get("num_workers"), render="never")
    unknown = chiefs.keys() - {field.name for field in dataclasses.fields(Settings)}
    if unknown:
        names = ", ".join(sorted(unknown))
        raise ValueError(f"the chief's program is of another version: it has the settings {names}")
    settings = dataclasses.replace(Settings(**chiefs), **own)
    for name, value in given.items():
        if name in chiefs and value != chiefs[name]:
            line = f"{option(name)} {shown(value)} is ignored"
            lines.append(f"{line}: the chief's value is {shown(chiefs[name])}")
    return settings
