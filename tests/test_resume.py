"""A run goes on where it stopped, whatever stopped it: the real script, killed, filled, damaged."""

import csv
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time

import numpy as np
import pytest
from in_process import InProcess
from program import HEADER, ROOT, Edited, fill, save_agent, wait_until

import a3c_pong
from runtime import checkpoints
from runtime.checkpoints import Checkpoint
from runtime.curve import Episode
from runtime.events import EventFile
from runtime.graph import KILLED
from runtime.run_folder import RunFolder

EXACT = "--num-workers", "1", "--seed", "5", "--render", "never", "--beta-power", "2"


def rows_of(run):
    """The rows of scores.csv, each of them whole, numbered from 0, in the order of their time."""
    header, *lines = (run / "scores.csv").read_text().splitlines()
    assert header == HEADER
    rows = list(csv.DictReader([header, *lines]))
    assert all(len(line.split(",")) == len(header.split(",")) for line in lines)
    assert [int(row["episode"]) for row in rows] == list(range(len(rows)))
    for name in "agent_steps", "seconds":
        values = [float(row[name]) for row in rows]
        assert values == sorted(values)
    assert len({row["agent_steps"] for row in rows}) == len(rows)
    return rows


def newest(run):
    """The (arrays, about) of the newest checkpoint, which is whole."""
    checkpoint = checkpoints.load_newest(run)
    assert checkpoint.passed_over == []
    return checkpoint.arrays, checkpoint.about


def steps_kept(run):
    names = [path.name for path in checkpoints.paths(run) if path.name.startswith("step")]
    return int(names[0][5:-4]) if names else -1


def newest_events(run):
    """The bytes of a run's newest event file."""
    return max((run / "events").iterdir()).read_bytes()


def events_of(run):
    """What TensorFlow's own reader finds in a run's event files, the header of each left out."""
    a3c_pong.load_tensorflow()
    read, files = a3c_pong.tf.train.summary_iterator, sorted((run / "events").iterdir())
    return [event for file in files for event in list(read(str(file)))[1:]]


@pytest.fixture(scope="module")
def half(start_shared, tmp_path_factory):
    """The folder of a run that 100 updates and three stops have left; not to change.

    Each stop leaves a checkpoint; how many are taken on the way depends on the machine.
    """
    folder = tmp_path_factory.mktemp("half") / "run"
    way = [*EXACT, "--run-dir", str(folder), "--autosave-minutes", "0.004"]
    for steps in "700", "1400", "2000":
        assert start_shared(*way, "--max-steps", steps).wait() == 0
        way = ["--resume", str(folder)]
    assert len(checkpoints.paths(folder)) == 3
    return folder


@pytest.fixture
def run(half, tmp_path):
    """The folder of such a run, to go on with."""
    return pathlib.Path(shutil.copytree(half, tmp_path / "run"))


# ------------------------------------------------------------------------------------- it goes on


def assert_gone_on_exactly(run, straight):
    """But for the clock, two runs have left the same."""
    (arrays, about), (expected, about_straight) = newest(run), newest(straight)
    assert arrays.keys() == expected.keys()
    assert any("RMSProp" in name for name in arrays)
    for name in arrays.keys() - {"curve/seconds"}:
        assert np.array_equal(arrays[name], expected[name]), name
    for name in "updates", "workers", "games", "running_score", "running_reward":
        assert about[name] == about_straight[name]
    for row, other in zip(rows_of(run), rows_of(straight), strict=True):
        assert row | {"seconds": 0} == other | {"seconds": 0}


@pytest.mark.slow
def test_200_updates_are_100_and_a_resumed_100(start, run):
    straight = start(*EXACT, "--max-steps", "4000")
    before = newest(run)[1]
    assert before["agent_steps"] == 2000 and before["updates"] >= 100
    assert before["workers"]["W_0"]["score"] < 0  # in the middle of a game
    resumed = start("--resume", str(run), "--max-steps", "4000")
    assert straight.wait() == resumed.wait() == 0
    assert resumed.err == ""
    assert_gone_on_exactly(run, straight.folder / "run")
    about = newest(run)[1]
    assert about["seconds"] > before["seconds"]

    first = f"resuming from {run}/checkpoints/step-000002000.npz: {before['games']} games, 2,000"
    assert resumed.out.splitlines()[1].startswith(first)
    assert [int(game[1]) for game in resumed.games()] == [*range(before["games"], about["games"])]
    config = json.loads((run / "config.json").read_text())
    assert config["settings"]["max_steps"] == 4000 and config["settings"]["seed"] == 5
    _, _, entry = config["resumed"]
    assert entry["agent_steps"] == 2000 and entry["changed"] == {"max_steps": 4000}
    assert entry["command"][1:3] == ["--resume", str(run)]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["one-step-q", "one-step-sarsa", "n-step-q"])
def test_a_q_method_goes_on_with_its_target_its_epsilon_and_the_action_chosen_ahead(start, method):
    options = "--method", method, "--frames", "2", "--anneal-steps", "2200"
    options += "--target-steps", "700", "--epsilon-frames", "9000"
    straight, halves = (start(*EXACT, *options, "--max-steps", n) for n in ("2400", "1200"))
    assert halves.wait() == 0
    run = halves.folder / "run"
    resumed = start("--resume", str(run), "--max-steps", "2400")
    assert straight.wait() == resumed.wait() == 0
    assert_gone_on_exactly(run, straight.folder / "run")
    ((worker, final),) = json.loads((run / "config.json").read_text())["final_epsilons"].items()
    assert worker == "W_0" and final in (0.1, 0.01, 0.5)
    assert f"epsilons fall from 1 to {final:g} (1 of them)\n" in straight.out
    said = "from step 2,200 on the learning rates are 0 (--anneal-steps)\n"
    assert [said in program.out for program in (halves, resumed, straight)] == [False, True, True]


@pytest.mark.slow
def test_a_limit_reached_already_is_said_and_more_workers_may_join(start, run):
    again = start("--resume", str(run))
    assert again.wait() == 0
    assert again.played()[:3] == ("2,000 steps played", len(rows_of(run)), 2000)
    assert "nothing is left to do: a higher --max-steps lets the run continue\n" in again.out
    before = len(rows_of(run))
    more = start("--resume", str(run), "--num-workers", "2", "--max-steps", "15000")
    assert more.wait() == 0
    assert {row["worker"] for row in rows_of(run)[before:]} == {"W_0", "W_1"}


READS_ONLY = """if True:  # the script, but that it reads its checkpoint for ever
    import sys, time, a3c_pong
    from runtime import checkpoints
    load_newest = checkpoints.load_newest
    def reading(*arguments):
        load_newest(*arguments)
        open("read", "w").close()
        time.sleep(1e6)
    checkpoints.load_newest = reading
    sys.exit(a3c_pong.main(sys.argv[1:]))"""


@pytest.mark.slow
def test_a_signal_while_the_checkpoint_is_read_ends_it_quietly_and_the_run_stays(start, run):
    before = sorted(path.name for path in run.rglob("*"))
    program = start("--resume", str(run), program=Edited(READS_ONLY))
    assert wait_until(lambda: (program.folder / "read").exists())
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert (program.out, program.err) == ("", "")
    assert sorted(path.name for path in run.rglob("*")) == before


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_gone_begins_anew_and_its_curve_is_kept(start, run):
    shutil.rmtree(run / "checkpoints")
    before = (run / "scores.csv").read_bytes()
    assert len(rows_of(run)) > 0
    program = start("--resume", str(run), "--max-steps", "100")
    assert program.wait() == 0 and program.err == ""
    assert (run / "scores-1.csv").read_bytes() == before
    assert program.out.count(f"the games so far are kept in {run / 'scores-1.csv'}") == 1
    assert len(rows_of(run)) == newest(run)[1]["games"] == 0


@pytest.mark.slow
def test_a_folder_that_is_moved_during_the_run_is_made_anew_with_all_of_it(start):
    program = start("--num-workers", "1", "--autosave-minutes", "0.01", "--render", "never")
    run, moved = program.folder / "run", program.folder / "moved"
    assert wait_until(lambda: len(program.games()) > 1 and steps_kept(run) > 0)
    run.rename(moved)
    assert wait_until(lambda: steps_kept(run) > steps_kept(moved))
    for gone in run / "lock", run / "config.json", *(run / "events").iterdir():
        gone.unlink()
    (run / "scores.csv").write_text("a user's line\n")
    games = len(program.games())
    assert wait_until(lambda: len((run / "scores.csv").read_text().splitlines()) > games + 1)
    assert len(rows_of(run)) > games

    run.rename(program.folder / "moved again")
    run.mkdir()
    (run / "events").mkdir()
    theirs = "lock", "scores.csv", f"events/{max((moved / 'events').iterdir()).name}"
    for name in theirs:  # another run begins there
        (run / name).write_text("another's")
    other, kept = program.folder / "run_2", steps_kept(program.folder / "moved again")
    assert wait_until(lambda: steps_kept(other) > kept)
    program.signal(signal.SIGTERM)
    assert program.wait() == 0 and program.err == ""
    assert sorted(path.name for path in run.iterdir()) == ["events", "lock", "scores.csv"]
    assert all((run / name).read_text() == "another's" for name in theirs)
    for folder in run, other:
        line = f"the run's folder {run} is gone: a new one, {folder}, has the whole curve"
        assert program.out.count(line) == 1
    played = newest(other)[1]["games"]
    assert len(rows_of(other)) == len(program.games()) == played
    assert sum(e.summary.value[0].tag == "game/score" for e in events_of(other)) == played
    config = json.loads((other / "config.json").read_text())
    assert config == json.loads((moved / "config.json").read_text())


@pytest.mark.slow
def test_a_current_folder_that_is_removed_during_the_run_is_made_anew(start, tmp_path):
    here, gone = tmp_path / "here", tmp_path / "gone"
    here.mkdir()
    program = start("--num-workers", "1", "--autosave-minutes", "0.01", "--render", "never",
                    "--run-dir", "run", command=("env", "-C", str(here)))  # fmt: skip
    assert wait_until(lambda: program.games() and steps_kept(here / "run") > 0)
    here.rename(gone)
    assert wait_until(lambda: shutil.rmtree(gone, ignore_errors=True) or not gone.exists())
    assert wait_until(lambda: steps_kept(here / "run") > 0)
    program.signal(signal.SIGTERM)
    assert program.wait() == 0 and program.err == ""
    assert newest(here / "run")[1]["games"] == len(rows_of(here / "run")) == len(program.games())


@pytest.mark.parametrize("command", ["--resume", "--play"])
def test_checkpoints_that_cannot_be_read_are_not_taken_for_none(start, tmp_path, command):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"settings": {}}')
    (run / "scores.csv").write_text(f"{HEADER}\n0,W_0,900,1.0,-21,-21.0,-21.0,-21.0\n")
    (run / "checkpoints").symlink_to("/not/mounted")
    program = start(command, str(run))
    assert program.wait() == 2
    assert program.out == ""
    assert program.err == f"a3c_pong.py: {run}/checkpoints: No such file or directory\n"
    assert len(rows_of(run)) == 1 and not (run / "scores-1.csv").exists()


@pytest.mark.slow
def test_20_kills_leave_one_curve(start, tmp_path):
    rng, run = random.Random(1), tmp_path / "run"

    def imports_tensorflow(program):
        return b"libtensorflow" in program.maps()

    starts = (
        lambda program: len(program.actors()) == 1,
        imports_tensorflow,
        lambda program: "curve in" in program.out,
    )
    fast = "--num-workers", "1", "--autosave-minutes", "0.005", "--render", "never"
    kept, games = -1, 0
    for kill in range(20):
        begun = (run / "config.json").exists()
        folder = ("--resume", str(run)) if begun else ("--run-dir", str(run))
        has_come_to = starts[kill // 2 % 3]
        # one that is killed while it imports TensorFlow is started by Python
        imports = kill % 2 and has_come_to is imports_tensorflow
        (run / "checkpoints" / "unfinished").unlink(missing_ok=True)  # of a kill during a save
        program = start(*fast, *folder, command=("env",) if imports else ())
        if kill % 2:  # while it starts
            assert wait_until(lambda: has_come_to(program))  # noqa: B023
        elif kill % 4:  # while it saves
            assert wait_until(lambda: (run / "checkpoints" / "unfinished").exists())
        else:
            assert wait_until(lambda before=kept: steps_kept(run) > before)
            after = len(program.games()) + rng.randrange(5)
            assert wait_until(lambda: len(program.games()) >= after)  # noqa: B023
        assert program.process.poll() is None, program.err
        program.signal(signal.SIGKILL)
        program.wait()
        assert program.err in ("", KILLED.decode())
        if checkpoints.paths(run):
            about = newest(run)[1]
            assert about["agent_steps"] >= kept and about["games"] >= games
            kept, games = about["agent_steps"], about["games"]
        if (run / "scores.csv").exists() and begun:
            assert len(rows_of(run)) >= games
    assert kept > 0
    program = start("--resume", str(run), "--max-steps", str(kept + 3000), "--render", "never")
    assert program.wait() == 0
    assert program.err == ""
    rows = rows_of(run)
    assert len(rows) == newest(run)[1]["games"] > games
    assert len(json.loads((run / "config.json").read_text())["resumed"]) > 8
    assert len(checkpoints.paths(run)) == 3


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_taken_is_said_and_tried_again(start):
    program = start("--num-workers", "1", "--autosave-minutes", "0.01", "--render", "never")
    run = program.folder / "run"
    assert wait_until(lambda: steps_kept(run) > 0)
    hung = program.actors()[0]
    os.kill(hung, signal.SIGSTOP)
    assert wait_until(lambda: "no checkpoint could be taken" in program.out)
    kept = steps_kept(run)
    os.kill(hung, signal.SIGCONT)
    assert wait_until(lambda: steps_kept(run) > kept)
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert program.out.count("no checkpoint could be taken") == 1 and program.err == ""


def test_an_actor_that_cannot_be_started_again_costs_no_checkpoint(monkeypatch):
    with InProcess(a3c_pong.Settings(seed=1)) as launch:
        run, (worker,) = launch.build()
        worker.begin()
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        worker.actor.process.kill()
        worker.work()
        with pytest.raises(FileNotFoundError, match="/nowhere/python"):
            run.coordinator.join()
        checkpoint = run.globalnet.snapshot(run, [worker], last=True)
        assert checkpoint.about["workers"]["W_0"]["score"] == 0


@pytest.mark.slow
def test_sigterm_during_a_save_ends_the_run_with_everything_kept(start):
    program = start("--num-workers", "2", "--autosave-minutes", "0.003", "--render", "never")
    run = program.folder / "run"
    assert wait_until(program.games)
    assert wait_until(lambda: (run / "checkpoints" / "unfinished").exists())
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert program.actors() == []
    assert program.err == ""
    _, games, steps, _ = program.played()
    about = newest(run)[1]
    assert (about["games"], about["agent_steps"]) == (games, steps)
    assert len(rows_of(run)) == games
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints", "config.json", "events", "lock", "reward.png", "scores.csv"]  # fmt: skip


# ------------------------------------------------------------------------------------- an older run


OLD_RUN = ROOT / "tests" / "old_run"  # left by commit 642d928; of arrays, names and shapes


@pytest.fixture
def old_run(tmp_path):
    """(the folder of a run that commit 642d928 left, its arrays); weights and slots are random."""
    old, run = json.loads((OLD_RUN / "checkpoint.json").read_text()), tmp_path / "old"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(OLD_RUN / "config.json", run)
    rng = np.random.default_rng(0)
    arrays = {name: rng.uniform(0.01, 0.02, shape).astype(dtype)
              for name, (dtype, shape) in old["arrays"].items()}  # fmt: skip
    arrays |= {name: np.array(column) for name, column in old["curve"].items()}
    about = np.frombuffer(json.dumps([sorted(arrays), old["about"]]).encode(), np.uint8)
    np.savez(run / "checkpoints" / old["file"], about=about, **arrays)
    return run, arrays


@pytest.mark.slow
def test_a_run_with_old_names_is_resumed_and_its_agent_plays(start, old_run):
    run, old = old_run
    film = start("--play", str(run), "--record", "film.gif", "--seconds", "1")
    measured = start("--evaluate", str(run), "--games", "1")
    assert film.wait() == measured.wait() == 0
    resumed = start("--resume", str(run))  # its limit is reached: nothing is played
    assert resumed.wait() == 0 and resumed.err == ""
    assert "no setting" not in resumed.out and "does not say" not in resumed.out
    arrays, about = newest(run)
    assert about["agent_steps"] == 3120
    slots = {"RMSPropOptimiser_actor_network": "RMSPropOptimiserActor",
             "RMSPropOptimiser_critic_network": "RMSPropOptimiserCritic"}  # fmt: skip
    for name, array in old.items():
        todays = name.removeprefix("W_0/")
        for then, now in slots.items():
            todays = todays.replace(then, now)
        assert np.array_equal(arrays[todays], array), name
    settings = json.loads((run / "config.json").read_text())["settings"]
    for values in settings, about["settings"]:
        assert values["global_iteration_update"] == 120 and values["game_env"] == "Pong-v0"
        assert values["num_workers"] == 2 and values["max_global_episodes"] == 100_000
        assert not {"steps_per_update", "env_id", "workers", "max_episodes"} & values.keys()

    more = start("--resume", str(run), "--max-steps", "4000")
    assert more.wait() == 0 and more.err == ""
    assert newest(run)[1]["agent_steps"] >= 4000


@pytest.mark.slow
def test_a_checkpoint_that_lacks_a_variable_is_refused(start, run):
    path, *others = checkpoints.paths(run)
    for other in others:
        other.unlink()
    checkpoint = checkpoints.load(path)
    slot = "globalnet/critic_network/bias/RMSPropOptimiserCritic"
    del checkpoint.arrays[slot]
    checkpoints.save(path, checkpoint)
    program = start("--resume", str(run))
    assert program.wait() == 2
    (line,) = program.err.splitlines()
    assert f"it is of another network: {slot}" in line


# ---------------------------------------------------------------------------- what has been damaged


@pytest.mark.slow
def test_damaged_checkpoints_are_named_and_the_one_before_is_used(start, run):
    cut, flipped, good = checkpoints.paths(run)
    cut.write_bytes(cut.read_bytes()[:-1000])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 4
    flipped.write_bytes(content)
    games = checkpoints.load(good).about["games"]
    program = start("--resume", str(run), "--max-steps", "3000")
    assert program.wait() == 0
    assert program.err == ""
    out = program.out.splitlines()
    assert out[0].startswith(f"{cut} is damaged") and out[1].startswith(f"{flipped} is damaged")
    assert out[2].startswith("1 worker on ")
    assert out[3].startswith(f"resuming from {good}: {games} games, ")
    assert len(rows_of(run)) == newest(run)[1]["games"]
    assert {path.name for path in cut.parent.glob("bad-*")} == {
        f"bad-{cut.name}", f"bad-{flipped.name}"}  # fmt: skip


@pytest.mark.slow
def test_a_checkpoint_of_another_method_or_network_is_refused(start, run):
    other, wider, good = checkpoints.paths(run)
    arrays, about = checkpoints.load(good).arrays, checkpoints.load(good).about
    checkpoints.save(other, Checkpoint(arrays, about | {"method": "dqn"}))
    kernel = {"globalnet/kernel": np.zeros((6400, 800), np.float32)}
    checkpoints.save(wider, Checkpoint(arrays | kernel, about))
    good.unlink()
    program = start("--resume", str(run))
    assert program.wait() == 2
    (line,) = program.err.splitlines()
    assert f"{other} does not fit: it is of the method dqn, not a3c" in line
    assert f"{wider} does not fit: it is of another network: globalnet/kernel" in line


@pytest.mark.slow
def test_a_config_of_another_version_is_understood(start, half, tmp_path):
    run, senseless, torn = (
        pathlib.Path(shutil.copytree(half, tmp_path / name))
        for name in ("run", "senseless", "torn")
    )
    config = json.loads((run / "config.json").read_text())
    del config["settings"]["beta"], config["settings"]["autosave_minutes"]
    config["settings"].update(colour="red", render="terminal", gamma=0.99)
    (run / "config.json").write_text(json.dumps(config))
    program = start("--resume", str(run))
    config["settings"].update(loss="median")
    config["resumed"] = None
    (senseless / "config.json").write_text(json.dumps(config))
    without_sense = start("--resume", str(senseless))
    (torn / "config.json").write_text('{"settings": {"gam')
    without_end = start("--resume", str(torn))

    assert program.wait() == 0
    assert f"{run}/config.json does not say beta: it is 0.0001\n" in program.out
    assert f"{run}/config.json does not say autosave_minutes: it is 3.0\n" in program.out
    assert f"{run}/config.json says colour, which is no setting: left out\n" in program.out
    assert f"{run}/config.json says gamma 0.99, which was 0.9\n" in program.out
    assert "W_0's game is not shown: the output is no terminal" in program.out
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert settings["beta"] == 0.0001 and "colour" not in settings and settings["seed"] == 5

    assert without_sense.wait() == 0
    assert "is not readable (--loss must be auto, mean, sum, not median): t" in without_sense.out

    assert without_end.wait() == 0
    assert f"{torn}/config.json is not readable (" in without_end.out
    settings = json.loads((torn / "config.json").read_text())["settings"]
    assert settings["seed"] == 5 and settings["max_steps"] == 2000


@pytest.mark.slow
def test_what_belongs_to_the_run_cannot_be_changed(start, tmp_path):
    save_agent(tmp_path)
    program = start("--resume", str(tmp_path), "--gamma", "0.99")
    assert program.wait() == 2
    assert program.err == "a3c_pong.py: --gamma belongs to the run: --resume cannot change it\n"


def test_a_folder_without_a_run_is_not_resumed(start, tmp_path):
    folders = tmp_path, tmp_path / "nope"
    for folder, program in [(folder, start("--resume", str(folder))) for folder in folders]:
        assert program.wait() == 2
        (line,) = program.err.splitlines()
        assert str(folder) in line
    assert not (tmp_path / "nope").exists() and not (tmp_path / "lock").exists()


@pytest.mark.slow
def test_the_second_run_on_a_folder_is_refused(start):
    one = start("--num-workers", "1", "--render", "never")
    run = one.folder / "run"
    assert wait_until(lambda: (run / "config.json").exists())
    two, three = start("--resume", str(run)), start("--run-dir", str(run))
    assert two.wait() == three.wait() == 2
    assert two.err == f"a3c_pong.py: {run} is in use by a run that has not ended\n"
    assert "holds a run already" in three.err
    assert wait_until(one.games)
    one.signal(signal.SIGTERM)
    assert one.wait() == 0


# ------------------------------------------------------------------------------------ the world


@pytest.mark.slow
def test_on_a_full_disk_training_goes_on_and_nothing_is_lost(start, small_disk):
    run, filler = small_disk / "run", small_disk / "filler"
    options = "--num-workers", "1", "--autosave-minutes", "0.02", "--render", "never"
    program = start(*options, "--run-dir", str(run))
    assert wait_until(lambda: steps_kept(run) > 0)
    fill(filler)
    assert wait_until(
        lambda: f"to {run}: No space left on device; training continues" in program.out
    )
    games = len(program.games())
    assert wait_until(lambda: len(program.games()) > games + 4)
    kept = newest(run)[1]["agent_steps"]
    rows_of(run)
    assert events_of(run)

    filler.unlink()
    assert wait_until(lambda: steps_kept(run) > kept)
    assert wait_until(lambda: len(rows_of(run)) > games + 4)
    assert program.out.count("No space left") == 1

    assert wait_until(lambda: len(checkpoints.paths(run)) > 1)
    fill(filler)
    program.signal(signal.SIGTERM)
    assert program.wait() == 0 and program.err == ""  # the oldest checkpoint has made room
    kept = newest(run)[1]
    assert kept["games"] == len(program.games())
    for old in checkpoints.paths(run)[1:]:
        old.unlink()
    fill(filler)
    further = "--resume", str(run), "--max-steps", str(kept["agent_steps"] + 1)
    program = start(*further)
    assert program.wait() == 1
    (line,) = program.err.splitlines()
    assert line.endswith(f"was not written to {run}: --resume uses the one before it")
    assert newest(run)[1]["agent_steps"] == kept["agent_steps"]
    filler.unlink()
    program = start(*further)
    assert program.wait() == 0
    assert len(rows_of(run)) == newest(run)[1]["games"]
    tags = [value.tag for event in events_of(run) for value in event.summary.value]
    assert tags.count("game/score") >= len(rows_of(run))


def test_no_row_is_torn_where_the_disk_is_full(small_disk):
    notices, settings = [], {"run_dir": str(small_disk / "run")}
    folder = RunFolder.new(small_disk / "run", settings, {}, notices)
    episodes = [Episode(k, "W_0", k, k / 7, -21, -40.0, -20.5, -39.5)
                for k in range(3000)]  # fmt: skip
    folder.write(episodes[:10])
    filler = small_disk / "filler"
    fill(filler)
    written = 10
    for until in range(20, 2000, 10):  # the last page has room for some
        folder.write(episodes[:until])
        assert len(rows_of(folder.path)) in (written, until)
        written = len(rows_of(folder.path))
    assert 10 < written < 1000
    assert len(notices) == 1 and "No space left" in notices[0]
    filler.unlink()
    folder.write(episodes)
    assert len(rows_of(folder.path)) == 3000
    fill(filler)
    folder.write(episodes + episodes[:1000])
    assert len(notices) == 2  # it had been possible in between


def test_settings_that_a_full_disk_kept_from_config_json_are_written_later(small_disk):
    notices, filler = [], small_disk / "filler"
    folder = RunFolder.new(small_disk / "run", {"run_dir": "run", "max_steps": 5}, {}, notices)
    fill(filler)
    folder.resume(None, {"run_dir": "run", "max_steps": 7}, {}, [], 0)
    assert folder.config()["settings"]["max_steps"] == 5
    filler.unlink()
    folder.write([])
    assert folder.config()["settings"]["max_steps"] == 7
    assert len(folder.config()["resumed"]) == 1
    fill(filler)
    folder.write([Episode(k, "W_0", k, k / 7, -21, -40.0, -20.5, -39.5) for k in range(3000)])
    assert len(notices) == 2  # it had been possible in between


def test_events_that_cannot_be_written_are_told_once_and_kept(tf, tmp_path):
    notices = []
    folder = RunFolder.new(tmp_path / "run", {"run_dir": "run"}, {}, notices)
    folder.begin_events(0, 0)
    events = folder.path / "events"
    events.touch()  # where the folder should be
    for step in range(3):
        folder.write([], [(step, {"figure": step})])
        folder.write([])
    assert len(notices) == 1 and "cannot write events" in notices[0]
    events.unlink()
    folder.write([])
    assert [event.step for event in events_of(folder.path)] == [0, 1, 2]


def test_a_new_event_file_has_the_number_after_the_last(tf, tmp_path):
    for number in range(3):
        assert EventFile(tmp_path, 0, 0).path.suffix == f".000{number}"
        EventFile(tmp_path, 0, 0).write([], [(number, {"figure": number})])
    (tmp_path / "events.out.tfevents.0000").unlink()
    assert EventFile(tmp_path, 0, 0).path.suffix == ".0003"


@pytest.mark.slow
def test_a_jump_of_the_clock_changes_nothing(start, tmp_path):
    libraries = list(pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        pytest.skip("not installed: faketime")
    clock = tmp_path / "clock"
    clock.write_text("+0")
    before = time.monotonic()
    program = start(
        "--num-workers", "1", "--max-minutes", "0.25", "--autosave-minutes", "0.01",
        LD_PRELOAD=str(libraries[0]), FAKETIME_TIMESTAMP_FILE=str(clock), FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1", NO_FAKE_STAT="1",
    )  # fmt: skip
    run = program.folder / "run"
    for jump in "+40d", "-40d":
        kept = steps_kept(run)
        assert wait_until(lambda kept=kept: steps_kept(run) > kept)
        clock.write_text(jump)
    assert program.wait() == 0
    assert program.err == ""
    reason, games, _, seconds = program.played()
    assert reason == "0.25 minutes over" and 15 <= seconds <= time.monotonic() - before
    rows = rows_of(run)
    assert len(rows) == games > 0 and float(rows[-1]["seconds"]) <= seconds + 1
    times = [event.wall_time for event in events_of(run)]
    assert max(times) - min(times) > 30 * 86400  # the program has seen the jump


def test_the_best_checkpoint_is_that_of_the_highest_running_score(tmp_path):
    folder = RunFolder.new(tmp_path / "run", {"run_dir": "run"}, {}, [])
    for games, score in ((99, -1.0), (100, -18.0), (101, -17.0), (102, -19.0)):
        about = dict(agent_steps=games * 1000, games=games, running_score=score)
        assert folder.write_checkpoint(Checkpoint({"x": np.zeros(2)}, about))
    names = [path.name for path in checkpoints.paths(folder.path)]
    assert names == [f"step-{n:09}.npz" for n in (102000, 101000, 100000)] + ["best.npz"]
    assert checkpoints.load(folder.path / "checkpoints" / "best.npz").about["games"] == 101


# -------------------------------------------------------------------------------------- TensorBoard


@pytest.mark.slow
def test_events_hold_the_curve_and_the_losses_and_a_resumed_run_takes_back_what_it_repeats(
    start, run
):
    files = len(list((run / "events").iterdir()))
    program = start("--resume", str(run), "--max-steps", "none")
    # a new file appears with the first figures or game; figures are measured within some seconds
    assert wait_until(lambda: len(list((run / "events").iterdir())) > files)
    assert wait_until(program.games) and wait_until(lambda: b"entropy" in newest_events(run))
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    scores, losses, restarts = {}, [], []
    for event in events_of(run):
        values = {value.tag: value.simple_value for value in event.summary.value}
        if "game/score" in values:
            scores[event.step] = values
        elif values:
            losses.append(values)
        else:
            restarts.append((event.step, event.session_log.status))
    assert restarts[-1] == (2001, 1)  # where those before have measured nothing, they left no file
    assert set(restarts) <= {(701, 1), (1401, 1), (2001, 1)}
    rows = rows_of(run)
    assert list(scores) == [int(row["agent_steps"]) for row in rows]
    for row, values in zip(rows, scores.values()):
        assert values["game/score"] == int(row["score"])
        assert values["game/running_score"] == pytest.approx(float(row["running_score"]), abs=1e-3)
    assert losses
    played = newest(run)[1]["agent_steps"]
    for figures in losses:
        assert figures.keys() == {"policy_loss", "value_loss", "entropy", "gradient_norm",
                                  "steps_per_second"}  # fmt: skip
        assert 0 < figures["entropy"] < 1.8 and figures["gradient_norm"] > 0
        assert 0 < figures["steps_per_second"] < played  # since a second ago, or more
