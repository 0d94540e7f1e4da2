"""What is kept of a run, so that it can go on after anything and its agent be watched.

A checkpoint is one uncompressed .npz file: NumPy arrays by name, and a JSON text `about` them. It
is a zip archive, whose checksums tell a damaged file from a good one, and it appears under its name
only when all of it is on the disk. RUN/checkpoints holds the last three, step-000123456.npz by the
agent steps played, and best.npz, the one with the highest running score.
"""

import contextlib
import csv
import errno
import fcntl
import importlib.metadata
import io
import json
import math
import multiprocessing
import os
import pathlib
import platform
import struct
import subprocess
import sys
import time
import zipfile
from typing import NamedTuple

import matplotlib.figure
import numpy as np

# --------------------------------------------------------------------------------- checkpoint files


class Damaged(ValueError):
    """A file that is not, or not any more, a checkpoint; the message is a line for the user."""


def save(path, arrays, about):
    """Write a checkpoint, all of it or none.

    Args:
        path: where to; a file there is replaced. Its folder exists.
        arrays: dict of name -> array, of numbers or strings.
        about: dict that JSON can hold.

    Raises:
        OSError: it could not be written; what was at path is there still.
    """
    # with the names: a bit of the zip archive's list may flip so that its last entries are unseen
    text = np.frombuffer(json.dumps([sorted(arrays), about]).encode(), np.uint8)
    with replacing(path) as file:
        np.savez(file, about=text, **arrays)


@contextlib.contextmanager
def replacing(path):
    """A binary file to write to, which takes the place of another when all of it is on the disk.

    Whatever happens, the old one or the new one is there, whole.
    """
    path = pathlib.Path(path)
    unfinished = path.with_name("unfinished")  # one name for all: a killed run leaves only one
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # its new name survives a power cut
        os.close(folder)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def load(path):
    """The (arrays, about) of a checkpoint, as `save` got them. Raises Damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            if bad := archive.testzip():
                raise zipfile.BadZipFile(f"the checksum of {bad} is wrong")
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        names, about = json.loads(arrays.pop("about").tobytes())
        if names != sorted(arrays):
            raise zipfile.BadZipFile("an array is missing")
    except Exception as error:  # a flipped bit in a header may raise nearly anything
        raise Damaged(f"{path} is damaged or no checkpoint: {why(error)}") from None
    return arrays, about


def why(error):
    """The first line of what an exception says."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.splitlines() or [type(error).__name__])[0]


def paths(run_folder):
    """The checkpoints of a run: the newest first, the best at the end; none of them is opened."""
    folder = pathlib.Path(run_folder) / "checkpoints"
    steps = sorted(folder.glob("step-*.npz"), key=lambda path: (len(path.name), path.name))
    return steps[::-1] + list(folder.glob("best.npz"))


def load_newest(where, fits=lambda arrays, about: None):
    """The newest good checkpoint of a run, or the one in a file.

    Args:
        where: a run's folder, or one checkpoint file.
        fits: says what is wrong with (arrays, about), in words, or None if all is well.

    Returns:
        (its path, arrays, about, a list of lines for the user about newer ones that were no good).

    Raises:
        ValueError: there is none; the message is a line for the user.
    """
    where = pathlib.Path(where)
    if not where.exists():
        raise ValueError(f"{where}: there is no such folder or file")
    passed_over = []
    for path in paths(where) if where.is_dir() else [where]:
        try:
            arrays, about = load(path)
            if problem := fits(arrays, about):
                raise Damaged(f"{path} does not fit: {problem}")
            return path, arrays, about, passed_over
        except Damaged as damaged:
            passed_over.append(str(damaged))
    raise ValueError("; ".join(passed_over) or f"{where} holds no checkpoint")


def append(path, length, content):
    """Append bytes to a file of so many bytes: all of them, or none. Raises OSError."""
    with open(path, "r+b", buffering=0) as file:
        file.seek(length)
        try:
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(length)
            raise


# -------------------------------------------------------------------------------------- event files

# TensorBoard's, written without TensorFlow's FileWriter: on a full disk that one leaves a torn
# record, after which readers stop, prints a traceback from its thread, and says no more.


def crc32c_table():
    """What each value of a byte does to a CRC-32C, [256] ints."""
    table = list(range(256))
    for _ in range(8):
        table = [value >> 1 ^ 0x82F63B78 * (value & 1) for value in table]
    return table


CRC32C = crc32c_table()


def masked_crc32c(content):
    """The checksum of bytes in TFRecord files, [4] bytes."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = CRC32C[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def tf_record(content):
    """Bytes as a record of a TFRecord file."""
    length = struct.pack("<Q", len(content))
    return length + masked_crc32c(length) + content + masked_crc32c(content)


class EventFile:
    """An event file, the next one in a run's folder of them; it appears with what it holds."""

    def __init__(self, folder, Event, agent_steps, games):
        """Event: TensorFlow's class. agent_steps, games: those played before."""
        self.path = folder / f"events.out.tfevents.{len(list(folder.glob('*tfevents*'))):04}"
        self.Event, self.length, self.games = Event, 0, games
        self.unwritten = [Event(file_version="brain.Event:2", wall_time=time.time())]
        if agent_steps:  # TensorBoard forgets what other files have from there on
            resumed = Event(step=agent_steps + 1, wall_time=time.time())
            resumed.session_log.status = resumed.session_log.START
            self.unwritten.append(resumed)

    def write(self, episodes, measured):
        """Append the games that are new, and figures measured. Raises OSError; then, the next time.

        Args:
            episodes: the curve, a list of `Episode`.
            measured: list of (agent steps, dict of name -> number).
        """
        new = episodes[self.games :]
        self.games += len(new)
        for e in new:
            score = {"game/score": e.score, "game/running_score": e.running_score}
            measured = [*measured, (e.agent_steps, score)]
        for step, numbers in sorted(measured, key=lambda figures: figures[0]):
            event = self.Event(step=step, wall_time=time.time())
            for name, number in numbers.items():
                event.summary.value.add(tag=name, simple_value=number)
            self.unwritten.append(event)
        if measured or self.length and self.unwritten:
            self.path.parent.mkdir(exist_ok=True)
            self.path.touch()
            records = [tf_record(event.SerializeToString()) for event in self.unwritten]
            append(self.path, self.length, b"".join(records))
            self.length += sum(map(len, records))
            self.unwritten = []


# ----------------------------------------------------------------------------------- a run's folder


class Episode(NamedTuple):
    """A row of scores.csv."""

    episode: int
    worker: str
    agent_steps: int  # of the whole run so far
    seconds: float  # of training so far
    score: int  # the game's, -21 to 21
    reward: float  # the chapter's, with its -20
    running_score: float
    running_reward: float  # the chapter's global_running_rate


def curve_arrays(episodes):
    """A list of `Episode` -> dict of curve/column -> array, for a checkpoint."""
    columns = zip(*episodes) if episodes else [()] * len(Episode._fields)
    return {f"curve/{name}": np.array(column) for name, column in zip(Episode._fields, columns)}


def curve_of(arrays):
    """The list of `Episode` in a checkpoint's arrays."""
    columns = (arrays[f"curve/{name}"].tolist() for name in Episode._fields)
    return [Episode(*row) for row in zip(*columns)]


def read_curve(run_folder):
    """(A run's method and preset in words, the list of `Episode` in its scores.csv).

    Raises OSError, ValueError.
    """
    folder, kinds = pathlib.Path(run_folder), Episode.__annotations__
    config, curve = (folder / name for name in ("config.json", "scores.csv"))
    try:
        settings = json.loads(config.read_text())["settings"]
        method, preset = settings.get("method", "a3c"), settings.get("preset", "chapter")
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{config} is not a run's: it has no settings") from None
    try:
        with open(curve, newline="") as file:
            rows = list(csv.DictReader(file))
        episodes = [Episode(*(kinds[name](row[name]) for name in kinds)) for row in rows]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{curve} is not a run's curve, or damaged") from None
    return method + (f", {preset}" if preset != "chapter" else ""), episodes


def commit():
    """The commit of this script's checkout, with -dirty where it was changed; None elsewhere."""
    command = ["git", "-C", pathlib.Path(__file__).parent, "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def versions():
    """The versions of the packages that the numbers depend on, by name."""
    packages = "tensorflow", "gymnasium", "ale-py", "numpy"
    return {name: importlib.metadata.version(name) for name in packages}


class InUse(Exception):
    """Another process writes to the folder."""


class RunFolder:
    """A run's folder: config.json, and scores.csv, reward.png and checkpoints, up to date.

    A process has it to itself, until it ends however it ends. What cannot be written, on a full
    disk, is written when it can be again; a line in `notices` says so, and the run goes on.
    """

    PLOTTED_EVERY = 60  # seconds
    KEPT = 3  # checkpoints, besides the best
    BEST_FROM = 100  # games: before, a running score says little
    TELLTALES = "config.json", "checkpoints"  # what only a folder that holds a run has

    def __init__(self, path, notices, draw_curve):
        """Use `new` or `existing`. draw_curve: called with axes and episodes."""
        self.path, self.notices, self.draw_curve = path, notices, draw_curve
        self.rows = self.length = 0  # of scores.csv, in bytes; None: it is to be written anew
        self.best, self.events = -math.inf, None
        self.unwritten, self.plotted = set(), time.monotonic()
        self.lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel's to release
        except BlockingIOError:
            raise InUse(f"{path} is in use by a run that has not ended") from None

    @classmethod
    def new(cls, settings, *others):
        """A new one. Raises OSError where that fails, or where it holds a run."""
        path = pathlib.Path(settings["run_dir"]) if settings["run_dir"] else cls._new_path()
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is not a folder", str(path))
        path.mkdir(parents=True, exist_ok=True)
        for name in "scores.csv", *cls.TELLTALES:
            if (path / name).exists():
                why = f"it holds a run already, {name}; a new one needs a folder of its own"
                raise FileExistsError(errno.EEXIST, why, str(path))
        config = dict(settings=settings, command=sys.argv, commit=commit())
        config["machine"] = f"{multiprocessing.cpu_count()} cores, {platform.platform()}"
        config["versions"] = versions()
        with open(path / "scores.csv", "x"):
            folder = cls(path, *others)
        try:
            folder._write_config(config)
            folder._write_curve([])
        except OSError as error:
            folder.discard()
            raise OSError(error.errno, error.strerror, str(path)) from None
        return folder

    @classmethod
    def existing(cls, path, *others):
        """That of a run to go on with. Raises ValueError where there is none, InUse, OSError."""
        if not any((path / name).exists() for name in cls.TELLTALES):
            raise ValueError(f"{path} holds no run")
        return cls(path, *others)

    @staticmethod
    def _new_path():
        """A new folder under runs/, which no other run starting at this moment gets."""
        name = time.strftime("runs/%Y-%m-%d_%H-%M-%S")
        for path in map(pathlib.Path, [name] + [f"{name}_{k}" for k in range(2, 100)]):
            with contextlib.suppress(FileExistsError):
                path.mkdir(parents=True)
                return path
        raise FileExistsError(errno.EEXIST, "a hundred runs began this second", name)

    def discard(self):
        """Remove it again: the run has not begun."""
        for name in "scores.csv", "config.json", "lock":
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it was the user's, and is not empty
            self.path.rmdir()

    def config(self):
        """What config.json holds. Raises ValueError, OSError where it cannot be read."""
        config = json.loads((self.path / "config.json").read_text())
        if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
            raise ValueError("it holds no settings")
        return config

    def go_on(self, checkpoint, settings, episodes, agent_steps):
        """Cut the files back to a checkpoint's, None being the run's beginning.

        Newer checkpoints, which were no good, are renamed, so that they count no more.
        """
        every = paths(self.path)
        for bad in every[: every.index(checkpoint)] if checkpoint else every:
            with contextlib.suppress(OSError):
                bad.rename(bad.with_name(f"bad-{bad.name}"))
        with contextlib.suppress(Damaged):
            self.best = load(self.path / "checkpoints" / "best.npz")[1]["running_score"]
        self.length = None
        self.write(episodes)
        config = dict(settings=settings)
        with contextlib.suppress(OSError, ValueError):
            config = self.config()
        before, config["settings"] = config["settings"], settings
        changed = {name: value for name, value in settings.items() if before.get(name) != value}
        resumed = dict(command=sys.argv, commit=commit(), agent_steps=agent_steps)
        resumed.update(changed=changed, versions=versions())
        config["resumed"] = [*config.get("resumed", []), resumed]
        with self._if_possible("config.json"):
            self._write_config(config)

    def begin_events(self, *figures):
        """Begin an `EventFile`, which takes the same arguments."""
        self.events = EventFile(self.path / "events", *figures)

    def cut_back(self, episodes, agent_steps):
        """Go on from an earlier moment of the same run, when there were these games and steps."""
        self.begin_events(self.events.Event, agent_steps, len(episodes))
        self.length = None
        self.write(episodes)

    def write(self, episodes, measured=(), plot_now=False):
        """Append what is new to scores.csv and the events, and now and then draw reward.png.

        measured: as for `EventFile.write`.
        """
        if self.events:
            with self._if_possible("events"):
                self.events.write(episodes, measured)
        if len(episodes) > self.rows or self.length is None:
            with self._if_possible("scores.csv"):
                if self.length is None:
                    self._write_curve(episodes)
                else:
                    self._append(episodes[self.rows :])
        if plot_now or time.monotonic() - self.plotted > self.PLOTTED_EVERY:
            self.plotted = time.monotonic()
            figure, picture = matplotlib.figure.Figure((8, 5), layout="constrained"), io.BytesIO()
            self.draw_curve(figure.subplots(), episodes)
            figure.savefig(picture)
            with self._if_possible("reward.png"), replacing(self.path / "reward.png") as file:
                file.write(picture.getvalue())

    def write_checkpoint(self, arrays, about):
        """Write a checkpoint, and delete those too many. Whether it was possible."""
        folder = self.path / "checkpoints"
        with self._if_possible("a checkpoint"):
            folder.mkdir(exist_ok=True)
            save(folder / f"step-{about['agent_steps']:09}.npz", arrays, about)
            for path in [path for path in paths(self.path) if path.name != "best.npz"][self.KEPT :]:
                path.unlink()
        score = about["running_score"]
        if about["games"] >= self.BEST_FROM and score > self.best:
            with self._if_possible("the best checkpoint"):
                save(folder / "best.npz", arrays, about)
                self.best = score
        return "a checkpoint" not in self.unwritten

    @contextlib.contextmanager
    def _if_possible(self, what):
        """Go on where it cannot be written; the first time, a line says so."""
        try:
            yield
            self.unwritten.discard(what)
        except OSError as error:
            if not self.unwritten:
                line = f"cannot write {what} to {self.path}: {why(error)}; training goes on, and "
                self.notices.append(line + "it will be tried again")
            self.unwritten.add(what)

    def _write_config(self, config):
        with replacing(self.path / "config.json") as file:
            file.write((json.dumps(config, indent=2) + "\n").encode())

    def _write_curve(self, episodes):
        episodes = list(episodes)  # workers add to it
        text = self._table([Episode._fields, *episodes])
        with replacing(self.path / "scores.csv") as file:
            file.write(text)
        self.rows, self.length = len(episodes), len(text)

    def _append(self, episodes):
        """Append rows to scores.csv."""
        text = self._table(episodes)
        append(self.path / "scores.csv", self.length, text)
        self.rows, self.length = self.rows + len(episodes), self.length + len(text)

    @staticmethod
    def _table(rows):
        """Rows as the bytes of a CSV file."""
        text = io.StringIO(newline="")
        for row in rows:
            rounded = [round(x, 4) if isinstance(x, float) else x for x in row]
            csv.writer(text).writerow(rounded)
        return text.getvalue().encode()
