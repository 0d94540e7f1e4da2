"""The program as its user meets it: the real script in processes, with real signals."""

import contextlib
import csv
import dataclasses
import importlib.util
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
from program import (
    FAILS_WHEN_TOLD,
    GAME_LINE,
    HANGS,
    ROOT,
    Edited,
    count_pixels,
    kill,
    read_picture,
    shows_court,
    wait_until,
)

import a3c_pong
from a3c_pong import PRESETS, Settings
from runtime import command_line
from runtime.cores import allowed_cores, usable_cores
from runtime.display import counted
from runtime.global_network import GlobalNetwork
from runtime.run import Run

HAS_TKINTER = importlib.util.find_spec("_tkinter") is not None

# ---------------------------------------------------------------------------------- what it leaves


@pytest.mark.slow
def test_three_games_leave_three_lines_a_table_a_picture_and_the_settings(start):
    run = start("--max-global-episodes", "3", "--num-workers", "2", "--beta", "0.001")
    assert run.wait() == 0
    assert run.err == ""
    rows, games = run.rows(), run.games()
    assert [game[1] for game in games] == ["0", "1", "2"]
    assert len(run.out.splitlines()) == 3 + 3 + 1
    assert [row["episode"] for row in rows] == ["0", "1", "2"]
    assert [(row["worker"], row["score"]) for row in rows] == [(g[0], g[3]) for g in games]
    assert {row["worker"] for row in rows} <= {"W_0", "W_1"}
    for name in ("agent_steps", "seconds"):
        values = [float(row[name]) for row in rows]
        assert values == sorted(set(values)) and values[0] > 0

    running_score = running_reward = None
    for row, game in zip(rows, games):
        score, reward = int(row["score"]), float(row["reward"])
        assert -21 <= score < 0  # untrained, it loses every game
        assert reward == score - 19
        running_score = score if running_score is None else 0.99 * running_score + 0.01 * score
        running_reward = reward if running_reward is None else 0.99 * running_reward + 0.01 * reward
        assert float(row["running_score"]) == pytest.approx(running_score, abs=1e-3)
        assert float(row["running_reward"]) == pytest.approx(running_reward, abs=1e-3)
        assert int(game[2]) == pytest.approx(running_reward, abs=1)

    reason, count, steps, _ = run.played()
    assert (reason, count) == ("3 games played", 3)
    assert steps >= int(rows[-1]["agent_steps"])
    config = json.loads((run.folder / "run" / "config.json").read_text())
    expected = a3c_pong.Settings(
        max_global_episodes=3, num_workers=2, beta=0.001, run_dir=str(run.folder / "run")
    )
    seed = config["settings"]["seed"]  # drawn, and written down so that the run can be repeated
    assert 0 <= seed < 2**24
    assert config["settings"] == dataclasses.asdict(expected) | {"seed": seed}
    assert config["versions"].keys() == {"tensorflow", "gymnasium", "ale-py", "numpy"}
    assert min(run.curves()) > 20


@pytest.mark.slow
def test_a_seed_settles_all_games_of_one_worker(start):
    runs = [start("--num-workers", "1", "--seed", seed, "--max-steps", "4000") for seed in "778"]
    assert [run.wait() for run in runs] == [0, 0, 0]
    one, same, other = ([{**row, "seconds": None} for row in run.rows()] for run in runs)
    assert len(one) >= 3
    assert one == same
    assert one != other


# ---------------------------------------------------------------------------------- when it stops


@pytest.mark.slow
def test_each_limit_stops_the_run(start):
    before = time.monotonic()
    by_steps = start("--num-workers", "2", "--max-steps", "3001")
    by_minutes = start("--num-workers", "2", "--max-minutes", "0.05")
    by_score = start("--num-workers", "1", "--until-score", "-2.1e1")
    assert [run.wait() for run in (by_steps, by_minutes, by_score)] == [0, 0, 0]

    reason, _, steps, _ = by_steps.played()
    assert reason == "3,001 steps played"
    assert 3001 <= steps < 3001 + 2 * 20
    reason, _, _, seconds = by_minutes.played()
    assert reason == "0.05 minutes over"
    assert 3 <= seconds <= time.monotonic() - before
    assert by_score.played()[:2] == ("running score -21 reached", 1)
    assert len(by_score.rows()) == 1


def test_no_game_takes_back_the_score_that_stopped_the_run(tf):
    settings = Settings(until_score=-10.0)
    run = Run(settings, GlobalNetwork(None, settings))
    for worker, score in ("W_0", -5), ("W_1", -21):
        run.count(100, (worker, score, score))
    assert run.stopped_because == "running score -10 reached"
    assert [episode.score for episode in run.episodes] == [-5] and run.agent_steps == 200


def test_a_game_that_ends_after_a_signal_is_in_the_curve(tf):
    settings = Settings(until_score=-10.0)
    run = Run(settings, GlobalNetwork(None, settings))
    run.stop("Ctrl-C")
    run.count(100, ("W_0", -21, -21))
    assert [episode.score for episode in run.episodes] == [-21]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)]
)
def test_a_signal_ends_the_run_and_leaves_its_curve(start, number, status):
    run = start("--num-workers", "2")
    assert wait_until(run.games)
    assert len(run.actors()) == 2
    run.signal(number)
    assert run.wait() == status
    assert run.actors() == []
    assert run.err == ""
    assert min(run.curves()) > 5
    if number == signal.SIGHUP:  # the terminal is gone: nothing is written there any more
        assert len(run.rows()) >= len(run.games()) >= 1
    else:
        assert run.played()[0] == ("Ctrl-C" if number == signal.SIGINT else "SIGTERM")
        assert len(run.rows()) == len(run.games()) == run.played()[1] >= 1


@pytest.mark.slow
def test_under_nohup_a_lost_terminal_does_not_end_the_run(start):
    ignoring = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    ignoring += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    script = str(ROOT / "a3c_pong.py")
    run = start("--num-workers", "1", program=("-c", ignoring, script))
    assert wait_until(run.games)
    run.signal(signal.SIGHUP)
    before = len(run.games())
    assert wait_until(lambda: len(run.games()) > before + 2)
    run.signal(signal.SIGTERM)
    assert run.wait() == 0
    assert run.played()[0] == "SIGTERM"
    assert len(run.games()) == len(run.rows())


@pytest.mark.slow
def test_a_terminal_shows_a_bar_under_the_games(tmp_path):
    ours, programs = pty.openpty()
    termios.tcsetwinsize(programs, (30, 100))
    command = [sys.executable, str(ROOT / "a3c_pong.py"), "--render", "never"]
    options = ["--max-global-episodes", "12", "--num-workers", "1"]
    options += ["--run-dir", str(tmp_path / "run")]
    environment = dict(os.environ, TERM="xterm-256color")
    process = subprocess.Popen(
        [*command, *options], stdin=programs, stdout=programs, stderr=programs, env=environment
    )
    os.close(programs)
    written = b""
    with contextlib.suppress(OSError):  # the terminal's end when the program has ended
        while read := os.read(ours, 4096):
            written += read
    assert process.wait(HANGS) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.decode()).replace("\r", "\n")
    assert len(GAME_LINE.findall(re.sub(r" +$", "", text, flags=re.MULTILINE))) == 12
    bar = r"━+ \d+ games, [\d,]+ steps/s, running score (\S+), \d+:\d\d:\d\d left"
    with open(tmp_path / "run" / "scores.csv") as file:
        scores = {f"{float(row['running_score']):.1f}" for row in csv.DictReader(file)}
    shown = re.findall(bar, text)
    assert shown and set(shown) <= scores
    assert "games played: 12 games" in text


STARTS_ONLY = """if True:  # the script, but that it starts for ever once its graph is built
    import sys, time, a3c_pong
    load_tensorflow = a3c_pong.load_tensorflow
    def loading():
        load_tensorflow()
        a3c_pong.tf.Session.run = lambda *arguments: (open("built", "w").close(), time.sleep(1e6))
    a3c_pong.load_tensorflow = loading
    sys.exit(a3c_pong.main(sys.argv[1:]))"""
STAGES = {
    "TensorFlow begins to load": lambda run: b"libtensorflow" in run.maps(),
    "TensorFlow is half loaded": lambda run: b"pywrap_saved_model" in run.maps(),
    "the graph is built": lambda run: (run.folder / "built").exists(),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, number, status",
    [
        *zip(STAGES, (signal.SIGINT, signal.SIGINT, signal.SIGTERM), (130, 130, 0)),
        ("TensorFlow is half loaded", signal.SIGHUP, 0),
    ],
)
def test_a_signal_during_start_up_ends_it_quietly(start, stage, number, status):
    imported = stage == "the graph is built"  # else Python itself starts it, and imports
    program = Edited(STARTS_ONLY) if imported else ("-c", STARTS_ONLY)
    run = start("--num-workers", "1", program=program)
    assert wait_until(lambda: STAGES[stage](run))
    run.signal(number)
    assert run.wait() == status
    assert run.err == ""
    assert run.actors() == []
    assert not (run.folder / "run").exists()


@pytest.mark.slow
def test_a_second_signal_during_start_up_changes_nothing(start):
    run = start("--num-workers", "1", program=Edited(STARTS_ONLY))
    assert wait_until(lambda: (run.folder / "built").exists())
    for _ in range(3):
        run.signal(signal.SIGTERM)
    assert run.wait() == 0
    assert run.err == "" and run.actors() == []
    assert not (run.folder / "run").exists()


# ---------------------------------------------------------------------------- when something breaks


@pytest.mark.slow
def test_a_killed_actor_is_replaced_and_plays_on(start):
    run = start("--num-workers", "2")
    assert wait_until(run.games)
    kill(run.actors()[0])
    assert wait_until(lambda: "actor died" in run.out)
    before = len(run.games())
    after = lambda: [game[0] for game in run.games()[before:]]
    assert wait_until(lambda: min(after().count(worker) for worker in ("W_0", "W_1")) >= 2)
    run.signal(signal.SIGTERM)
    assert run.wait() == 0
    _, notice, after = re.split(r"^(.*actor died.*)$", run.out, flags=re.MULTILINE)
    worker = notice.split("'")[0]
    assert notice == (
        f"{worker}'s actor died (killed by SIGKILL) and is started again, with a new game"
    )
    assert worker in [game[0] for game in GAME_LINE.findall(after)]
    assert {game[0] for game in run.games()} == {"W_0", "W_1"}  # each thread runs its own worker
    assert len(run.rows()) == len(run.games())
    assert run.err == ""


@pytest.mark.slow
def test_actors_that_die_again_and_again_end_the_run(start):
    run = start("--num-workers", "2")
    assert wait_until(run.games)

    def ended():
        for actor in run.actors():
            kill(actor)
        return run.process.poll() is not None

    assert wait_until(ended)
    assert run.wait() == 1
    assert len(run.err.splitlines()) == 1
    assert "actor died (killed by SIGKILL), the 5th death within 60 s" in run.err
    assert max(run.out.count(f"{w}'s actor died") for w in ("W_0", "W_1")) == 4
    assert len(run.rows()) >= 1


@pytest.mark.slow
def test_a_killed_run_leaves_no_actor(start):
    run = start("--num-workers", "2")
    assert wait_until(run.games)
    assert len(run.actors()) == 2
    run.signal(signal.SIGKILL)
    assert run.no_actor_is_left()


@pytest.mark.slow
def test_an_exception_in_a_worker_ends_the_run_and_leaves_its_curve(start):
    options = "--num-workers", "2", "--autosave-minutes", "1000"
    run = start(*options, program=Edited(FAILS_WHEN_TOLD))
    assert wait_until(run.games)
    assert not (run.folder / "run" / "checkpoints").exists()
    (run.folder / "run" / "checkpoints").touch()  # so that no checkpoint can be written
    (run.folder / "fail").touch()
    assert run.wait() == 1
    assert "Traceback" in run.err
    assert run.err.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert "the last checkpoint was not written to" in run.err
    assert len(run.rows()) >= 1
    assert min(run.curves()) > 5
    assert run.actors() == []


# ---------------------------------------------------------------------------------- what it is told


def test_a_wrong_option_is_named_in_one_line(start):
    wrong = {
        "--num-workers 0": "--num-workers",
        "--bogus": "--bogus",
        "--game-env Nope-v0": "Nope",
        "--game-env Breakout-v0": "Breakout-v0",
        "--render window": "--render",
        "--render terminal": "--render terminal: the output is no terminal",
        "--run-dir /proc/nope": "/proc/nope",
    }
    for run, named in [(start(*options.split()), named) for options, named in wrong.items()]:
        assert run.wait() == 2
        assert run.out == ""
        assert len(run.err.splitlines()) == 1 and named in run.err
        assert run.actors() == []
        assert not (run.folder / "run").exists()


@pytest.mark.parametrize(
    "options, named",
    [
        ("--gamma 1.5", "--gamma"),
        ("--gamma nan", "--gamma"),
        ("--gamma x", "--gamma"),
        ("--beta -1", "--beta"),
        ("--lr-actor 0", "--lr-actor"),
        ("--global-iteration-update 0", "--global-iteration-update"),
        ("--global-iteration-update 2001", "between 1 and 2000"),
        ("--draw one.png nowhere --gamma 1", "--gamma"),
        ("--seed -1", "--seed"),
        ("--until-score 40", "--until-score"),
        ("--max-minutes 0", "--max-minutes"),
        ("--method dqn", "--method"),
        ("--frames 0", "--frames"),
        ("--max-steps 2.5e0", "--max-steps: invalid int value: '2.5e0'"),
        ("--max-steps 1e999", "--max-steps: invalid int value: '1e999'"),
        ("--frames 3000", "--frames must be between 1 and 8"),
        ("--num-workers 2000", "--num-workers must be between 1 and 256"),
        ("--cut-at-points maybe", "--cut-at-points: it must be yes or no, not 'maybe'"),
        ("--gae-lambda 1.1", "--gae-lambda"),
        ("--rmsprop-decay -1", "--rmsprop-decay"),
        ("--target-steps 0", "--target-steps"),
        ("--max-steps 1e20", "--max-steps must be between 1 and 1e18"),
        ("--beta 1e39", "--beta must be 0 or a number above, at most 3e38"),
        ("--lost-game-reward=-1e39", "--lost-game-reward must be a number up to 3e38 or none"),
        pytest.param(f"--anneal-steps 1{400 * '0'}", "--anneal-steps", id="a googol and more"),
        ("--env-id Pong-v0", "--env-id is now --game-env"),
        ("--workers 2", "--workers is now --num-workers"),
        ("--max-episodes=3", "--max-episodes is now --max-global-episodes"),
        ("--steps-per-update 120", "--steps-per-update is now --global-iteration-update"),
    ],
)
def test_every_option_with_a_wrong_value_is_named_in_one_line(options, named, capfd):
    with pytest.raises(SystemExit) as stopped:
        command_line.parse(Settings, PRESETS, "", options.split())
    out, err = capfd.readouterr()
    assert stopped.value.code == 2 and out == ""
    assert len(err.splitlines()) == 1 and named in err


@pytest.mark.parametrize(
    "options, value",
    [
        ("--cut-at-points", True),
        ("--cut-at-points yes", True),
        ("--cut-at-points no", False),
        ("--no-cut-at-points", False),
    ],
)
def test_what_the_help_calls_yes_or_no_may_be_given_so(options, value):
    _, given = command_line.parse(Settings, PRESETS, "", options.split())
    assert given == {"cut_at_points": value}


def test_a_whole_number_may_be_written_with_an_exponent():
    _, given = command_line.parse(Settings, PRESETS, "", "--max-steps 20e6 --seed 1_000".split())
    assert given == {"max_steps": 20_000_000, "seed": 1000}
    assert all(type(number) is int for number in given.values())


def test_a_folder_that_holds_a_run_is_left_as_it_is(start, tmp_path):
    runs = {}
    for name in "scores.csv", "config.json", "checkpoints":
        folder = tmp_path / f"held by {name}"
        folder.mkdir()
        (folder / name).write_text("a run's\n")
        runs[folder, name] = start("--run-dir", str(folder))
    for (folder, name), run in runs.items():
        assert run.wait() == 2
        assert run.out == ""
        assert run.err.count("\n") == 1 and f"{folder}: it holds a run already, {name};" in run.err
        assert (folder / name).read_text() == "a run's\n"
        assert [path.name for path in folder.iterdir()] == [name]


def test_what_has_no_file_to_name_is_said_without_one(start):
    run = start("--num-workers", "30", command=("prlimit", "--nofile=32"))
    assert run.wait() == 2
    assert run.out == "" and run.err == "a3c_pong.py: Too many open files\n"
    assert run.actors() == []


@pytest.mark.slow
def test_there_is_a_worker_for_each_core_that_may_be_used(start):
    core = str(allowed_cores()[0])
    options = "--preset", "rally", "--gamma", "0.5", "--max-steps", "500"
    run = start(*options, command=("taskset", "-c", core))
    assert run.wait() == 0
    assert run.out.startswith("1 worker on 1 core\n")
    settings = json.loads((run.folder / "run" / "config.json").read_text())["settings"]
    expected = {**PRESETS["rally"]["a3c"], "preset": "rally", "gamma": 0.5, "max_steps": 500}
    assert settings.items() >= expected.items()


def test_a_file_is_no_folder(start, tmp_path):
    (tmp_path / "file").write_text("")
    run = start("--run-dir", str(tmp_path / "file"))
    assert run.wait() == 2
    assert run.err.endswith("file: it is not a folder\n") and len(run.err.splitlines()) == 1


def test_help_mentions_every_setting(start):
    run = start("--help")
    assert run.wait() == 0
    assert run.err == ""
    options = re.findall(r"^  (--[a-z-]+)", run.out, re.MULTILINE)
    settings = ["--" + f.name.replace("_", "-") for f in dataclasses.fields(a3c_pong.Settings)]
    commands = ["--resume", "--draw", "--play", "--evaluate", "--record", "--seconds", "--games"]
    assert options == settings + commands


@pytest.mark.parametrize("method", a3c_pong.METHODS)
def test_a_preset_is_a_default_for_other_settings(method):
    options = f"--preset rally --method {method} --num-workers 1 --gamma 0.5 --max-steps 500"
    _, given = command_line.parse(Settings, PRESETS, "", options.split())
    settings = dataclasses.asdict(Settings(**given))
    assert settings["preset"] == "rally"
    assert settings["num_workers"] == 1
    assert settings["method"] == method
    preset = PRESETS["rally"][method]
    expected = {**preset, "gamma": 0.5, "max_steps": 500}
    assert {name: settings[name] for name in preset} == expected
    chapter = dataclasses.asdict(a3c_pong.Settings())
    assert all(preset[name] != chapter[name] for name in preset)  # nothing in it is idle


@pytest.mark.parametrize("name", ["rally.png", "methods.png", "original.png"])
def test_a_picture_of_the_readme_is_drawn_again_by_its_command(start, name):
    readme = (ROOT / "results" / "README.md").read_text()
    folders = re.search(rf"--draw\s+results/{name}\s+([^`]+)`", readme)[1].split()
    folders = subprocess.check_output(["bash", "-c", f"echo {' '.join(folders)}"], text=True)
    run = start("--draw", name, *(str(ROOT / folder) for folder in folders.split()))
    assert run.wait() == 0
    drawn, kept = read_picture(run.folder / name), read_picture(ROOT / "results" / name)
    assert drawn.shape == kept.shape
    assert np.mean(drawn == kept) > 0.995  # with a curve missing: 0.992 at best
    assert run.err == ""


@pytest.mark.slow
def test_curves_are_drawn_again_from_their_folders(start):
    """One run, and several side by side: as many colours as methods."""
    results = str(ROOT / "results" / "a3c-chapter-seed1")
    run = start("--draw", "one", results)
    assert run.wait() == 0 and run.out == "one: 1 curve\n"
    (run.folder / "one").rename(run.folder / "one.png")
    other = run.folder / "other"
    shutil.copytree(results, other)
    config = json.loads((other / "config.json").read_text())
    config["label"] = r"$\another"  # no formula, of the same method and preset
    (other / "config.json").write_text(json.dumps(config))
    both = start("--draw", "both.png", results, str(other))
    assert both.wait() == 0
    one, picture = read_picture(run.folder / "one.png"), read_picture(both.folder / "both.png")
    assert count_pixels(one, (0x1F, 0x77, 0xB4)) > 200
    for half in (picture[:, : picture.shape[1] // 2], picture[:, picture.shape[1] // 2 :]):
        assert count_pixels(half, (0xFF, 0x7F, 0x0E)) > 200  # the second lies on the first
    assert (run.err, both.err) == ("", "")


@pytest.mark.parametrize(
    "options", ["one.png", "one.png nowhere", "one.bmpx {results}", "x.pgf {results}"]
)
def test_a_picture_that_cannot_be_drawn_gets_one_line(start, options):
    results = ROOT / "results" / "a3c-chapter-seed1"
    run = start("--draw", *options.format(results=results).split(), PATH="/nowhere")
    assert run.wait() == 2
    assert len(run.err.splitlines()) == 1 and run.out == ""


def test_a_picture_that_cannot_be_written_leaves_the_old_one(start):
    results = str(ROOT / "results" / "a3c-chapter-seed1")
    run = start("--draw", "one.svg", results)
    assert run.wait() == 0
    old = (run.folder / "one.svg").read_bytes()
    picture = str(run.folder / "one.svg")
    limited = start("--draw", picture, results, command=("prlimit", f"--fsize={len(old) // 2}"))
    assert limited.wait() == 2
    assert limited.err == f"a3c_pong.py: {picture}: File too large\n"
    assert (run.folder / "one.svg").read_bytes() == old
    assert sorted(path.name for path in run.folder.iterdir()) == ["err", "one.svg", "out"]


@pytest.mark.parametrize(
    "name, text",
    [
        ("config.json", "{}"),
        ("config.json", '{"settings": {"method": null}}'),
        ("scores.csv", "episode\n1\n2,W_"),
        ("scores.csv", 'episode\n"' + 200_000 * "1\n"),
    ],
)
def test_a_damaged_run_is_named_and_not_drawn(start, tmp_path, name, text):
    shutil.copytree(ROOT / "results" / "a3c-chapter-seed1", tmp_path / "run")
    (tmp_path / "run" / name).write_text(text)
    run = start("--draw", "one.png", str(tmp_path / "run"))
    assert run.wait() == 2
    assert len(run.err.splitlines()) == 1 and str(tmp_path / "run" / name) in run.err


@pytest.mark.slow
def test_numbers_that_are_too_large_to_learn_from_are_said(start):
    run = start("--num-workers", "1", "--lost-game-reward=-3e38", "--max-global-episodes", "2")
    assert run.wait() == 1
    diverged, not_written = run.err.splitlines()
    assert "is NaN, infinite or huge, so training ends" in diverged
    assert "the last checkpoint was not written" in not_written
    assert read_picture(run.folder / "run" / "reward.png").size


@pytest.mark.parametrize(
    "name, value, kinds",
    [
        ("num_workers", 2.0, "int or none"),
        ("frames", True, "int"),
        ("cut_at_points", "no", "bool"),
        ("game_env", 5, "str"),
        ("gamma", "1", "float"),
        ("lost_game_reward", [], "float or none"),
    ],
)
def test_a_setting_of_a_wrong_type_is_refused(name, value, kinds):
    command_line.check(Settings(gamma=1, num_workers=None))
    option = command_line.option(name)
    with pytest.raises(ValueError, match=re.escape(f"{option} must be {kinds}, not {value!r}")):
        command_line.check(Settings(**{name: value}))


def test_importing_the_modules_does_nothing_and_tensorflow_comes_without_keras(start):
    code = """if True:
        import sys, threading
        import importlib, pathlib
        import a3c_pong
        from runtime import graph
        for path in pathlib.Path(a3c_pong.__file__).parent.rglob("*.py"):
            package = path.parent.name
            if package in ("runtime", "cluster") and path.stem != "__init__":
                importlib.import_module(f"{package}.{path.stem}")
        assert "tensorflow" not in sys.modules
        assert threading.active_count() == 1
        graph.load_tensorflow()
        assert "keras" not in sys.modules"""
    run = start("--bogus", program=("-c", code))
    assert run.wait() == 0
    assert (run.out, run.err) == ("", "")
    assert sorted(os.listdir(run.folder)) == ["err", "out"]


# -------------------------------------------------------------------------------------- in a window


@pytest.mark.slow
def test_a_window_shows_the_game_and_its_closing_ends_neither_run_nor_worker(start, screen):
    run = start("--num-workers", "2", "--render", "window", DISPLAY=screen.name)
    assert wait_until(lambda: screen.windows("Arcade Learning Environment"))
    if HAS_TKINTER:
        assert wait_until(lambda: screen.windows("A3C on Pong"))
    assert wait_until(run.games)
    assert run.out.startswith(f"3 workers on {counted(usable_cores(), 'core')}; the chapter's")
    assert len(run.actors()) == 3

    def court_is_seen():
        for emulator in screen.windows("Arcade Learning Environment"):
            screen.ask("windowraise", emulator)  # the plot covers part of it
            picture = screen.picture(emulator)
            if picture is not None and shows_court(picture):
                return emulator

    emulator = wait_until(court_is_seen)
    assert emulator

    screen.ask("windowclose", emulator)
    assert wait_until(lambda: "W_0's window is gone: its actor ended and is started" in run.out)
    assert wait_until(lambda: "W_0" in [game[0] for game in run.games()])
    assert screen.windows("Arcade Learning Environment") == []

    run.signal(signal.SIGINT)
    assert run.no_actor_is_left()
    if HAS_TKINTER:
        assert wait_until(lambda: "the plot stands until its window is closed" in run.out)
        assert screen.windows("A3C on Pong")
        run.signal(signal.SIGINT)
    assert run.wait() == 130
    assert run.err == ""


@pytest.mark.slow
def test_a_killed_run_takes_its_window_with_it(start, screen):
    run = start("--num-workers", "1", "--render", "window", DISPLAY=screen.name)
    assert wait_until(lambda: screen.windows("Arcade Learning Environment"))
    assert wait_until(run.games)
    assert len(run.actors()) == 2
    run.signal(signal.SIGKILL)
    assert run.no_actor_is_left()
    assert wait_until(lambda: not screen.windows("Arcade Learning Environment"))
