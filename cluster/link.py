"""A process' connection to the parameter servers. It reconnects after they restart."""

import contextlib
import threading
import time
from typing import NamedTuple

from cluster.config import answers
from cluster.server import kept
from runtime.graph import make_callable, tf


class Lost(Exception):
    """A call got no answer, or its subject is no longer there."""


class Held(Exception):
    """The parameter servers refuse a call: the caller's incarnation is not being trained."""


CALL_SECONDS = 60  # the time-out of a call; a link that is cut for seconds does not reach it
PATIENCE = 10  # seconds without a sign of the chief, after which workers wait for it


class State(NamedTuple):
    """A run's state, as the parameter servers have it."""

    incarnation: int = 0  # 0: no run has begun
    T: int = 0
    T_max: int = 0
    ended: str = ""  # why the run is over; "": it is not
    age: float = 0.0  # seconds since the chief's last sign


class Link:
    """A process' session with the parameter servers, made anew when it is lost.

    Workers' threads wait here for a parameter server or the chief.
    """

    def __init__(self, cluster, board):
        """cluster: the `Cluster` that this process is in. board: a `Board`."""
        self.cluster, self.board = cluster, board
        self.stopped = lambda: False  # whether the run is stopped here
        self.lock, self.connecting = threading.Lock(), threading.Lock()
        self.session, self.callables = None, {}
        self.pending = {}  # thread -> the time at which its call began
        self.incarnation, self.ended = 0, ""
        self.settings = None  # the run's, as the chief wrote them
        self.other_run = self.chief_missing = False
        self.told = None  # the missing process that the user was told of

    def call(self, name, *values):
        """Make a call of the board, and return its answer. Raises Lost, Held."""
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
        """Return the session, a new one if need be, and its callables. Raises Lost."""
        with self.connecting:
            if self.session is None:
                address = self.cluster.addresses["ps"][0]
                if not answers(address):
                    time.sleep(0.2)
                    raise Lost(f"{address} does not answer")
                config = tf.ConfigProto(device_filters=["/job:ps"])  # the others may come later
                session = tf.Session(f"grpc://{address}", self.board.graph, config)
                callables = {}
                kept.append((session, callables))  # before the first call that may fail
                for name, how in self.board.calls.items():
                    callables[name] = make_callable(session, *how, CALL_SECONDS)
                self.session, self.callables = session, callables
            return self.session, self.callables

    def look(self):
        """Note whether the run has ended, or its chief is missing; return the run's `State`."""
        state = State()
        if self.call("ready")[0]:
            incarnation, T, T_max, ended, age = self.call("state")
            state = State(int(incarnation), int(T), int(T_max), ended.decode(), float(age))
        self.ended = state.ended
        silent = not state.incarnation or state.age > PATIENCE
        self.chief_missing = silent and not state.ended
        return state

    def over(self):
        """Return whether this process is done: the run is over, or another one has begun."""
        return self.stopped() or bool(self.ended) or self.other_run

    def wait_until_going(self):
        """Block until the run is at work, or `over`."""
        with self.lock:
            while not self.over():
                with contextlib.suppress(Lost, Held):
                    state = self.look()
                    if not self.ended and not self.chief_missing and state.T < state.T_max:
                        if state.incarnation != self.incarnation:
                            (settings,) = self.call("settings")
                            self.other_run = self.settings not in (None, settings)
                            self.settings, self.incarnation = settings, state.incarnation
                        return
                time.sleep(0.1)

    def exchange(self, *values):
        """Push and pull; return the answer, or None if the push was lost.

        values: the feeds of `Parameters`' call "exchange".
        """
        try:
            answer = self.call("exchange", *values)
        except (Lost, Held):
            self.wait_until_going()
            return None
        if answer[1] > PATIENCE:
            self.wait_until_going()
        return answer

    def notices(self):
        """Return lines for the user about the process that this one waits for; each once."""
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
        return [f"waiting for {missing}" if missing else "all processes answer: training continues"]


def attended(work, link, lines):
    """Do work() in a thread, so that a signal can interrupt the wait for it; return its result.

    lines: list of lines for the user, to which this adds which process the link waits for.
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
        lines.extend(link.notices())
    result, error = done[0]
    if error:
        raise error
    return result
