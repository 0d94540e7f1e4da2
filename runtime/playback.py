"""What a run has learned: watched, recorded and measured, without learning. No TensorFlow.

--play shows game after game, in the emulator's window or in the terminal; --record makes a film of
one, --evaluate a table of many. All take the policy from a checkpoint.
"""

import concurrent.futures
import contextlib
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import shutil
import subprocess
import threading
import time

import numpy as np
import rich.console
import rich.progress
from PIL import Image

import pong_actor
from pong_actor import ActorDied, Player, PolicyWeights, Pong, PongActor, make_env
from preprocessing import SCREEN_SHAPE
from runtime import checkpoints
from runtime.display import TerminalView

FRAMES_A_SECOND = 60
ROLLOUT = 20  # steps an actor plays at a time, a second in a window


class Failed(Exception):
    """Something broke on the way; the message is a line for the user."""


# --------------------------------------------------------------------------------------- the policy


def load_policy(path):
    """What a run has learned.

    Args:
        path: a run's folder, for its newest good checkpoint, or the file of one checkpoint.

    Returns:
        (`PolicyWeights`, what the checkpoint says about itself, its path, lines about newer ones
        that are damaged).

    Raises:
        ValueError: there is none; the message is a line for the user.
    """
    path, arrays, about, damaged = checkpoints.load_newest(path, fits)
    return policy_weights(arrays), about, path, damaged


def policy_weights(arrays):
    """The `PolicyWeights` among a checkpoint's arrays. Raises KeyError where they are not there."""
    head = "q_network" if "globalnet/q_network/bias" in arrays else "actor_network"
    names = "bias", "head_kernel", "head_bias"
    bias, *head = (arrays[f"globalnet/{head}/{name}"] for name in names)
    kernel = arrays["globalnet/kernel"][:, : len(bias)]  # a critic's columns stand behind
    return PolicyWeights(np.ascontiguousarray(kernel), bias, *head)


def fits(arrays, about):
    """What is wrong with a checkpoint, for the one who wants its policy; None if nothing is."""
    try:
        policy_weights(arrays), about["settings"]["env_id"], about["agent_steps"], about["method"]
    except KeyError as error:
        return f"it has no {error}"


def ways(about):
    """How actions are chosen, the first way as in training: name -> (`epsilon`, in words)."""
    epsilon, words = None, "each action is drawn from the policy"
    if about["method"] != "a3c":
        epsilon, words = 0.1, "each action is the best, but one in ten is a random one"
    return {"sampled": (epsilon, words), "greedy": (0.0, "each action is the best")}


def actor_with(policy, game, seed, window=False):
    """A `PongActor`, closed at the end of a `with`, that plays a policy."""
    sizes = ROLLOUT, len(policy.kernel), len(policy.bias)
    actor = PongActor(game, seed, sizes, window=window)
    for mine, array in zip(actor.policy, policy):
        mine[...] = array
    return contextlib.closing(actor)


# ------------------------------------------------------------------------------------------- --play


def play(path, render, seed, console):
    """Play game after game, in the emulator's window until it is closed, or in the terminal."""
    policy, about, path, damaged = load_policy(path)
    game = pong_actor.game(about["settings"]["env_id"])
    epsilon, _ = ways(about)["sampled"]
    why_not_there = TerminalView.why_not(console)
    for place, show in ("window", play_in_window), ("terminal", play_in_terminal):
        if render not in (place, "auto") or (place == "terminal" and why_not_there):
            continue
        with actor_with(policy, game, [seed], place == "window") as actor:
            try:
                actor.wait_until_ready()
            except ActorDied as death:
                if place == "window":  # it cannot open it
                    continue
                raise Failed(f"the emulator died ({death})") from None
            for line in [*damaged, f"playing {path}, {training(about)}; Ctrl-C ends it"]:
                console.print(line)
            return show(actor, epsilon, game, console)
    why_not = {"window": "there is no screen to open a window on", "terminal": why_not_there}
    why_not = [why for place, why in why_not.items() if render in (place, "auto")]
    raise ValueError(f"{', and '.join(why_not)}; --record writes a film instead")


def training(about):
    """How far a checkpoint's training had come."""
    return f"after {about['agent_steps']:,} steps of training"


def play_in_window(actor, epsilon, game, console):
    """Play until the window is closed; the exit status."""
    try:
        for number in itertools.count(1):
            won, lost, _, _ = play_game(actor, epsilon)
            console.print(game_line(number, won, lost))
    except ActorDied as death:
        if death.status < 0:
            raise Failed(f"the emulator died ({death})") from None
    return 0  # its user closed the window


def play_in_terminal(actor, epsilon, game, console):
    """Play at the game's own pace until a signal comes."""
    pace, due, lines = game.frames_per_step / FRAMES_A_SECOND, time.monotonic(), []

    def show(rollout, won, lost):
        nonlocal due
        time.sleep(max(0, due - time.monotonic()))
        due = max(due, time.monotonic() - 1) + pace
        if rollout.rewards.any():
            view.tell({"game": f"{number}", "score": f"{won} : {lost}"}, lines=lines)
        view.show(rollout.rows[rollout.states[-1].nonzero()[0]])

    try:
        with TerminalView(console) as view:
            for number in itertools.count(1):
                view.tell({"game": f"{number}", "score": "0 : 0"}, lines=lines)
                won, lost, _, _ = play_game(actor, epsilon, 1, show)
                lines.append(game_line(number, won, lost))
    except ActorDied as death:
        raise Failed(f"the emulator died ({death})") from None
    finally:  # on the screen that was there before
        for line in lines:
            console.print(line)


def game_line(number, won, lost):
    """The line for a game that is over."""
    return f"game {number} | score: {won - lost} ({won} : {lost})"


def play_game(actor, epsilon=None, steps=ROLLOUT, see=lambda rollout, won, lost: False):
    """Play to the end of a game, so many steps at a time: (points won, lost, steps, truncated).

    see: called with each rollout and the points so far; where it says yes, the game ends.
    """
    won = lost = played = 0
    while True:
        rollout = actor.play(steps, epsilon)
        won += int((rollout.rewards > 0).sum())
        lost += int((rollout.rewards < 0).sum())
        played += len(rollout.actions)
        if see(rollout, won, lost) or rollout.terminal or rollout.truncated:
            return won, lost, played, rollout.truncated


# ----------------------------------------------------------------------------------------- --record

# All that Pong shows: black, walls and scores, the court, the rival's paddle, the agent's and the
# ball, by their indices on the emulator's screen and as RGB
INDICES = [0, 14, 34, 56, 200]
COLOURS = np.array(
    [[0, 0, 0], [236, 236, 236], [144, 72, 17], [213, 130, 74], [92, 186, 92]], np.uint8
)
COLOUR_OF_INDEX = np.zeros(256, np.uint8)
COLOUR_OF_INDEX[INDICES] = range(len(INDICES))
GIF_EVERY = 3  # frames: 20 images a second, as often as the agent acts on average


def record(path, film, seconds, seed, console):
    """Write one game, or its first seconds, to a .gif or .mp4 file."""
    film = pathlib.Path(film)
    write = {".gif": write_gif, ".mp4": write_mp4}.get(film.suffix.lower())
    if write is None:
        raise ValueError(f"--record writes .gif and .mp4 files, and {film} is neither")
    if film.exists():
        raise ValueError(f"{film} is there already; --record writes a new file")
    if not film.parent.is_dir():
        raise ValueError(f"{film.parent}: there is no such folder")
    if write == write_mp4 and not shutil.which("ffmpeg"):
        raise ValueError("an .mp4 file needs the program ffmpeg, which is not installed")
    policy, about, path, damaged = load_policy(path)
    for line in [*damaged, f"recording {path}, {training(about)}"]:
        console.print(line)
    frames = Counted(filmed_game(policy, about, seed))
    unfinished = film.with_name(f"{film.name}.unfinished")
    try:
        last = None if seconds is None else max(1, round(FRAMES_A_SECOND * seconds))
        write(unfinished, itertools.islice(frames, last))
        os.replace(unfinished, film)
    except OSError as error:
        raise Failed(f"cannot write {film}: {error.strerror or error}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    size = film.stat().st_size / 1e6
    length = frames.number / FRAMES_A_SECOND
    console.print(f"{film}: {length:.1f} s, {size:.1f} MB, with --seed {seed}")
    return 0


class Counted:
    """An iterator that knows how many it has given."""

    def __init__(self, iterator):
        self.iterator, self.number = iterator, 0

    def __iter__(self):
        for value in self.iterator:
            self.number += 1
            yield value


class Camera:
    """The emulator, with the frames it has shown kept: [210, 160] uint8, places in `COLOURS`."""

    def __init__(self, ale):
        self.ale, self.frames = ale, []

    def __getattr__(self, name):
        return getattr(self.ale, name)

    def act(self, action):
        reward = self.ale.act(action)
        if self.ale.getEpisodeFrameNumber() > 1:  # a game's first frame has other colours
            self.frames.append(COLOUR_OF_INDEX[self.ale.getScreen()])
        return reward


def filmed_game(policy, about, seed):
    """Play a game, giving each of its frames as a `Camera` does."""
    emulator_seed, policy_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    pong = Pong(about["settings"]["env_id"], emulator_seed)
    pong.ale = camera = Camera(pong.ale)
    player, over = Player(pong, policy, policy_seed), False
    while not over:
        rollout = player.play(ROLLOUT, ways(about)["sampled"][0])
        over = rollout.terminal or rollout.truncated
        yield from camera.frames
        camera.frames.clear()


def write_gif(path, frames):
    """Write frames as an endless GIF at real speed, 20 images a second."""

    def image(frame):
        return Image.frombytes("P", SCREEN_SHAPE[::-1], frame.tobytes())

    images = map(image, itertools.islice(frames, 0, None, GIF_EVERY))
    next(images).save(
        path, "GIF", save_all=True, append_images=images, palette=COLOURS.tobytes(), loop=0,
        duration=1000 * GIF_EVERY // FRAMES_A_SECOND,
    )  # fmt: skip


def write_mp4(path, frames):
    """Write frames as an MP4 film at real speed, every frame, four times as large each way."""
    height, width = SCREEN_SHAPE
    source = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {FRAMES_A_SECOND} -i -"
    result = f"-vf scale={4 * width}:-1:flags=neighbor -pix_fmt yuv420p -f mp4"
    ffmpeg = subprocess.Popen(
        ["ffmpeg", "-loglevel", "error", *source.split(), *result.split(), str(path)],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        with contextlib.suppress(BrokenPipeError):  # it has failed, and says why
            for frame in frames:
                ffmpeg.stdin.write(COLOURS[frame].tobytes())
        _, complaint = ffmpeg.communicate()
    finally:
        ffmpeg.kill()
        ffmpeg.wait()
    if ffmpeg.returncode:
        last_line = [f"status {ffmpeg.returncode}", *complaint.decode().splitlines()][-1]
        raise Failed(f"ffmpeg failed: {last_line}")


# --------------------------------------------------------------------------------------- --evaluate

SUMMARY = (
    "{way}: mean {mean:.2f}, standard deviation {standard_deviation:.2f}, "
    "minimum {minimum}, maximum {maximum}, {wins} wins of {games}"
)


def evaluate(path, games, seed, console, signals):
    """Play so many games in each of the `ways`, on all cores; print and write what came of it.

    What happens in a game depends on the seed and the game's number, not on what plays beside it.
    signals: `Signals` to look at; where one has come, nothing is written.
    """
    policy, about, path, damaged = load_policy(path)
    game = pong_actor.game(about["settings"]["env_id"])
    result = {"protocol": protocol(path, about, games, seed)}
    for line in [*damaged, *(f"{name}: {text}" for name, text in result["protocol"].items())]:
        console.print(line)
    bar = rich.progress.Progress(
        rich.progress.BarColumn(), rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("games,"), rich.progress.TimeElapsedColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    stopping, played = threading.Event(), {}

    def play_one(number, epsilon):
        with actor_with(policy, game, [seed, number]) as actor:
            return play_game(actor, epsilon, see=lambda *_: stopping.is_set())

    signals.starting = False  # an exception might leave a lock of the threads' locked
    with bar, concurrent.futures.ThreadPoolExecutor(len(pong_actor.allowed_cores())) as threads:
        try:
            for way, (epsilon, _) in ways(about).items():
                played[way] = [threads.submit(play_one, n, epsilon) for n in range(games)]
            pending = set(itertools.chain(*played.values()))
            progress = bar.add_task("", total=len(pending))
            while pending and not signals:
                done, pending = concurrent.futures.wait(pending, 0.2, "FIRST_COMPLETED")
                for task in done:
                    task.result()
                bar.advance(progress, len(done))
        except ActorDied as death:
            raise Failed(f"an emulator died ({death}); nothing is written") from None
        finally:  # where something is still to play, it is not wanted any more
            stopping.set()
            threads.shutdown(wait=False, cancel_futures=True)
    if signals:
        raise KeyboardInterrupt
    for way, tasks in played.items():
        result[way] = figures([task.result() for task in tasks])
        console.print(SUMMARY.format(way=way, games=games, **result[way]))
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    name = f"evaluation-step-{about['agent_steps']:09}-seed-{seed}-games-{games}.json"
    replaced = (folder / name).exists()
    try:
        (folder / name).write_text(json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise Failed(f"cannot write {folder / name}: {error.strerror}") from None
    console.print(f"{'replaced' if replaced else 'written'}: {folder / name}")
    return 0


def protocol(path, about, games, seed):
    """All that the figures depend on: dict of name -> text or number."""
    env_id = about["settings"]["env_id"]
    env = make_env(env_id)
    first, last = np.broadcast_to(env._frameskip, 2) - [0, not isinstance(env._frameskip, int)]
    return {
        "checkpoint": str(path),
        "agent steps of training": about["agent_steps"],
        "environment": env_id,
        "sticky actions": round(env.ale.getFloat("repeat_action_probability"), 6),
        "frames a step": f"{first} to {last}, drawn at random" if first < last else int(first),
        "frames a game, at most": env.ale.getInt("max_num_frames_per_episode"),
        "games": games,
        "seed": seed,
        "randomness": "of game n, from 0, emulator and policy are seeded from (seed, n)",
        **{way: words for way, (_, words) in ways(about).items()},
        "standard deviation": "of the games played (divided by their number)",
        **{name: importlib.metadata.version(name) for name in ("gymnasium", "ale-py", "numpy")},
    }


def figures(games):
    """What is told of games, given as `play_game` gives them."""
    scores = [won - lost for won, lost, _, _ in games]
    return dict(
        mean=float(np.mean(scores)), standard_deviation=float(np.std(scores)),
        minimum=min(scores), maximum=max(scores), wins=sum(score > 0 for score in scores),
        cut_off=sum(truncated for _, _, _, truncated in games),
        scores=scores, steps=[steps for _, _, steps, _ in games],
    )  # fmt: skip


# ----------------------------------------------------------------------------- on the command line


def add_options(parser, commands):
    """Add the commands to a group that allows one of them, and what goes with them to a parser."""
    run = dict(metavar="RUN")
    commands.add_argument(
        "--play", **run, help="show how a run's agent plays; RUN: its folder, or a checkpoint file"
    )
    commands.add_argument(
        "--evaluate", **run, help="have a run's agent play --games games, without learning"
    )
    parser.add_argument(
        "--record", metavar="FILE", help="with --play: write one game to this .gif or .mp4 instead"
    )
    parser.add_argument(
        "--seconds", metavar="FLOAT", type=float, help="with --record: only so many of the game"
    )
    parser.add_argument(
        "--games", metavar="INT", type=int,
        help="with --evaluate: games sampled from the policy, and as many greedy (default: 20)",
    )  # fmt: skip


def check(command, given):
    """Raises ValueError where the options of a command make no sense together.

    given: the names of the settings on the command line.
    """
    for option, of in ("record", "play"), ("seconds", "record"), ("games", "evaluate"):
        if getattr(command, option) is not None and getattr(command, of) is None:
            raise ValueError(f"--{option} goes with --{of} only")
    if command.games is not None and command.games < 1:
        raise ValueError(f"--games must be at least 1, not {command.games}")
    if command.seconds is not None and not 0 < command.seconds < math.inf:
        raise ValueError(f"--seconds must be a number above 0, not {command.seconds}")
    if command.play is not None or command.evaluate is not None:
        shown = command.play is not None and command.record is None
        for name in given:
            if name != "seed" and not (name == "render" and shown):
                raise ValueError(f"--{name.replace('_', '-')} is of training, not of this")
        if given.get("render") == "never":
            raise ValueError("--play shows the game; --render never does not go with it")


def main(command, signals, seed=None, render="auto"):
    """Do what a command asks for; the exit status.

    Raises:
        ValueError: it cannot be done as asked; the message is a line for the user.
        Failed: something broke on the way; so is this.
        KeyboardInterrupt: a signal came.
    """
    console = rich.console.Console(highlight=False, markup=False, soft_wrap=True)
    if command.evaluate is not None:
        return evaluate(command.evaluate, command.games or 20, seed or 0, console, signals)
    seed = int.from_bytes(os.urandom(3)) if seed is None else seed
    if command.record is not None:
        return record(command.play, command.record, command.seconds, seed, console)
    return play(command.play, render, seed, console)
