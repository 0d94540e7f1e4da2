"""The process a worker owns: emulator, preprocessing and policy, rollout by rollout. No TensorFlow.

ALE holds Python's global lock while it emulates, so emulators stepped in threads run one after the
other however many cores there are; a process each puts them side by side. And since a trip from one
process to another costs a third of a step, the policy goes with the emulator: the worker writes its
local weights to memory that both see, asks for a rollout, and is answered once.

The worker's side is `PongActor`, all workers' are `Actors`; `main` is the process, `Pong` and
`Player` run in it.
"""

import collections
import contextlib
import gc
import hashlib
import json
import math
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import ale_py
import gymnasium
import numpy as np

from preprocessing import INPUT_SIZE, SCREEN_SHAPE, active_pixels

MESSAGE_SIZE = 64  # bytes, more than any message has; the arrays go through shared memory
REQUEST = "id"  # a rollout: how many steps, and epsilon, which is NaN for None
STATE_SIZE = 2**17  # bytes, more than the state of any game has: some 17,000
GIVE_STATE = 0  # a request for no steps is one for the game's state


class Rollout(NamedTuple):
    """What an actor answers: up to as many steps as were asked for, fewer where the game ended."""

    rows: np.ndarray  # [U] int32, sorted: the inputs that are 1 in at least one of the states
    states: np.ndarray  # [T + 1, U] uint8: over those pixels; the last is after the steps
    actions: np.ndarray  # [T] int32
    rewards: np.ndarray  # [T] float32: the game's own, -1, 0 or 1
    terminal: bool  # the game is over
    truncated: bool  # the game was cut off by the emulator's frame limit
    next_action: int = 0  # the one to be taken in the last state, where it is chosen ahead


class PolicyWeights(NamedTuple):
    """The actor network's weights."""

    kernel: np.ndarray  # [inputs, hidden] float32
    bias: np.ndarray  # [hidden] float32
    head_kernel: np.ndarray  # [hidden, actions] float32
    head_bias: np.ndarray  # [actions] float32


class SharedMemory:
    """What worker and actor both see: the policy's weights, and the arrays of the rollout played
    last.

    It belongs to no file and has no name: it is gone when both processes are, however they end.
    """

    def __init__(self, file_descriptor, max_steps, inputs, hidden, actions):
        """max_steps: the longest rollout. inputs: of a state. hidden, actions: policy's layers."""
        arrays = [
            ((inputs, hidden), np.float32), ((hidden,), np.float32),
            ((hidden, actions), np.float32), ((actions,), np.float32),
            ((max_steps,), np.int32), ((max_steps,), np.float32),
            ((inputs,), np.int32), (((max_steps + 1) * inputs,), np.uint8),
            ((STATE_SIZE,), np.uint8),
        ]  # fmt: skip
        sizes = [math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays]
        os.ftruncate(file_descriptor, sum(sizes))
        memory, views, offset = mmap.mmap(file_descriptor, sum(sizes)), [], 0
        for (shape, dtype), size in zip(arrays, sizes):
            views.append(np.frombuffer(memory, np.uint8, size, offset).view(dtype).reshape(shape))
            offset += size
        self.policy = PolicyWeights(*views[:4])
        self.actions, self.rewards, self.rows, self.states, self.saved = views[4:]

    def write(self, rollout):
        """Put a rollout's arrays in place; returns the bytes `read` needs to find them again."""
        steps, used = len(rollout.actions), len(rollout.rows)
        self.actions[:steps], self.rewards[:steps] = rollout.actions, rollout.rewards
        self.rows[:used], self.states[: (steps + 1) * used] = rollout.rows, rollout.states.ravel()
        return struct.pack("iibbi", steps, used, *rollout[4:])

    def read(self, message):
        """The `Rollout` written last; its arrays hold until the next one is written."""
        steps, used, terminal, truncated, next_action = struct.unpack("iibbi", message)
        states = self.states[: (steps + 1) * used].reshape(steps + 1, used)
        arrays = self.rows[:used], states, self.actions[:steps], self.rewards[:steps]
        return Rollout(*arrays, bool(terminal), bool(truncated), next_action)


class ActorDied(Exception):
    """The actor's process is gone; `status` is its exit status, or minus the signal's number."""

    def __init__(self, status):
        killed = status < 0 and f"killed by {signal.Signals(-status).name}"
        super().__init__(killed or f"exit status {status}")
        self.status = status


# --------------------------------------------------------------------------- in the actor's process


def make_env(env_id, render_mode=None):
    """Gymnasium's Atari environment, unwrapped as in the chapter, without its start-up messages.

    Raises:
        ValueError: there is no such environment, or its game is not Pong.
    """
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # "Pong-v0 is out of date"
    gymnasium.register_envs(ale_py)
    try:
        spec = gymnasium.spec(env_id)
    except (gymnasium.error.Error, ImportError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"there is no environment {env_id!r}: {why}") from None
    if spec.kwargs.get("game") != "pong":
        raise ValueError(f"{env_id!r} is not Pong")
    return gymnasium.make(spec, render_mode=render_mode).unwrapped


class Game(NamedTuple):
    """What there is to know of an environment before it is played."""

    env_id: str
    num_actions: int  # 6 in Pong
    frames_per_step: float  # the mean, where each step draws how many


def game(env_id):
    """The `Game` of a Gymnasium id. Raises ValueError as `make_env` does."""
    env = make_env(env_id)
    frameskip = env._frameskip
    frames = frameskip if isinstance(frameskip, int) else (sum(frameskip) - 1) / 2
    return Game(env_id, int(env.action_space.n), frames)


class Pong:
    """Gymnasium's environment, stepped as its own `step` does, but read as active pixels."""

    def __init__(self, env_id, seed, render_mode=None):
        """seed: int >= 0, as for `env.reset(seed=...)`."""
        self.env = make_env(env_id, render_mode)
        self.ale = self.env.ale
        self.actions = self.env._action_set
        self.screen = np.empty(SCREEN_SHAPE, np.uint8)
        self.frameskips = []
        self.env.reset(seed=seed)

    def reset(self):
        """Start a new game; the active pixels of its first frame."""
        self.ale.reset_game()
        return self._read()

    def step(self, action):
        """Play one agent step: (active pixels, reward, terminal, truncated)."""
        ale, action, reward = self.ale, self.actions[action], 0
        for _ in range(self._frames()):
            reward += ale.act(action)
        return self._read(), reward, ale.game_over(with_truncation=False), ale.game_truncated()

    def _frames(self):
        """How many frames the next step lasts: the environment's draw, a hundred at once."""
        if not self.frameskips:
            frameskip = self.env._frameskip
            if isinstance(frameskip, int):
                return frameskip
            self.frameskips = self.env.np_random.integers(*frameskip, 100).tolist()[::-1]
        return self.frameskips.pop()

    def _read(self):
        self.ale.getScreen(self.screen)
        return active_pixels(self.screen)

    # A sticky action repeats the one before it, and that is the only thing that the emulator's own
    # copy of its state leaves out. So what it would play next goes into the state as well, and
    # `restore` tries the actions until it plays the same.

    def save(self):
        """All that decides how the game goes on: (dict that JSON can hold, emulator's bytes)."""
        reading, writing = os.pipe()
        child = os.fork()  # plays on in the game's stead, which stays as it is
        if child == 0:
            os.write(writing, self._next_frames())
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            next_frames = pipe.read().hex()
        os.waitpid(child, 0)
        rng = self.env.np_random.bit_generator.state
        about = dict(frameskips=self.frameskips, frameskip_rng=rng, next_frames=next_frames)
        return about, self.ale.cloneState(include_rng=True).serialize()

    def restore(self, about, emulator):
        """Go on from what `save` gave."""
        self.frameskips = about["frameskips"]
        self.env.np_random.bit_generator.state = about["frameskip_rng"]
        state = ale_py.ALEState.__new__(ale_py.ALEState)
        state.__setstate__(emulator)
        for last_action in self.actions:
            for look_ahead in True, False:
                for _ in range(20):  # the one before may stick, but not so many times
                    self.ale.act(last_action)
                self.ale.restoreState(state)
                if look_ahead and self._next_frames().hex() != about["next_frames"]:
                    break
            else:
                return
        raise RuntimeError("the emulator does not go on as it did where its state was taken")

    def _next_frames(self):
        """Play 12 frames without an action: a digest of the state after each, 32 bytes."""
        digest = hashlib.sha256()
        for _ in range(12):
            self.ale.act(self.actions[0])
            digest.update(self.ale.cloneState(include_rng=True).serialize())
        return digest.digest()


class Player:
    """A game of Pong, and the policy that plays it."""

    def __init__(self, pong, policy, seed, ahead=False):
        """ahead: whether the action after a rollout is chosen with the rollout's policy."""
        self.pong, self.policy, self.ahead = pong, policy, ahead
        self.rng = np.random.default_rng(seed)
        inputs, actions = len(policy.kernel), len(policy.head_bias)
        self.actions = range(actions)
        self.ones = np.ones(inputs, np.float32)
        self.column = np.empty(inputs, np.int64)  # input -> its column in a rollout's states
        self.frames = collections.deque(maxlen=inputs // INPUT_SIZE)  # the latest, newest first
        self.game_over = True

    def outputs(self, state):
        """The policy network's outputs, a list: logits of the actions, or their Q."""
        kernel, bias, head_kernel, head_bias = self.policy
        # an image of zeros and ones times a matrix: the sum of the rows of its ones
        layer = self.ones[: len(state)] @ kernel.take(state, 0, mode="clip")
        layer += bias
        layer.clip(0, 6, out=layer)  # relu6
        return (layer.dot(head_kernel) + head_bias).tolist()

    def choose_action(self, state, epsilon=None):
        """An action: drawn from the policy, or else the best but for a random one now and then.

        Args:
            state: [k] int64, its active inputs.
            epsilon: None to draw from softmax of the outputs, or the probability of a random one.
        """
        if epsilon is not None and self.rng.random() < epsilon:
            return int(self.rng.integers(len(self.actions)))
        outputs = self.outputs(state)
        highest = max(outputs)
        if epsilon is not None:
            return outputs.index(highest)
        weights = [math.exp(output - highest) for output in outputs]
        threshold = self.rng.random() * sum(weights)
        for action, weight in enumerate(weights):
            threshold -= weight
            if threshold < 0:
                return action
        return action  # the last: the sum was rounded

    def play(self, max_steps, epsilon=None, interrupted=lambda: False):
        """Play up to max_steps steps, or to the end of the game; a `Rollout`.

        The next call begins a new game then. epsilon: as `choose_action` has it. interrupted: asked
        before each step; yes ends it.
        """
        if self.game_over:
            self.frames.clear()
            self.state, self.next_action = self._see(self.pong.reset()), None
        states, actions, rewards = [self.state], [], []
        terminal = truncated = False
        while len(actions) < max_steps and not (terminal or truncated) and not interrupted():
            action = self.next_action
            if action is None:
                action = self.choose_action(states[-1], epsilon)
            self.next_action = None
            pixels, reward, terminal, truncated = self.pong.step(action)
            actions.append(action)
            states.append(self._see(pixels))
            rewards.append(reward)
        self.state, self.game_over = states[-1], terminal or truncated
        if self.ahead and self.next_action is None:
            self.next_action = self.choose_action(self.state, epsilon)
        over_rows = self._over_rows(states)
        return Rollout(*over_rows, actions, rewards, terminal, truncated, self.next_action or 0)

    def save(self):
        """All that decides how the game goes on, but for the policy: bytes, for `restore`."""
        about, emulator = self.pong.save()
        about.update(game_over=self.game_over, policy_rng=self.rng.bit_generator.state)
        if not self.game_over:
            about.update(state=self.state.tolist(), next_action=self.next_action)
            about["frames"] = [frame.tolist() for frame in self.frames]
        return json.dumps(about).encode() + b"\n" + emulator

    def restore(self, saved):
        """Go on from what `save` gave."""
        text, emulator = saved.split(b"\n", 1)
        about = json.loads(text)
        self.pong.restore(about, emulator)
        self.rng.bit_generator.state = about["policy_rng"]
        self.game_over = about["game_over"]
        if not self.game_over:
            self.state, self.next_action = np.array(about["state"], np.int64), about["next_action"]
            self.frames.clear()
            self.frames.extend(np.array(frame, np.int64) for frame in about["frames"])

    def _see(self, pixels):
        """The active inputs with one more frame: its pixels, then those of the ones before it."""
        if self.frames.maxlen == 1:
            return pixels
        self.frames.appendleft(pixels)
        while len(self.frames) < self.frames.maxlen:  # a game's first has none before it
            self.frames.append(pixels)
        return np.concatenate([frame + k * INPUT_SIZE for k, frame in enumerate(self.frames)])

    def _over_rows(self, active):
        """Active inputs of n states -> (rows [U], states [n, U])."""
        together = np.concatenate(active)
        seen = np.zeros(len(self.ones), bool)
        seen[together] = True
        rows = seen.nonzero()[0]
        self.column[rows] = np.arange(len(rows))
        states = np.zeros((len(active), len(rows)), np.uint8)
        state = np.repeat(np.arange(len(active)), [len(inputs) for inputs in active])
        states[state, self.column[together]] = 1
        return rows, states


def main():
    """The actor's process: answer each request, a number of steps, with a rollout.

    No steps ask for the state of the game, and minus n steps to restore the one of n bytes.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # for the parent to decide
        signal.signal(number, signal.SIG_IGN)
    gc.disable()  # nothing here makes cycles of references; looking for them takes time
    options = json.loads(sys.argv[1])
    connection = socket.socket(fileno=options["connection"])
    shared = SharedMemory(options["memory"], *options["sizes"])
    emulator_seed, policy_seed = np.random.SeedSequence(options["seed"]).generate_state(2).tolist()
    pong = Pong(options["env_id"], emulator_seed, "human" if options["window"] else None)
    player = Player(pong, shared.policy, policy_seed, options["ahead"])

    def parent_is_gone():
        """Asked in a window, where a rollout takes seconds; the parent sends nothing meanwhile."""
        return options["window"] and select.select([connection], [], [], 0)[0]

    with contextlib.suppress(OSError):  # the parent is gone
        connection.send(b"ready")
        while request := connection.recv(MESSAGE_SIZE):
            steps, epsilon = struct.unpack(REQUEST, request)
            epsilon = None if math.isnan(epsilon) else epsilon
            if steps > 0:
                connection.send(shared.write(player.play(steps, epsilon, parent_is_gone)))
            elif steps == GIVE_STATE:
                saved = player.save()
                shared.saved[: len(saved)] = np.frombuffer(saved, np.uint8)
                connection.send(struct.pack("i", len(saved)))
            else:
                player.restore(shared.saved[:-steps].tobytes())
                connection.send(b"restored")


# --------------------------------------------------------------------------- in the worker's thread


class PongActor:
    """A worker's handle on its actor process.

    `policy` holds the weights the actor plays with; write to it between rollouts.
    """

    def __init__(self, game, seed, sizes, ahead=False, window=False):
        """Start the process; the emulator runs a third of a second later.

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
        options = dict(env_id=game.env_id, seed=seed, sizes=sizes, ahead=ahead, window=window)
        options.update(connection=childs_end.fileno(), memory=memory)
        environment = dict(os.environ, OPENBLAS_NUM_THREADS="1", SDL_AUDIODRIVER="dummy")
        environment.setdefault("SDL_VIDEODRIVER", "wayland,x11")  # real screens, or no window
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), json.dumps(options)],
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
        """A `Rollout` of up to max_steps steps, played with the weights in `policy`.

        epsilon: as for `Player`. The arrays hold until the next. Raises ActorDied.
        """
        self.wait_until_ready()
        self._request(max_steps, math.nan if epsilon is None else epsilon)
        return self.shared.read(self._receive())

    def ask_for_state(self):
        """Begin what `state` ends, so that several actors can be at it at once."""
        self._request(GIVE_STATE)

    def state(self, seconds=1):
        """The state of the game that was asked for, [n] uint8, for `restore`. Raises ActorDied.

        An actor that does not give it within so many seconds hangs, and is ended.
        """
        if not select.select([self.connection], [], [], seconds)[0]:
            self.close()
        (size,) = struct.unpack("i", self._receive())
        return self.shared.saved[:size].copy()

    def restore(self, state):
        """Go on with the game from such a state, another actor's or an earlier one's.

        Raises ActorDied.
        """
        self.wait_until_ready()
        self.shared.saved[: len(state)] = state
        self._request(-len(state))
        self._receive()

    def close(self):
        """End the process; what it was playing is dropped."""
        self.process.kill()
        self.process.wait()

    def _request(self, steps, epsilon=math.nan):
        with contextlib.suppress(OSError):  # it is dead: the answer, none, says so
            self.connection.send(struct.pack(REQUEST, steps, epsilon))

    def _receive(self):
        with contextlib.suppress(OSError):
            if message := self.connection.recv(MESSAGE_SIZE):
                return message
        raise ActorDied(self.process.wait())


def allowed_cores():
    """The numbers of the cores that this process may use, a list: not always all there are."""
    return sorted(os.sched_getaffinity(os.getpid()))


class ActorsKeepDying(Exception):
    """Starting another actor has not helped; the message is for the user."""


class Actors(dict):
    """Worker name -> its `PongActor`. One that dies is replaced, but not for ever."""

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
        seed = [self.seed, self.started]  # one in a dead one's place plays other games
        self.started += 1
        self[name] = PongActor(self.game, seed, self.sizes, self.ahead, window)

    def replace(self, name, death):
        """Start another actor in a dead one's place; a line about it. Raises ActorsKeepDying."""
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
        """Bind the calling thread, a worker's, and its actor to one core, if each has a worker.

        The two take turns: on one core neither waits for another core to wake up, and what one has
        written the other finds in the cache. With fewer workers than cores the system knows better.
        """
        cores = allowed_cores()
        if len(self) >= len(cores):
            core = cores[list(self).index(name) % len(cores)]
            os.sched_setaffinity(0, {core})
            with contextlib.suppress(ProcessLookupError):  # dead already: its next answer will say
                os.sched_setaffinity(self[name].process.pid, {core})

    def close(self):
        """End all actors."""
        for actor in self.values():
            actor.close()


if __name__ == "__main__":
    main()
