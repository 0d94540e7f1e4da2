"""Runs the compiled learner with lists of settings and several seeds, and makes a table of them.

    python search/run.py RESULT.csv --seeds 1-6 --steps 4e6 --jobs 2 -- "" "gamma=.99"

Each quoted string is what differs from the preset, "name=number name=number"; "" is the preset
itself. The names are in OPTIONS of a3c.c. The game and the learner are built first where need be,
which takes gcc. A run is one thread; a row is added to RESULT.csv when it ends: the moving true
score by million steps, and when it was first above 0 and above 18. With "eval=100" the row also has
the mean and the worst score of 100 games at the end, with sampled and with greedy actions. With
`--from RUN`, a run's folder or one of its checkpoints, the learner goes on from where the program
was there, steps counted on, with new games.
"""

import argparse
import concurrent.futures
import csv
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import translate

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from runtime import checkpoints  # noqa: E402

COMPILE = ["gcc", "-std=gnu11", "-O3", "-march=native", "-ffast-math"]
MARKS = (1, 2, 3, 4, 5, 6, 8, 10)  # million steps
COLUMNS = ["workers", "global_iteration_update", "other", "seed",
           *(f"score_at_{mark}M" for mark in MARKS), "above_0_at_M", "above_18_at_M",
           "last_step_M", "last_score", "last_entropy",
           "sampled", "sampled_worst", "greedy", "greedy_worst"]  # fmt: skip
OWN_COLUMNS = ("workers", "global_iteration_update")


def fail(message):
    """End the program with one line on stderr."""
    print(f"run.py: {message}", file=sys.stderr)
    sys.exit(2)


def build(folder):
    """Return the learner's program, made in a folder if it is missing or older than its sources."""
    program, sources = folder / "a3c", [HERE / n for n in ("a3c.c", "pong.h", "translate.py")]
    made = program.stat().st_mtime if program.exists() else 0
    if any(source.stat().st_mtime > made for source in sources):
        if not shutil.which("gcc"):
            fail("gcc is not installed")
        try:
            translate.translate(folder)
            include = ["-I", folder]
            subprocess.run([*COMPILE, *include, HERE / "a3c.c", "-o", program, "-lm"], check=True)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            fail(error)
    return program


def defaults():
    """Return the learner's options: dict of name -> default, as it is written there."""
    options = re.search(r"#define OPTIONS.*?\n\n", (HERE / "a3c.c").read_text(), re.S).group()
    return dict(re.findall(r"X\((\w+), ([\w.-]+)\)", options))


def state(arrays, about):
    """Yield the numbers of a checkpoint for the learner to continue from, in read_state's order.

    Raises KeyError if one is missing, as in a checkpoint of another method.
    """
    yield np.array([about["agent_steps"], about["updates"]], np.int64)
    yield arrays["row_log/touched_by"].astype(np.int64)
    heads = [(f"globalnet/{head}_network/{name}", f"RMSPropOptimiser{head.title()}")
             for name in ("bias", "head_kernel", "head_bias")
             for head in ("actor", "critic")]  # fmt: skip
    yield arrays["globalnet/kernel"].astype(np.float32)
    yield from (arrays[name].T.astype(np.float32) for name, _ in heads)
    yield arrays["globalnet/mean_square"].astype(np.float32)
    yield from (arrays[f"{name}/{slot}"].T.astype(np.float32) for name, slot in heads)


def write_state(where, path):
    """Write the state of a run or checkpoint to a file; return the checkpoint's name and steps.

    Raises ValueError, with a line for the user, if there is none.
    """

    def misfit(checkpoint):
        try:
            list(state(checkpoint.arrays, checkpoint.about))
        except KeyError as error:
            return f"it has no {error}"

    found = checkpoints.load_newest(where, misfit)
    path.write_bytes(b"".join(x.tobytes() for x in state(found.arrays, found.about)))
    name = f"{found.path.resolve().parent.parent.name}/{found.path.stem}"
    return name, found.about["agent_steps"]


def row(text, seed, printed, played, name="", steps=0):
    """Return a run's row of the table.

    Args:
        text, seed: what it was given.
        printed: its lines, lists of steps, score, entropy, games.
        played: "sampled" and "greedy" -> (mean, worst) score at the end, or nothing.
        name, steps: of the checkpoint it went on from, if any.
    """
    given = dict(setting.split("=") for setting in text.split())
    values = defaults() | given
    others = [s for s in text.split() if s.split("=")[0] not in OWN_COLUMNS]
    other = " ".join([f"from={name}", *others] if name else others)
    at = [next((f"{s:.1f}" for t, s, *_ in printed if t >= mark * 1e6 > steps), "")
          for mark in MARKS]  # fmt: skip
    above = [next((f"{t / 1e6:.2f}" for t, s, *_ in printed if s > mark), "") for mark in (0, 18)]
    steps, score, entropy, _ = printed[-1]
    last = [f"{steps / 1e6:.1f}", f"{score:.1f}", f"{entropy:.2f}"]
    own = [values[name] for name in OWN_COLUMNS]
    games = [number for how in ("sampled", "greedy") for number in played.get(how, ("", ""))]
    return [*own, other, seed, *at, *above, *last, *games]


def play(learner, text, seed, steps, start):
    """Do one run; return its row of the table, and its other lines.

    Args:
        learner: its program, with the state it goes on from if there is one.
        text, seed, steps: what it is given.
        start: that state's name and steps, or nothing.
    """
    command = [*learner, *text.split(), f"seed={seed}", f"steps={steps:.0f}"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    printed = [[float(x) for x in line.split()] for line in output if ":" not in line]
    lines = [line for line in output if ":" in line]
    played = {line.split(":")[0]: line.replace(",", "").split()[1:3] for line in lines}
    return row(text, seed, printed, played, *start), lines


def parse(arguments):
    """Parse the command line."""

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            fail(message)

    def seeds(text):
        first, _, last = text.partition("-")
        return range(int(first), int(last or first) + 1)

    layout = argparse.RawDescriptionHelpFormatter
    usage = "%(prog)s RESULT.csv [options] -- [SETTINGS ...]"
    parser = Parser(usage=usage, description=__doc__, formatter_class=layout, allow_abbrev=False)
    parser.add_argument("result", type=pathlib.Path, metavar="RESULT.csv")
    parser.add_argument("--seeds", type=seeds, default=seeds("1-6"), help="first-last, or one")
    parser.add_argument("--steps", type=float, default=4e6, help="of each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--from", dest="start", metavar="RUN", help="go on from a run's checkpoint")
    parser.add_argument("--build", type=pathlib.Path, default=HERE / "build", help="folder for it")
    where = arguments.index("--") if "--" in arguments else len(arguments)
    command = parser.parse_args(arguments[:where])
    command.rows = arguments[where + 1 :] or [""]
    if not 1 <= command.steps < 1e12 or command.jobs < 1 or not command.seeds:
        fail("--steps and --jobs must be at least 1, --seeds as in 1-6")
    return command


def main():
    """Build, run, write."""
    command = parse(sys.argv[1:])
    learner, start = [build(command.build)], ()
    with tempfile.TemporaryDirectory() as folder:
        if command.start:
            file = pathlib.Path(folder) / "state"
            try:
                start = name, steps = write_state(command.start, file)
            except (OSError, ValueError) as error:
                fail(error)
            if steps >= command.steps:
                fail(f"{name} has {steps:,} steps already, and --steps is not above them")
            learner.append(f"from={file}")
        sys.exit(search(command, learner, start))


def search(command, learner, start):
    """All runs of a command line, and their rows; the exit status. start: as for `play`."""
    failed = 0
    for text in command.rows:  # the learner itself knows what it can be given
        if re.search(r"\b(seed|steps)=", text):
            fail("seeds and steps are given with --seeds and --steps")
        tried = subprocess.run([*learner, *text.split(), "steps=0"], capture_output=True, text=True)
        if tried.returncode:
            fail(tried.stderr.strip() or f"{learner[0]} ends with status {tried.returncode}")
    try:
        new = not command.result.exists() or not command.result.stat().st_size
        if not new and command.result.read_text().split("\n")[0] != ",".join(COLUMNS):
            fail(f"{command.result} is there already, and another table")
        file = command.result.open("a", newline="")
    except (OSError, UnicodeDecodeError) as error:
        fail(error)
    pool = concurrent.futures.ThreadPoolExecutor(command.jobs)
    with file:
        table = csv.writer(file, lineterminator="\n")
        if new:
            table.writerow(COLUMNS)
        runs = {pool.submit(play, learner, text, seed, command.steps, start):
                f"{text} seed={seed}".strip()
                for text in command.rows for seed in command.seeds}  # fmt: skip
        try:
            for run in concurrent.futures.as_completed(runs):
                try:
                    values, lines = run.result()
                except subprocess.CalledProcessError as error:
                    print(f"run.py: {runs[run]}: {error.returncode}", file=sys.stderr)
                    failed = 1
                    continue
                table.writerow(values)
                file.flush()
                score = values[COLUMNS.index("last_score")]
                print("\n  ".join([f"{runs[run]}: {score}", *lines]), flush=True)
        except KeyboardInterrupt:
            failed = 130  # the runs had the signal, too
        pool.shutdown(cancel_futures=True)
    return failed


if __name__ == "__main__":
    main()
