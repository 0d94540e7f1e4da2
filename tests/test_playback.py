"""What a run has learned, watched, recorded and measured: the real script, the real emulator."""

import json
import os
import shutil
import signal
import subprocess
import threading

import numpy as np
import PIL.Image
import pytest
import rich.console
from program import ROOT, count_pixels, fill, kill, save_agent, shows_court, wait_until

import pong_actor
from a3c_pong import PRESETS, Settings
from runtime import checkpoints, command_line, playback
from runtime.actors import PongActor
from runtime.cores import allowed_cores

SCRIPT = str(ROOT / "a3c_pong.py")


@pytest.fixture
def run_folder(tmp_path):
    """A run's folder with one checkpoint."""
    save_agent(tmp_path / "agent")
    return tmp_path / "agent"


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


# --------------------------------------------------------------------------------------- the policy


def test_the_policy_is_the_actors_part_of_the_newest_good_checkpoint(tmp_path):
    older, arrays = save_agent(tmp_path, agent_steps=5, seed=1)
    newest, others = save_agent(tmp_path, agent_steps=6, seed=2)
    for where, file, there in ((tmp_path, newest, others), (older, older, arrays)):
        policy, checkpoint = playback.load_policy(where)
        assert checkpoint.path == file and checkpoint.passed_over == []
        assert checkpoint.about["agent_steps"] == int(file.stem.split("-")[1])
        assert policy.kernel.shape == (6400, 300)
        assert np.array_equal(policy.kernel, there["globalnet/kernel"][:, :300])
        for name, array in zip(policy._fields[1:], policy[1:]):
            assert np.array_equal(array, there[f"globalnet/actor_network/{name}"])
    newest.write_bytes(newest.read_bytes()[:-100])
    policy, checkpoint = playback.load_policy(tmp_path)
    (damaged,) = checkpoint.passed_over
    assert checkpoint.path == older and newest.name in damaged
    assert np.array_equal(policy.kernel, arrays["globalnet/kernel"][:, :300])


def test_a_q_network_of_two_frames_is_played_by_epsilon_greedy(tmp_path):
    _, arrays = save_agent(tmp_path, method="n-step-q", frames=2)
    policy, checkpoint = playback.load_policy(tmp_path)
    assert np.array_equal(policy.kernel, arrays["globalnet/kernel"])
    assert np.array_equal(policy.head_kernel, arrays["globalnet/q_network/head_kernel"])
    assert {way: epsilon for way, (epsilon, _) in playback.ways(checkpoint.about).items()} == {
        "sampled": 0.1, "greedy": 0.0
    }  # fmt: skip
    with playback.actor_with(policy, pong_actor.game("Pong-v0"), [1]) as actor:
        assert actor.play(20, 0.1).rows.max() > 6400


# --------------------------------------------------------------------------------------- --evaluate


def play_one(run_folder, seed, epsilon):
    """A game as the protocol says it is played: (score, steps)."""
    policy, _ = playback.load_policy(run_folder)
    actor = PongActor(pong_actor.game("Pong-v0"), seed, pong_actor.Sizes(100, 6400, 300, 300, 6))
    try:
        for mine, array in zip(actor.policy, policy):
            mine[...] = array
        score = steps = 0
        while True:
            rollout = actor.play(100, epsilon)
            score, steps = score + int(rollout.rewards.sum()), steps + len(rollout.actions)
            if rollout.terminal:
                return score, steps
    finally:
        actor.close()


@pytest.mark.slow
def test_an_evaluation_is_what_its_protocol_says_whatever_the_cores(start, run_folder):
    evaluate = "--evaluate", str(run_folder), "--games", "2e0", "--seed", "5"
    run = start(*evaluate)
    assert run.wait() == 0
    assert run.err == ""
    (name,) = {path.name for path in run_folder.glob("*.json")}
    assert name == "evaluation-step-000001234-seed-5-games-2.json"
    text = (run_folder / name).read_text()
    result = json.loads(text)
    for way, epsilon in (("sampled", None), ("greedy", 0.0)):
        r = result[way]
        scores = np.array(r["scores"])
        assert len(scores) == len(r["steps"]) == 2
        assert (r["mean"], r["standard_deviation"]) == (scores.mean(), scores.std())
        assert (r["minimum"], r["maximum"]) == (scores.min(), scores.max())
        assert (r["wins"], r["cut_off"]) == ((scores > 0).sum(), 0)
        assert (r["scores"][1], r["steps"][1]) == play_one(run_folder, [5, 1], epsilon)
        line = f"{way}: mean {scores.mean():.2f}, standard deviation {scores.std():.2f}, "
        line += f"minimum {scores.min()}, maximum {scores.max()}, {r['wins']} wins of 2"
        assert line in run.out.splitlines()
    protocol = result["protocol"]
    assert protocol["checkpoint"].endswith("step-000001234.npz")
    expected = {"agent steps of training": 1234, "environment": "Pong-v0", "sticky actions": 0.25,
                "frames a step": "2 to 4, drawn at random", "frames a game, at most": 108_000,
                "games": 2, "seed": 5}  # fmt: skip
    assert protocol.items() >= expected.items()
    assert all(f"{name}: {value}" in run.out.splitlines() for name, value in protocol.items())

    again = start(*evaluate, command=("taskset", "-c", str(allowed_cores()[0])))
    assert again.wait() == 0
    assert (run_folder / name).read_text() == text
    assert again.out == run.out.replace("written: ", "replaced: ")
    other = start("--evaluate", str(run_folder), "--games", "1")
    assert other.wait() == 0
    others = json.loads((run_folder / "evaluation-step-000001234-seed-0-games-1.json").read_text())
    assert others["sampled"]["steps"] != result["sampled"]["steps"][:1]


def test_figures_of_games():
    results = (21, 3, 900, False), (20, 21, 1000, False), (4, 4, 36_000, True)
    games = [playback.PlayedGame(*result) for result in results]
    assert playback.figures(games) == dict(
        mean=17 / 3, standard_deviation=pytest.approx(np.std([18, -1, 0])), minimum=-1, maximum=18,
        wins=1, cut_off=1, scores=[18, -1, 0], steps=[900, 1000, 36_000],
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_an_evaluation_without_a_trace(start, run_folder, number, status):
    run = start("--evaluate", str(run_folder), "--games", "1000")
    assert wait_until(run.actors)
    run.signal(number)
    assert run.wait() == status
    assert run.err == "" and "mean" not in run.out
    assert run.actors() == []
    assert files_in(run_folder) == ["checkpoints"]


@pytest.mark.slow
def test_a_signal_ends_an_evaluation_of_which_an_emulator_hangs(start, run_folder):
    run = start("--evaluate", str(run_folder), "--games", "1000")
    first, *_ = wait_until(run.actors)
    os.kill(first, signal.SIGSTOP)
    run.signal(signal.SIGINT)
    assert run.wait() == 130
    assert run.err == "" and run.actors() == []


@pytest.mark.slow
def test_an_emulator_that_dies_ends_an_evaluation(start, run_folder):
    run = start("--evaluate", str(run_folder), "--games", "1000")
    first, *_ = wait_until(run.actors)
    kill(first)
    assert run.wait() == 1
    assert run.err == "a3c_pong.py: an emulator died (killed by SIGKILL); nothing is written\n"
    assert run.actors() == []
    assert files_in(run_folder) == ["checkpoints"]


@pytest.mark.slow
def test_an_evaluation_that_cannot_be_written_keeps_the_old_one(start, small_disk):
    save_agent(small_disk / "agent")
    evaluate = "--evaluate", str(small_disk / "agent"), "--games", "1"
    name = "evaluation-step-000001234-seed-0-games-1.json"
    assert start(*evaluate).wait() == 0
    old = (small_disk / "agent" / name).read_bytes()
    fill(small_disk / "filler")
    for full in True, False:
        if not full:
            subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        run = start(*evaluate)
        assert run.wait() == 1
        assert run.err.startswith(f"a3c_pong.py: cannot write {small_disk}/agent/{name}: ")
        assert len(run.err.splitlines()) == 1
        assert ("greedy: mean" in run.out) == full  # a folder that is read only is seen at once
        assert files_in(small_disk / "agent") == ["checkpoints", name]
        assert (small_disk / "agent" / name).read_bytes() == old


@pytest.mark.slow
def test_a_killed_evaluation_leaves_no_actor(start, run_folder):
    run = start("--evaluate", str(run_folder), "--games", "1000")
    assert wait_until(run.actors)
    run.signal(signal.SIGKILL)
    assert run.no_actor_is_left()


# ----------------------------------------------------------------------------------------- --record


def test_the_colours_of_a_film_are_the_emulators():
    pong = pong_actor.Pong("Pong-v0", 1)
    camera, pictures = playback.Camera(pong.ale), []
    pong.ale = camera
    act = camera.act
    camera.act = lambda action: (act(action), pictures.append(camera.getScreenRGB()))[0]
    for _ in range(2):
        pong.reset()
        for step in range(200):
            pong.step(step % 6)
        assert 400 <= len(pictures) == len(camera.frames) + 1
        assert np.array_equal(playback.COLOURS[np.stack(camera.frames)], pictures[1:])
        pictures.clear()
        camera.frames.clear()


def film_of(run_folder, seed, frames):
    """The first frames of a game that is filmed, RGB."""
    policy, checkpoint = playback.load_policy(run_folder)
    film = playback.filmed_game(policy, checkpoint.about, seed)
    return [playback.COLOURS[frame] for _, frame in zip(range(frames), film)]


@pytest.mark.slow
def test_a_gif_shows_the_first_seconds_of_a_game_at_real_speed(start, run_folder):
    options = "--play", str(run_folder), "--record", "film.gif", "--seconds", "5", "--seed", "3"
    run = start(*options)
    assert run.wait() == 0
    assert run.err == ""
    assert run.out.splitlines()[-1] == "film.gif: 5.0 s, 13 KB, with --seed 3"
    assert (run.folder / "film.gif").stat().st_size < 100_000
    assert files_in(run.folder) == ["err", "film.gif", "out"]

    expected, milliseconds = film_of(run_folder, 3, 300)[::3], 0
    with PIL.Image.open(run.folder / "film.gif") as film:
        assert film.size == (160, 210) and film.info["loop"] == 0
        assert 50 < film.n_frames <= 100  # images that are as the one before last longer
        for number in range(film.n_frames):
            film.seek(number)
            shown = film.info["duration"] // 50
            for frame in expected[milliseconds // 50 :][:shown]:
                assert np.array_equal(np.array(film.convert("RGB")), frame)
            milliseconds += film.info["duration"]
    assert milliseconds == 5000
    courts = [frame[40:190] for frame in expected]
    for paddle in (92, 186, 92), (213, 130, 74):
        assert max(count_pixels(court, paddle) for court in courts) >= 4 * 16
    assert min(count_pixels(court, (144, 72, 17)) for court in courts) > 20_000

    again = start(*options)
    assert again.wait() == 0
    same = [(each.folder / "film.gif").read_bytes() for each in (run, again)]
    assert same[0] == same[1]


@pytest.mark.slow
def test_without_seconds_or_with_too_many_a_whole_game_is_recorded(start, run_folder):
    long = start("--play", str(run_folder), "--record", "long.gif", "--seconds", "1e38")
    assert long.wait() == 0 and long.err == ""
    run = start("--play", str(run_folder), "--record", str(run_folder / "whole.GIF"))
    assert run.wait() == 0
    with PIL.Image.open(run_folder / "whole.GIF") as film:
        film.seek(film.n_frames - 1)
        last = np.array(film.convert("RGB"))
        assert film.n_frames > 500  # 21 points take 40 seconds and more
    assert "with --seed " in run.out
    assert count_pixels(last[:24], (213, 130, 74)) > 100  # the rival's 21


@pytest.mark.slow
def test_an_mp4_shows_every_frame(start, run_folder):
    if not shutil.which("ffmpeg"):
        pytest.skip("not installed: ffmpeg")
    name = "12:30.mp4"  # which ffmpeg would take for a protocol
    run = start("--play", str(run_folder), "--record", name, "--seconds", "2", "--seed", "3")
    assert run.wait() == 0
    assert run.err == ""
    (run.folder / name).rename(run.folder / "a.mp4")
    command = "ffmpeg -loglevel error -i a.mp4 -f rawvideo -pix_fmt rgb24 -"
    pixels = subprocess.run(command.split(), cwd=run.folder, capture_output=True).stdout
    film = np.frombuffer(pixels, np.uint8).reshape(-1, 840, 640, 3)
    assert len(film) == 120
    for number in (0, 60, 119):
        frame = film_of(run_folder, 3, 120)[number]
        error = abs(film[number, 2::4, 2::4].astype(int) - frame)
        assert error.mean() < 5
        assert (film[number, 40:50, 40:50] == film[number, 40, 40]).mean() > 0.9
    described = subprocess.run(["ffmpeg", "-i", "a.mp4"], cwd=run.folder, capture_output=True)
    assert b"60 fps" in described.stderr and b"00:00:02.00" in described.stderr


@pytest.mark.slow
def test_an_ffmpeg_that_fails_is_quoted_and_leaves_no_file(start, run_folder, tmp_path):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "ffmpeg"
    program.write_text("#!/bin/sh\necho 'no such codec' >&2\nexit 1\n")
    program.chmod(0o755)
    run = start("--play", str(run_folder), "--record", "a.mp4", PATH=f"{tmp_path}/bin:/bin")
    assert run.wait() == 1
    assert run.err == "a3c_pong.py: ffmpeg failed: no such codec\n"
    assert files_in(run.folder) == ["err", "out"]


@pytest.mark.slow
def test_a_film_that_cannot_be_written_leaves_no_file(start, run_folder):
    run = start("--play", str(run_folder), "--record", "/proc/film.gif", "--seconds", "1")
    assert run.wait() == 1
    assert run.err.startswith("a3c_pong.py: cannot write /proc/film.gif: ")
    assert len(run.err.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["film.gif", "film.mp4"])
def test_ctrl_c_ends_a_recording_and_leaves_no_file(start, run_folder, name):
    if name == "film.mp4" and not shutil.which("ffmpeg"):
        pytest.skip("not installed: ffmpeg")
    run = start("--play", str(run_folder), "--record", name)
    assert wait_until(lambda: f"{name}.unfinished" in files_in(run.folder))
    run.signal(signal.SIGINT)
    assert run.wait() == 130
    assert run.err == ""
    assert files_in(run.folder) == ["err", "out"]


# ------------------------------------------------------------------------------------------- --play


@pytest.mark.slow
def test_an_agent_plays_in_a_window_until_it_is_closed_or_ctrl_c(start, screen, run_folder):
    closed, stopped = (start("--play", str(run_folder), DISPLAY=screen.name) for _ in range(2))

    def courts():
        pictures = {w: screen.picture(w) for w in screen.windows("Arcade Learning Environment")}
        return [
            w for w, picture in pictures.items() if picture is not None and shows_court(picture)
        ]

    assert wait_until(lambda: all("Ctrl-C ends it" in run.out for run in (closed, stopped)))
    assert wait_until(lambda: len(screen.windows("Learning Environment")) == 2)
    windows = screen.windows("Learning Environment")
    places = {screen.ask("getwindowgeometry", window).split("\n")[1] for window in windows}
    assert len(places) == 2  # the second does not cover the first
    for window in windows:
        assert "step-000001234.npz: W_0 - " in screen.ask("getwindowname", window)
    for _ in range(3):
        stopped.signal(signal.SIGINT)
    assert stopped.wait() == 130
    shown = wait_until(courts)  # which the other may have covered
    assert shown
    screen.ask("windowclose", shown[0])
    assert closed.wait() == 0
    for run in (closed, stopped):
        assert run.err == "" and run.actors() == []
        assert "step-000001234.npz, after 1,234 steps of training; Ctrl-C ends it" in run.out


def test_a_line_for_each_game_until_the_emulator_dies(run_folder, tmp_path):
    policy, _ = playback.load_policy(run_folder)
    game = pong_actor.game("Pong-v0")
    with playback.actor_with(policy, game, [1]) as actor:

        def kill_after_a_game():
            wait_until(lambda: "\n" in (tmp_path / "lines").read_text())
            actor.process.kill()

        with open(tmp_path / "lines", "w", buffering=1) as file:
            killer = threading.Thread(target=kill_after_a_game)
            killer.start()
            with pytest.raises(playback.Failed, match="killed by SIGKILL"):
                playback.play_in_window(actor, None, game, rich.console.Console(file=file), [])
            killer.join()
    lines = (tmp_path / "lines").read_text().splitlines()
    assert len(lines) >= 1
    for number, line in enumerate(lines, 1):
        game, score = line.split(" | score: ")
        total, points = score.split(" (")
        won, lost = (int(n) for n in points.strip(")").split(" : "))
        assert game == f"game {number}" and max(won, lost) == 21
        assert int(total) == won - lost


# ---------------------------------------------------------------------------------- what it is told


@pytest.mark.parametrize(
    "options, words",
    [
        ("--play RUN --render never", "--render never does not go with it"),
        ("--play RUN --gamma 0.5", "--gamma"),
        ("--play RUN --run-dir x", "--run-dir"),
        ("--play RUN --evaluate RUN", "--evaluate: not allowed with argument --play"),
        ("--play RUN --games 3", "--games goes with --evaluate only"),
        ("--play RUN --seconds 3", "--seconds goes with --record only"),
        ("--record x.gif", "--record goes with --play only"),
        ("--play RUN --record x.gif --render window", "--render"),
        ("--play RUN --record x.gif --seconds 0", "--seconds must be a number above 0"),
        ("--play RUN --record x.gif --seconds nan", "--seconds must be a number above 0"),
        ("--evaluate RUN --games 0", "--games must be between 1 and 100000"),
        ("--evaluate RUN --games 1e18", "--games must be between 1 and 100000"),
        ("--evaluate RUN --games 1.5", "--games"),
        ("--evaluate RUN --render window", "--render"),
    ],
)
def test_options_that_make_no_sense_together_are_named_in_one_line(options, words, capfd):
    with pytest.raises(SystemExit) as stopped:
        command_line.parse(Settings, PRESETS, "", options.split())
    out, err = capfd.readouterr()
    assert stopped.value.code == 2 and out == ""
    assert len(err.splitlines()) == 1 and words in err


@pytest.mark.parametrize(
    "options, words",
    [
        ("--play RUN", "no screen to open a window on, and the output is no terminal"),
        ("--play RUN --render window", "there is no screen to open a window on; --record writes"),
        ("--play RUN --render terminal", "--render terminal: the output is no terminal"),
        ("--play ROOT", "holds no checkpoint"),
        ("--play README", "README.md is damaged or no checkpoint"),
        ("--play RUN --record x.avi", "x.avi is neither"),
        ("--play RUN --record RUN/there.gif", "there.gif is there already"),
        ("--play RUN --record no/x.gif", "no: there is no such folder"),
        ("--play RUN --record x.mp4", "ffmpeg, which is not installed"),
        ("--draw x.png nowhere", "nowhere/config.json: No such file or directory"),
        ("--draw no/x.png CURVE", "no/x.png: No such file or directory"),
        ("--evaluate nowhere", "nowhere: there is no such folder or file"),
        ("--evaluate EMPTY", "it has no 'globalnet/actor_network/bias'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(start, run_folder, tmp_path, options, words):
    (run_folder / "there.gif").write_text("")
    checkpoints.save(tmp_path / "empty.npz", checkpoints.Checkpoint({}, {}))
    for name, path in (("RUN", run_folder), ("README", ROOT / "README.md"), ("ROOT", ROOT),
                       ("CURVE", ROOT / "results" / "a3c-chapter-seed1"),
                       ("EMPTY", tmp_path / "empty.npz")):  # fmt: skip
        options = options.replace(name, str(path))
    run = start(*options.split(), PATH="/nowhere")
    assert run.wait() == 2
    assert run.out == ""
    assert len(run.err.splitlines()) == 1 and words in run.err
    assert run.actors() == []
    assert files_in(run.folder) == ["err", "out"]
    assert files_in(run_folder) == ["checkpoints", "there.gif"]
