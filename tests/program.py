"""The script's process as the tests start it, and a screen for its windows."""

import contextlib
import csv
import functools
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import matplotlib.image
import numpy as np
from fork_server import ForkServer

import a3c_pong
from runtime import checkpoints

ROOT = pathlib.Path(a3c_pong.__file__).parent
GAME_LINE = re.compile(
    r"^(W_\d+) Ep: (\d+) \| Ep_r: (-?\d+) \| score: (-?\d+) \(running -?\d+\.\d\)$", re.MULTILINE
)
LAST_LINE = re.compile(r"^(.+): ([\d,]+) games, ([\d,]+) steps in (\d+):(\d\d):(\d\d); curve in ")
HEADER = "episode,worker,agent_steps,seconds,score,reward,running_score,running_reward"
FAILS_WHEN_TOLD = """if True:  # the script, but that learning fails once there is a file "fail"
    import os, sys, a3c_pong
    learning_rewards = a3c_pong.learning_rewards
    def failing(*arguments):
        return 1 / 0 if os.path.exists("fail") else learning_rewards(*arguments)
    a3c_pong.learning_rewards = failing
    with a3c_pong.leaving():
        sys.exit(a3c_pong.main(sys.argv[1:]))"""
HANGS = 300  # seconds: no test expects anything sooner, this only ends one that hangs


SCRIPT = (str(ROOT / "a3c_pong.py"),)


class Edited(NamedTuple):
    """A program that changes something of the script, and runs it."""

    code: str


# variables that are read when Python starts, or when Matplotlib is imported
EARLY = {"PYTHONPATH", "LD_PRELOAD", "PYTHONIOENCODING", "HOME", "MPLBACKEND", "MPLCONFIGDIR"}


@functools.cache
def fork_server():
    """The `ForkServer` of this process of tests."""
    return ForkServer()


def wait_until(holds, seconds=HANGS):
    """What `holds` returns as soon as it is true, or its last answer after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        before = time.monotonic()
        if (answer := holds()) or before > deadline:
            return answer
        # looking takes a fifth of a core at most; the programs that are waited for need the rest
        time.sleep(max(0.02, 4 * (time.monotonic() - before)))


class Program:
    """The script's process in a folder of its own, with what it has written."""

    def __init__(self, folder, options, program, variables, command=()):
        """command: what runs a program elsewhere, such as in a network namespace."""
        self.folder = folder
        folder.mkdir()
        environment = {name: value for name, value in os.environ.items()
                       if name not in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")}  # fmt: skip
        self.mark = f"TEST_FOLDER={folder}"  # which its actors inherit, whoever their parent is
        path = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
        environment.update(TEST_FOLDER=str(folder), PYTHONPATH=":".join([*path, str(ROOT)]))
        environment.update(variables)
        if not {"--run-dir", "--resume", "--help", "--draw", "--play", "--evaluate"} & set(options):
            options = ["--run-dir", str(folder / "run"), *options]
        with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
            code = program.code if isinstance(program, Edited) else None
            if (code or program == SCRIPT) and not command and not EARLY & variables.keys():
                how = options, folder, environment, out.name, err.name, code
                self.process = fork_server().start(*how)
                return
            program = ("-c", code) if code else program
            self.process = subprocess.Popen(
                [*command, sys.executable, *program, *options],
                cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            )  # fmt: skip

    @property
    def out(self):
        return (self.folder / "out").read_text()

    @property
    def err(self):
        return (self.folder / "err").read_text()

    def wait(self, seconds=HANGS):
        """The exit status."""
        return self.process.wait(seconds)

    def signal(self, number):
        self.process.send_signal(number)

    def games(self):
        """(worker, episode, reward, score) of each game printed, as strings."""
        return GAME_LINE.findall(self.out)

    def played(self):
        """Of the last line: why it stopped, and how many games, steps and seconds there were."""
        reason, *numbers = LAST_LINE.match(self.out.splitlines()[-1]).groups()
        games, steps, hours, minutes, seconds = (int(n.replace(",", "")) for n in numbers)
        return reason, games, steps, 3600 * hours + 60 * minutes + seconds

    def rows(self):
        """The rows of scores.csv."""
        text = (self.folder / "run" / "scores.csv").read_text()
        assert text.splitlines()[0] == HEADER
        return list(csv.DictReader(text.splitlines()))

    def curves(self):
        """How many pixels the curves of score and reward take in reward.png."""
        picture = read_picture(self.folder / "run" / "reward.png")
        curves = picture[:, picture.shape[1] // 4 :]  # without the legend's lines, on the left
        return count_pixels(curves, (0x1F, 0x77, 0xB4)), count_pixels(curves, (0xFF, 0x7F, 0x0E))

    def actors(self):
        """Process ids of its actors that live."""
        return actors_with(self.mark)

    def maps(self):
        """What the process has in its memory, as the system tells it; b"" where it has ended."""
        with contextlib.suppress(ProcessLookupError):
            return pathlib.Path(f"/proc/{self.process.pid}/maps").read_bytes()
        return b""

    def no_actor_is_left(self):
        return wait_until(lambda: not self.actors())

    def kill_all(self):
        self.process.kill()
        self.process.wait()
        for actor in self.actors():
            kill(actor)


def actors_with(variable):
    """Process ids of the actors that live and have a variable, "NAME=value", from their program."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            ours = variable.encode() in (process / "environ").read_bytes().split(b"\0")
            if ours and b"pong_actor.py" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:  # another user's, or gone
            continue
    return found


WRITE, RECEIVE = ("1", "64"), ("45", "207")  # the system call's numbers on x86-64 and on arm64


def sleeps_in(pid, call, first=None):
    """Whether a thread of a process waits in a system call; first: its first argument, or any."""
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended
            called = (task / "syscall").read_text().split()
            state = (task / "stat").read_text().rsplit(")", 1)[1].split()[0]
            if called[0] in call and first in (None, called[1]) and state == "S":
                return True
    return False


def kill(process_id):
    try:
        os.kill(process_id, signal.SIGKILL)
    except ProcessLookupError:
        pass


def fill(file):
    """Fill the rest of a file system with bytes at a file's end."""
    with contextlib.suppress(OSError), open(file, "ab", buffering=0) as filler:
        for size in (2**20, 2**12, 1):
            with contextlib.suppress(OSError):
                while True:
                    filler.write(bytes(size))


def read_picture(path):
    return np.round(matplotlib.image.imread(path)[:, :, :3] * 255).astype(np.uint8)


def count_pixels(picture, colour):
    return int((picture == colour).all(axis=2).sum())


def save_agent(run_folder, agent_steps=1234, seed=0, method="a3c", frames=1):
    """Write a run's checkpoint with a random network; the file, and its arrays by name."""
    rng = np.random.default_rng(seed)
    units, head = (400, "actor_network") if method == "a3c" else (300, "q_network")
    shapes = dict(bias=(300,), head_kernel=(300, 6), head_bias=(6,))
    shapes = {f"{head}/{name}": shape for name, shape in shapes.items()}
    shapes["kernel"] = 6400 * frames, units
    arrays = {f"globalnet/{n}": rng.normal(0, 0.1, s).astype("f") for n, s in shapes.items()}
    file = run_folder / "checkpoints" / f"step-{agent_steps:09}.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    about = dict(method=method, settings=dict(game_env="Pong-v0"), agent_steps=agent_steps)
    checkpoints.save(file, checkpoints.Checkpoint(arrays, about))
    return file, arrays


class Screen:
    """An X display, 1280 by 800, that nobody looks at, and that needs no X client to be seen."""

    def __init__(self, folder):
        reading, writing = os.pipe()
        self.process = subprocess.Popen(
            ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1280x800x24", "-noreset",
             "-fbdir", str(folder)],
            pass_fds=[writing], stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(writing)
        with open(reading) as number:
            self.name = f":{int(number.readline())}"
        self.frame_buffer = folder / "Xvfb_screen0"

    def ask(self, *arguments):
        """What xdotool prints."""
        environment = {**os.environ, "DISPLAY": self.name}
        command = ["xdotool", *arguments]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return subprocess.run(command, env=environment, text=True, timeout=HANGS, **pipes).stdout

    def windows(self, name):
        """The ids of the windows with that in their names, as they are now: SDL changes its own."""
        # `search --name` passes over SDL's window, whose WM_NAME has a type that it does not know
        every = self.ask("search", "--maxdepth", "1", "--class", "").split()
        return [w for w in every if name in self.ask("getwindowname", w)]

    def geometry(self, window):
        """Where a window is: dict of X, Y, WIDTH and HEIGHT; empty if it is gone."""
        text = self.ask("getwindowgeometry", "--shell", window)
        return {name: int(n) for name, n in re.findall(r"^(X|Y|WIDTH|HEIGHT)=(-?\d+)", text, re.M)}

    def picture(self, window):
        """What the screen shows where a window is, [height, width, 3] uint8; None if it is gone."""
        where = self.geometry(window)
        if len(where) < 4:
            return None
        data = self.frame_buffer.read_bytes()  # in the format XWD: a header, colours, the pixels
        header = np.frombuffer(data, ">u4", 25)
        width, height, bytes_per_line = (int(header[i]) for i in (4, 5, 12))
        pixels = np.frombuffer(data, np.uint8, height * bytes_per_line, header[0] + 12 * header[19])
        image = pixels.reshape(height, bytes_per_line // 4, 4)[:, :width, 2::-1]
        right, below = where["X"] + where["WIDTH"], where["Y"] + where["HEIGHT"]
        return image[max(0, where["Y"]) : below, max(0, where["X"]) : right]


def shows_court(picture):
    """Whether a picture of the emulator's window is one of Pong with both paddles."""
    court = picture[len(picture) // 5 : len(picture) * 9 // 10]  # without scores and walls
    paddle, rival = (count_pixels(court, c) for c in ((92, 186, 92), (213, 130, 74)))
    background, walls = (count_pixels(picture, c) for c in ((144, 72, 17), (236, 236, 236)))
    return background > 90_000 and walls > 10_000 and 100 < paddle < 400 and 100 < rival < 400
