"""All that can be set, the command line that sets it, and presets of several settings at once."""

import argparse
import dataclasses
import math
import pathlib
import sys
from typing import Literal, get_args, get_origin

from runtime import checkpoints
from runtime import playback as watch


def setting(default, meaning):
    """A field of `Settings`: its default and its line in --help."""
    return dataclasses.field(default=default, metadata={"help": meaning})


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that can be set; the command line is made of it. In brackets: a default's origin."""

    preset: Literal["chapter", "rally"] = setting(
        "chapter", "what the other settings are where they are not given [chapter]"
    )
    method: Literal["a3c", "one-step-q", "one-step-sarsa", "n-step-q"] = setting(
        "a3c", "which of the chapter's four [chapter: its code is a3c's]"
    )
    env_id: str = setting("Pong-v0", "Gymnasium id of the Pong to play [chapter: game_env]")
    workers: int | None = setting(None, "threads; none: one per core [chapter: num_workers]")
    max_episodes: int = setting(100_000, "games to play [chapter: max_global_episodes]")
    max_steps: int | None = setting(None, "agent steps to play, of all workers together [ours]")
    max_minutes: float | None = setting(None, "minutes to train [ours]")
    until_score: float | None = setting(None, "running score, -21 to 21, to stop at [ours]")
    steps_per_update: int = setting(20, "steps of a rollout [chapter: global_iteration_update]")
    frames: int = setting(1, "latest frames that make a state [chapter: one]")
    gamma: float = setting(0.9, "discount factor of the returns [chapter]")
    gae_lambda: float = setting(
        1.0, "a3c: lambda of generalized advantage estimation [1 gives the chapter's returns]"
    )
    cut_at_points: bool = setting(False, "returns end where a point is scored [chapter: no]")
    beta: float = setting(0.0001, "weight of the policy's entropy in the actor's loss [chapter]")
    beta_power: float = setting(
        0.0, "of the share of points lost lately, which beta is times; 0: it stays [ours]"
    )
    lr_actor: float = setting(0.0001, "learning rate of the actor [chapter]")
    lr_critic: float = setting(0.0001, "learning rate of the critic [chapter]")
    lr_q: float = setting(0.0001, "learning rate of a Q-network [a3c's; paper: 0.0001 to 0.01]")
    anneal_steps: int | None = setting(
        None, "agent steps in which the learning rates fall to 0, none: never [paper: all]"
    )
    loss: Literal["auto", "mean", "sum"] = setting(
        "auto", "over a rollout; auto: a3c mean, others sum [chapter's code, its pseudo-code]"
    )
    rmsprop_decay: float = setting(0.9, "of RMSProp's mean squares [chapter: TensorFlow's]")
    rmsprop_epsilon: float = setting(1e-10, "under RMSProp's root [chapter: TensorFlow's]")
    target_steps: int = setting(
        10_000, "agent steps between copies to the target net [paper: 40,000 frames, 4 a step]"
    )
    epsilon_frames: int = setting(
        4_000_000, "frames in which epsilon falls from 1 [paper, section 5.1]"
    )
    lost_game_reward: float | None = setting(
        -20.0, "what a lost game's last reward is replaced by; none: nothing [chapter]"
    )
    seed: int | None = setting(None, "of all randomness; none: another each time [ours]")
    render: Literal["auto", "window", "terminal", "never"] = setting(
        "auto", "show W_0's game; auto: on a screen, else in the terminal [chapter: always]"
    )
    run_dir: str | None = setting(None, "folder to write to; none: a new one in runs/ [ours]")
    autosave_minutes: float = setting(3.0, "minutes between checkpoints [ours]")

    def check(self):
        """Raises ValueError, with one line for the user, where a value makes no sense."""
        for field in dataclasses.fields(self):
            choices, value = get_args(field.type), getattr(self, field.name)
            if get_origin(field.type) is Literal and value not in choices:
                raise ValueError(f"{option(field.name)} must be {', '.join(choices)}, not {value}")
        must = {name: (lambda n: n >= 1, "at least 1") for name in
                ("workers", "max_episodes", "max_steps", "frames",
                 "anneal_steps", "target_steps", "epsilon_frames")}  # fmt: skip
        must |= {name: (lambda x: 0 < x < math.inf, "a number above 0") for name in
                 ("max_minutes", "lr_actor", "lr_critic", "lr_q", "rmsprop_epsilon",
                  "autosave_minutes")}  # fmt: skip
        must |= {name: (lambda x: 0 <= x <= 1, "between 0 and 1") for name in
                 ("gamma", "gae_lambda", "rmsprop_decay")}  # fmt: skip
        must |= {name: (lambda x: 0 <= x < math.inf, "0 or a number above") for name in
                 ("beta", "beta_power")}  # fmt: skip
        must["steps_per_update"] = lambda n: 1 <= n <= 2000, "between 1 and 2000"
        must["lost_game_reward"] = math.isfinite, "a number or none"
        must["until_score"] = lambda x: -21 <= x <= 21, "between -21 and 21"
        must["seed"] = lambda n: 0 <= n < 2**31, "between 0 and 2147483647"
        for name, (holds, words) in must.items():
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise ValueError(f"{option(name)} must be {words}, not {value}")


# What differs from the chapter's settings; a field of `Settings` -> its value.
PRESETS = {
    "chapter": {},
    # every point an episode of its own, rollouts that hold the rally before it, and a policy that
    # explores for as long as it loses
    "rally": dict(
        frames=2, steps_per_update=120, cut_at_points=True, lost_game_reward=None,
        gamma=1.0, gae_lambda=0.95, loss="sum", rmsprop_decay=0.975, rmsprop_epsilon=5e-5,
        lr_actor=5e-4, lr_critic=2e-3, beta=0.02, beta_power=3.0, max_steps=10_000_000,
    ),
}  # fmt: skip

# What may be another when a run is resumed; all else belongs to the run.
CHANGEABLE = ("workers", "max_episodes", "max_steps", "max_minutes", "until_score", "render",
              "autosave_minutes")  # fmt: skip


def option(name):
    """The command-line option of a field."""
    return "--" + name.replace("_", "-")


def shown(value):
    """A value as the command line or the help has it."""
    return {"None": "none", "False": "no", "True": "yes"}.get(str(value), str(value))


def parse_settings(arguments, description):
    """The command in a list of arguments, and a dict of the settings that it gives.

    One line on stderr and status 2 for wrong ones. description: for --help.
    """

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            fail(message)

    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=description, formatter_class=layout, allow_abbrev=False)
    for field in dataclasses.fields(Settings):
        kinds = get_args(field.type) or (field.type,)
        how = {"help": f"{field.metadata['help']} (default: {shown(field.default)})"}
        how["default"] = argparse.SUPPRESS  # what is not given is not there
        if get_origin(field.type) is Literal:
            how["choices"] = kinds
        elif field.type is bool:
            how["action"] = argparse.BooleanOptionalAction
        else:
            how["type"], how["metavar"] = reader(*kinds), kinds[0].__name__.upper()
        parser.add_argument(option(field.name), **how)
    group = parser.add_argument_group("instead of a new run")
    commands = group.add_mutually_exclusive_group()
    commands.add_argument(
        "--resume", metavar="RUN_FOLDER", type=pathlib.Path, help="go on where it stopped"
    )
    commands.add_argument(
        "--draw", metavar=("PICTURE", "RUN_FOLDER"), nargs="+", type=pathlib.Path,
        help="write a picture of a run's curve, or of several runs' side by side",
    )  # fmt: skip
    watch.add_options(group, commands)
    command, given = parser.parse_args(arguments), {}
    for field in dataclasses.fields(Settings):
        if hasattr(command, field.name):
            given[field.name] = getattr(command, field.name)
            delattr(command, field.name)
    if "preset" in given:
        given = {"preset": given["preset"]} | PRESETS[given["preset"]] | given
    try:
        Settings(**given).check()
        if given.get("render") == "terminal" and not sys.stdout.isatty():
            raise ValueError("--render terminal: the output is no terminal")
        watch.check(command, given)
        if command.draw and len(command.draw) < 2:
            raise ValueError("--draw takes a picture to write and a run's folder, or several")
        if command.draw and given:
            raise ValueError(f"{option(next(iter(given)))} is of training, not of this")
    except ValueError as error:
        fail(error)
    return command, given


def resumed_settings(folder, kept, given, notices):
    """The settings of a run to go on with, as the command line changes them.

    Args:
        folder: its `RunFolder`.
        kept: dict of the settings in its checkpoint; {} where there is none yet.
        given: dict of the settings on the command line, of CHANGEABLE ones.
        notices: list of lines for the user, to add to.

    Raises ValueError, with one line for the user.
    """
    names = [field.name for field in dataclasses.fields(Settings)]
    try:
        values = folder.config()["settings"]
        settings = Settings(**{name: values[name] for name in names if name in values} | given)
        settings.check()
    except (OSError, ValueError, TypeError) as error:
        if not kept:
            raise ValueError(f"{folder.path}/config.json: {checkpoints.why(error)}") from None
        line = f"{folder.path}/config.json is not readable ({checkpoints.why(error)}): "
        notices.append(line + "the settings are the checkpoint's")
        values = kept
        settings = Settings(**{name: kept[name] for name in names if name in kept} | given)
    for name in [name for name in names if name not in values]:
        default = shown(getattr(settings, name))
        notices.append(f"{folder.path}/config.json does not say {name}: it is {default}")
    for name in [name for name in values if name not in names]:
        notices.append(f"{folder.path}/config.json says {name}, which is no setting: left out")
    return settings


def reader(kind, none=None):
    """How a setting of this kind is read from the command line: as kind, or `none` if it may be."""

    def read(text):
        return None if none and text == "none" else kind(text)

    read.__name__ = kind.__name__  # argparse names it where the text is of another kind
    return read


def fail(message, status=2):
    """End the program with one line on stderr."""
    print(f"a3c_pong.py: {message}", file=sys.stderr)
    sys.exit(status)
