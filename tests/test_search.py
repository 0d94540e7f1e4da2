"""The compiled game is ale-py's, and the compiled learner's updates are a3c_pong's."""

import csv
import ctypes
import dataclasses
import functools
import importlib
import pathlib
import re
import shutil
import subprocess
import sys

import ale_py
import numpy as np
import pytest
from in_process import InProcess, new_locals
from program import ROOT

import a3c_pong
import pong_actor
from a3c_pong import PRESETS
from preprocessing import INPUT_SIZE, SCREEN_SHAPE, active_pixels
from runtime import checkpoints
from runtime.actors import PongActor

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")

SEARCH = ROOT / "search"
RALLY = PRESETS["rally"]["a3c"]
FLAGS = "-std=gnu11 -O3 -march=native -ffast-math".split()  # as run.py's
# in the game's memory
BALL_X, BALL_Y, BALL_SPEEDS, PLAYER_Y, OPPONENT_Y = 0x31, 0x36, (0x38, 0x39, 0x3A), 0x33, 0x15
SCORES, CLOCK = (0x0D, 0x0E), (0x09, 0x0A)
METHODS = "a3c", "one-step-q", "one-step-sarsa", "n-step-q"
NUMBERED = {"method": METHODS, "pull": ("after", "before", "both")}  # numbers in a3c.c


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    subprocess.run([sys.executable, SEARCH / "translate.py", folder], check=True)
    source, library = ROOT / "tests/search_library.c", folder / "library.so"
    command = ["gcc", *FLAGS, "-shared", "-fPIC", "-I", SEARCH, "-I", folder, source]
    subprocess.run([*command, "-o", library, "-lm"], check=True)
    return library


@pytest.fixture
def library(built, tmp_path):
    """A copy of its own, since there is one game and one network in each."""
    library = ctypes.CDLL(shutil.copy(built, tmp_path))
    library.ram.restype = ctypes.POINTER(ctypes.c_uint8)
    for name in "weights", "mean_squares":
        getattr(library, name).restype = ctypes.POINTER(ctypes.c_float)
    library.touched.restype = ctypes.POINTER(ctypes.c_long)
    library.set.argtypes = [ctypes.c_char_p, ctypes.c_double]
    library.lose.argtypes = [ctypes.c_double]
    library.epsilon.argtypes, library.epsilon.restype = [ctypes.c_double] * 2, ctypes.c_double
    whole = ctypes.c_int
    library.put_step.argtypes = [*[whole] * 3, ctypes.c_void_p, whole, ctypes.c_float]
    library.find_gradients.argtypes = [whole, ctypes.c_double]
    return library


class Lockstep:
    """ale-py's game and the compiled one, the same in every frame."""

    def __init__(self, library):
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.library, self.ale = library, ale_py.ALEInterface()
        self.ale.setFloat("repeat_action_probability", 0)
        self.ale.loadROM(str(pathlib.Path(ale_py.__file__).parent / "roms" / "pong.bin"))
        self.actions = self.ale.getMinimalActionSet()
        self.ram = np.ctypeslib.as_array(library.ram(), (128,))
        self.screen, self.pixels = np.empty(SCREEN_SHAPE, np.uint8), np.empty(6400, np.int32)
        self.points, self.games, self.won = [0, 0], 0, 0
        self.since_point, self.longest_rally = 0, 0

    def reset(self):
        self.ale.reset_game()
        self.library.reset()
        self.compare()

    def act(self, action):
        reward = self.ale.act(self.actions[action])
        assert self.library.act(action) == reward
        self.compare()
        self.since_point = 0 if reward else self.since_point + 1
        self.longest_rally = max(self.longest_rally, self.since_point)
        if reward:
            self.points[reward > 0] += 1
        if self.ale.game_over():
            self.games += 1
            self.won += self.ram[SCORES[1]] == 21
            self.act_after_the_end()
            self.reset()

    def act_after_the_end(self):
        assert self.ale.act(self.actions[2]) == self.library.act(2) == 0
        self.compare()

    def compare(self):
        assert np.array_equal(self.ram, self.ale.getRAM())
        assert self.ale.game_over() == self.library.over()
        self.ale.getScreen(self.screen)
        expected, pointer = active_pixels(self.screen), self.pixels.ctypes.data_as(ctypes.c_void_p)
        count = self.library.active_pixels(pointer)
        assert np.array_equal(self.pixels[:count], expected)

    def poke(self, changes):
        """Change both memories; changes: address -> int."""
        for address, value in changes.items():
            self.ram[address] = int(value) & 255
            self.ale.setRAM(address, int(value) & 255)


def nothing(game, rng, frame):
    pass


def moving_the_ball(game, rng, frame):
    """Puts it somewhere else, with another speed, often where the beam is when it is drawn."""
    if frame > 70 and frame % 13 == 0:
        sideways = rng.choice([-4, -3, -2, -1, 1, 2, 3, 4])
        speeds = rng.integers(-6, 7), rng.integers(256), sideways
        x = rng.integers(256) if rng.random() < 0.3 else rng.integers(0x90, 0xB0)
        places = {BALL_X: x, BALL_Y: rng.integers(0x28, 0xDA), OPPONENT_Y: rng.integers(0x30, 0xD0)}
        game.poke(places | dict(zip(BALL_SPEEDS, speeds)))


def setting_the_clock(game, rng, frame):
    """As after hours of play: the colours cycle."""
    if frame == 200:
        game.poke({CLOCK[0]: 0xFE})
    if frame > 300 and frame % 10 == 0:
        game.poke({CLOCK[1]: rng.integers(256)})


def nearly_winning(game, rng, frame):
    if frame == 100:
        game.poke({SCORES[0]: 19, SCORES[1]: 20})


def at_random(game, rng, held):
    return int(rng.integers(6))


def holding(game, rng, held):
    """An action for up to a second."""
    return int(rng.integers(6)) if rng.random() < 1 / 30 else held


def following(game, rng, held):
    """Goes where the ball is, so that it meets the paddle's middle or, now and then, its edge."""
    if rng.random() < 0.25 or not game.ram[BALL_Y]:
        return held
    distance = int(game.ram[BALL_Y]) - int(game.ram[PLAYER_Y]) - 6 + int(rng.integers(-2, 3))
    fire = rng.random() < 0.3
    return int(distance < -3 and 2 + 2 * fire or distance > 3 and 3 + 2 * fire or fire)


@pytest.mark.parametrize("player, frames, change", [
    (lambda *_: 0, 3500, nothing),  # to the game's end
    (at_random, 1000, nothing),
    (holding, 1000, nothing),
    (following, 2500, nothing),
    (following, 4000, moving_the_ball),
    (at_random, 1500, setting_the_clock),
    (following, 1500, nearly_winning),
])  # fmt: skip
def test_the_compiled_game_is_ale_py_s_in_every_frame(library, player, frames, change):
    game, rng, action = Lockstep(library), np.random.default_rng(0), 0
    game.reset()
    for frame in range(frames):
        change(game, rng, frame)
        action = player(game, rng, action)
        game.act(action)
    lost, won = game.points
    if change is nothing:
        assert won and game.longest_rally > 300 if player is following else lost > 2
    assert game.won == (change is nearly_winning)
    assert game.games >= (frames == 3500) + (change is nearly_winning)


def test_the_compiled_learner_s_defaults_are_the_preset_s():
    text = (SEARCH / "a3c.c").read_text()
    options = dict(re.findall(r"X\((\w+), ([\w.-]+)\)", text))
    assert RALLY.keys() - options == {"loss", "max_steps"}
    settings = dataclasses.asdict(a3c_pong.Settings(**RALLY))
    for name in settings.keys() & options.keys() - {"workers", "seed"}:
        value = settings[name] or 0
        number = NUMBERED[name].index(value) if name in NUMBERED else value
        assert float(options[name]) == number, name
    assert RALLY["loss"] == "sum" and options["mean"] == "0"


@functools.cache
def played_rollouts(frames, steps, ahead):
    """The rollouts of a game of real play, to its end."""
    inputs = frames * INPUT_SIZE
    game = pong_actor.Game("Pong-v0", num_actions=6, frames_per_step=3.0)
    actor = PongActor(game, [1, 2], pong_actor.Sizes(steps, inputs, 300, 300, 6), ahead)
    rng, rollouts = np.random.default_rng(0), []
    actor.policy.kernel[...] = rng.normal(0, 0.1, actor.policy.kernel.shape)
    actor.policy.head_kernel[...] = rng.normal(0, 0.1, actor.policy.head_kernel.shape)
    try:
        while not rollouts or not rollouts[-1].terminal:
            rollout = actor.play(steps)
            rollouts.append(rollout._replace(**{
                name: np.copy(getattr(rollout, name))
                for name in ("rows", "states", "actions", "rewards")
            }))  # fmt: skip
    finally:
        actor.close()
    return rollouts


class Real:
    """The real global network, and two workers' local ones."""

    def __init__(self, tf, settings):
        self.settings = settings
        run, (worker,) = InProcess(settings, seed=3, play=False).build()
        self.globalnet, self.session = run.globalnet, run.globalnet.session
        self.AC = worker.AC
        self.locals, _ = new_locals(self.AC, 2)
        kernel = self.globalnet.params.kernel  # larger, so that some units reach relu6's 6
        kernel.load(4 * self.session.run(kernel), self.session)

    def pull_global(self, worker):
        self.AC.pull_global(self.locals[worker])

    def update_global(self, worker, rollout, steps_done, lost):
        globalnet = self.globalnet
        rewards = a3c_pong.learning_rewards(rollout, self.settings.lost_game_reward)
        ends = [self.settings.cut_at_points and reward != 0 for reward in rewards]
        ends[-1] = ends[-1] or rollout.terminal
        returns = a3c_pong.lambda_returns(rewards, ends, self.settings.gamma, self.AC.lambda_)
        globalnet.T, globalnet.lost = steps_done, lost
        self.AC.update_global(self.locals[worker], rollout, returns)

    def refresh_target(self):
        self.globalnet.refresh_target()

    def weights(self):
        """In the compiled learner's order: kernel, biases, the networks' heads and their biases."""
        params = self.globalnet.params
        kernel, *params = self.session.run(params.all())
        biases, heads, head_biases = params[::3], params[1::3], params[2::3]
        heads = [head.T.ravel() for head in heads]
        return [kernel, *map(np.concatenate, (biases, heads, head_biases))]


class Ours:
    """The compiled learner with the same weights, and two workers who have pulled them."""

    def __init__(self, library, settings, weights):
        self.library = library
        same = settings.keys() | RALLY.keys()
        same -= {"loss", "max_steps", "method", "pull"}
        full = dataclasses.asdict(a3c_pong.Settings(**settings))
        options = {name: full[name] or 0 for name in same}
        options["mean"] = settings["loss"] == "mean"
        options["method"] = METHODS.index(settings.get("method", "a3c"))
        for name, value in options.items():
            assert library.set(name.encode(), value), name
        library.build_networks()
        shapes = (len(weights[0]), 400), (400,), (6 * 300 + 100,), (7,)  # a Q method's are less
        self.weights = [
            np.ctypeslib.as_array(library.weights(i), shape)[..., : array.shape[-1]]
            for i, (shape, array) in enumerate(zip(shapes, weights))
        ]
        for mine, array in zip(self.weights, weights):
            mine[...] = array

    def play(self, worker, rollout):
        """Have a worker play a rollout with the weights as they are."""
        steps = len(rollout.actions)
        for t, state in enumerate(rollout.states):
            inputs = rollout.rows[state > 0].astype(np.int32)
            last = rollout.next_action, 0
            what = (rollout.actions[t], rollout.rewards[t]) if t < steps else last
            self.library.put_step(worker, t, len(inputs), inputs.ctypes.data, *what)
        self.library.end_rollout(worker, steps, rollout.terminal)


OTHERS = dict(
    frames=1, global_iteration_update=50, cut_at_points=False, lost_game_reward=-20,
    gamma=0.9, gae_lambda=1.0, loss="mean", beta_power=0.5, anneal_steps=50_000_000,
    rate_falls_below=0.5, rate_power=0.2,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("pull, lag", [("after", 0), ("both", 0), ("before", 0), ("before", 1)])
@pytest.mark.parametrize("others", [{}, OTHERS], ids=["preset", "others"])
def test_the_compiled_learner_s_weights_are_a3c_pong_s(tf, library, others, pull, lag):
    compare_updates(tf, library, RALLY | others, pull, lag)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("others", [{}, OTHERS], ids=["preset", "others"])
def test_the_compiled_q_methods_weights_are_a3c_pong_s(tf, library, others, method):
    pull = "before" if others else "after"
    large = dict(lr_q=3e-3, anneal_steps=50_000_000)  # the rates, to the last update
    settings = PRESETS["rally"][method] | others | large | dict(method=method)
    compare_updates(tf, library, settings, pull, lag=0)


def compare_updates(tf, library, settings, pull, lag):
    """After every update of a game, to 1e-6, by two workers who take turns.

    The weights are some 0.1, of which float32 rounds off 1e-8, and an update moves them by up to
    1e-3. What may differ is the order of sums over 240 steps: 3e-8 where this was written.
    """
    real = Real(tf, a3c_pong.Settings(**settings))
    before, learns_q = real.weights(), real.settings.method != "a3c"
    ours = Ours(library, settings, before)
    steps, ahead = real.settings.global_iteration_update, real.AC.CHOOSES_AHEAD
    rollouts = played_rollouts(real.settings.frames, steps, ahead)
    assert sum(np.any(rollout.rewards) for rollout in rollouts) > 3
    for worker in (0, 1):
        real.pull_global(worker)
        ours.play(worker, rollouts[worker])
    computed = []
    for number, rollout in enumerate(rollouts):
        worker, steps_done, lost = number % 2, number * 1_000_000, 1 / (1 + number)
        if learns_q and number % 5 == 0:
            real.refresh_target()
            library.refresh()
        if pull != "after":
            real.pull_global(worker)
            library.pull_global(worker)
        library.lose(lost)
        library.find_gradients(worker, steps_done)
        computed.append((worker, rollout, steps_done, lost))
        if len(computed) > lag:  # the other worker's update comes in between
            worker, *what = computed.pop(0)
            real.update_global(worker, *what)
            library.update_global(worker)
            for mine, weights in zip(ours.weights, real.weights()):
                assert np.abs(mine - weights).max() <= 1e-6
            if pull != "before":
                real.pull_global(worker)
            if number + 2 - lag < len(rollouts):
                ours.play(worker, rollouts[number + 2 - lag])
    for mine, weights in zip(ours.weights, before):
        assert np.abs(mine - weights).max() > 1e-3


def test_the_compiled_epsilon_is_a3c_pong_s(library):
    preset = PRESETS["rally"]["one-step-q"]
    settings = preset | {"method": "one-step-q", "epsilon_frames": 3_000_000}
    settings = a3c_pong.Settings(**settings, seed=1)
    real = a3c_pong.OneStepQ.exploration(settings, 0, 3.0)
    library.set(b"epsilon_frames", 3_000_000)
    for steps in 0, 250_000, 999_999, 5_000_000:
        assert np.isclose(library.epsilon(real(10**9), steps), real(steps), rtol=1e-12)


@pytest.fixture(scope="module")
def run(built):
    """run(argument, ...) starts run.py."""
    command = [sys.executable, SEARCH / "run.py", "--build", built.parent]
    return lambda *arguments: subprocess.run([*command, *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_runs_make_a_table(run, tmp_path):
    result = tmp_path / "result.csv"
    options = "--seeds", "1-2", "--steps", "1e4"
    done = run(result, *options, "--", "",
               "workers=16 global_iteration_update=20 frames=1 eval=3")  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    rows = list(csv.DictReader(result.open()))
    names = "workers", "global_iteration_update", "other", "seed"
    assert sorted([row[name] for name in names] for row in rows) == [
        ["16", "20", "frames=1 eval=3", "1"], ["16", "20", "frames=1 eval=3", "2"],
        ["2", "120", "", "1"], ["2", "120", "", "2"],
    ]  # fmt: skip
    for row in rows:
        played = [row[f"{how}{what}"] for how in ("sampled", "greedy") for what in ("", "_worst")]
        if not row["other"]:
            assert played == [""] * 4
        else:
            mean, worst, greedy_mean, greedy_worst = map(float, played)
            assert -21 <= worst <= mean <= 21 and -21 <= greedy_worst <= greedy_mean <= 21
    run(result, *options)  # a seed gives the same run again
    again = list(csv.DictReader(result.open()))[4:]
    assert sorted(again, key=str) == sorted((row for row in rows if not row["other"]), key=str)


def test_a_row_says_when_a_score_was_passed_first(monkeypatch):
    monkeypatch.syspath_prepend(SEARCH)
    module = importlib.import_module("run")
    scores = {0.5: -21, 1.0: -3, 1.5: 1, 2.0: -1, 2.5: 17.9, 3.0: 18.1, 3.5: 17}
    printed = [[1e6 * million, score, 1.5, 9] for million, score in scores.items()]
    row = dict(zip(module.COLUMNS, module.row("workers=8", 3, printed, {})))
    assert (row["above_0_at_M"], row["above_18_at_M"]) == ("1.50", "3.00")
    assert (row["score_at_1M"], row["score_at_3M"], row["score_at_4M"]) == ("-3.0", "18.1", "")
    assert (row["workers"], row["seed"], row["last_score"]) == ("8", 3, "17.0")


@pytest.mark.slow
def test_runs_go_on_from_a_checkpoint(start, run, built, library, tmp_path, monkeypatch):
    trained = start("--preset", "rally", "--seed", "1", "--render", "never", "--max-steps", "5000",
                    "--run-dir", "trained")  # fmt: skip
    assert trained.wait() == 0
    folder = trained.folder / "trained"
    checkpoint = checkpoints.load_newest(folder)
    arrays, steps = checkpoint.arrays, checkpoint.about["agent_steps"]

    monkeypatch.syspath_prepend(SEARCH)
    state, steps_read = tmp_path / "state", ctypes.c_long()
    importlib.import_module("run").write_state(folder, state)
    library.build_networks()
    assert library.read_from(bytes(state), ctypes.byref(steps_read))
    assert steps_read.value == steps >= 5000
    for ours, kernel, of in (
        (library.weights, "kernel", "globalnet/{0}_network/{2}"),
        (library.mean_squares, "mean_square", "globalnet/{0}_network/{2}/RMSPropOptimiser{1}"),
    ):
        actor, critic = (
            [arrays[of.format(*head, n)] for n in ("bias", "head_kernel", "head_bias")]
            for head in (("actor", "Actor"), ("critic", "Critic"))
        )
        theirs = [arrays[f"globalnet/{kernel}"], *(np.r_[a.T.ravel(), c.T.ravel()]
                  for a, c in zip(actor, critic))]  # fmt: skip
        for which, expected in enumerate(theirs):
            assert np.array_equal(np.ctypeslib.as_array(ours(which), expected.shape), expected)
            assert len(np.unique(expected)) > 1  # it has learned
    touched = np.ctypeslib.as_array(library.touched(), (12800,))
    assert np.array_equal(touched, arrays["row_log/touched_by"]) and touched.max() > 40

    result = tmp_path / "result.csv"
    done = run(result, "--from", folder, "--seeds", "1", "--steps", "1e4", "--", "gamma=.9")
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = csv.DictReader(result.open())
    assert row["other"] == f"from=trained/{checkpoint.path.stem} gamma=.9"
    learner = [built.parent / "a3c", f"from={state}", "steps=1e4", "every=1000"]
    lines = subprocess.run(learner, capture_output=True, text=True, check=True).stdout.splitlines()
    assert int(lines[0].split()[0]) > steps
    for arguments, words in (
        (("--from", folder, "--steps", steps), f"{steps:,} steps already"),
        (("--from", tmp_path / "nowhere"), "no such folder"),
        (("--from", folder, "--", "frames=1"), "no state of such networks"),
    ):
        done = run(result, *map(str, arguments))
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_bad_input_gets_one_line_and_status_2(run, tmp_path):
    result, other = tmp_path / "result.csv", tmp_path / "other.csv"
    other.write_text("a,b\n")
    for arguments, words in (
        ([result, "--", "foo=1"], "foo=1"),
        ([result, "--", "gamma"], "gamma"),
        ([result, "--", "gamma=x"], "gamma=x"),
        ([result, "--", "seed=1"], "--seeds"),
        ([result, "--", "global_iteration_update=9999"], "1 to 2000"),
        ([result, "--", "method=4"], "method 0 to 3"),
        ([result, "--", "method=1 epsilons=.1,x"], "epsilons=.1,x"),
        ([result, "--seeds", "3-1"], "--seeds"),
        ([result, "--steps", "inf"], "--steps"),
        ([other], "other.csv"),
        ([], "RESULT.csv"),
    ):
        done = run(*arguments)
        assert done.returncode == 2, arguments
        assert words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not result.exists()
