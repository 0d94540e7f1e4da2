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
import tempfile
import threading
import time

import pong_actor
from pong_actor import GIVE_STATE, MESSAGE_SIZE, REQUEST, SharedMemory, Sizes
from preprocessing import INPUT_SIZE
from runtime.command_line import fail
from runtime.cores import allowed_cores, bind, usable_cores

SCREEN_ANSWERS = 10  # seconds in which a screen must do what is asked of it
SECONDS_A_STEP = 0.2  # in a window, more than any step takes
NO_SCREEN = "there is no screen (DISPLAY is not set)"


class ActorDied(Exception):
    """The end of an actor's process; `status` is its exit status, or minus a signal's number."""

    def __init__(self, status):
        killed = status < 0 and f"killed by {signal.Signals(-status).name}"
        super().__init__(killed or f"exit status {status}")
        self.status = status


class ScreenHangs(ActorDied):
    """The end of an actor whose screen does not answer any more."""

    def __init__(self):
        Exception.__init__(self, "its screen does not answer")
        self.status = 1


class PongActor:
    """A worker's handle on its actor process.

    `policy` holds the weights the actor plays with; write to it between rollouts.
    """

    def __init__(self, game, seed, sizes, ahead=False, window=None):
        """Start the process, whose emulator runs a third of a second later.

        Args:
            game: a `Game`.
            seed: list of ints >= 0, from which emulator and policy draw their randomness.
            sizes: the `Sizes`.
            ahead: as for `Player`.
            window: None, or the `Window` that the emulator opens.
        """
        self.window, self.ready = window, False
        memory = anonymous_memory()
        self.shared = SharedMemory(memory, sizes)
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
        """Block until the emulator runs.

        Raises:
            ActorDied: also, as ScreenHangs, if its window cannot be opened.
        """
        if self.window and not self.ready:
            said = self._receive()  # it is about to ask the screen for a window
            self.ready = said.endswith(b"ready")  # two messages may come as one
        if not self.ready:
            self.ready = self._receive(SCREEN_ANSWERS) == b"ready"

    def play(self, max_steps, epsilon=None):
        """Have a rollout played with the weights in `policy`; return the `Rollout`.

        Its arrays are valid until the next one. Raises ActorDied.

        Args:
            max_steps: its number of steps, if the game does not end before.
            epsilon: as for `Player.choose_action`.
        """
        self.wait_until_ready()
        self._request(max_steps, math.nan if epsilon is None else epsilon)
        return self.shared.read(self._receive(SCREEN_ANSWERS + max_steps * SECONDS_A_STEP))

    def ask_for_state(self):
        """Ask for the game's state, for which `state` waits. So actors save side by side."""
        self._request(GIVE_STATE)

    def state(self, seconds=1):
        """Return the state of the game that was asked for, [n] uint8. Raises ActorDied.

        An actor that does not answer within so many seconds hangs, and is killed.
        """
        for wait in seconds, 0:  # again, as the program may have been suspended meanwhile
            if select.select([self.connection], [], [], wait)[0]:
                break
        else:
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
            self.connection.send(REQUEST.pack(steps, epsilon))

    def _receive(self, seconds=None):
        """Return the actor's next message. If it has a window, it must come in so many seconds."""
        if self.window and seconds:
            if not select.select([self.connection], [], [], seconds)[0]:
                self.close()
                raise ScreenHangs
        with contextlib.suppress(OSError):
            if message := self.connection.recv(MESSAGE_SIZE):
                return message
        raise ActorDied(self.process.wait())


def anonymous_memory():
    """Return the file descriptor of memory that has no name and is freed with its processes."""
    with contextlib.suppress(AttributeError, OSError):  # macOS and some builds of Python lack it
        return os.memfd_create("actor")
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno())


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
        self.no_window = None  # why there is none, though one is wanted
        self.deaths = collections.defaultdict(list)  # worker name -> times
        self.lock = threading.Lock()

    def start(self, name, window=None):
        """Start an actor for a worker; window: as for `PongActor`."""
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
            window = self[name].window
            if window and death.status >= 0:  # its user closed it, or the screen is gone or hangs
                screen = f"{death}; " if isinstance(death, ScreenHangs) else ""
                what, window = f"{name}'s window is gone: {screen}its actor ended", None
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
            bind(0, core)
            bind(self[name].process.pid, core)

    def close(self):
        """End all actors."""
        for actor in self.values():
            actor.close()


def new_actors(settings, units, policy_units, ahead):
    """Return the `Actors` of a run, none of them started.

    Args:
        settings: the run's.
        units: hidden units of all networks.
        policy_units: hidden units of the policy network.
        ahead: as for `PongActor`.

    Raises:
        ValueError: the environment does not exist, or is not Pong.
    """
    game = pong_actor.game(settings.game_env)
    inputs = settings.frames * INPUT_SIZE
    sizes = Sizes(settings.global_iteration_update, inputs, units, policy_units, game.num_actions)
    return Actors(game, settings.seed, sizes, ahead)


def start_actors(actors, settings, window=None, first=0):
    """Start an actor for each worker. W_0's opens a window if that is wanted and possible.

    If it is wanted and not possible, `actors.no_window` says why.

    Args:
        actors: the `Actors`.
        settings: the run's.
        window: the `Window`.
        first: the first worker's number.

    Returns:
        whether there is a window.
    """
    in_window = settings.render in ("window", "auto")
    if in_window:
        actors.no_window = open_window(actors, window)
        in_window = not actors.no_window
        if actors.no_window and settings.render == "window":
            fail(f"--render window: {actors.no_window}")
    num_workers = settings.num_workers or usable_cores()
    # In a window W_0 plays 60 frames a second and learns little, so one worker more is started.
    for number in range(in_window, num_workers + in_window):
        actors.start(f"W_{first + number}")
    return in_window


def screens():
    """Return the screens that the environment names, as NAME=VALUE."""
    names = [name for name in ("WAYLAND_DISPLAY", "DISPLAY") if os.environ.get(name)]
    return [f"{name}={os.environ[name]}" for name in names]


def open_window(actors, window):
    """Start W_0's actor in a window; return None, or why that is not possible."""
    if not screens():
        return NO_SCREEN
    actors.start("W_0", window)
    try:
        actors["W_0"].wait_until_ready()
        return None
    except ActorDied as death:
        actors.started -= 1  # as if it had not been tried
        return no_window(death)


def no_window(death):
    """Return why an actor that died before it was ready could not open its window."""
    screen = " or ".join(screens())
    if isinstance(death, ScreenHangs):
        return f"{screen} does not answer"
    return f"no window can be opened on {screen}"


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
        seconds = 1 + 0.1 * len(self.asked) / usable_cores()
        for worker in self.workers:
            state = worker.saved_game  # one that a worker has not continued yet
            if worker in self.asked:
                state = None
                with contextlib.suppress(ActorDied):  # its worker will find out
                    state = worker.actor.state(seconds)
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
            worker.saved_game = checkpoint.arrays.get(f"actor/{worker.name}")
