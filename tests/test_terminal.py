"""W_0's game in the terminal: its characters, its clips, and the real script in a real terminal."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import rich.console
from program import (
    FAILS_WHEN_TOLD,
    GAME_LINE,
    HANGS,
    RECEIVE,
    ROOT,
    actors_with,
    save_agent,
    sleeps_in,
    wait_until,
)

import pong_actor
from runtime import display
from runtime.actors import PongActor
from runtime.cores import usable_cores
from runtime.display import counted

# ------------------------------------------------------------------------------- what it is made of


@pytest.mark.parametrize("height, rows", [(40, {0: "█▀ ", 2: " ▄ "}), (20, {0: "█▀ ", 1: " ▄ "})])
def test_two_pixels_make_a_character(height, rows):
    by_height = {
        40: [(0, 0), (1, 0), (0, 1), (5, 1)],  # (row, column): a whole character, an upper, a lower
        20: [(1, 0), (2, 0), (0, 1), (7, 1)],  # of 20 rows, a half is two pixels
    }
    pixels = np.array([80 * row + column for row, column in by_height[height]])
    stacked = np.concatenate([pixels, 6400 + np.arange(6400)])  # and the frame before
    drawn = display.court_rows(stacked, height)
    assert drawn == [rows.get(y, "   ").ljust(80) for y in range(height)]


def test_the_court_is_whole_at_both_heights():
    everything = np.arange(6400)
    for height in (40, 20):
        assert display.court_rows(everything, height) == ["█" * 80] * height
        assert display.court_rows(everything[6399:], height)[-1] == " " * 79 + "▄"
        assert display.court_rows(everything[:0], height) == [" " * 80] * height


def test_a_curve_is_an_area_in_eighths():
    assert display.curve_rows([-21, -20, -19, -5], 4, 2) == ["   █", "▁▂▃█"]
    assert display.curve_rows([-21.0], 3, 2) == ["   ", "▁▁▁"]
    assert display.curve_rows([-21, -20.5], 2, 1) == ["▁▅"]  # a rise by less than 1 looks small
    rising = display.curve_rows(list(range(1000)), 8, 1)
    assert rising == ["▁▂▃▄▅▆▇█"]


SIZES = pong_actor.Sizes(20, 12800, 300, 300, 6)  # two frames


@pytest.fixture
def actor():
    actor = PongActor(pong_actor.game("Pong-v0"), [1], SIZES)
    yield actor
    actor.close()


def seen(rollout):
    """The states after a rollout's steps, of two frames each, dense."""
    images = np.zeros((len(rollout.actions), 2 * 6400), np.uint8)
    images[:, rollout.rows] = rollout.states[1:]
    return list(images)


def dense(pixels):
    image = np.zeros(2 * 6400, np.uint8)
    image[pixels] = 1
    return image


def test_a_clip_is_a_rally_from_point_to_point_at_the_games_pace(actor):
    clip, played, score = display.Clip(pace=20), [], 0
    for _ in range(30):
        rollout = actor.play(20)
        clip.add(rollout, score)  # unasked: not kept
        score += int(rollout.rewards.sum())
    assert clip.rollouts == []
    pixels, _ = clip.now(100.0)
    assert len(pixels) == 0  # nothing to show yet; but now a clip is wanted
    points = []
    while clip.wanted:
        rollout = actor.play(20)
        clip.add(rollout, score)
        played += [seen(rollout)]
        score += int(rollout.rewards.sum())
        points += [rollout.rewards.any()]
    assert len(points) > 3 and points.count(True) == 2 and points[-1]
    rally = sum(played[points.index(True) + 1 :], [])
    clip.add(actor.play(20), score)  # passed over

    clip.now(200.0)
    shown = [clip.now(200 + (step + 0.5) / 20) for step in range(len(rally))]
    assert all(np.array_equal(dense(pixels), image) for (pixels, _), image in zip(shown, rally))
    assert shown[-1][1] == score and abs(shown[0][1] - score) == 1
    assert not clip.wanted
    last, _ = clip.now(
        200 + (len(rally) + 0.5) / 20
    )  # its last frame stays, and the next is wanted
    assert clip.wanted and np.array_equal(dense(last), rally[-1])


def test_a_clip_of_a_rally_without_end_ends(actor):
    clip = display.Clip(pace=4)
    clip.now(100.0)
    rollouts = 0
    while clip.wanted:
        rollout = actor.play(20)
        if not rollout.rewards.any():
            clip.add(rollout, 0)
            rollouts += 1
    assert rollouts == 2  # 40 steps, 10 seconds of such a game


@pytest.mark.parametrize(
    "why, options",
    [
        (None, dict(width=100, height=22)),
        (None, dict(width=80, height=23)),
        ("the terminal has 79 columns, and the game needs 80", dict(width=79)),
        ("the terminal has 21 rows, and the game needs 22", dict(width=100, height=21)),
        ("the terminal has 22 rows, and the game needs 23", dict(width=99, height=22)),
        ("the output is no terminal that can draw", dict(_environ=dict(TERM="dumb"))),
    ],
)
def test_what_cannot_show_the_court_says_why(why, options):
    ours, programs = os.openpty()
    with open(programs, "w", encoding="utf-8") as file:
        options = dict(width=100, height=40, _environ=dict(TERM="xterm")) | options
        console = rich.console.Console(file=file, **options)
        assert display.TerminalView.why_not(console) == why
        if why is None and console.width < 100:
            wide = display.TerminalView.why_not(console, display.TerminalView.COLUMNS)
            assert wide == "the terminal has 80 columns, and the game needs 100"
    os.close(ours)


def test_neither_a_file_nor_an_encoding_without_the_blocks_can_show_the_court(tmp_path):
    with open(tmp_path / "file", "w") as file:
        console = rich.console.Console(file=file, force_terminal=True, width=100)
        assert "no terminal" in display.TerminalView.why_not(console)
    ours, programs = os.openpty()
    with open(programs, "w", encoding="latin-1") as file:
        why = display.TerminalView.why_not(rich.console.Console(file=file, width=100))
        assert why == "the terminal's encoding is latin-1, not UTF-8"
    os.close(ours)


# ------------------------------------------------------------------------- the script in a terminal


class Terminal:
    """A terminal of tmux with a shell in it, that nobody looks at."""

    def __init__(self, folder, width, height):
        self.folder = folder
        left_out = "DISPLAY", "WAYLAND_DISPLAY", "NO_COLOR", "COLUMNS", "LINES", "TMUX", "TERM"
        self.environment = {k: v for k, v in os.environ.items() if k not in left_out}
        self.environment.update(LC_ALL="C.UTF-8", PYTHONPATH=str(ROOT), TEST_FOLDER=str(folder))
        self.mark = f"TEST_FOLDER={folder}"
        self.ask(
            "new-session", "-d", "-x", str(width), "-y", str(height), "PS1='ready> ' bash --norc"
        )

    def ask(self, *command):
        """What tmux prints."""
        return subprocess.run(
            ["tmux", "-S", self.folder / "tmux", "-f", "/dev/null", "-u", *command],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=HANGS,
        ).stdout  # fmt: skip

    def keys(self, *keys):
        self.ask("send-keys", *keys)

    def start(self, *options, program=str(ROOT / "a3c_pong.py")):
        """Type the script's command line."""
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        self.keys(" ".join([sys.executable, program, "--run-dir run", *options]), "Enter")

    def rows(self, *options):
        """The rows on the screen; "-e": with colours, "-S", "-": with those that have left it."""
        return self.ask("capture-pane", "-p", *options).splitlines()

    def text(self):
        """Everything that was written, without long lines' breaks."""
        return self.ask("capture-pane", "-p", "-J", "-S", "-")

    def court(self, height):
        """The court it shows, [2 * height, 80] bool; None if it shows none."""
        walls = "▄" * 80, "▀" * 80
        rows = [row.ljust(80)[:80] for row in self.rows()[: height + 2]]
        if (rows[0], rows[-1]) != walls or not set("".join(rows[1:-1])) <= set(" ▀▄█"):
            return None
        upper, lower = ([[c in ink for c in row] for row in rows[1:-1]] for ink in ("▀█", "▄█"))
        return np.stack([upper, lower], 1).reshape(2 * height, 80)

    def comes_to_show_a_court(self, height):
        return wait_until(lambda: self.court(height) is not None)

    def shows_both_paddles(self, height):
        """Whether it shows a court with both paddles where they belong, and at most a ball."""
        court = self.court(height)
        if court is None:
            return False
        paddles, tall = court[:, [8, 9, 70, 71]], height // 5  # 16 of the screen's rows
        whole = set(paddles.sum(axis=0)) <= {tall, tall + 1}  # not cut off by a wall
        return whole and court.sum() - paddles.sum() <= 4

    def beside(self, height):
        """The lines to the right of a court of so many rows, and of its walls."""
        return [row[81:].rstrip() for row in self.rows()[: height + 2]]

    def figures_are_those_of_the_curve(self):
        """Whether both scores beside the court are those in scores.csv of the newest game told."""
        told = re.search(
            r"^W_0's game +-?\d+\ngames +(\d+)\nsteps/s +[\d,]+\nrunning score +(\S+)\n"
            r"Ep_r +(\S+)\ntime left +\d+:\d\d:\d\d$",
            "\n".join(self.beside(40)), re.M,
        )  # fmt: skip
        with open(self.folder / "run" / "scores.csv") as file:
            curve = [[float(number) for number in row.split(",")[-2:]] for row in list(file)[1:]]
        if not told or int(told[1]) > len(curve):
            return False
        return list(told.group(2, 3)) == [f"{score:.1f}" for score in curve[int(told[1]) - 1]]

    def ended(self):
        """Whether the shell asks for the next command, on its own screen, with the cursor."""
        state = self.ask("display-message", "-p", "#{cursor_flag} #{alternate_on}").split()
        rows = [row for row in self.rows() if row]
        return state == ["1", "0"] and rows and rows[-1].rstrip() == "ready>"

    def status(self):
        """The exit status of the last command."""
        self.keys("echo status: $?", "Enter")
        return wait_until(lambda: re.findall(r"^status: (\d+)$", "\n".join(self.rows()), re.M))


@pytest.fixture
def terminal(tmp_path):
    """terminal(width, height): a `Terminal`."""
    if not shutil.which("tmux"):
        pytest.skip("not installed: tmux")
    terminals = []

    def terminal(*size):
        terminals.append(Terminal(tmp_path, *size))
        assert wait_until(terminals[-1].ended)
        return terminals[-1]

    yield terminal
    for each in terminals:
        each.keys("C-c")
        each.ask("kill-server")


@pytest.mark.slow
def test_a_terminal_shows_the_game_and_ctrl_c_leaves_it_clean(terminal):
    shell = terminal(120, 50)
    shell.start("--num-workers 2")
    assert wait_until(lambda: shell.shows_both_paddles(40))

    assert "[48;5;236m" in "".join(shell.rows("-e"))

    courts = []

    def moved():
        court = shell.court(40)
        if court is not None and not any((court == other).all() for other in courts):
            courts.append(court)
        return len(courts) >= 10

    assert wait_until(moved)
    assert wait_until(lambda: GAME_LINE.search("\n".join(shell.rows()[42:])))
    assert wait_until(shell.figures_are_those_of_the_curve)
    beside = shell.beside(40)
    assert "▁" in "".join(beside) or "█" in "".join(beside)
    assert beside[-1] == "Ctrl-C ends it"

    for width, height, rows in ((100, 24, 20), (100, 44, 40)):
        shell.ask("resize-window", "-x", str(width), "-y", str(height))
        assert shell.comes_to_show_a_court(rows)
    shell.ask("resize-window", "-x", "80", "-y", "15")
    assert wait_until(lambda: shell.rows()[0].startswith("W_0's game "))
    shell.ask("resize-window", "-x", "1", "-y", "15")
    assert wait_until(lambda: shell.rows()[0] == "W")
    shell.ask("resize-window", "-x", "120", "-y", "50")
    assert shell.comes_to_show_a_court(40)

    shell.keys("C-c")
    assert wait_until(shell.ended)
    text = shell.text()
    with open(shell.folder / "run" / "scores.csv") as file:
        episodes = [line.split(",")[0] for line in file][1:]
    assert [game[1] for game in games_in(text)] == episodes
    assert f"2 workers on {counted(usable_cores(), 'core')}; the chapter's settings" in text
    assert re.search(rf"^(\^C)?Ctrl-C: {len(episodes)} games, ", text, re.M)
    assert "▀" not in text and "▄" not in text
    assert shell.status() == ["130"]


def games_in(text):
    return GAME_LINE.findall(re.sub(r" +$", "", text, flags=re.M))


@pytest.mark.slow
def test_a_terminal_of_24_rows_without_colours_until_the_limit(terminal):
    shell = terminal(100, 24)
    shell.keys("export NO_COLOR=1", "Enter")
    shell.start("--num-workers 1 --max-global-episodes 15 --render terminal")
    assert wait_until(lambda: shell.shows_both_paddles(20))
    assert not re.search(r"\x1b\[[\d;]*[34]8;", "\n".join(shell.rows("-e")))
    assert wait_until(shell.ended)
    text = shell.text()
    assert len(games_in(text)) == 15
    assert "15 games played: 15 games, " in text
    assert shell.status() == ["0"]


@pytest.mark.slow
def test_a_narrow_terminal_shows_the_bar_and_says_why(terminal):
    shell = terminal(80, 30)
    shell.start("--num-workers 1 --max-global-episodes 3")
    assert wait_until(lambda: "━" in shell.text())
    assert wait_until(shell.ended)
    why = "W_0's game is not shown: there is no screen (DISPLAY is not set), and the terminal has "
    assert why + "80 columns, and the game needs 100" in shell.text()
    assert len(games_in(shell.text())) == 3
    assert shell.status() == ["0"]


@pytest.mark.slow
def test_a_terminal_of_80_by_24_shows_the_game_if_asked_and_ctrl_z_leaves_it_clean(terminal):
    shell = terminal(80, 24)
    shell.start("--num-workers 1 --render terminal")
    assert wait_until(lambda: shell.shows_both_paddles(20))
    line = r"^Ctrl-C ends it  W_0's game -?\d+  games \d+  steps/s "
    assert wait_until(lambda: re.search(line, shell.rows()[22]))
    shell.ask("resize-window", "-x", "80", "-y", "15")
    assert wait_until(lambda: "the game needs 80 columns, 23 rows" in "\n".join(shell.rows()))
    shell.ask("resize-window", "-x", "80", "-y", "24")
    assert wait_until(lambda: shell.shows_both_paddles(20))
    for _ in range(2):
        shell.keys("C-z")
        assert wait_until(shell.ended)  # the shell's own screen, with its cursor
        assert "Stopped" in shell.text()
        shell.keys("clear; fg", "Enter")
        assert wait_until(lambda: shell.shows_both_paddles(20))
    shell.keys("C-c")
    assert wait_until(shell.ended)
    assert "Ctrl-C: " in shell.text() and "▀" not in shell.text()
    with open(shell.folder / "run" / "scores.csv") as file:
        played = len(list(file)) - 1
    assert f"Ctrl-C: {played} games, " in shell.text()
    assert shell.status() == ["130"]


@pytest.mark.slow
def test_a_fault_leaves_the_terminal_clean_and_is_shown(terminal):
    shell = terminal(100, 24)
    (shell.folder / "driver.py").write_text(FAILS_WHEN_TOLD)
    shell.start("--num-workers 1", program="driver.py")
    assert shell.comes_to_show_a_court(20)
    assert wait_until(lambda: GAME_LINE.search("\n".join(shell.rows()[22:])))
    (shell.folder / "fail").touch()
    assert wait_until(shell.ended)
    assert "ZeroDivisionError: division by zero" in shell.text()
    assert len(games_in(shell.text())) >= 1
    assert shell.status() == ["1"]


@pytest.mark.slow
def test_the_reason_of_a_failure_stays_in_the_terminal(terminal):
    shell = terminal(100, 24)
    shell.start("--num-workers 1 --lr-actor 1e30 --autosave-minutes 0.01")
    assert wait_until(shell.ended)
    assert "is NaN, infinite or huge" in shell.text()
    assert "the last checkpoint was not written" in shell.text()
    assert shell.status() == ["1"]


@pytest.mark.slow
def test_ctrl_c_ends_a_terminals_play_of_which_the_emulator_hangs(terminal, tmp_path):
    save_agent(tmp_path / "agent")
    shell = terminal(80, 24)
    shell.keys(f"{sys.executable} {ROOT / 'a3c_pong.py'} --play agent", "Enter")
    assert wait_until(lambda: shell.shows_both_paddles(20))
    (actor,) = actors_with(shell.mark)
    os.kill(actor, signal.SIGSTOP)
    player = pathlib.Path(f"/proc/{actor}/stat").read_text().rsplit(")", 1)[1].split()[1]
    assert wait_until(lambda: sleeps_in(player, RECEIVE))
    shell.keys("C-c")
    assert wait_until(shell.ended)
    assert shell.status() == ["130"]


@pytest.mark.slow
def test_an_agent_plays_in_a_terminal_and_ctrl_c_leaves_it_clean(terminal, tmp_path):
    save_agent(tmp_path / "agent")
    shell = terminal(80, 24)
    shell.keys(f"{sys.executable} {ROOT / 'a3c_pong.py'} --play agent", "Enter")
    assert wait_until(lambda: shell.shows_both_paddles(20))
    assert re.search(r"^Ctrl-C ends it  game \d+  score \d+ : \d+", shell.rows()[22])
    shell.keys("C-z")
    assert wait_until(shell.ended)
    shell.keys("fg", "Enter")
    shell.ask("resize-window", "-x", "100", "-y", "30")
    assert wait_until(lambda: shell.shows_both_paddles(20))
    before = shell.court(20)
    assert wait_until(lambda: (shell.court(20) != before).any())
    beside = "\n".join(shell.beside(20))
    assert re.search(r"^game +\d+\nscore +\d+ : \d+$", beside, re.M)
    # at another size tmux would leave rows of this screen in the other one's history
    shell.ask("resize-window", "-x", "80", "-y", "24")
    assert wait_until(lambda: shell.shows_both_paddles(20))
    shell.keys("C-c")
    assert wait_until(shell.ended)
    text = shell.text()
    assert "step-000001234.npz, after 1,234 steps of training; Ctrl-C ends it" in text
    assert "▀" not in text and "Traceback" not in text
    assert shell.status() == ["130"]
