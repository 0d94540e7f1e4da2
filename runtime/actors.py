"""The worker's side of its actor process: start it, ask it for rollouts, replace a dead one."""

import collections
import contextlib
import json
import math
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pong_actor
from pong_actor import GIVE_STATE, MESSAGE_SIZE, REQUEST, SharedMemory
from preprocessing import INPUT_SIZE
from runtime.command_line import fail


class ActorDied(Exception):
    """The end of an actor's process; `status` is its exit status, or minus a signal's number."""

    def __init__(self, status):
        killed = status < 0 and f"killed by {signal.Signals(-status).name}"
        super().__init__(killed or f"exit status {status}")
        self.status = status


class PongActor:
    """A worker's handle on its actor process.

    `policy` holds the weights the actor plays with; write to it between rollouts.
    """

    def __init__(self, game, seed, sizes, ahead=False, window=False):
        """Start the process, whose emulator runs a third of a second later.

        Args:
            game: a `Game`.
            seed: list of ints >= 0, from which emulator and policy draw their randomness.
            sizes: (longest rollout, inputs of a state, hidden units of the policy).
            ahead: as for `Player`.
            window: whether the emulator opens its window, and plays at its 60 frames a second.
        """
        sizes = *sizes, game.num_actions
        self.window, self.ready = window, False
        memory = os.memfd_create("actor")
        self.shared = SharedMemory(memory, *sizes)
        self.policy = self.shared.policy
        self.connection, childs_end = socket.socketpair()
        options = dict(game_env=game.game_env, seed=seed, sizes=sizes, ahead=ahead, window=window)
        options.update(connection=childs_end.fileno(), memory=memory)
        environment = dict(os.environ, OPENBLAS_NUM_THREADS="1", SDL_AUDIODRIVER="dummy")
        environment.setdefault("SDL_VIDEODRIVER", "wayland,x11")  # real screens, or no window
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(pong_actor.__file__), json.dumps(options)],
            pass_fds=(childs_end.fileno(), memory),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if window else None,  # SDL and ALSA talk there
            env=environment,
            start_new_session=True,  # the terminal's Ctrl-C does not reach it
        )
        childs_end.close()
        os.close(memory)

    def wait_until_ready(self):
        """Block until the emulator runs. Raises ActorDied."""
        if not self.ready:
            self.ready = self._receive() == b"ready"

    def play(self, max_steps, epsilon=None):
        """Have a rollout played with the weights in `policy`; return the `Rollout`.

        Its arrays are valid until the next one. Raises ActorDied.

        Args:
            max_steps: its number of steps, if the game does not end before.
            epsilon: as for `Player.choose_action`.
        """
        self.wait_until_ready()
        self._request(max_steps, math.nan if epsilon is None else epsilon)
        return self.shared.read(self._receive())

    def ask_for_state(self):
        """Ask for the game's state, for which `state` waits. So actors save side by side."""
        self._request(GIVE_STATE)

    def state(self, seconds=1):
        """Return the state of the game that was asked for, [n] uint8. Raises ActorDied.

        An actor that does not answer within so many seconds hangs, and is killed.
        """
        if not select.select([self.connection], [], [], seconds)[0]:
            self.close()
        (size,) = struct.unpack("i", self._receive())
        return self.shared.saved[:size].copy()

    def restore(self, state):
        """Continue from a state of this or another actor. Raises ActorDied."""
        self.wait_until_ready()
        self.shared.saved[: len(state)] = state
        self._request(-len(state))
        self._receive()

    def close(self):
        """Kill the process; its unfinished rollout is dropped."""
        self.process.kill()
        self.process.wait()

    def _request(self, steps, epsilon=math.nan):
        with contextlib.suppress(OSError):  # it is dead: the missing answer will tell
            self.connection.send(struct.pack(REQUEST, steps, epsilon))

    def _receive(self):
        with contextlib.suppress(OSError):
            if message := self.connection.recv(MESSAGE_SIZE):
                return message
        raise ActorDied(self.process.wait())


def allowed_cores():
    """Return the numbers of the cores that this process may use, which may not be all."""
    return sorted(os.sched_getaffinity(os.getpid()))


class ActorsKeepDying(Exception):
    """Too many deaths of a worker's actors; the message is for the user."""


class Actors(dict):
    """A dict of the name of a worker -> its `PongActor`. A dead one is replaced, up to a limit."""

    DEATHS, WITHIN = 5, 60  # so many deaths within so many seconds are too many

    def __init__(self, game, seed, sizes, ahead=False):
        """seed: int >= 0, of all actors' randomness; the others as for `PongActor`."""
        super().__init__()
        self.game, self.seed, self.sizes, self.ahead = game, seed, sizes, ahead
        self.started = 0
        self.deaths = collections.defaultdict(list)  # worker name -> times
        self.lock = threading.Lock()

    def start(self, name, window=False):
        """Start an actor for a worker."""
        seed = [self.seed, self.started]  # so a replacement plays other games
        self.started += 1
        self[name] = PongActor(self.game, seed, self.sizes, self.ahead, window)

    def replace(self, name, death):
        """Replace a dead actor; return a line about it. Raises ActorsKeepDying."""
        with self.lock:
            now = time.monotonic()
            recent = [then for then in self.deaths[name] if now - then < self.WITHIN] + [now]
            self.deaths[name] = recent
            what = f"{name}'s actor died ({death})"
            if len(recent) >= self.DEATHS:
                raise ActorsKeepDying(f"{what}, the {self.DEATHS}th death within {self.WITHIN} s")
            self[name].connection.close()
            window = self[name].window and death.status < 0  # or its user closed it
            self.start(name, window)
            return f"{what} and is started again, with a new game"

    def share_core(self, name):
        """Bind the calling worker's thread and its actor to one core, if each core has a worker.

        The two take turns. On one core neither waits for another core to wake up, and each finds
        the other's data in the cache. With fewer workers than cores the kernel chooses better.
        """
        cores = allowed_cores()
        if len(self) >= len(cores):
            core = cores[list(self).index(name) % len(cores)]
            os.sched_setaffinity(0, {core})
            with contextlib.suppress(ProcessLookupError):  # it is dead: the next request will tell
                os.sched_setaffinity(self[name].process.pid, {core})

    def close(self):
        """End all actors."""
        for actor in self.values():
            actor.close()


def new_actors(settings, policy_units, ahead):
    """Return the `Actors` of a run, none of them started.

    Args:
        settings: the run's.
        policy_units: hidden units of the policy network.
        ahead: as for `PongActor`.

    Raises:
        ValueError: the environment does not exist, or is not Pong.
    """
    game = pong_actor.game(settings.game_env)
    sizes = settings.global_iteration_update, settings.frames * INPUT_SIZE, policy_units
    return Actors(game, settings.seed, sizes, ahead)


def start_actors(actors, settings, first=0):
    """Start an actor for each worker. W_0's opens a window if that is wanted and possible.

    first: the first worker's number.

    Returns:
        whether there is a window.
    """
    screen = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    in_window = settings.render == "window" or (settings.render == "auto" and screen)
    num_workers = settings.num_workers or len(allowed_cores())
    if in_window:
        actors.start("W_0", window=True)
        try:
            actors["W_0"].wait_until_ready()
        except ActorDied:
            if settings.render == "window":
                fail("--render window: there is no screen that the emulator can open a window on")
            in_window, actors.started = False, actors.started - 1  # as if it had not been tried
    # In a window W_0 plays 60 frames a second and learns little, so one worker more is started.
    for number in range(in_window, num_workers + in_window):
        actors.start(f"W_{first + number}")
    return in_window


class GamesInPlay:
    """The workers' games, for a checkpoint, while the workers stand still.

    A window's game is not saved: a rollout takes a second or more there, and saving would wait.
    """

    def __init__(self, workers):
        """Ask all actors for their games; they save side by side."""
        self.workers, self.asked = workers, []
        for worker in workers:
            if worker.actor and not worker.actor.window:
                worker.actor.ask_for_state()
                self.asked.append(worker)

    def wait(self):
        """Wait for the games.

        Returns:
            dict of actor/NAME -> the game's state; dict of NAME -> the worker's counts.
        """
        states, counts = {}, {}
        for worker in self.workers:
            state = worker.game  # one that a worker has not continued yet
            if worker in self.asked:
                state = None
                with contextlib.suppress(ActorDied):  # its worker will find out
                    state = worker.actor.state()
            if state is not None:
                states[f"actor/{worker.name}"] = state
            score, ep_r = (0, 0) if state is None else (worker.score, worker.ep_r)
            count = dict(total_step=worker.total_step, score=score, ep_r=ep_r)
            counts[worker.name] = count
        return states, counts


def restore_games(workers, checkpoint, same_emulator):
    """Give workers the counts and, from the same version of the emulator, the games they had."""
    for worker in workers:
        counts = checkpoint.about["workers"].get(worker.name)
        if counts:
            worker.total_step = counts["total_step"]
            worker.score, worker.ep_r = counts["score"], counts["ep_r"]
        if same_emulator:
            worker.game = checkpoint.arrays.get(f"actor/{worker.name}")
