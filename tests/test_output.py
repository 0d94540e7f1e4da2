"""Output and windows may fail or hang; training, saving, limits and signals may not."""

import contextlib
import fcntl
import importlib.util
import json
import os
import pathlib
import pty
import re
import shlex
import signal
import subprocess
import sys
import termios

import pytest
from program import (
    HANGS,
    ROOT,
    WRITE,
    Screen,
    fill,
    read_picture,
    save_agent,
    sleeps_in,
    wait_until,
)

from runtime import checkpoints
from runtime.output import new_console
from runtime.windows import title

HAS_TKINTER = importlib.util.find_spec("_tkinter") is not None


def saves_on(folder):
    """Whether a run in this folder takes checkpoint after checkpoint."""
    first = checkpoints.paths(folder)
    return wait_until(lambda: set(checkpoints.paths(folder)) - set(first))


# -------------------------------------------------------------------------------------- the output


@pytest.mark.slow
@pytest.mark.parametrize(
    "columns, number",
    [(80, signal.SIGTERM), (120, signal.SIGUSR1)],
    ids=["lines, SIGTERM", "game, SIGUSR1"],
)
def test_a_terminal_that_nobody_reads_stops_neither_saving_nor_signals(tmp_path, columns, number):
    ours, programs = pty.openpty()
    termios.tcsetwinsize(programs, (50, columns))
    run = tmp_path / "run"
    options = ["--run-dir", str(run), "--autosave-minutes", "0.02", "--num-workers", "1"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "a3c_pong.py"), *options],
        stdin=programs, stdout=programs, stderr=programs,
        env=dict(os.environ, TERM="xterm-256color", PYTHONIOENCODING="utf-8"),
    )  # fmt: skip
    try:
        read = b""
        while b"rally wins" not in read:  # of the first line; nothing is read after it
            read += os.read(ours, 4096)
        fill_terminal(programs)
        assert wait_until(lambda: sleeps_in(process.pid, WRITE, "0x1"))  # its terminal is full
        assert saves_on(run) and saves_on(run)
        process.send_signal(number)
        assert process.wait(HANGS) == 0
    finally:
        process.kill()
        os.close(ours)
        os.close(programs)
    last = checkpoints.load_newest(run).about
    assert last["games"] == len((run / "scores.csv").read_text().splitlines()) - 1
    assert read_picture(run / "reward.png").size


@pytest.mark.slow
def test_a_ctrl_z_that_no_shell_could_take_back_stops_nothing(start):
    run = start("--num-workers", "1", "--render", "never", command=("setsid",))
    assert wait_until(run.games)
    run.signal(signal.SIGTSTP)
    games = len(run.games())
    assert wait_until(lambda: len(run.games()) > games + 1)
    run.signal(signal.SIGTERM)
    assert run.wait() == 0 and run.err == ""


def test_bad_input_is_told_by_the_status_where_nothing_can_be_written():
    script = shlex.join([sys.executable, str(ROOT / "a3c_pong.py"), "--seed", "-1"])
    assert subprocess.run(["sh", "-c", f"{script} 2> /dev/full"]).returncode == 2


def test_a_picture_goes_to_standard_output_too(tmp_path):
    curve = str(ROOT / "results" / "a3c-chapter-seed1")
    draw = [sys.executable, str(ROOT / "a3c_pong.py"), "--draw", "/dev/stdout", curve]
    piped = subprocess.run(draw, stdout=subprocess.PIPE)
    with open(tmp_path / "curve.png", "wb") as file:
        assert subprocess.run(draw, stdout=file).returncode == piped.returncode == 0
    assert (tmp_path / "curve.png").read_bytes() == piped.stdout
    assert read_picture(tmp_path / "curve.png").size
    full = subprocess.run(draw, stdout=open("/dev/full", "w"), stderr=subprocess.PIPE, text=True)
    assert full.returncode == 2
    assert full.stderr == "a3c_pong.py: /dev/stdout: No space left on device\n"


def fill_terminal(terminal):
    """Write to a terminal that nobody reads until it takes no more."""
    writing = os.open(os.ttyname(terminal), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x")
    os.close(writing)


@pytest.mark.slow
def test_a_full_pipe_and_a_limit(start, tmp_path):
    """Nobody reads from the beginning; and the pipe is small."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x")
    os.set_blocking(writing, True)
    options = ["--run-dir", str(tmp_path / "run"), "--max-minutes", "0.05", "--num-workers", "1"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "a3c_pong.py"), *options], stdout=writing, stderr=writing
    )
    assert process.wait(HANGS) == 0
    assert checkpoints.load_newest(tmp_path / "run").about["seconds"] >= 3
    os.close(reading)
    os.close(writing)


@pytest.mark.slow
def test_output_to_a_full_disk_fails_alone_and_is_said(start):
    script = str(ROOT / "a3c_pong.py")
    full = 'exec "$0" "$@" > /dev/full'
    few = "--max-global-episodes", "3", "--num-workers", "1"
    run = start(*few, program=("-c", SHELL, full, script))
    silent = start(*few, program=("-c", SHELL, full + " 2>&1", script))
    assert run.wait() == silent.wait() == 0
    said = "a3c_pong.py: the output fails: No space left on device; the run continues\n"
    assert run.err == said and silent.err == ""
    assert len(run.rows()) == len(silent.rows()) == 3
    assert checkpoints.load_newest(silent.folder / "run").about["games"] == 3


SHELL = """import os, sys
os.execvp("sh", ["sh", "-c", sys.argv[1], sys.executable, *sys.argv[2:]])
"""


@pytest.mark.slow
def test_a_log_whose_disk_was_full_for_a_while_says_that_lines_are_missing(small_disk, start):
    script, log, filler = str(ROOT / "a3c_pong.py"), small_disk / "log", small_disk / "filler"
    run = start("--num-workers", "1", program=("-c", SHELL, f'exec "$0" "$@" >> {log}', script))
    assert wait_until(lambda: "W_" in log.read_text() if log.exists() else False)
    fill(filler)
    fill(log)  # whose last page has room for many lines
    assert wait_until(lambda: "the output fails: No space left" in run.err)
    filler.unlink()
    assert wait_until(lambda: "(lines are missing here: No space left" in log.read_text())
    run.signal(signal.SIGTERM)
    assert run.wait() == 0
    assert re.search(r"^SIGTERM: \d+ games, ", log.read_text(), re.M)


@pytest.mark.slow
def test_weights_that_diverge_end_the_run_with_a_clear_line(start):
    run = start("--num-workers", "1", "--lr-actor", "1e30")
    assert run.wait() == 1
    first, second = run.err.splitlines()
    assert re.match(r"a3c_pong.py: after [\d,]+ steps a weight is NaN, infinite or huge", first)
    assert second.endswith(f"was not written to {run.folder}/run: there is no other")
    assert run.out.splitlines()[-1].startswith("failed: ")
    assert checkpoints.paths(run.folder / "run") == []


# ------------------------------------------------------------------------------------- the windows


def plot_process(run):
    """The process id of a run's plot, or None."""
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().split(b"\0")
            if b"runtime.plot_window" in command and str(run.folder).encode() in b"".join(command):
                return int(process.name)
    return None


@pytest.mark.slow
def test_a_screen_that_goes_away_takes_no_run_with_it(start, screen):
    if not HAS_TKINTER:
        pytest.skip("Python has no tkinter")
    run = start("--num-workers", "1", DISPLAY=screen.name)
    assert wait_until(lambda: screen.windows(f"{run.folder / 'run'}: A3C on Pong"))
    assert screen.windows(f"{run.folder / 'run'}: W_0")
    assert wait_until(run.games)
    screen.process.kill()
    assert wait_until(lambda: "the plot's window is gone" in run.out)
    assert wait_until(lambda: "W_0's window is gone: its actor ended and is started" in run.out)
    before = len(run.games())
    assert wait_until(lambda: len(run.games()) > before + 2)
    run.signal(signal.SIGINT)
    assert run.wait() == 130
    assert run.played()[0] == "Ctrl-C" and run.err == ""
    assert checkpoints.load_newest(run.folder / "run").about["games"] == len(run.rows())


@pytest.mark.slow
def test_a_plot_with_an_open_dialog_stops_nothing_and_one_that_hangs_is_given_up(start, screen):
    """The second is what a dialog does that answers no timer."""
    if not HAS_TKINTER:
        pytest.skip("Python has no tkinter")
    run = start("--num-workers", "1", "--autosave-minutes", "0.01", DISPLAY=screen.name)
    (plot,) = wait_until(lambda: screen.windows("A3C on Pong"))
    size = screen.geometry(plot)
    for x in range(size["WIDTH"] - 10, 0, -10):  # the icon that saves is the last one
        y = size["HEIGHT"] - 20
        screen.ask("mousemove", "--window", plot, str(x), str(y), "click", "1")
        if screen.windows("Save"):
            break
    assert screen.windows("Save")
    assert saves_on(run.folder / "run")
    os.kill(plot_process(run), signal.SIGSTOP)
    assert wait_until(lambda: "no window for the plot: the screen does not answer" in run.out)
    assert wait_until(lambda: plot_process(run) is None)
    run.signal(signal.SIGTERM)
    assert run.wait() == 0
    assert run.err == ""


@pytest.mark.slow
def test_a_plot_stands_while_its_curve_cannot_be_read(screen, tmp_path):
    if not HAS_TKINTER:
        pytest.skip("Python has no tkinter")
    about = json.dumps(dict(title="a plot", shift=0))
    command = [sys.executable, "-m", "runtime.plot_window", str(tmp_path), about]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    with subprocess.Popen(command, env=os.environ | {"DISPLAY": screen.name}, **pipes) as window:
        lines = [window.stdout.readline() for _ in range(4)]
        window.stdin.close()  # the run ends
        assert window.wait(HANGS) == 0
    assert lines == [b"asks the screen\n"] + 3 * [b"answers\n"]


@pytest.mark.slow
def test_a_screen_that_does_not_answer_is_said_and_the_run_begins(start, tmp_path):
    folder = tmp_path / "screen"
    folder.mkdir()
    screen = Screen(folder)
    agent = tmp_path / "agent"
    save_agent(agent)
    try:
        playing = start("--play", str(agent), DISPLAY=screen.name)
        assert wait_until(lambda: "playing" in playing.out)
        screen.process.send_signal(signal.SIGSTOP)
        run = start("--num-workers", "1", "--max-global-episodes", "1", DISPLAY=screen.name)
        play = start("--play", str(agent), DISPLAY=screen.name)
        refused = start("--play", str(agent), DISPLAY=":8888")
        assert run.wait() == 0
        assert f"W_0's game is not shown: DISPLAY={screen.name} does not answer, and" in run.out
        assert run.err == "" and len(run.rows()) == 1
        assert play.wait() == 2
        line = f"DISPLAY={screen.name} does not answer, and the output is no terminal"
        assert line in play.err
        assert refused.wait() == 2
        assert "no window can be opened on DISPLAY=:8888, and" in refused.err
        assert playing.wait() == 1
        assert playing.err == "a3c_pong.py: its screen does not answer\n"
    finally:
        screen.process.kill()
        screen.process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("who", ["MPLBACKEND is svg", "matplotlibrc asks for svg"])
def test_a_backend_without_windows_is_named_and_the_run_ends(start, screen, tmp_path, who):
    variables = {"MPLBACKEND": "svg"}
    if "matplotlibrc" in who:
        (tmp_path / "matplotlibrc").write_text("backend: svg")
        variables = {"MPLBACKEND": "", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    run = start("--num-workers", "1", DISPLAY=screen.name, **variables)
    said = f"no window for the plot: {who}, which opens none"
    assert wait_until(lambda: said in run.out)
    run.signal(signal.SIGINT)
    assert run.wait() == 130
    assert run.err == "" and "stands" not in run.out


def test_lines_and_titles_are_shown_as_they_are(capfd):
    new_console().print("curve in exp:new:1")
    assert capfd.readouterr().out == "curve in exp:new:1\n"
    assert title(os.fsdecode(b"r\xff"), "W_0") == "r?: W_0"
