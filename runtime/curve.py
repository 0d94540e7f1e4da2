"""The curve of a run, a row for each game, as scores.csv and checkpoints hold it."""

import csv
import io
import json
import pathlib
from typing import NamedTuple

import numpy as np


class Episode(NamedTuple):
    """A game that ended: a row of scores.csv."""

    episode: int
    worker: str
    agent_steps: int  # T, of the whole run so far
    seconds: float  # of training so far
    score: int  # the game's own, -21 to 21
    reward: float  # the chapter's ep_r, with its -20
    running_score: float
    running_reward: float  # the chapter's global_running_rate


def curve_arrays(episodes):
    """Return a list of `Episode` as a dict of curve/column -> array, for a checkpoint."""
    columns = zip(*episodes) if episodes else [()] * len(Episode._fields)
    return {f"curve/{name}": np.array(column) for name, column in zip(Episode._fields, columns)}


def curve_of(arrays):
    """Return the list of `Episode` in a checkpoint's arrays."""
    columns = (arrays[f"curve/{name}"].tolist() for name in Episode._fields)
    return [Episode(*row) for row in zip(*columns)]


def table(rows):
    """Return rows as the bytes of a CSV file."""
    text = io.StringIO(newline="")
    for row in rows:
        rounded = [round(x, 4) if isinstance(x, float) else x for x in row]
        csv.writer(text).writerow(rounded)
    return text.getvalue().encode()


class Curve(NamedTuple):
    """A run's curve, as it is drawn."""

    label: str  # of config.json, or the run's method and preset in words
    episodes: list  # of `Episode`, from scores.csv


def read_curve(run_folder):
    """Return the `Curve` of a run.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    folder, kinds = pathlib.Path(run_folder), Episode.__annotations__
    config, curve = (folder / name for name in ("config.json", "scores.csv"))
    try:
        about = json.loads(config.read_text())
        settings = about["settings"]
        method, preset = settings.get("method", "a3c"), settings.get("preset", "chapter")
        label = about.get("label") or method + (f", {preset}" if preset != "chapter" else "")
        label = label.replace("$", r"\$")  # which begins a formula in Matplotlib
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError(f"{config} is not a run's: it has no settings") from None
    try:
        with open(curve, newline="") as file:
            rows = list(csv.DictReader(file))
        episodes = [Episode(*(kinds[name](row[name]) for name in kinds)) for row in rows]
    except (ValueError, TypeError, KeyError, csv.Error):
        raise ValueError(f"{curve} is not a run's curve, or damaged") from None
    return Curve(label, episodes)
