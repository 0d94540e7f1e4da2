"""Checkpoint files, from which a run continues after anything and its agent is watched.

A checkpoint is one uncompressed .npz file: NumPy arrays by name, and a JSON text `about` them. It
is a zip archive, whose checksums tell a damaged file from a good one. It appears under its name
only when all of it is on the disk. RUN/checkpoints holds the last three, step-000123456.npz by the
agent steps played, and best.npz, the one with the highest running score.

Arrays are named as the variables they belong to, globalnet/..., besides `row_log/touched_by`, the
curve's columns, curve/..., and the game of each actor, actor/W_n.
"""

import contextlib
import dataclasses
import errno
import importlib.metadata
import json
import os
import pathlib
import re
import zipfile

import numpy as np


class Damaged(ValueError):
    """A file that is not a readable checkpoint; the message is a line for the user."""


@dataclasses.dataclass
class Checkpoint:
    """A run's state at one moment, in memory or read from a file."""

    arrays: dict  # name -> array
    about: dict  # what JSON can hold: method, settings, agent_steps, updates, games, seconds, ...
    path: pathlib.Path | None = None  # the file it was read from
    passed_over: list = dataclasses.field(default_factory=list)  # lines about newer, bad files


# --------------------------------------------------------------------------------- reading, writing


def save(path, checkpoint):
    """Write a checkpoint, all of it or none.

    Args:
        path: where to; a file there is replaced. Its folder exists.
        checkpoint: a `Checkpoint`; its arrays are of numbers or strings.

    Raises:
        OSError: it could not be written; the file that was there is still there.
    """
    # with the names: a flipped bit in the zip archive's list may hide its last entries
    text = json.dumps([sorted(checkpoint.arrays), checkpoint.about]).encode()
    size = len(text) + sum(array.nbytes for array in checkpoint.arrays.values())
    text += b" " * (-size % 2**20)  # on a full disk a new file must fit into an old one's place
    with replacing(path) as file:
        np.savez(file, about=np.frombuffer(text, np.uint8), **checkpoint.arrays)


@contextlib.contextmanager
def replacing(path):
    """Open a binary file to write, which replaces the one at path when all of it is on the disk.

    Whatever happens, the old file or the new one is there, whole.
    """
    path = pathlib.Path(path)
    unfinished = path.with_name("unfinished")  # one name for all: a killed run leaves only one
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        sync_folder(path.parent)  # its new name survives a power cut
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


@contextlib.contextmanager
def written_beside(path):
    """Make a new file beside path, and yield its path; after the `with` block it replaces path's.

    After an exception the old file stays. Raises OSError, before the block if no file can be made.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.touch()
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def sync_folder(path):
    """Have a folder's names written to the disk. Return whether its file system can do that."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
        return True
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
        return False
    finally:
        os.close(folder)


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


def load(path):
    """Read the `Checkpoint` of a file, with today's names. Raises Damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            if bad := archive.testzip():
                raise zipfile.BadZipFile(f"the checksum of {bad} is wrong")
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        names, about = json.loads(arrays.pop("about").tobytes())
        if names != sorted(arrays):
            raise zipfile.BadZipFile("an array is missing")
        arrays = {todays_array(name): array for name, array in arrays.items()}
        if "settings" in about:
            about["settings"] = todays_settings(about["settings"])
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {why(error)}") from None
    except Exception as error:  # a flipped bit in a header may raise nearly anything
        raise Damaged(f"{path} is damaged or no checkpoint: {why(error)}") from None
    return Checkpoint(arrays, about, path)


def why(error):
    """Return the first line of an exception's message."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


# --------------------------------------------------------------------------------------- old names

OLD_SETTINGS = {
    "env_id": "game_env",
    "workers": "num_workers",
    "max_episodes": "max_global_episodes",
    "steps_per_update": "global_iteration_update",
}
# what earlier versions did, which did not have the setting
NEW_SETTINGS = {"pull": "after", "rate_falls_below": 1.0, "rate_power": 0.0}
# parts of an array's name, which are looked for in this order
OLD_ARRAYS = {
    "W_0/globalnet/": "globalnet/",
    "RMSPropOptimiser_actor_network": "RMSPropOptimiserActor",
    "RMSPropOptimiser_critic_network": "RMSPropOptimiserCritic",
    "RMSPropOptimiser_q_network": "RMSPropOptimiserQ",
}


def todays_settings(settings):
    """Return a dict of settings, written by any version, with today's names."""
    return NEW_SETTINGS | {OLD_SETTINGS.get(name, name): v for name, v in settings.items()}


def todays_array(name):
    """Return today's name of an array of a checkpoint, written by any version."""
    for old, new in OLD_ARRAYS.items():
        name = name.replace(old, new)
    return name


# ------------------------------------------------------------------------------ a run's checkpoints


def paths(run_folder):
    """Return a run's checkpoint files, the newest first, the best last; none of them is opened.

    Other files in their folder, for example the user's copies, are left alone. Raises OSError if
    the folder is there and cannot be read.
    """
    folder = pathlib.Path(run_folder) / "checkpoints"
    if not os.path.lexists(folder):
        return []
    names = os.listdir(folder)
    steps = {name: re.fullmatch(r"step-(\d+)\.npz", name) for name in names}
    steps = {name: int(match[1]) for name, match in steps.items() if match}
    order = sorted(steps, key=steps.get, reverse=True) + ["best.npz"] * ("best.npz" in names)
    return [folder / name for name in order]


def load_newest(where, misfit=lambda checkpoint: None):
    """Read the newest good checkpoint of a run, or the one in a file.

    Args:
        where: a run's folder, or one checkpoint file.
        misfit: a function that says what is wrong with a `Checkpoint`, or returns None.

    Raises:
        ValueError: there is none; the message is a line for the user.
    """
    where = pathlib.Path(where)
    if not where.exists():
        raise ValueError(f"{where}: there is no such folder or file")
    passed_over = []
    for path in paths(where) if where.is_dir() else [where]:
        try:
            checkpoint = load(path)
            if problem := misfit(checkpoint):
                raise Damaged(f"{path} does not fit: {problem}")
        except Damaged as damaged:
            passed_over.append(str(damaged))
        else:
            checkpoint.passed_over = passed_over
            return checkpoint
    raise ValueError("; ".join(passed_over) or f"{where} holds no checkpoint")


HUGE = 1e15  # no weight and no mean square of a run that learns is ever as large


def sane(array):
    """Return whether no number of an array is NaN, infinite or huge."""
    if array.dtype.kind != "f" or not array.size:
        return True
    return bool(-HUGE < array.min() and array.max() < HUGE)  # NaN is neither


def best_of(run_folder):
    """Return the `Checkpoint` of a run's best.npz without its arrays; None if there is none."""
    path = pathlib.Path(run_folder) / "checkpoints" / "best.npz"
    try:
        with np.load(path, allow_pickle=False) as archive:
            return Checkpoint({}, json.loads(archive["about"].tobytes())[1], path)
    except Exception:  # it is missing or damaged, which may raise nearly anything
        return None


def versions():
    """Return the versions of the packages that the numbers depend on, by name."""
    packages = "tensorflow", "gymnasium", "ale-py", "numpy"
    return {name: version(name) for name in packages}


def version(package):
    """Return a package's version; TensorFlow's under whatever name its build is installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # tensorflow-cpu, tf-nightly, ...
        builds = importlib.metadata.packages_distributions().get(package, [])
        return importlib.metadata.version(builds[0]) if builds else "unknown"
