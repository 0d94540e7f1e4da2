import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from program import HANGS, wait_until

import pong_actor
from pong_actor import Player, PolicyWeights, Pong
from preprocessing import preprocessing_image
from runtime.actors import ActorDied, Actors, ActorsKeepDying, PongActor, anonymous_memory
from runtime.cores import allowed_cores

GAME = pong_actor.game("Pong-v0")
WINDOW = pong_actor.Window("a test")
SIZES = pong_actor.Sizes(20, 6400, 300, 300, 6)


def a_policy(seed=0):
    """Random weights, of a size that relu6 cuts at both ends and no action is a sure one."""
    rng = np.random.default_rng(seed)
    shapes, scales = ((6400, 300), (300,), (300, 6), (6,)), (1, 1, 0.02, 0.3)
    arrays = [rng.normal(0, scale, shape) for shape, scale in zip(shapes, scales)]
    return PolicyWeights(*[array.astype(np.float32) for array in arrays])


def dense(pixels):
    image = np.zeros(6400)
    image[pixels] = 1
    return image


def dense_states(rollout):
    states = np.zeros((len(rollout.states), 6400))
    states[:, rollout.rows] = rollout.states
    return states


def reference_probabilities(policy, image):
    kernel, bias, head_kernel, head_bias = [array.astype(np.float64) for array in policy]
    layer = np.clip(image @ kernel + bias, 0, 6)
    weights = np.exp(layer @ head_kernel + head_bias)
    return weights / weights.sum()


def copied(rollout):
    """A rollout that stays when the actor plays the next."""
    return [np.array(part) for part in rollout]


def same(rollouts, others):
    pairs = [pair for both in zip(rollouts, others, strict=True) for pair in zip(*both)]
    return all(np.array_equal(a, b) for a, b in pairs)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def start():
    """`PongActor`, all of whose processes end with the test."""
    started = []

    def start(seed=(1,), sizes=SIZES, policy=None, **options):
        started.append(PongActor(GAME, list(seed), sizes, **options))
        for array, value in zip(started[-1].policy, policy or ()):
            array[...] = value
        return started[-1]

    yield start
    for actor in started:
        actor.close()


@pytest.fixture
def actors():
    actors = Actors(GAME, 5, SIZES)
    yield actors
    actors.close()


@pytest.fixture
def short_pong():
    """The id of a Pong that is Pong-v0 but for games cut off after 300 frames."""
    kwargs = pong_actor.make_env("Pong-v0").spec.kwargs | {"max_num_frames_per_episode": 300}
    kwargs.pop("render_mode")
    gymnasium.register("Pong300-v0", "ale_py.env:AtariEnv", kwargs=kwargs)
    yield "Pong300-v0"
    del gymnasium.registry["Pong300-v0"]


# ------------------------------------------------------------------------------------- environment


@pytest.mark.parametrize("env_id", ["NoSuchGame-v0", "Pong-v99", "Pong v0", "CartPole-v1", ""])
def test_an_environment_that_is_not_pong_is_refused(env_id):
    with pytest.raises(ValueError, match=repr(env_id)):
        pong_actor.make_env(env_id)
    with pytest.raises(ValueError, match=repr(env_id)):
        pong_actor.game(env_id)


def test_another_atari_game_is_refused():
    with pytest.raises(ValueError, match="'Breakout-v0' is not Pong"):
        pong_actor.make_env("Breakout-v0")


def test_pong_has_6_actions():
    assert pong_actor.game("Pong-v0") == ("Pong-v0", 6, 3)  # 2, 3 or 4 frames a step
    assert pong_actor.game("ALE/Pong-v5") == ("ALE/Pong-v5", 6, 4)


@pytest.mark.parametrize(
    "env_id, steps, games",
    [
        pytest.param("Pong-v0", 3500, 2, marks=pytest.mark.slow),
        ("ALE/Pong-v5", 500, 0),
        ("short", 1000, 9),
    ],
)
def test_pong_is_gymnasiums_environment(env_id, steps, games, short_pong):
    env_id = short_pong if env_id == "short" else env_id
    env, pong, rng = pong_actor.make_env(env_id), Pong(env_id, seed=3), np.random.default_rng(3)
    env.reset(seed=3)
    obs, pixels, points, ended = env.reset()[0], pong.reset(), 0, 0
    assert np.array_equal(np.flatnonzero(preprocessing_image(obs)), pixels)
    for action in rng.integers(6, size=steps):
        obs, *expected, _ = env.step(action)
        pixels, *found = pong.step(action)
        assert found == expected  # reward, terminal, truncated
        assert np.array_equal(np.flatnonzero(preprocessing_image(obs)), pixels)
        points += expected[0] != 0
        if any(expected[1:]):
            ended += 1
            obs, pixels = env.reset()[0], pong.reset()
            assert np.array_equal(np.flatnonzero(preprocessing_image(obs)), pixels)
    assert points >= 5
    assert ended >= games


# ------------------------------------------------------------------------------------------ policy


def test_the_outputs_are_the_dense_networks_probabilities():
    policy, env, rng = a_policy(), pong_actor.make_env("Pong-v0"), np.random.default_rng(0)
    player, (obs, _), layers = Player(None, policy, 0), env.reset(seed=0), []
    for _ in range(200):
        image = preprocessing_image(obs)
        layers.append(image @ policy.kernel + policy.bias)
        weights = np.exp(player.outputs(np.flatnonzero(image)))
        expected = reference_probabilities(policy, image)
        np.testing.assert_allclose(weights / weights.sum(), expected, rtol=0, atol=1e-6)
        obs = env.step(rng.integers(6))[0]
    assert np.min(layers) < 0 and np.max(layers) > 6  # both ends of relu6 were met
    weights = np.exp(player.outputs(np.array([], int)))
    expected = reference_probabilities(policy, np.zeros(6400))
    np.testing.assert_allclose(weights / weights.sum(), expected, rtol=0, atol=1e-6)


def test_actions_are_drawn_with_their_probabilities():
    policy, draws = a_policy(), 20_000
    pixels = Pong("Pong-v0", seed=0).reset()
    player, p = Player(None, policy, seed=0), reference_probabilities(policy, dense(pixels))
    counts = np.bincount([player.choose_action(pixels) for _ in range(draws)], minlength=6)
    assert p.max() / p.min() > 2
    assert len(counts) == 6
    assert (abs(counts - draws * p) < 5 * np.sqrt(draws * p * (1 - p))).all()


def test_epsilon_is_the_share_of_random_actions_and_the_others_are_the_best():
    policy, draws = a_policy(), 20_000
    pixels = Pong("Pong-v0", seed=0).reset()
    player, p = Player(None, policy, seed=0), reference_probabilities(policy, dense(pixels))
    for epsilon in (0.0, 0.3, 1.0):
        chosen = [player.choose_action(pixels, epsilon) for _ in range(draws)]
        counts = np.bincount(chosen, minlength=6)
        expected = np.full(6, epsilon / 6) + (np.arange(6) == p.argmax()) * (1 - epsilon)
        spread = np.sqrt(draws * expected * (1 - expected))
        assert (abs(counts - draws * expected) <= 5 * spread).all()


def test_an_actor_plays_with_the_epsilon_it_is_told(start):
    actor = start(sizes=SIZES._replace(max_steps=300), policy=a_policy())
    assert len(set(actor.play(300).actions)) == 6
    actor.policy.head_kernel[...] = 0  # the bias decides: always the same action
    best = int(np.argmax(actor.policy.head_bias))
    assert set(actor.play(300, 0.0).actions) == {best}
    assert 200 < list(actor.play(300, 0.2).actions).count(best) < 300


# ---------------------------------------------------------------------------------------- rollouts


def test_a_state_of_two_frames_is_the_latest_and_the_one_before_it():
    policy = PolicyWeights(*(np.zeros(n, np.float32) for n in ((12800, 300), 300, (300, 6), 6)))
    player, pong = Player(Pong("Pong-v0", 7), policy, 8), Pong("Pong-v0", 7)
    latest = before = dense(pong.reset())  # a game's first frame stands for the one before it
    for _ in range(60):
        rollout = player.play(20)
        states = np.zeros((len(rollout.states), 2, 6400))
        states.reshape(len(states), 12800)[:, rollout.rows] = rollout.states
        assert np.array_equal(states[0], [latest, before])
        for action, state in zip(rollout.actions, states[1:]):
            latest, before = dense(pong.step(action)[0]), latest
            assert np.array_equal(state, [latest, before])
        if rollout.terminal:
            latest = before = dense(pong.reset())


def test_an_action_chosen_ahead_is_taken_whatever_the_policy_is_by_then():
    policy, changed = a_policy(), 0
    player = Player(Pong("Pong-v0", 7), policy, 8, ahead=True)
    rollout = player.play(5)
    for seed in range(40):
        ahead = rollout.next_action
        policy.head_kernel[...] = np.random.default_rng(seed).normal(size=policy.head_kernel.shape)
        changed += player.choose_action(player.state, 0.0) != ahead
        rollout = player.play(5)
        assert rollout.actions[0] == ahead
    assert changed > 10  # the new policy would have done something else


def test_rollouts_hold_the_dense_states_of_the_game():
    player, pong = Player(Pong("Pong-v0", 7), a_policy(), 8), Pong("Pong-v0", 7)
    state, new_games, longest = dense(pong.reset()), 0, 0
    while new_games < 2:
        rollout = player.play(20)
        rows, states, actions, rewards, terminal, truncated, _ = rollout
        assert len(states) == len(actions) + 1 == len(rewards) + 1
        assert (np.diff(rows) > 0).all()  # sorted and unique
        assert states.any(axis=0).all()  # no row for a pixel that is 0 throughout
        stepped, found = [state], []
        for action in actions:
            pixels, *outcome = pong.step(action)
            stepped.append(dense(pixels))
            found.append(outcome)
        assert np.array_equal(dense_states(rollout), stepped)
        assert [reward for reward, _, _ in found] == rewards.tolist()
        assert found[-1][1:] == [terminal, truncated]
        assert terminal or len(actions) == 20
        longest = max(longest, len(actions))
        new_games += terminal
        state = dense(pong.reset()) if terminal else stepped[-1]
    assert longest == 20


def test_an_interrupted_rollout_ends_there_and_the_game_goes_on():
    player = Player(Pong("Pong-v0", 7), a_policy(), 8)
    answers = iter([False] * 7 + [True])
    first, second = player.play(20, interrupted=lambda: next(answers)), player.play(20)
    assert (len(first.actions), len(second.actions)) == (7, 20)
    assert np.array_equal(dense_states(first)[-1], dense_states(second)[0])


def test_a_game_at_the_frame_limit_is_truncated_not_terminal(short_pong):
    player = Player(Pong(short_pong, 1), a_policy(), 1)
    for _ in range(2):
        rollout = player.play(1000)
        assert 300 / 4 <= len(rollout.actions) <= 300 / 2
        assert rollout.truncated is True
        assert rollout.terminal is False
        assert np.array_equal(dense_states(rollout)[0], dense(Pong("Pong-v0", 0).reset()))


@pytest.mark.parametrize("terminal, truncated", [(False, True), (True, False), (False, False)])
def test_what_is_written_to_shared_memory_is_read_from_it(terminal, truncated):
    played = Player(Pong("Pong-v0", 7), a_policy(), 8).play(20)
    written = played._replace(terminal=terminal, truncated=truncated)
    memory = anonymous_memory()
    try:
        ours, theirs = [pong_actor.SharedMemory(memory, SIZES) for _ in range(2)]
    finally:
        os.close(memory)
    read = theirs.read(ours.write(written))
    assert same([read], [written])
    assert (read.terminal, read.truncated) == (terminal, truncated)
    dtypes = [array.dtype for array in read[:4]]
    assert dtypes == [np.int32, np.uint8, np.int32, np.float32]


def test_a_rollout_ends_with_the_game_and_the_next_begins_another(start):
    actor = start(sizes=SIZES._replace(max_steps=5000), policy=a_policy())
    rollout = actor.play(5000)
    won, lost = (rollout.rewards == 1).sum(), (rollout.rewards == -1).sum()
    assert rollout.terminal is True
    assert rollout.truncated is False
    assert len(rollout.actions) < 5000
    assert max(won, lost) == 21 > min(won, lost)
    assert rollout.rewards.sum() == won - lost
    assert rollout.rewards[-1] != 0
    first_state = dense(Pong("Pong-v0", 0).reset())
    assert not np.array_equal(dense_states(rollout)[-1], first_state)
    assert np.array_equal(dense_states(actor.play(20))[0], first_state)


# --------------------------------------------------------------------------------------- processes


def test_an_actor_is_ready_in_3_seconds_slim_and_without_tensorflow(start):
    actor = start(policy=a_policy())
    actor.wait_until_ready()
    proc = Path(f"/proc/{actor.process.pid}")
    ticks = (proc / "stat").read_text().rpartition(")")[2].split()[11:13]  # user's and system's
    assert sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK") < 3  # whatever else the machine does
    for _ in range(100):
        actor.play(20)
    memory = next(line for line in (proc / "status").open() if line.startswith("VmRSS"))
    assert 10 < int(memory.split()[1]) / 1024 <= 90  # MB
    maps = (proc / "maps").read_text()
    assert "ale_py" in maps
    assert "tensorflow" not in maps


def test_an_actor_imports_neither_tensorflow_nor_matplotlib_nor_rich(start, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # Python lists what it imports on stderr
    start(policy=a_policy()).play(20)
    listed = capfd.readouterr().err
    modules = {line.rpartition("|")[2].strip() for line in listed.splitlines()}
    assert {"ale_py", "gymnasium", "numpy", "preprocessing"} <= modules
    tops = {module.partition(".")[0] for module in modules}
    assert not tops & {"tensorflow", "keras", "matplotlib", "rich", "PIL", "runtime", "cluster"}


def test_actors_of_one_seed_play_the_same_and_of_another_do_not(start):
    def rollouts(actor):
        return [copied(actor.play(20)) for _ in range(20)]

    policy = a_policy()
    one, twin, other = [start(seed, policy=policy) for seed in [(3, 0), (3, 0), (3, 1)]]
    played = rollouts(one)
    assert same(played, rollouts(twin))
    assert not same(played, rollouts(other))


def test_an_actor_plays_as_a_player_in_this_process_with_the_weights_last_written(start):
    actor = start(seed=(3, 0), policy=a_policy(1))
    pong_seed, policy_seed = np.random.SeedSequence([3, 0]).generate_state(2).tolist()
    policy = a_policy(1)
    player = Player(Pong("Pong-v0", pong_seed), policy, policy_seed)
    for seed in (1, 2, 3):
        for array, value in zip([*actor.policy, *policy], [*a_policy(seed)] * 2):
            array[...] = value
        for _ in range(5):
            assert same([actor.play(20)], [player.play(20)])


@pytest.mark.parametrize(
    "frames, ahead, epsilon",
    [pytest.param(1, False, None, marks=pytest.mark.slow), (3, True, 0.2)],
)
def test_a_restored_actor_plays_on_as_the_one_whose_state_it_has(start, frames, ahead, epsilon):
    kernel, *others = a_policy()
    policy = np.tile(kernel, (frames, 1)), *others
    options = dict(policy=policy, ahead=ahead)
    one = start(seed=[1], sizes=SIZES._replace(inputs=len(policy[0])), **options)
    kept, games = [], []
    for _ in range(5):
        one.play(7, epsilon)
        one.ask_for_state()
        kept.append(one.state())
        games.append([copied(one.play(20, epsilon)) for _ in range(26)])  # 520 steps from there on
        one.restore(kept[-1])
    sizes = SIZES._replace(max_steps=50, inputs=len(policy[0]))
    other = start(seed=[2], sizes=sizes, **options)
    other.play(5)
    for state, game in zip(kept, games):
        other.restore(state)
        assert same(game, [copied(other.play(20, epsilon)) for _ in range(26)])
        other.restore(state)
        assert same(game[:2], [copied(other.play(20, epsilon)) for _ in range(2)])
        other.ask_for_state()
        assert not np.array_equal(other.state()[:1000], state[:1000])
        assert same(game[2:4], [copied(other.play(20, epsilon)) for _ in range(2)])  # as if unasked


def test_a_game_that_is_over_is_kept_as_over(start):
    one, other = (start(seed=[k], policy=a_policy()) for k in (1, 2))
    while not one.play(20).terminal:
        pass
    one.ask_for_state()
    other.restore(one.state())
    for _ in range(9):
        assert same([copied(one.play(20))], [copied(other.play(20))])


def test_an_actor_that_hangs_is_ended_when_its_state_is_asked_for(start):
    actor = start()
    actor.play(1)
    actor.process.send_signal(signal.SIGSTOP)
    actor.ask_for_state()
    with pytest.raises(ActorDied, match="SIGKILL"):
        actor.state(seconds=0.2)
    assert not running(actor.process.pid)


def test_an_actor_ignores_the_signals_that_end_a_run(start):
    actor = start(policy=a_policy())
    actor.wait_until_ready()
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1:
        os.kill(actor.process.pid, number)
    assert len(actor.play(20).actions) == 20


def test_playing_with_a_killed_actor_raises_its_status(start):
    actor = start(policy=a_policy())
    actor.play(20)
    os.kill(actor.process.pid, signal.SIGKILL)
    with pytest.raises(ActorDied, match="killed by SIGKILL") as death:
        actor.play(20)
    assert death.value.status == -signal.SIGKILL == -9


def test_an_actor_that_finds_no_screen_for_its_window_raises_its_status(start, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ActorDied, match="exit status 1") as death:
        start(window=WINDOW).wait_until_ready()
    assert death.value.status == 1


def test_two_messages_of_a_window_that_come_as_one_are_understood(start, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    actor = start(window=WINDOW, policy=a_policy())
    received = b"windowready"
    assert wait_until(lambda: actor.connection.recv(64, socket.MSG_PEEK) == received)
    actor.wait_until_ready()
    assert actor.ready


def test_a_closed_actor_is_gone(start):
    actor = start()
    actor.wait_until_ready()
    assert running(actor.process.pid)
    actor.close()
    assert not running(actor.process.pid)


@pytest.mark.parametrize("window", [None, WINDOW], ids=["alone", "in a window"])
def test_an_actor_ends_when_its_connection_closes(start, monkeypatch, window):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")  # a window nobody sees, real in all else
    actor = start(sizes=SIZES._replace(max_steps=5000), policy=a_policy(), window=window)
    actor.play(20)
    if window:  # a game takes a minute there
        actor._request(5000)
    actor.connection.close()
    # an actor that did not ask would play the game to its end
    assert actor.process.wait(20 if window else HANGS) == 0


def test_an_actor_ends_when_its_parent_is_killed():
    source = """
from pong_actor import Sizes, game
from runtime.actors import PongActor
actor = PongActor(game("Pong-v0"), [1], Sizes(20, 6400, 300, 300, 6))
actor.play(20)
print(actor.process.pid, flush=True)
while True:
    actor.play(20)
"""
    folder = Path(pong_actor.__file__).parent
    parent = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, cwd=folder)
    pid = None
    try:
        pid = int(parent.stdout.readline())
        assert running(pid)
        parent.kill()
        assert parent.wait() == -9
        assert wait_until(lambda: not running(pid))
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
        if pid and running(pid):
            os.kill(pid, signal.SIGKILL)


# ------------------------------------------------------------------------------------- all of them


def death_of(actor):
    os.kill(actor.process.pid, signal.SIGKILL)
    with pytest.raises(ActorDied) as death:
        actor.play(20)
    return death.value


def test_a_dead_actor_is_replaced_by_one_with_a_new_game(actors):
    actors.start("W_1")
    dead = actors["W_1"]
    first = copied(dead.play(20))
    line = actors.replace("W_1", death_of(dead))
    assert line == "W_1's actor died (killed by SIGKILL) and is started again, with a new game"
    assert actors["W_1"] is not dead
    second = actors["W_1"].play(20)
    assert np.array_equal(dense_states(second)[0], dense(Pong("Pong-v0", 0).reset()))
    assert not np.array_equal(second.actions, first[2])  # not the same game once more


def test_5_deaths_within_a_minute_are_too_many(actors):
    for name in ("W_0", "W_1"):
        actors.start(name)
    for name in ("W_0", "W_1") * 4:
        actors.replace(name, death_of(actors[name]))
    with pytest.raises(ActorsKeepDying, match="W_0's actor died .*SIGKILL.* 5th death within 60 s"):
        actors.replace("W_0", death_of(actors["W_0"]))


def test_deaths_more_than_a_minute_ago_do_not_count(actors):
    actors.start("W_0")
    for _ in range(4):
        actors.replace("W_0", death_of(actors["W_0"]))
    actors.deaths["W_0"] = [then - 60 for then in actors.deaths["W_0"]]
    actors.replace("W_0", death_of(actors["W_0"]))
    assert len(actors.deaths["W_0"]) == 1


def test_a_worker_and_its_actor_share_a_core_where_each_core_has_a_worker(actors):
    def cores_of(name):
        """Of a thread that shares a core with this actor, and of the actor."""
        cores = []

        def work():
            actors.share_core(name)
            cores.extend(os.sched_getaffinity(task) for task in (0, actors[name].process.pid))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return cores

    allowed = allowed_cores()
    if len(allowed) < 2 or not hasattr(os, "sched_setaffinity"):
        pytest.skip("there is nothing to choose")
    a, b = allowed[:2]
    try:
        os.sched_setaffinity(0, {a, b})
        actors.start("W_0")
        assert cores_of("W_0") == [{a, b}, {a, b}]
        actors.start("W_1")
        assert cores_of("W_0") == [{a}, {a}]
        assert cores_of("W_1") == [{b}, {b}]
    finally:
        os.sched_setaffinity(0, allowed)
