"""A run's folder: config.json, scores.csv, reward.png, events and checkpoints, up to date."""

import contextlib
import errno
import fcntl
import io
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

from runtime import checkpoints
from runtime.checkpoints import append, replacing, sync_folder, why
from runtime.curve import Episode, table
from runtime.events import EventFile
from runtime.plots import load_matplotlib, save_curve


class InUse(ValueError):
    """Another process writes to the folder."""


def commit():
    """Return the commit of this checkout, with -dirty if it was changed; None elsewhere."""
    command = ["git", "-C", pathlib.Path(__file__).parent, "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


TELLTALES = "config.json", "checkpoints"  # only a folder that holds a run has them


def new_path(run_dir):
    """Return the path of a new run's folder, which can be made, and is not made yet.

    run_dir: the user's; None: one in runs/, named by the time.

    Raises:
        OSError: it cannot be made, or holds a run.
    """
    path = pathlib.Path(run_dir or time.strftime("runs/%Y-%m-%d_%H-%M-%S"))
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is not a folder", str(path))
    refuse_a_run(path)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
    return path


def have_temporary_folder(path):
    """If none of the usual temporary folders can be written, have one beside a run's path.

    TensorFlow asks for one when it is imported, and fails without.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        for folder in pathlib.Path("/dev/shm"), *path.absolute().parents:
            if os.access(folder, os.W_OK):
                tempfile.tempdir = str(folder)
                return


def another_path(path):
    """Make a new folder with this name or the next like it, which no other run can get."""
    for name in [path] + [path.with_name(f"{path.name}_{k}") for k in range(2, 100)]:
        with contextlib.suppress(FileExistsError):
            name.mkdir(parents=True)
            return name
    raise FileExistsError(errno.EEXIST, "a hundred runs began this second", str(path))


def refuse_a_run(path):
    """Raise FileExistsError if a folder holds a run."""
    for name in "scores.csv", *TELLTALES:
        if (path / name).exists():
            reason = f"it holds a run already, {name}; a new one needs a folder of its own"
            raise FileExistsError(errno.EEXIST, reason, str(path))


def size(path):
    """Return a file's size in bytes; None if there is none."""
    return path.stat().st_size if path.exists() else None


class RunFolder:
    """The folder of a run, which one process has to itself until it ends, however it ends.

    What cannot be written, for example on a full disk, is written as soon as it can be. A line in
    `notices` says so, and the run continues.
    """

    PLOTTED_EVERY = 60  # seconds
    KEPT = 3  # checkpoints, besides the best
    BEST_FROM = 100  # games: before, a running score says little

    def __init__(self, path, notices):
        """Open a folder; use `new` or `existing` instead. notices: list of lines for the user."""
        self.path, self.notices = path, notices
        self.home = path.absolute()  # for when the current folder is gone, too
        self.rows = 0  # of scores.csv
        self.length = 0  # of scores.csv in bytes; None: it must be written anew
        self.best, self.events = -math.inf, None
        self.unwritten, self.plotted = set(), time.monotonic()
        self.about = None  # what config.json holds
        self.owner = os.urandom(8).hex().encode()  # what the file "lock" holds
        load_matplotlib(path)
        self._take_lock()
        if not sync_folder(path):
            notices.append(f"{path} cannot be synced: a power cut may lose the last checkpoint")

    def _take_lock(self):
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released with the process
        except BlockingIOError:
            raise InUse(f"{self.path} is in use by a run that has not ended") from None
        except OSError as error:  # some network file systems have none
            line = f"{self.path} cannot be locked ({why(error)}): start no other run in it"
            self.notices.append(line)
        with contextlib.suppress(OSError):  # a full disk
            os.ftruncate(lock, 0)
            os.write(lock, self.owner)

    @classmethod
    def new(cls, path, settings, epsilons, notices):
        """Make the folder of a new run.

        Args:
            path: what `new_path` returned.
            settings: dict of the run's settings.
            epsilons: dict of a worker's name -> its final epsilon.
            notices: list of lines for the user, to add to.

        Raises:
            OSError: it cannot be made, or holds a run.
        """
        config = dict(settings=settings, command=sys.argv, commit=commit())
        config.update(final_epsilons=epsilons)
        config["machine"] = f"{multiprocessing.cpu_count()} cores, {platform.platform()}"
        config["versions"] = checkpoints.versions()
        if not settings["run_dir"]:
            path = another_path(path)
        path.mkdir(parents=True, exist_ok=True)
        refuse_a_run(path)
        open(path / "scores.csv", "x").close()  # no other run can begin here from now on
        try:
            folder = cls(path, notices)
            folder._write_config(config)
            folder._write_curve([])
        except OSError as error:
            cls.remove(path)
            raise OSError(error.errno, error.strerror, str(path)) from None
        except KeyboardInterrupt:  # a signal
            cls.remove(path)
            raise
        return folder

    @classmethod
    def existing(cls, path, notices):
        """Open the folder of a run to continue. Raises ValueError for none, InUse, OSError."""
        if not any((path / name).exists() for name in TELLTALES):
            raise ValueError(f"{path} holds no run")
        return cls(path, notices)

    @staticmethod
    def remove(path):
        """Remove the folder of a run that has not begun."""
        for name in "scores.csv", "config.json", "lock":
            (path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the user's own files are in it
            path.rmdir()

    def config(self):
        """Read config.json, its settings with today's names. Raises ValueError, OSError."""
        try:
            config = json.loads((self.path / "config.json").read_text())
        except RecursionError as error:
            raise ValueError(why(error)) from None
        if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
            raise ValueError("it holds no settings")
        config["settings"] = checkpoints.todays_settings(config["settings"])
        return config

    def resume(self, checkpoint, settings, epsilons, episodes, agent_steps):
        """Cut the files back to a checkpoint; None: to the run's beginning.

        Newer checkpoints, which were no good, are renamed, so that they count no more.

        Args:
            checkpoint: the path of its file.
            settings: dict of the settings from now on.
            epsilons: as for `new`.
            episodes, agent_steps: those of the checkpoint.
        """
        if not checkpoint:
            self._keep_curve()
        every = checkpoints.paths(self.path)
        for bad in every[: every.index(checkpoint)] if checkpoint else every:
            with contextlib.suppress(OSError):
                bad.rename(bad.with_name(f"bad-{bad.name}"))
        with contextlib.suppress(checkpoints.Damaged):
            best = checkpoints.load(self.path / "checkpoints" / "best.npz")
            self.best = best.about["running_score"]
        self.length = None
        self.write(episodes)
        config = dict(settings=settings)
        with contextlib.suppress(OSError, ValueError):
            config = self.config()
        before, config["settings"] = config["settings"], settings
        config["final_epsilons"] = epsilons
        changed = {name: value for name, value in settings.items() if before.get(name) != value}
        resumed = dict(command=sys.argv, commit=commit(), agent_steps=agent_steps)
        resumed.update(changed=changed, versions=checkpoints.versions())
        earlier = config.get("resumed")
        config["resumed"] = [*(earlier if isinstance(earlier, list) else []), resumed]
        with self._if_possible("config.json"):
            self._write_config(config)

    def _keep_curve(self):
        """Rename scores.csv, whose games the run's new beginning would overwrite, if it has any."""
        curve = self.path / "scores.csv"
        kept = (self.path / f"scores-{number}.csv" for number in itertools.count(1))
        with contextlib.suppress(OSError):
            if curve.read_bytes().count(b"\n") > 1:
                curve.rename(name := next(path for path in kept if not path.exists()))
                self.notices.append(f"the games so far are kept in {name}")

    def begin_events(self, agent_steps, games):
        """Begin an event file, after so many steps and games."""
        self.events = EventFile(self.path / "events", agent_steps, games)

    def cut_back(self, episodes, agent_steps):
        """Continue from an earlier moment of the same run, with these games and steps."""
        self.begin_events(agent_steps, len(episodes))
        self.length = None
        self.write(episodes)

    def write(self, episodes, measured=(), plot_now=False):
        """Append what is new to scores.csv and the events, and now and then draw reward.png.

        measured: as for `EventFile.write`.
        """
        with contextlib.suppress(OSError, InUse):
            self._make_again()
        if self.events:
            with self._if_possible("events"):
                self.events.write(episodes, measured)
        if len(episodes) > self.rows or self.length is None:
            with self._if_possible("scores.csv"):
                if self.length is None:
                    self._write_curve(episodes)
                else:
                    self._append(episodes[self.rows :])
        if "config.json" in self.unwritten:
            with self._if_possible("config.json"):
                self._write_config(self.about)
        if plot_now or time.monotonic() - self.plotted > self.PLOTTED_EVERY:
            self.plotted = time.monotonic()
            with self._if_possible("reward.png", Exception):  # Matplotlib's may be any
                picture = io.BytesIO()
                save_curve(episodes, picture)
                with replacing(self.path / "reward.png") as file:
                    file.write(picture.getvalue())

    def _make_again(self):
        """Make the folder and its files anew if they were moved, removed or changed meanwhile."""
        lock, before = self.path / "lock", self.path
        theirs = lock.exists() and lock.read_bytes() not in (self.owner, b"")
        if theirs or not self.path.exists():  # another run may have begun there since
            self.path = self.home = another_path(self.home)
            self.best = -math.inf
            if self.events:
                self.begin_events(0, 0)
            line = f"the run's folder {before} is gone: a new one, {self.path}, has the whole curve"
            self.notices.append(line)
        if not (self.path / "lock").exists():
            self._take_lock()
        if self.about and not (self.path / "config.json").exists():
            self._write_config(self.about)
        if self.length != size(self.path / "scores.csv"):
            self.length = None
        if self.events and self.events.length and self.events.length != size(self.events.path):
            self.events.path.unlink(missing_ok=True)
            self.begin_events(0, 0)

    def write_checkpoint(self, checkpoint):
        """Write a `Checkpoint` and delete old ones. Return whether it could be written."""
        folder, about = self.path / "checkpoints", checkpoint.about
        with self._if_possible("a checkpoint"):
            folder.mkdir(exist_ok=True)
            path = folder / f"step-{about['agent_steps']:09}.npz"
            try:
                checkpoints.save(path, checkpoint)
            except OSError as error:
                old = self._steps()
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or len(old) < 2:
                    raise
                old[-1].unlink()  # the disk has room for two
                checkpoints.save(path, checkpoint)
            for path in self._steps()[self.KEPT :]:
                path.unlink()
        score = about["running_score"]
        if about["games"] >= self.BEST_FROM and score > self.best:
            with self._if_possible("the best checkpoint"):
                checkpoints.save(folder / "best.npz", checkpoint)
                self.best = score
        else:  # one that could not be written is the best no more
            self.unwritten.discard("the best checkpoint")
        return "a checkpoint" not in self.unwritten

    def _steps(self):
        """Return the checkpoints but for the best, the newest first."""
        return [path for path in checkpoints.paths(self.path) if path.name != "best.npz"]

    @contextlib.contextmanager
    def _if_possible(self, what, errors=OSError):
        """Continue if it cannot be written; the first time, a line says so."""
        try:
            yield
            self.unwritten.discard(what)
        except errors as error:
            if not self.unwritten:
                line = f"cannot write {what} to {self.path}: {why(error)}; training continues, and "
                self.notices.append(line + "the write will be retried")
            self.unwritten.add(what)

    def _write_config(self, config):
        self.about = config
        with replacing(self.path / "config.json") as file:
            file.write((json.dumps(config, indent=2) + "\n").encode())

    def _write_curve(self, episodes):
        episodes = list(episodes)  # workers add to it
        text = table([Episode._fields, *episodes])
        with replacing(self.path / "scores.csv") as file:
            file.write(text)
        self.rows, self.length = len(episodes), len(text)

    def _append(self, episodes):
        """Append rows to scores.csv."""
        text = table(episodes)
        append(self.path / "scores.csv", self.length, text)
        self.rows, self.length = self.rows + len(episodes), self.length + len(text)
