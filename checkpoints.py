"""What is kept of a run, so that it can go on after anything and its agent be watched.

A checkpoint is one uncompressed .npz file: NumPy arrays by name, and a JSON text `about` them. It
is a zip archive, whose checksums tell a damaged file from a good one, and it appears under its name
only when all of it is on the disk. RUN/checkpoints holds the last three, step-000123456.npz by the
agent steps played, and best.npz, the one with the highest running score.
"""

import contextlib
import json
import os
import pathlib
import zipfile

import numpy as np


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
    path = pathlib.Path(path)
    unfinished = path.with_name("unfinished.npz")  # one name for all: a killed run leaves only one
    # with the names: a bit of the zip archive's list may flip so that its last entries are unseen
    text = np.frombuffer(json.dumps([sorted(arrays), about]).encode(), np.uint8)
    try:
        with open(unfinished, "wb") as file:
            np.savez(file, about=text, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def sync_folder(path):
    """Have the names in a folder survive a power cut."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


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
