"""The figures of the README; not a test. `python tests/benchmark.py [part ...]`, see PARTS.

Things that are compared alternate in one run, and medians are printed: machines are noisy. Steps
are agent steps, of 2 to 4 emulator frames each. The variable ROUNDS says how many rounds there are,
and OTHER names a second checkout for `throughput` and `ceiling` to compare this one with.
"""

import csv
import json
import os
import pathlib
import pty
import statistics
import subprocess
import sys
import tempfile
import termios
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
from in_process import InProcess  # noqa: E402

import a3c_pong  # noqa: E402
import pong_actor  # noqa: E402
import preprocessing  # noqa: E402
from runtime import checkpoints  # noqa: E402
from runtime.run import MEASURED_EVERY  # noqa: E402

CORES = len(os.sched_getaffinity(0))
ROUNDS, SECONDS = int(os.environ.get("ROUNDS", 3)), 20
OTHER = os.environ.get("OTHER")


def bare(processes, seconds=SECONDS):
    """Steps per second of processes that only call `act`, with the same random frame skip."""
    command = [sys.executable, __file__, "--bare", str(seconds)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    running = [subprocess.Popen([*command, str(k)], **pipes) for k in range(processes)]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in running)


def bare_process(seconds, seed):
    env = pong_actor.make_env("Pong-v0")
    env.reset(seed=seed)
    ale, actions, random, steps = env.ale, env.ale.getMinimalActionSet(), env.np_random, 0
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(50):
            action = actions[steps % len(actions)]
            for _ in range(random.integers(2, 5)):
                ale.act(action)
            steps += 1
            if ale.game_over():
                ale.reset_game()
    print(steps / (time.perf_counter() - start))


def dense(threads, seconds=SECONDS):
    """Steps per second of the chapter's formulation on today's TensorFlow, in threads."""
    from dense_a3c import DenseA3C

    settings, random = a3c_pong.Settings(), np.random.default_rng(0)
    shapes = dict(aw1=(6400, 300), ab1=300, aw2=(300, 6), ab2=6)
    shapes |= dict(cw1=(6400, 100), cb1=100, cw2=(100, 1), cb2=1)
    weights = {k: random.normal(0, 0.1, shape).astype(np.float32) for k, shape in shapes.items()}
    net = DenseA3C(a3c_pong.tf, weights, threads, settings, one_thread=False)
    steps, stop = [0] * threads, threading.Event()

    def work(k):
        env = pong_actor.make_env("Pong-v0")
        image, choice = preprocessing.preprocessing_image, np.random.default_rng(k)
        s, buffer = image(env.reset(seed=k)[0]), []
        mine = net.locals[k]
        while not stop.is_set():
            p = net.session.run(mine["a_prob"], {mine["s"]: s[np.newaxis]}).ravel().astype(float)
            a = choice.choice(6, p=p / p.sum())
            obs, r, done, _, _ = env.step(a)
            s_ = image(obs)
            buffer.append((s, a, -20 if done and r <= 0 else r))
            steps[k] += 1
            if steps[k] % 20 == 0 or done:
                states, actions, rewards = zip(*buffer)
                net.update_global(k, np.vstack(states), s_, np.array(actions), rewards, done)
                net.pull_global(k)
                buffer = []
            s = image(env.reset()[0]) if done else s_

    workers = [threading.Thread(target=work, args=[k]) for k in range(threads)]
    for worker in workers:
        worker.start()
    time.sleep(3)
    before = sum(steps)
    time.sleep(seconds)
    played = sum(steps) - before
    stop.set()
    for worker in workers:
        worker.join()
    return played / seconds


class Training:
    """A run of the real script, and what was seen of it from outside."""

    def __init__(self, seconds=SECONDS, *options, output=subprocess.DEVNULL, checkout=ROOT):
        with tempfile.TemporaryDirectory() as folder:
            script = pathlib.Path(checkout) / "a3c_pong.py"
            command = [sys.executable, script, "--render", "never", *options]
            command += ["--run-dir", f"{folder}/run", "--max-minutes", str((seconds + 2) / 60)]
            process = subprocess.Popen(command, stdin=output, stdout=output)
            self.samples = []  # (time, CPU seconds of the main process, its memory, its actors')
            while process.poll() is None:
                time.sleep(0.5)
                self.sample(process.pid)
            with open(f"{folder}/run/scores.csv") as file:
                rows = [(float(r["seconds"]), int(r["agent_steps"])) for r in csv.DictReader(file)]
        rows = [row for row in rows if row[0] > 2]
        self.steps_per_second = (rows[-1][1] - rows[0][1]) / (rows[-1][0] - rows[0][0])

    def sample(self, pid):
        try:
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
            cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            with open(f"/proc/{pid}/task/{pid}/children") as file:
                actors = [resident(int(child)) for child in file.read().split()]
            self.samples.append((time.perf_counter(), cpu, resident(pid), actors))
        except (OSError, IndexError):
            pass  # it ended while it was looked at

    def main_share(self):
        """Share of the time in which the main process holds a core, over the second half."""
        first, last = self.samples[len(self.samples) // 2], self.samples[-4]
        return (last[1] - first[1]) / (last[0] - first[0])


def resident(pid):
    """Resident memory of a process in MB."""
    with open(f"/proc/{pid}/status") as file:
        return int(file.read().split("VmRSS:")[1].split()[0]) / 1024


def throughput():
    """Training against bare ALE and against the dense graph, default settings, no window."""
    if OTHER:
        return throughput_of_two()
    a3c_pong.load_tensorflow()
    rounds = []
    for _ in range(ROUNDS):
        rounds.append((bare(CORES), Training().steps_per_second, dense(CORES)))
        print("bare ALE {:,.0f}  training {:,.0f}  dense graph {:,.0f}".format(*rounds[-1]))
    ratios = [(trained / alone, trained / slow) for alone, trained, slow in rounds]
    of_bare, times = (statistics.median(column) for column in zip(*ratios))
    print(f"median: {of_bare:.1%} of bare ALE on {CORES} cores, {times:.1f} x the dense graph")


def throughput_of_two():
    """Training in this checkout and in OTHER, as shares of bare ALE in the same round."""
    shares = []
    for number in range(ROUNDS):
        order = (ROOT, OTHER) if number % 2 else (OTHER, ROOT)
        trained = {where: Training(checkout=where).steps_per_second for where in order}
        alone = bare(CORES)
        shares.append((trained[ROOT] / alone, trained[OTHER] / alone))
        print(f"bare ALE {alone:,.0f}  this {shares[-1][0]:.1%}  other {shares[-1][1]:.1%}")
    this, other = (statistics.median(column) for column in zip(*shares))
    difference = statistics.median(mine - theirs for mine, theirs in shares)
    print(f"medians: this {this:.1%}, other {other:.1%}, of the differences {difference:+.1%}")


def workers():
    """Throughput by number of workers, and the main process' share of a core."""
    counts = 1, 2, 4, 8
    rounds = [[Training(SECONDS, "--num-workers", str(n)) for n in counts] for _ in range(ROUNDS)]
    for n, runs in zip(counts, zip(*rounds)):
        speed = statistics.median(run.steps_per_second for run in runs)
        share = statistics.median(run.main_share() for run in runs)
        print(f"{n} workers: {speed:,.0f} steps/s, main process {share:.0%} of a core, ", end="")
        print(f"{1e6 * share / speed:.0f} us of it a step")


CEILING = """if True:
    import itertools, sys, threading, time
    from in_process import InProcess
    from test_exact import copied
    import a3c_pong
    from runtime import command_line

    class Recorded:  # an actor that costs nothing: it repeats what the real one has played
        window = None

        def __init__(self, actor, period):
            self.policy, self.process, self.close = actor.policy, actor.process, actor.close
            played = [copied(actor.play(period)) for _ in range(4000 // period)]  # at random
            self.rollouts = itertools.cycle(played)

        def wait_until_ready(self):
            pass

        def play(self, max_steps, epsilon):
            return next(self.rollouts)

    preset, number, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    options = f"--preset {preset} --seed 1 --max-steps {steps}".split()
    _, given = command_line.parse(a3c_pong.Settings, a3c_pong.PRESETS, "", options)
    settings = a3c_pong.Settings(**given)
    with InProcess(settings, workers=number) as launch:
        run, workers = launch.build()
        for name, actor in launch.actors.items():
            launch.actors[name] = Recorded(actor, settings.global_iteration_update)
        threads = [threading.Thread(target=worker.work) for worker in workers]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(run.agent_steps / (time.perf_counter() - began))"""


def ceiling():
    """Steps per second of the main process alone: real workers, actors that replay rollouts."""
    for preset in "chapter", "rally":
        rates = {}
        for _ in range(ROUNDS):
            for number in 1, 2:
                for checkout in filter(None, (ROOT, OTHER)):
                    command = [sys.executable, "-c", CEILING, preset, str(number), "300000"]
                    path = f"{checkout}:{checkout}/tests"
                    environment = dict(os.environ, PYTHONPATH=path)
                    options = dict(stdout=subprocess.PIPE, check=True, env=environment)
                    output = subprocess.run(command, cwd=checkout, **options).stdout
                    rates.setdefault((number, checkout), []).append(float(output))
        for checkout in filter(None, (ROOT, OTHER)):
            one, two = rates[1, checkout], rates[2, checkout]
            ratio = statistics.median(b / a for a, b in zip(one, two))
            one, two = (f"{statistics.median(rate):,.0f} steps/s" for rate in (one, two))
            print(f"{preset}, {checkout}: one thread {one}, two {two}, {ratio:.2f} times")
        for number in (1, 2) if OTHER else ():
            pairs = zip(rates[number, ROOT], rates[number, OTHER])
            ratio = statistics.median(mine / theirs for mine, theirs in pairs)
            print(f"{preset}, {number} threads: this is {ratio:.2f} times the other")


def terminal():
    """Training with W_0's game in a terminal, against training that shows nothing."""
    ours, programs = pty.openpty()
    termios.tcsetwinsize(programs, (50, 120))
    os.environ["TERM"] = "xterm-256color"

    def look():
        while os.read(ours, 65536):
            pass

    threading.Thread(target=look, daemon=True).start()
    rounds = []
    for _ in range(ROUNDS):
        with_it = Training(SECONDS, "--render", "terminal", output=programs)
        rounds.append((with_it.steps_per_second, Training().steps_per_second))
        print("terminal {:,.0f}  never {:,.0f}".format(*rounds[-1]))
    shown, never = (statistics.median(column) for column in zip(*rounds))
    print(f"medians: {shown:,.0f} and {never:,.0f} steps/s, {shown / never - 1:+.1%}")


def methods():
    """Training by each of the four methods, in turn."""
    every = list(a3c_pong.METHODS)
    rounds = []
    for _ in range(ROUNDS):
        rounds.append([Training(SECONDS, "--method", m).steps_per_second for m in every])
        print(*(f"{m} {speed:,.0f}" for m, speed in zip(every, rounds[-1])))
    for m, ratios in zip(every, zip(*([speed / run[0] for speed in run] for run in rounds))):
        print(f"{m}: median {statistics.median(ratios):.1%} of a3c")


def events():
    """What the figures for TensorBoard cost: an update that measures them, against a plain one."""
    times = {False: [], True: []}
    with InProcess(a3c_pong.Settings(seed=1)) as launch:
        _, (worker,) = launch.build()
        worker.begin()
        for number in range(2000):
            rollout, measure = worker.play(), number % 2 == 1
            returns = worker.returns(rollout, rollout.rewards)
            began = time.perf_counter()
            worker.AC.update_global(worker.local, rollout, returns, measure=measure)
            times[measure].append(time.perf_counter() - began)
    more = statistics.median(times[True]) - statistics.median(times[False])
    every = MEASURED_EVERY
    print(f"{1e6 * more:.0f} us more, once in {every} s: {more / every:.4%} of a core")


def memory():
    """Resident memory over ten minutes."""
    run = Training(600)
    tenth = len(run.samples) // 10
    for name, kept in (
        ("main process", [sample[2] for sample in run.samples]),
        ("largest actor", [max(sample[3]) for sample in run.samples if sample[3]]),
    ):
        early, late = statistics.median(kept[tenth : 2 * tenth]), statistics.median(kept[-tenth:-4])
        print(f"{name}: {late:.0f} MB, {late / early - 1:+.1%} from the second minute to the last")


def start():
    """Seconds from the command to the end of a run of one rollout per worker."""
    seconds = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                ROOT / "a3c_pong.py",
                "--render",
                "never",
                "--max-steps",
                "1",
            ]
            began = time.perf_counter()
            subprocess.run([*command, "--run-dir", f"{folder}/run"], stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - began)
    print(
        f"first rollout played, and the plot drawn, {statistics.median(seconds):.1f} s after start"
    )


def ending():
    """Seconds from SIGTERM to the end, with the output to a file and where nobody reads it."""
    os.environ.update(TERM="xterm-256color", PYTHONIOENCODING="utf-8")

    def nowhere(columns):
        _, programs = pty.openpty()
        termios.tcsetwinsize(programs, (50, columns))
        return programs

    outputs = {
        "a file": lambda folder: open(f"{folder}/log", "w"),
        "a pipe nobody reads": lambda folder: os.pipe()[1],
        "a terminal nobody reads, lines": lambda folder: nowhere(80),
        "a terminal nobody reads, the game": lambda folder: nowhere(120),
    }
    for name, output in outputs.items():
        seconds = []
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, ROOT / "a3c_pong.py", "--run-dir", f"{folder}/run"]
                written = output(folder)
                run = subprocess.Popen(command, stdout=written, stderr=written)
                while not os.path.exists(f"{folder}/run/scores.csv"):
                    time.sleep(0.1)
                time.sleep(10)
                began = time.perf_counter()
                run.terminate()
                run.wait()
                seconds.append(time.perf_counter() - began)
        print(f"{name}: median {statistics.median(seconds):.1f} s, at most {max(seconds):.1f}")


SAVING = """if True:
    import contextlib, sys, time
    import a3c_pong
    from runtime.run import Gate
    closed = Gate.closed
    @contextlib.contextmanager
    def timed(gate):
        start = time.perf_counter()
        with closed(gate) as empty:
            yield empty
        print("stopped", time.perf_counter() - start)
    Gate.closed = timed
    sys.exit(a3c_pong.main(sys.argv[1:]))"""


def saving():
    """For how long a checkpoint stops the workers, default settings, no window."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--render", "never", "--run-dir", f"{folder}/run", "--max-minutes", "1"]
        command = [sys.executable, "-c", SAVING, *options, "--autosave-minutes", str(2 / 60)]
        pipe = dict(stdout=subprocess.PIPE, text=True, cwd=ROOT)
        lines = subprocess.run(command, **pipe).stdout.splitlines()
    stops = [1000 * float(line.split()[1]) for line in lines if line.startswith("stopped")]
    median = statistics.median(stops)
    print(f"{len(stops)} saves: median {median:.1f} ms, longest {max(stops):.1f} ms")


def resuming():
    """Seconds from --resume to the first of its rollouts, of a run of a minute."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "a3c_pong.py", "--render", "never"]
        quiet = dict(stdout=subprocess.DEVNULL)
        run = ["--run-dir", f"{folder}/run", "--max-minutes", "1"]
        subprocess.run([*command, *run], **quiet)
        for _ in range(ROUNDS):
            steps = max(int(path.name[5:-4]) for path in pathlib.Path(folder).glob("run/*/step-*"))
            limits = ["--max-steps", str(steps + 1), "--max-minutes", "none"]
            began = time.perf_counter()
            subprocess.run([*command, "--resume", f"{folder}/run", *limits], **quiet)
            seconds.append(time.perf_counter() - began)
    print(f"a rollout played, and all kept again, {statistics.median(seconds):.1f} s after start")


class ClusterTraining:
    """A run of a cluster on this machine: a ps, a chief and workers, of a thread each."""

    SETTLED = 15  # seconds until all have joined

    def __init__(self, processes, seconds=SECONDS):
        from test_cluster import free_port

        ports = [free_port() for _ in range(processes + 1)]
        ps, chief, *workers = (f"127.0.0.1:{port}" for port in ports)
        addresses = dict(ps=[ps], chief=[chief], worker=workers)
        minutes = str((self.SETTLED + seconds) / 60)
        with tempfile.TemporaryDirectory() as folder:
            started = [self.start(addresses, "ps", 0)]
            options = ["--run-dir", f"{folder}/run", "--max-minutes", minutes, "--seed", "1"]
            started.append(self.start(addresses, "chief", 0, *options))
            started += [self.start(addresses, "worker", k) for k in range(len(workers))]
            samples = []  # (time, CPU seconds of the ps, bytes through the loopback so far)
            while started[1].poll() is None:
                time.sleep(0.5)
                samples.append((time.perf_counter(), cpu_seconds(started[0].pid), through_lo()))
            for process in started:
                process.wait(60)
            with open(f"{folder}/run/scores.csv") as file:
                rows = [(float(r["seconds"]), int(r["agent_steps"])) for r in csv.DictReader(file)]
            about = checkpoints.load_newest(f"{folder}/run").about
        rows = [row for row in rows if row[0] > self.SETTLED]
        self.steps_per_second = (rows[-1][1] - rows[0][1]) / (rows[-1][0] - rows[0][0])
        updates_per_second = self.steps_per_second * about["updates"] / about["agent_steps"]
        end = len(samples) - 6  # the last checkpoint is not in it
        (t0, cpu0, bytes0), (t1, cpu1, bytes1) = samples[end - seconds], samples[end]
        self.bytes_per_update = (bytes1 - bytes0) / (t1 - t0) / updates_per_second
        self.cpu_per_update = (cpu1 - cpu0) / (t1 - t0) / updates_per_second

    @staticmethod
    def start(addresses, job, index, *options):
        config = json.dumps(dict(cluster=addresses, task=dict(type=job, index=index)))
        command = [sys.executable, ROOT / "a3c_pong.py", "--num-workers", "1", "--render", "never"]
        environment = dict(os.environ, TF_CONFIG=config)
        return subprocess.Popen(
            [*command, *options], env=environment, stdout=subprocess.DEVNULL, cwd=ROOT
        )


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def through_lo():
    with open("/proc/net/dev") as file:
        return next(int(line.split()[1]) for line in file if line.strip().startswith("lo:"))


def cluster():
    """Worker processes on a parameter server against threads in one process; bytes, ps' CPU."""
    for n in 1, 2, 3:
        rounds = []
        for _ in range(ROUNDS):
            alone = Training(SECONDS, "--num-workers", str(n)).steps_per_second
            rounds.append((ClusterTraining(n), alone))
        runs, alone = zip(*rounds)
        speed, size, cpu = (
            statistics.median(getattr(run, name) for run in runs)
            for name in ("steps_per_second", "bytes_per_update", "cpu_per_update")
        )
        print(f"{n} processes {speed:,.0f} steps/s, {n} threads {statistics.median(alone):,.0f}")
        print(f"  an update: {size / 1e6:.2f} MB on the wire, of 20 MB dense ({20e6 / size:.0f} "
              f"times less), {1e6 * cpu:.0f} us of the parameter server's CPU: a core of it "
              f"feeds {1 / cpu:,.0f} updates/s, 1 Gbit/s {125e6 / (size / 2):,.0f}")  # fmt: skip


PARTS = dict(
    cluster=cluster,
    throughput=throughput,
    workers=workers,
    ceiling=ceiling,
    methods=methods,
    terminal=terminal,
    events=events,
    memory=memory,
    start=start,
    ending=ending,
    saving=saving,
    resuming=resuming,
)

if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        bare_process(float(sys.argv[2]), int(sys.argv[3]))
    else:
        for part in sys.argv[1:] or PARTS:
            print(f"-- {part}: {PARTS[part].__doc__}", flush=True)
            PARTS[part]()
