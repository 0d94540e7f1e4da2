"""The process that a worker owns: it plays Pong with the worker's policy, a rollout at a time.

ALE holds Python's global lock while it emulates. So emulators in threads would run one after the
other, however many cores there are, and each worker has one in a process of its own. A message to
another process and back takes a third of a step's time. So the policy is in that process, too: the
worker writes its local weights to shared memory, asks for a rollout, and is answered once.

`main` runs in that process, with `Pong` and `Player`. The worker's side is in runtime/actors.py.
Nothing here imports TensorFlow, Matplotlib or rich.
"""

import collections
import contextlib
import gc
import hashlib
import json
import math
import mmap
import os
import pathlib
import select
import signal
import socket
import struct
import sys
from typing import NamedTuple

import ale_py
import gymnasium
import numpy as np

from preprocessing import INPUT_SIZE, SCREEN_SHAPE, active_pixels

MESSAGE_SIZE = 64  # bytes, more than any message has; the arrays go through shared memory
REQUEST = struct.Struct("id")  # number of steps; epsilon, NaN for None
ANSWER = struct.Struct("ii??i")  # numbers of steps and rows; terminal, truncated, next_action
STATE_SIZE = 2**17  # bytes, more than any game's state, which has some 17,000
GIVE_STATE = 0  # a request for no steps asks for the game's state


class Rollout(NamedTuple):
    """An actor's answer: as many steps as were asked for, or fewer if the game ended."""

    rows: np.ndarray  # [U] int, sorted: the inputs that are 1 in at least one of the states
    states: np.ndarray  # [n + 1, U] uint8: those inputs; the last is the state after the steps
    actions: np.ndarray  # [n] int
    rewards: np.ndarray  # [n] float: the game's own, -1, 0 or 1
    terminal: bool  # the game is over
    truncated: bool  # the emulator's frame limit ended the game
    next_action: int = 0  # the action for the last state, if it is chosen ahead


class PolicyWeights(NamedTuple):
    """The weights with which an actor plays."""

    kernel: np.ndarray  # [inputs, units] float32; its first `hidden` columns are the policy's
    bias: np.ndarray  # [hidden] float32
    head_kernel: np.ndarray  # [hidden, actions] float32
    head_bias: np.ndarray  # [actions] float32


class Sizes(NamedTuple):
    """The sizes of the arrays that an actor and its worker share."""

    max_steps: int  # of the longest rollout
    inputs: int  # of a state
    units: int  # hidden units of all networks, the kernel's columns
    hidden: int  # hidden units of the policy
    actions: int


class SharedMemory:
    """Memory that worker and actor share: the policy's weights, and the last rollout's arrays.

    It belongs to no file and has no name. It is freed with the two processes, however they end.
    """

    def __init__(self, file_descriptor, sizes):
        """Size and map the memory of a file descriptor, an int; sizes: `Sizes`."""
        max_steps, inputs, units, hidden, actions = sizes
        arrays = dict(
            kernel=((inputs, units), np.float32),
            bias=((hidden,), np.float32),
            head_kernel=((hidden, actions), np.float32),
            head_bias=((actions,), np.float32),
            actions=((max_steps,), np.int32),
            rewards=((max_steps,), np.float32),
            rows=((inputs,), np.int32),
            states=(((max_steps + 1) * inputs,), np.uint8),
            saved=((STATE_SIZE,), np.uint8),
        )
        size = sum(math.prod(shape) * dtype().itemsize for shape, dtype in arrays.values())
        os.ftruncate(file_descriptor, size)
        memory = mmap.mmap(file_descriptor, size)
        views, offset = {}, 0
        for name, (shape, dtype) in arrays.items():
            flat = np.frombuffer(memory, dtype, math.prod(shape), offset)
            views[name] = flat.reshape(shape)
            offset += flat.nbytes
        self.policy = PolicyWeights(*(views[name] for name in PolicyWeights._fields))
        self.actions, self.rewards = views["actions"], views["rewards"]
        self.rows, self.states = views["rows"], views["states"]
        self.saved = views["saved"]  # a game's state

    def write(self, rollout):
        """Copy a rollout's arrays; return the bytes with which `read` finds them."""
        steps, used = len(rollout.actions), len(rollout.rows)
        self.actions[:steps] = rollout.actions
        self.rewards[:steps] = rollout.rewards
        self.rows[:used] = rollout.rows
        self.states[: (steps + 1) * used] = rollout.states.ravel()
        terminal, truncated = rollout.terminal, rollout.truncated
        return ANSWER.pack(steps, used, terminal, truncated, rollout.next_action)

    def read(self, message):
        """Return the `Rollout` written last; its arrays are valid until the next one is written."""
        steps, used, terminal, truncated, next_action = ANSWER.unpack(message)
        return Rollout(
            rows=self.rows[:used],
            states=self.states[: (steps + 1) * used].reshape(steps + 1, used),
            actions=self.actions[:steps],
            rewards=self.rewards[:steps],
            terminal=terminal,
            truncated=truncated,
            next_action=next_action,
        )


class Window(NamedTuple):
    """The emulator's window, in which it plays at its own 60 frames a second."""

    title: str
    shift: int = 0  # pixels to the right and down, so that two runs' windows lie side by side


# --------------------------------------------------------------------------- in the actor's process


def make_env(game_env, render_mode=None):
    """Make Gymnasium's environment, unwrapped as in the chapter, without its start-up messages.

    Raises:
        ValueError: there is no such environment, or its game is not Pong.
    """
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # "Pong-v0 is out of date"
    gymnasium.register_envs(ale_py)
    try:
        spec = gymnasium.spec(game_env)
    except (gymnasium.error.Error, ImportError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"there is no environment {game_env!r}: {why}") from None
    if spec.kwargs.get("game") != "pong":
        raise ValueError(f"{game_env!r} is not Pong")
    return gymnasium.make(spec, render_mode=render_mode).unwrapped


class Game(NamedTuple):
    """The facts of an environment that a worker needs before it plays."""

    game_env: str
    num_actions: int  # 6 in Pong
    frames_per_step: float  # the mean, if each step draws its number of frames


def game(game_env):
    """Return the `Game` of a Gymnasium id. Raises ValueError as `make_env` does."""
    env = make_env(game_env)
    frames = env._frameskip
    if not isinstance(frames, int):
        lowest, above_highest = frames
        frames = (lowest + above_highest - 1) / 2
    return Game(game_env, int(env.action_space.n), frames)


class Pong:
    """Gymnasium's environment; it steps as `env.step` does, and returns active pixels."""

    def __init__(self, game_env, seed, render_mode=None):
        """seed: int >= 0, as for `env.reset(seed=...)`."""
        self.env = make_env(game_env, render_mode)
        self.ale = self.env.ale
        self.actions = self.env._action_set
        self.screen = np.empty(SCREEN_SHAPE, np.uint8)
        self.frameskips = []
        self.env.reset(seed=seed)

    def reset(self):
        """Start a new game; return the active pixels of its first frame."""
        self.ale.reset_game()
        return self._read()

    def step(self, action):
        """Play one agent step; return (active pixels, reward, terminal, truncated)."""
        ale, action, reward = self.ale, self.actions[action], 0
        for _ in range(self._frames()):
            reward += ale.act(action)
        return self._read(), reward, ale.game_over(with_truncation=False), ale.game_truncated()

    def _frames(self):
        """Return the number of frames of the next step; the env draws a hundred at once."""
        if not self.frameskips:
            frameskip = self.env._frameskip
            if isinstance(frameskip, int):
                return frameskip
            self.frameskips = self.env.np_random.integers(*frameskip, 100).tolist()[::-1]
        return self.frameskips.pop()

    def _read(self):
        self.ale.getScreen(self.screen)
        return active_pixels(self.screen)

    # With sticky actions the emulator may repeat the previous action. Its saved state lacks that
    # action. So `save` adds a digest of the next states, and `restore` tries each action until the
    # digest is the same.

    def save(self):
        """Return the state of the game: (dict that JSON can hold, the emulator's bytes)."""
        reading, writing = os.pipe()
        child = os.fork()  # plays ahead, while the game itself stays where it is
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
        """Continue from a state that `save` returned."""
        self.frameskips = about["frameskips"]
        self.env.np_random.bit_generator.state = about["frameskip_rng"]
        state = ale_py.ALEState.__new__(ale_py.ALEState)
        state.__setstate__(emulator)
        for last_action in self.actions:
            self._load(state, last_action)
            if self._next_frames().hex() == about["next_frames"]:
                self._load(state, last_action)
                return
        raise RuntimeError("the emulator does not continue as it would have when it was saved")

    def _load(self, state, last_action):
        """Load the emulator's state, with the action that may be repeated."""
        for _ in range(20):  # an earlier action may stick, but not so many times
            self.ale.act(last_action)
        self.ale.restoreState(state)

    def _next_frames(self):
        """Play 12 frames without an action; return a digest of the states, 32 bytes."""
        digest = hashlib.sha256()
        for _ in range(12):
            self.ale.act(self.actions[0])
            digest.update(self.ale.cloneState(include_rng=True).serialize())
        return digest.digest()


class Player:
    """A game of Pong, and the policy that plays it."""

    def __init__(self, pong, policy, seed, ahead=False):
        """Start a player, whose first rollout begins a game.

        Args:
            pong: a `Pong`.
            policy: `PolicyWeights`, read at every step.
            seed: int >= 0, of its choices.
            ahead: whether the action after a rollout is chosen with the rollout's policy.
        """
        self.pong, self.policy, self.ahead = pong, policy, ahead
        self.rng = np.random.default_rng(seed)
        inputs = len(policy.kernel)
        self.ones = np.ones(inputs, np.float32)
        self.column = np.empty(inputs, np.int64)  # input -> its column in a rollout's states
        self.frames = collections.deque(maxlen=inputs // INPUT_SIZE)  # the latest, newest first
        self.game_over = True

    def outputs(self, state):
        """Return the policy network's outputs, a list: the actions' logits, or their Q."""
        kernel, bias, head_kernel, head_bias = self.policy
        # an image of zeros and ones times a matrix is the sum of the rows of its ones
        rows = kernel.take(state, 0, mode="clip")
        layer = self.ones[: len(state)] @ rows[:, : len(bias)]
        layer += bias
        layer.clip(0, 6, out=layer)  # relu6
        return (layer.dot(head_kernel) + head_bias).tolist()

    def choose_action(self, state, epsilon=None):
        """Choose an action as the chapter does, or epsilon-greedily.

        Args:
            state: [k] int64, its active inputs.
            epsilon: None to draw from the softmax of the outputs; else the probability of a random
                action in place of the best one.
        """
        if epsilon is not None:
            if self.rng.random() < epsilon:
                return int(self.rng.integers(len(self.policy.head_bias)))
            outputs = self.outputs(state)
            return outputs.index(max(outputs))
        outputs = self.outputs(state)
        highest = max(outputs)
        weights = [math.exp(output - highest) for output in outputs]
        threshold = self.rng.random() * sum(weights)
        for action, weight in enumerate(weights):
            threshold -= weight
            if threshold < 0:
                return action
        return action  # the last: the sum was rounded

    def play(self, max_steps, epsilon=None, interrupted=lambda: False):
        """Play a rollout; after the end of a game, the next call begins a new one.

        Args:
            max_steps: its number of steps, if the game does not end before.
            epsilon: as for `choose_action`.
            interrupted: a function called before each step; True ends the rollout there.

        Returns:
            a `Rollout`.
        """
        if self.game_over:
            self.frames.clear()
            self.state = self._stack(self.pong.reset())
            self.next_action = None
        states, actions, rewards = [self.state], [], []
        terminal = truncated = False
        while len(actions) < max_steps and not (terminal or truncated) and not interrupted():
            action = self.next_action
            if action is None:
                action = self.choose_action(states[-1], epsilon)
            self.next_action = None
            pixels, reward, terminal, truncated = self.pong.step(action)
            actions.append(action)
            states.append(self._stack(pixels))
            rewards.append(reward)
        self.state, self.game_over = states[-1], terminal or truncated
        if self.ahead and self.next_action is None:
            self.next_action = self.choose_action(self.state, epsilon)
        rows, states = self._over_rows(states)
        return Rollout(
            rows=rows,
            states=states,
            actions=np.array(actions, int),
            rewards=np.array(rewards, float),
            terminal=terminal,
            truncated=truncated,
            next_action=self.next_action or 0,
        )

    def save(self):
        """Return the state of game and player, without the policy, as bytes."""
        about, emulator = self.pong.save()
        about.update(game_over=self.game_over, policy_rng=self.rng.bit_generator.state)
        if not self.game_over:
            about.update(state=self.state.tolist(), next_action=self.next_action)
            about["frames"] = [frame.tolist() for frame in self.frames]
        return json.dumps(about).encode() + b"\n" + emulator

    def restore(self, saved):
        """Continue from a state that `save` returned."""
        text, emulator = saved.split(b"\n", 1)
        about = json.loads(text)
        self.pong.restore(about, emulator)
        self.rng.bit_generator.state = about["policy_rng"]
        self.game_over = about["game_over"]
        if not self.game_over:
            self.state, self.next_action = np.array(about["state"], np.int64), about["next_action"]
            self.frames.clear()
            self.frames.extend(np.array(frame, np.int64) for frame in about["frames"])

    def _stack(self, pixels):
        """Return the active inputs of a state: a new frame's pixels, then earlier frames'."""
        if self.frames.maxlen == 1:
            return pixels
        self.frames.appendleft(pixels)
        while len(self.frames) < self.frames.maxlen:  # a game's first frame stands for earlier ones
            self.frames.append(pixels)
        return np.concatenate([frame + k * INPUT_SIZE for k, frame in enumerate(self.frames)])

    def _over_rows(self, active):
        """Return the active inputs of n states as (rows [U], states [n, U])."""
        together = np.concatenate(active)
        seen = np.zeros(len(self.ones), bool)
        seen[together] = True
        rows = seen.nonzero()[0]
        self.column[rows] = np.arange(len(rows))
        states = np.zeros((len(active), len(rows)), np.uint8)
        state = np.repeat(np.arange(len(active)), [len(inputs) for inputs in active])
        states[state, self.column[together]] = 1
        return rows, states


def arrange(window):
    """Give the emulator's window the title and the place of a `Window`.

    ALE has no function for it. SDL, the library that opened the window, has them.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError, StopIteration):  # another build of ALE
        sdl = ctypes.CDLL(str(next(pathlib.Path(ale_py.__file__).parent.glob("libSDL2*"))))
        sdl.SDL_GetWindowFromID.restype = ctypes.c_void_p
        opened = ctypes.c_void_p(sdl.SDL_GetWindowFromID(1))
        sdl.SDL_SetWindowTitle(opened, window.title.encode())
        x, y = ctypes.c_int(), ctypes.c_int()
        sdl.SDL_GetWindowPosition(opened, ctypes.byref(x), ctypes.byref(y))
        if window.shift:
            sdl.SDL_SetWindowPosition(opened, x.value + window.shift, y.value + window.shift)


def main():
    """Run the actor's process: answer each request, a number of steps, with a rollout.

    A request for 0 steps asks for the state of the game. One for -n steps restores a state of n
    bytes.
    """
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGUSR1,
    ):  # the parent decides
        signal.signal(number, signal.SIG_IGN)
    np.seterr(all="ignore")  # the main process reports a diverged network
    gc.disable()  # nothing here makes cycles of references, and the search for them takes time
    options = json.loads(sys.argv[1])
    connection = socket.socket(fileno=options["connection"])
    shared = SharedMemory(options["memory"], Sizes(*options["sizes"]))
    emulator_seed, policy_seed = np.random.SeedSequence(options["seed"]).generate_state(2).tolist()
    if options["window"]:
        connection.send(b"window")  # from here on the screen must answer
    pong = Pong(options["game_env"], emulator_seed, "human" if options["window"] else None)
    if options["window"]:
        arrange(Window(*options["window"]))
    player = Player(pong, shared.policy, policy_seed, options["ahead"])

    def parent_is_gone():
        """Return whether the parent has ended. Only a window's rollouts are long enough to ask."""
        return bool(options["window"] and select.select([connection], [], [], 0)[0])

    with contextlib.suppress(OSError):  # the parent is gone
        connection.send(b"ready")
        while request := connection.recv(MESSAGE_SIZE):
            steps, epsilon = REQUEST.unpack(request)
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


if __name__ == "__main__":
    main()
