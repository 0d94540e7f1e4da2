"""The command line, made of a script's dataclass of settings and its presets."""

import argparse
import contextlib
import dataclasses
import pathlib
import re
import sys
from typing import Any, Literal, NamedTuple, get_args, get_origin

from runtime.checkpoints import why
from runtime.output import Stream

# ------------------------------------------------------------------------------ a script's settings


class Allowed(NamedTuple):
    """The values that a setting may have besides `none`."""

    holds: Any  # function of a value
    words: str


ANY = Allowed(lambda value: True, "")
LARGEST = 3e38  # more is no float32, the type of the weights
ABOVE_0 = Allowed(lambda x: 0 < x <= LARGEST, "a number above 0, at most 3e38")
NOT_NEGATIVE = Allowed(lambda x: 0 <= x <= LARGEST, "0 or a number above, at most 3e38")
AT_LEAST_1 = Allowed(lambda n: 1 <= n <= 1e18, "between 1 and 1e18")
FINITE = Allowed(lambda x: abs(x) <= LARGEST, "a number up to 3e38 or none")


def between(low, high):
    """Return what is `Allowed` from low to high, both included."""
    return Allowed(lambda x: low <= x <= high, f"between {low} and {high}")


def setting(default, meaning, allowed=ANY, changeable=False):
    """Return a field of a settings dataclass.

    Args:
        default: its default value.
        meaning: its line in --help, with the default's origin in brackets.
        allowed: its `Allowed` values.
        changeable: whether it may be given anew when a run is resumed.
    """
    metadata = {"help": meaning, "allowed": allowed, "changeable": changeable}
    return dataclasses.field(default=default, metadata=metadata)


def changeable(settings):
    """Return the names of the fields that may be given anew when a run is resumed."""
    return [f.name for f in dataclasses.fields(settings) if f.metadata["changeable"]]


def check(settings):
    """Raise ValueError, with one line for the user, if a value makes no sense."""
    for field in dataclasses.fields(settings):
        kinds, value = get_args(field.type) or (field.type,), getattr(settings, field.name)
        if get_origin(field.type) is Literal:
            if value not in kinds:
                raise ValueError(f"{option(field.name)} must be {', '.join(kinds)}, not {value}")
            continue
        real = (*kinds, int) if float in kinds else kinds
        if isinstance(value, bool) != (bool in kinds) or not isinstance(value, real):
            words = " or ".join(shown(None) if k is type(None) else k.__name__ for k in kinds)
            raise ValueError(f"{option(field.name)} must be {words}, not {value!r}")
        allowed = field.metadata["allowed"]
        if value is not None and not allowed.holds(value):
            raise ValueError(f"{option(field.name)} must be {allowed.words}, not {value}")


# --------------------------------------------------------------------------------- the command line

# Options by the name they had before they followed the chapter's constants.
RENAMED = {
    "--env-id": "--game-env",
    "--workers": "--num-workers",
    "--max-episodes": "--max-global-episodes",
    "--steps-per-update": "--global-iteration-update",
}


def option(name):
    """Return the command-line option of a field."""
    return "--" + name.replace("_", "-")


def shown(value):
    """Return a value as the command line or the help has it."""
    return {"None": "none", "False": "no", "True": "yes"}.get(str(value), str(value))


def fail(message, status=2):
    """End the program with one line on stderr."""
    Stream(2, sys.stderr).write(f"a3c_pong.py: {message}\n")
    sys.exit(status)


@contextlib.contextmanager
def user_errors():
    """Enter a `with` in which a user's mistake ends the program with one line and status 2."""
    try:
        yield
    except ValueError as error:
        fail(error)
    except OSError as error:
        fail(f"{error.filename}: {why(error)}" if error.filename else why(error))


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, with status 2."""

    def __init__(self, **how):
        super().__init__(**how)
        # before Python 3.14, -2e1 is taken for an option
        self._negative_number_matcher = re.compile(r"-\d*\.?\d+(e[-+]?\d+)?$", re.I)

    def error(self, message):
        fail(message)


def parse(Settings, presets, description, arguments=None):
    """Parse a command line. Wrong options end the program with one line and status 2.

    Args:
        Settings: the dataclass of settings.
        presets: dict of the name of a preset -> method -> dict of settings.
        description: text for --help.
        arguments: list of strings; None: those of the process.

    Returns:
        the command, a namespace with `resume`, `draw`, `play`, `record`, `seconds`, `evaluate` and
        `games`; and a dict of the settings that were given.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for argument in arguments:
        old, _, _ = argument.partition("=")
        if old in RENAMED:
            fail(f"{old} is now {RENAMED[old]}")
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=description, formatter_class=layout, allow_abbrev=False)
    for field in dataclasses.fields(Settings):
        add_setting(parser, field)
    add_commands(parser.add_argument_group("instead of a new run"))
    command, given = parser.parse_args(arguments), {}
    for field in dataclasses.fields(Settings):
        if hasattr(command, field.name):
            given[field.name] = getattr(command, field.name)
            delattr(command, field.name)
    if "preset" in given:
        preset = presets[given["preset"]].get(given.get("method", Settings.method), {})
        given = {"preset": given["preset"]} | preset | given
    try:
        check(Settings(**given))
        check_command(command, given)
    except ValueError as error:
        fail(error)
    return command, given


def add_setting(parser, field):
    """Add the option of a settings field."""
    kinds = get_args(field.type) or (field.type,)
    how = {"help": f"{field.metadata['help']} (default: {shown(field.default)})"}
    how["default"] = argparse.SUPPRESS  # so that only settings that are given are there
    if get_origin(field.type) is Literal:
        how["choices"] = kinds
    elif field.type is bool:
        how.update(action=YesOrNo, nargs="?", metavar="yes|no")
    else:
        how["type"], how["metavar"] = reader(*kinds), kinds[0].__name__.upper()
    names = [option(field.name)]
    if field.type is bool:
        names.append(option(f"no_{field.name}"))
    parser.add_argument(*names, dest=field.name, **how)


class YesOrNo(argparse.Action):
    """A setting that is yes or no: `--name`, `--no-name`, `--name yes` and `--name no`."""

    def __call__(self, parser, namespace, value, option_string=None):
        """Note the value."""
        if value not in (None, "yes", "no"):
            parser.error(f"argument {option_string}: it must be yes or no, not {value!r}")
        negated = option_string.startswith("--no-")
        setattr(namespace, self.dest, (value != "no") != negated)


def reader(kind, none=None):
    """Return a function that reads a setting of this kind. If it may, `none` becomes None."""

    def read(text):
        if none and text == "none":
            return None
        return whole(text) if kind is int else kind(text)

    read.__name__ = kind.__name__  # argparse names it in its complaint
    return read


def whole(text):
    """Return the whole number that a text holds; 20e6 is one. Raises ValueError if it has none."""
    number = float(text) if "e" in text.lower() else int(text)
    if abs(number) <= LARGEST and number == int(number):
        return int(number)
    raise ValueError(text)


def add_commands(group):
    """Add the options that do something else than train a new run."""
    commands = group.add_mutually_exclusive_group()
    commands.add_argument(
        "--resume",
        metavar="RUN_FOLDER",
        type=pathlib.Path,
        help="continue a run where it stopped",
    )
    commands.add_argument(
        "--draw",
        metavar=("PICTURE", "RUN_FOLDER"),
        nargs="+",
        type=pathlib.Path,
        help="write a picture of a run's curve, or of several runs' side by side",
    )
    commands.add_argument(
        "--play",
        metavar="RUN",
        help="show how a run's agent plays; RUN: its folder, or a checkpoint file",
    )
    commands.add_argument(
        "--evaluate",
        metavar="RUN",
        help="let a run's agent play --games games, without learning",
    )
    group.add_argument(
        "--record",
        metavar="FILE",
        help="with --play: write one game to this .gif or .mp4 instead",
    )
    group.add_argument(
        "--seconds",
        metavar="FLOAT",
        type=float,
        help="with --record: only so many seconds of the game",
    )
    group.add_argument(
        "--games",
        metavar="INT",
        type=reader(int),
        help="with --evaluate: games sampled from the policy, and as many greedy (default: 20)",
    )


def check_command(command, given):
    """Raise ValueError if the options of a command make no sense together.

    given: dict of the settings on the command line.
    """
    if given.get("render") == "terminal" and not sys.stdout.isatty():
        raise ValueError("--render terminal: the output is no terminal")
    for name, of in ("record", "play"), ("seconds", "record"), ("games", "evaluate"):
        if getattr(command, name) is not None and getattr(command, of) is None:
            raise ValueError(f"--{name} goes with --{of} only")
    for name, allowed in ("games", between(1, 100_000)), ("seconds", ABOVE_0):
        value = getattr(command, name)
        if value is not None and not allowed.holds(value):
            raise ValueError(f"--{name} must be {allowed.words}, not {value}")
    allowed = set()
    if command.play is not None or command.evaluate is not None:
        allowed = {"seed"}
    if command.play is not None and command.record is None:
        allowed = {"seed", "render"}
    if command.draw or command.play is not None or command.evaluate is not None:
        for name in given:
            if name not in allowed:
                raise ValueError(f"{option(name)} is a setting of training, not of this command")
        if given.get("render") == "never":
            raise ValueError("--play shows the game; --render never does not go with it")
    if command.draw and len(command.draw) < 2:
        raise ValueError("--draw takes a picture to write and a run's folder, or several")
