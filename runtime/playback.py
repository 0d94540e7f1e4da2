"""The agent of a run at play, without learning: watched, recorded and measured.

--play shows game after game, in the emulator's window or in the terminal. --record makes a film of
one game, --evaluate a table of many. All take the policy from a checkpoint.
"""

import concurrent.futures
import contextlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import numpy as np
import rich.progress
from PIL import Image

import pong_actor
from pong_actor import Player, PolicyWeights, Pong, Sizes, make_env
from preprocessing import SCREEN_SHAPE
from runtime import checkpoints
from runtime.actors import ActorDied, PongActor, ScreenHangs, no_window, screens
from runtime.command_line import fail, user_errors
from runtime.cores import usable_cores
from runtime.display import TerminalView
from runtime.output import new_console
from runtime.plots import draw
from runtime.signals import suspend, when_suspended
from runtime.windows import window_of

FRAMES_A_SECOND = 60
ROLLOUT = 20  # steps an actor plays at a time, a second in a window


class Failed(Exception):
    """A fault during play; the message is a line for the user."""


@contextlib.contextmanager
def writing(path):
    """Do `checkpoints.written_beside`, and raise Failed if the file cannot be written."""
    try:
        with checkpoints.written_beside(path) as unfinished:
            yield unfinished
    except OSError as error:
        raise Failed(f"cannot write {path}: {error.strerror or error}") from None


# --------------------------------------------------------------------------------------- the policy


def load_policy(path):
    """Load what a run has learned.

    Args:
        path: a run's folder, for its newest good checkpoint, or the file of one checkpoint.

    Returns:
        `PolicyWeights`, and the `Checkpoint` that they are from.

    Raises:
        ValueError: there is none; the message is a line for the user.
    """
    checkpoint = checkpoints.load_newest(path, misfit)
    if line := better_one(path, checkpoint):
        checkpoint.passed_over.append(line)
    return policy_weights(checkpoint.arrays), checkpoint


def better_one(path, checkpoint):
    """Return a line about the run's best checkpoint, if its score was higher; else None."""
    best, path = checkpoints.best_of(path), checkpoint.path
    if best is None or best.path == path:
        return None
    scores = [at.about.get("running_score") for at in (best, checkpoint)]
    if None in scores or scores[0] <= scores[1]:
        return None
    was, now = (f"{score:.1f}" for score in scores)
    better = f"the run's best checkpoint had a running score of {was}, this one has {now}"
    return f"{better}; to use the best, give {best.path}"


def policy_weights(arrays):
    """Return the `PolicyWeights` among a checkpoint's arrays. Raises KeyError if one is missing."""
    head = "q_network" if "globalnet/q_network/bias" in arrays else "actor_network"
    names = "bias", "head_kernel", "head_bias"
    bias, *head = (arrays[f"globalnet/{head}/{name}"] for name in names)
    kernel = arrays["globalnet/kernel"][:, : len(bias)]  # a critic's columns stand behind
    return PolicyWeights(np.ascontiguousarray(kernel), bias, *head)


def misfit(checkpoint):
    """Return why a checkpoint holds no policy to play, in words; None if it holds one."""
    about = checkpoint.about
    try:
        policy = policy_weights(checkpoint.arrays)
        about["settings"]["game_env"], about["agent_steps"], about["method"]
    except KeyError as error:
        return f"it has no {error}"
    if not all(map(checkpoints.sane, policy)):
        return "its weights are NaN, infinite or huge"


class Way(NamedTuple):
    """A way to choose actions."""

    epsilon: float | None  # as for `PongActor.play`
    words: str


def ways(about):
    """Return the two ways to choose actions, training's first: dict of a name -> `Way`."""
    sampled = Way(None, "each action is drawn from the policy")
    if about["method"] != "a3c":
        sampled = Way(0.1, "each action is the best, but one in ten is a random one")
    return {"sampled": sampled, "greedy": Way(0.0, "each action is the best")}


def actor_with(policy, game, seed, window=None):
    """Return a `PongActor` that plays a policy, for a `with` that closes it."""
    hidden = len(policy.bias)
    sizes = Sizes(ROLLOUT, len(policy.kernel), hidden, hidden, game.num_actions)
    actor = PongActor(game, seed, sizes, window=window)
    for mine, array in zip(actor.policy, policy):
        mine[...] = array
    return contextlib.closing(actor)


# ------------------------------------------------------------------------------------------- --play


def play(path, render, seed, console, signals):
    """Play game after game, in the emulator's window until it is closed, or in the terminal."""
    policy, checkpoint = load_policy(path)
    about, path = checkpoint.about, checkpoint.path
    game = pong_actor.game(about["settings"]["game_env"])
    epsilon = ways(about)["sampled"].epsilon
    why_not = {"window": "there is no screen to open a window on"}
    why_not["terminal"] = TerminalView.why_not(console)
    for place, show in ("window", play_in_window), ("terminal", play_in_terminal):
        impossible = why_not[place] if place == "terminal" else not screens()
        if impossible or render not in (place, "auto"):
            continue
        window = window_of(path) if place == "window" else None
        with actor_with(policy, game, [seed], window) as actor:
            try:
                actor.wait_until_ready()
            except ActorDied as death:
                if place == "window":
                    why_not[place] = no_window(death)
                    continue
                raise Failed(f"the emulator died ({death})") from None
            for line in [
                *checkpoint.passed_over,
                f"playing {path}, {training(about)}; Ctrl-C ends it",
            ]:
                console.print(line)
            return show(actor, epsilon, game, console, signals)
    why_not = [why for place, why in why_not.items() if render in (place, "auto")]
    raise ValueError(f"{', and '.join(why_not)}; --record writes a film instead")


def training(about):
    """Return in words how long a checkpoint's agent was trained."""
    return f"after {about['agent_steps']:,} steps of training"


def play_in_window(actor, epsilon, game, console, signals):
    """Play until the window is closed; return the exit status."""
    try:
        for number in itertools.count(1):
            played = play_game(actor, epsilon, watch=lambda *_: bool(signals))
            if signals:
                raise KeyboardInterrupt
            console.print(game_line(number, played))
    except ScreenHangs as death:
        raise Failed(str(death)) from None
    except ActorDied as death:
        if death.status < 0:
            raise Failed(f"the emulator died ({death})") from None
    return 0  # its user closed the window


def play_in_terminal(actor, epsilon, game, console, signals):
    """Play at the game's own pace until a signal comes."""
    pace, due, lines = game.frames_per_step / FRAMES_A_SECOND, time.monotonic(), []
    suspended = []  # whether Ctrl-Z was pressed

    def show(rollout, won, lost):
        nonlocal due
        signals.starting = False  # a signal raises only while the actor plays, not in a frame
        if suspended:  # here, as a signal may come while a frame is half written
            suspended.clear()
            view.__exit__(None, None, None)
            suspend()
            view.__enter__()
        time.sleep(max(0, due - time.monotonic()))
        due = max(due, time.monotonic() - 1) + pace
        if rollout.rewards.any():
            view.tell({"game": f"{number}", "score": f"{won} : {lost}"}, lines=lines)
        view.show(rollout.rows[rollout.states[-1].nonzero()[0]])
        signals.starting = not signals
        return bool(signals)

    signals.starting = False  # until the first frame is shown
    try:
        with TerminalView(console) as view:
            when_suspended(lambda: suspended.append(True))
            for number in itertools.count(1):
                view.tell({"game": f"{number}", "score": "0 : 0"}, lines=lines)
                played = play_game(actor, epsilon, 1, show)
                if signals:
                    raise KeyboardInterrupt
                lines.append(game_line(number, played))
    except ActorDied as death:
        raise Failed(f"the emulator died ({death})") from None
    finally:  # on the screen that was there before
        for line in lines:
            console.print(line)


def game_line(number, game):
    """Return the line for a `PlayedGame`."""
    return f"game {number} | score: {game.score} ({game.won} : {game.lost})"


class PlayedGame(NamedTuple):
    """The result of a game."""

    won: int  # points
    lost: int
    steps: int
    truncated: bool  # the emulator's frame limit ended it

    @property
    def score(self):
        """The game's score, from -21 to 21."""
        return self.won - self.lost


def play_game(actor, epsilon=None, steps=ROLLOUT, watch=lambda rollout, won, lost: False):
    """Play to the end of a game; return the `PlayedGame`.

    Args:
        actor: a `PongActor`.
        epsilon: as for `PongActor.play`.
        steps: the steps of a rollout.
        watch: a function of each rollout and the points won and lost so far; True ends the game.
    """
    won = lost = played = 0
    while True:
        rollout = actor.play(steps, epsilon)
        won += int((rollout.rewards > 0).sum())
        lost += int((rollout.rewards < 0).sum())
        played += len(rollout.actions)
        if watch(rollout, won, lost) or rollout.terminal or rollout.truncated:
            return PlayedGame(won, lost, played, rollout.truncated)


# ----------------------------------------------------------------------------------------- --record

# Pong's colours: black, walls and scores, the court, the rival's paddle, the agent's paddle and the
# ball; as indices on the emulator's screen and as RGB
INDICES = [0, 14, 34, 56, 200]
COLOURS = np.array(
    [[0, 0, 0], [236, 236, 236], [144, 72, 17], [213, 130, 74], [92, 186, 92]], np.uint8
)
COLOUR_OF_INDEX = np.zeros(256, np.uint8)
COLOUR_OF_INDEX[INDICES] = range(len(INDICES))
GIF_EVERY = 3  # frames: 20 images a second, as often as the agent acts on average


def record(path, film, seconds, seed, console, signals):
    """Write one game, or its first seconds, to a .gif or .mp4 file; a signal leaves no file."""
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
    policy, checkpoint = load_policy(path)
    about, path = checkpoint.about, checkpoint.path
    for line in [*checkpoint.passed_over, f"recording {path}, {training(about)}"]:
        console.print(line)
    # From here on only `until_signal` raises KeyboardInterrupt. The handler might raise it where no
    # `finally` removes the file or ends ffmpeg yet.
    signals.starting = False
    frames = Counted(until_signal(filmed_game(policy, about, seed), signals))
    last = None
    if seconds is not None:
        last = round(min(max(1, FRAMES_A_SECOND * seconds), sys.maxsize))
    with writing(film) as unfinished:
        write(unfinished, itertools.islice(frames, last))
        if signals:  # after the last frame
            raise KeyboardInterrupt
    size = film.stat().st_size / 1e6
    size = f"{size:.1f} MB" if size >= 1 else f"{1000 * size:.0f} KB"
    length = frames.number / FRAMES_A_SECOND
    console.print(f"{film}: {length:.1f} s, {size}, with --seed {seed}")
    return 0


def until_signal(values, signals):
    """Yield the values of an iterator, and raise KeyboardInterrupt after a signal."""
    for value in values:
        if signals:
            raise KeyboardInterrupt
        yield value


class Counted:
    """An iterator that counts its values."""

    def __init__(self, iterator):
        self.iterator, self.number = iterator, 0

    def __iter__(self):
        for value in self.iterator:
            self.number += 1
            yield value


class Camera:
    """The emulator, which keeps the frames it showed: [210, 160] uint8, indices of `COLOURS`."""

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
    """Play a game, and yield its frames as a `Camera` keeps them."""
    emulator_seed, policy_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    pong = Pong(about["settings"]["game_env"], emulator_seed)
    pong.ale = camera = Camera(pong.ale)
    player, over = Player(pong, policy, policy_seed), False
    while not over:
        rollout = player.play(ROLLOUT, ways(about)["sampled"].epsilon)
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
        ["ffmpeg", "-y", "-loglevel", "error", *source.split(), *result.split(), f"file:{path}"],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        with contextlib.suppress(BrokenPipeError):  # ffmpeg has failed, and says why
            for frame in frames:
                ffmpeg.stdin.write(COLOURS[frame].tobytes())
        _, complaint = ffmpeg.communicate()
    finally:
        ffmpeg.kill()
        ffmpeg.wait()
    if ffmpeg.returncode:
        complaint = complaint.decode(errors="replace").splitlines()
        last_line = complaint[-1] if complaint else f"status {ffmpeg.returncode}"
        raise Failed(f"ffmpeg failed: {last_line}")


# --------------------------------------------------------------------------------------- --evaluate

SUMMARY = (
    "{way}: mean {mean:.2f}, standard deviation {standard_deviation:.2f}, "
    "minimum {minimum}, maximum {maximum}, {wins} wins of {games}"
)


def evaluate(path, games, seed, console, signals):
    """Play games in each of the `ways`, on all cores; print and write the results.

    A game depends on the seed and its number alone, not on games beside it.

    Args:
        path: a run's folder, or the file of one checkpoint.
        games: the number of games in each way.
        seed: int >= 0.
        console: where to print.
        signals: the process' `Signals`. After one, nothing is written.
    """
    policy, checkpoint = load_policy(path)
    about, path = checkpoint.about, checkpoint.path
    result = {"protocol": protocol(path, about, games, seed)}
    for line in [
        *checkpoint.passed_over,
        *(f"{name}: {text}" for name, text in result["protocol"].items()),
    ]:
        console.print(line)
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    name = f"evaluation-step-{about['agent_steps']:09}-seed-{seed}-games-{games}.json"
    replaced = (folder / name).exists()
    if not os.access(folder, os.W_OK):
        raise Failed(f"cannot write {folder / name}: no file can be written in its folder")
    for way, played in play_all(policy, about, games, seed, console, signals).items():
        result[way] = figures(played)
        console.print(SUMMARY.format(way=way, games=games, **result[way]))
    with writing(folder / name) as unfinished:
        unfinished.write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"{'replaced' if replaced else 'written'}: {folder / name}")
    return 0


def play_all(policy, about, games, seed, console, signals):
    """Play the games of an evaluation, beside each other, with a bar on a terminal.

    Returns:
        dict of the name of a way -> list of `PlayedGame`.

    Raises:
        Failed: an emulator died.
        KeyboardInterrupt: a signal came.
    """
    game = pong_actor.game(about["settings"]["game_env"])
    bar = rich.progress.Progress(
        rich.progress.BarColumn(), rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("games,"), rich.progress.TimeElapsedColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    stopping, played, playing = threading.Event(), {}, set()

    def play_one(number, epsilon):
        with actor_with(policy, game, [seed, number]) as actor:
            playing.add(actor)
            try:
                if not stopping.is_set():  # else nobody would end this actor if it hung
                    return play_game(actor, epsilon, watch=lambda *_: stopping.is_set())
            finally:
                playing.remove(actor)

    signals.starting = False  # an exception might leave a lock of the threads' locked
    with bar, concurrent.futures.ThreadPoolExecutor(usable_cores()) as threads:
        try:
            for name, way in ways(about).items():
                played[name] = [threads.submit(play_one, n, way.epsilon) for n in range(games)]
            pending = set(itertools.chain(*played.values()))
            progress = bar.add_task("", total=len(pending))
            when_suspended(lambda: (bar.stop(), suspend(), bar.start()))
            while pending and not signals:
                done, pending = concurrent.futures.wait(pending, 0.2, "FIRST_COMPLETED")
                for task in done:
                    task.result()
                bar.advance(progress, len(done))
        except ActorDied as death:
            raise Failed(f"an emulator died ({death}); nothing is written") from None
        finally:  # games that are left, after a signal or a death, are not played
            stopping.set()
            threads.shutdown(wait=False, cancel_futures=True)
            for actor in list(playing):  # one that hangs would be waited for
                actor.close()
    if signals:
        raise KeyboardInterrupt
    return {way: [task.result() for task in tasks] for way, tasks in played.items()}


def protocol(path, about, games, seed):
    """Return all that the figures depend on: dict of name -> text or number."""
    game_env = about["settings"]["game_env"]
    env = make_env(game_env)
    first, last = np.broadcast_to(env._frameskip, 2) - [0, not isinstance(env._frameskip, int)]
    return {
        "checkpoint": str(path),
        "agent steps of training": about["agent_steps"],
        "environment": game_env,
        "sticky actions": round(env.ale.getFloat("repeat_action_probability"), 6),
        "frames a step": f"{first} to {last}, drawn at random" if first < last else int(first),
        "frames a game, at most": env.ale.getInt("max_num_frames_per_episode"),
        "games": games,
        "seed": seed,
        "randomness": "of game n, from 0, emulator and policy are seeded from (seed, n)",
        **{name: way.words for name, way in ways(about).items()},
        "standard deviation": "of the games played (divided by their number)",
        **{name: importlib.metadata.version(name) for name in ("gymnasium", "ale-py", "numpy")},
    }


def figures(games):
    """Return the figures of games, a list of `PlayedGame`."""
    scores = [game.score for game in games]
    return dict(
        mean=float(np.mean(scores)), standard_deviation=float(np.std(scores)),
        minimum=min(scores), maximum=max(scores), wins=sum(score > 0 for score in scores),
        cut_off=sum(game.truncated for game in games),
        scores=scores, steps=[game.steps for game in games],
    )  # fmt: skip


# ----------------------------------------------------------------------------- on the command line


def main(command, given, signals):
    """Draw, play, record or evaluate, as the command says; return the exit status.

    Args:
        command: the namespace from the command line.
        given: dict of the settings given there: seed, render.
        signals: the process' `Signals`.
    """
    console = new_console()
    seed = given.get("seed")
    try:
        with user_errors():
            if command.draw:
                return draw(console, *command.draw)
            if command.evaluate is not None:
                return evaluate(command.evaluate, command.games or 20, seed or 0, console, signals)
            seed = int.from_bytes(os.urandom(3)) if seed is None else seed
            if command.record is not None:
                return record(command.play, command.record, command.seconds, seed, console, signals)
            return play(command.play, given.get("render", "auto"), seed, console, signals)
    except KeyboardInterrupt:
        return 128 + signals[0]  # as in shells
    except Failed as error:
        fail(error, status=1)
