"""Runs the compiled learner with lists of settings and several seeds, and makes a table of them.

    python search/run.py RESULT.csv --seeds 1-6 --steps 4e6 --jobs 2 -- "" "steps_per_update=480"

Each quoted string is what differs from the preset, "name=number name=number"; "" is the preset
itself. The names are in OPTIONS of a3c.c. The game and the learner are built first where need be,
which takes gcc. A run is one thread; a row is added to RESULT.csv when it ends, in the format of
results/search-compiled.csv: the moving true score by million steps, and when it was first above 0.
"""

import argparse
import concurrent.futures
import csv
import pathlib
import re
import shutil
import subprocess
import sys

import translate

HERE = pathlib.Path(__file__).resolve().parent
COMPILE = ["gcc", "-std=gnu11", "-O3", "-march=native", "-ffast-math"]
MARKS = (1, 2, 3, 4, 5, 6, 8, 10)  # million steps
COLUMNS = ["steps_per_update", "other", "anneal_steps_M", "beta_steps_M", "seed",
           *(f"score_at_{mark}M" for mark in MARKS), "above_0_at_M", "last_step_M", "last_score",
           "last_entropy"]  # fmt: skip
OWN_COLUMNS = ("steps_per_update", "anneal_steps", "beta_steps")


def fail(message):
    """End the program with one line on stderr."""
    print(f"run.py: {message}", file=sys.stderr)
    sys.exit(2)


def build(folder):
    """The learner's program, made in a folder if it is not there or older than its sources."""
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
    """The learner's options, name -> default as it is written there."""
    options = re.search(r"#define OPTIONS.*?\n\n", (HERE / "a3c.c").read_text(), re.S).group()
    return dict(re.findall(r"X\((\w+), ([\w.-]+)\)", options))


def row(text, seed, printed):
    """A run's row of the table. printed: its lines, lists of steps, score, entropy, games."""
    given = dict(setting.split("=") for setting in text.split())
    values = defaults() | given
    millions = [f"{float(values[name]) / 1e6:g}" for name in ("anneal_steps", "beta_steps")]
    other = " ".join(s for s in text.split() if s.split("=")[0] not in OWN_COLUMNS)
    at = [next((f"{s:.1f}" for t, s, *_ in printed if t >= mark * 1e6), "") for mark in MARKS]
    above = next((f"{t / 1e6:.2f}" for t, s, *_ in printed if s > 0), "")
    steps, score, entropy, _ = printed[-1]
    last = [f"{steps / 1e6:.1f}", f"{score:.1f}", f"{entropy:.2f}"]
    return [values["steps_per_update"], other, *millions, seed, *at, above, *last]


def play(program, text, seed, steps):
    """One run; its row, and what it printed beside."""
    command = [program, *text.split(), f"seed={seed}", f"steps={steps:.0f}"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    printed = [[float(x) for x in line.split()] for line in output if ":" not in line]
    return row(text, seed, printed), [line for line in output if ":" in line]


def parse(arguments):
    """The command line."""

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
    parser.add_argument("--build", type=pathlib.Path, default=HERE / "build", help="folder for it")
    where = arguments.index("--") if "--" in arguments else len(arguments)
    command = parser.parse_args(arguments[:where])
    command.rows = arguments[where + 1 :] or [""]
    if not 1 <= command.steps < 1e12 or command.jobs < 1 or not command.seeds:
        fail("--steps and --jobs must be at least 1, --seeds as in 1-6")
    return command


def main():
    """Build, run, write."""
    command, failed = parse(sys.argv[1:]), 0
    program = build(command.build)
    for text in command.rows:  # the learner itself knows what it can be given
        if re.search(r"\b(seed|steps)=", text):
            fail("seeds and steps are given with --seeds and --steps")
        tried = subprocess.run([program, *text.split(), "steps=0"], capture_output=True, text=True)
        if tried.returncode:
            fail(tried.stderr.strip() or f"{program} ends with status {tried.returncode}")
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
        runs = {pool.submit(play, program, text, seed, command.steps): f"{text} seed={seed}".strip()
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
                print("\n  ".join([f"{runs[run]}: {values[-2]}", *lines]), flush=True)
        except KeyboardInterrupt:
            failed = 130  # the runs had the signal, too
        pool.shutdown(cancel_futures=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
