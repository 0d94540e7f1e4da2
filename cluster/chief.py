"""The chief's side of the global network: it begins the run, numbers the games and saves."""

import contextlib
import dataclasses
import json
import threading
import time

import numpy as np

from cluster.link import Held, Lost, attended
from cluster.network import RemoteNetwork
from runtime.checkpoints import Checkpoint
from runtime.command_line import changeable
from runtime.global_network import GlobalVariables
from runtime.graph import new_session, tf
from runtime.supervisor import Supervisor


class ChiefNetwork(RemoteNetwork):
    """The global network on parameter servers, for the chief.

    A thread of its own fetches T and the games that ended. If the parameter servers have lost the
    run, it brings them back to the last checkpoint.
    """

    COLLECTED_EVERY = 0.25  # seconds
    SECONDS = 10  # in which a parameter server must answer for a checkpoint

    def __init__(self, *how):
        super().__init__(*how)
        self.lost_is_told = False  # the chief knows all games
        self.kept = None  # the last `Checkpoint`
        self.cut_to = None  # the number of games to which the files must be cut back

    def build(self, *how):
        """Build the parameter servers' graph; return the network."""
        self.how = how
        return super().build(*how)

    def initial(self):
        """Return the weights that a run starts with, as a `Checkpoint`: those of a run alone."""
        scope, heads, optimizers, *others = self.how
        slots = {  # for the names and first values of their variables
            name: tf.train.RMSPropOptimizer(0.0, name=optimizer.get_name())
            for name, optimizer in optimizers.items()
        }
        with tf.Graph().as_default(), tf.device("/cpu:0"):
            tf.set_random_seed(self.settings.seed)
            session, net = new_session(), GlobalVariables(self.settings)
            net.build(scope, heads, slots, *others)
            session.run(tf.global_variables_initializer())
            if net.target:
                session.run(net.target_is_copied())
            arrays = session.run(net.variables())
        arrays["row_log/touched_by"] = np.zeros(self.parameters.net.inputs, np.int64)
        return Checkpoint(arrays, dict(agent_steps=0, updates=0, games=0, joined=0))

    def restore(self, checkpoint):
        """Continue from a `Checkpoint`."""
        self.kept, self.T = checkpoint, checkpoint.about["agent_steps"]

    # ---------------------------------------------------------------------------------- begin a run

    def begin(self, run):
        """Put weights and counts on the parameter servers, and start to collect games."""
        super().begin(run)
        self.run = run
        self.kept = self.kept or self.initial()
        attended(self._send_when_possible, self.link, run.notices)
        self.saw(self.kept.about["agent_steps"], self.link.incarnation)
        self.collected, self.collecting = threading.Event(), threading.Lock()
        self.collector = threading.Thread(target=self._collect_all, daemon=True)
        self.collector.start()

    def _send_when_possible(self):
        while not self.run.coordinator.should_stop():
            try:
                return self._send()
            except (Lost, Held):
                time.sleep(0.2)

    def _send(self):
        """Send the last checkpoint, and let the workers begin. Raises Lost, Held."""
        about, link, settings = self.kept.about, self.link, dataclasses.asdict(self.settings)
        for name in [*changeable(self.settings), "run_dir"]:  # no worker's concern
            settings.pop(name)
        board = dict(T=about["agent_steps"], T_max=self.settings.max_steps or 2**62)
        board.update(joined=about.get("joined", 0), settings=json.dumps(settings), lost=self.lost)
        link.call("halt")
        values = self.parameters.beginning(board, self.kept.arrays, about["updates"])
        link.call("begin", *values)
        incarnation = time.time_ns()
        link.call("go", np.int64(incarnation))
        link.settings, link.incarnation = link.call("settings")[0], incarnation

    # -------------------------------------------------------------------------------- collect games

    def _collect_all(self):
        with self.run.coordinator.stop_on_exception():
            while not self.collected.wait(self.COLLECTED_EVERY):
                try:
                    self.collect()
                except (Lost, Held):
                    with contextlib.suppress(Lost, Held):
                        if self.link.look().incarnation != self.link.incarnation:
                            self._send_again()

    def collect(self):
        """Fetch the games that ended, and number them. Raises Lost, Held."""
        run = self.run
        with self.collecting:  # or the games of two calls might be numbered out of order
            incarnation = self.link.incarnation
            T, *games = self.link.call("collect", np.int64(incarnation), np.float64(self.lost))
            self.saw(int(T), incarnation)
            with run.lock:
                for T, worker, score, reward in zip(*games):
                    run.add_game(int(T), worker.decode(), int(score), float(reward))
                    run.look_at_limits()

    def _send_again(self):
        """Go back to the last checkpoint, the curve too."""
        run, about = self.run, self.kept.about
        with run.lock:  # before the workers begin: their beta depends on the curve
            del run.episodes[about["games"] :]
            run.look_back()
        self._send()
        with run.lock:
            self.cut_to = about["games"]
            back = f"{about['games']:,} games, {about['agent_steps']:,} steps"
            run.notices.append(
                f"the parameter server begins again with the last checkpoint: {back}"
            )

    # ------------------------------------------------------------------------------- save, and stop

    def snapshot(self, run, workers, last=False):
        """Return a `Checkpoint` of a moment between two updates; None if there is no answer.

        The games that are being played are not in it. The last one ends the run for the whole
        cluster.
        """
        done, take = [], self._take_last if last else self._take
        thread = threading.Thread(target=lambda: done.append(take()), daemon=True)
        thread.start()
        thread.join(self.SECONDS)
        return done[0] if done else None

    def _take_last(self):
        self.collected.set()
        self.collector.join()
        with contextlib.suppress(Lost, Held):
            self.link.call("end", self.run.stopped_because or "it has failed")
            return self._take()

    def _take(self):
        run = self.run
        with contextlib.suppress(Lost, Held):
            incarnation, T, updates, joined, touched_by, *values = self.link.call("snapshot")
            if incarnation != self.link.incarnation:
                return None
            self.collect()  # the games up to then
            arrays = dict(zip(self.variables(), values))
            arrays["row_log/touched_by"] = touched_by
            with run.lock:
                games = sum(e.agent_steps <= int(T) for e in run.episodes)
            about = dict(updates=int(updates), agent_steps=int(T), joined=int(joined))
            about.update(games=games, seconds=run.seconds(), workers={})
            self.kept = Checkpoint(dict(arrays), dict(about))
            return Checkpoint(arrays, about)


class ChiefSupervisor(Supervisor):
    """The supervisor of a cluster's run."""

    def attend(self):
        """Say which process the run waits for; cut the files back if the run went back."""
        run, globalnet = self.run, self.run.globalnet
        run.notices.extend(globalnet.link.notices())
        if globalnet.cut_to is not None:
            self.display.games, globalnet.cut_to = globalnet.cut_to, None
            self.folder.cut_back(run.episodes, run.agent_steps)
