"""A run over several processes and hosts: the real script, its real servers, real kills."""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from program import FAILS_WHEN_TOLD, HANGS, ROOT, SCRIPT, Edited, wait_until
from test_resume import newest, rows_of

import a3c_pong
from cluster.config import cluster_member, described, split_address
from cluster.launch import worker_settings
from cluster.parameters import Parameters

EXACT = "--num-workers", "1", "--seed", "5", "--render", "never"


# ---------------------------------------------------------------------------------------- TF_CONFIG


def config(job="ps", index=0, **jobs):
    jobs = dict(ps=["h:1"], chief=["h:2"], worker=["h:3", "h:4"]) | jobs
    return json.dumps(dict(cluster=jobs, task=dict(type=job, index=index)))


def test_a_description_is_read():
    member = described(config("worker", 1, ps=["[::1]:2222", "host:1"]))
    assert member.job == "worker" and member.index == 1 and member.first_worker() == 200
    assert member.where("ps", 0) == "/job:ps/task:0 at [::1]:2222"
    assert split_address("[::1]:2222") == ("::1", 2222)
    assert described(config("chief")).first_worker() == 0


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "is not JSON"),
        pytest.param("[" * 100_000, "is not JSON", id="deep"),
        ("[]", "must be like"),
        ('{"cluster": {}}', "must be like"),
        ('{"cluster": 1, "task": {}}', "must be like"),
        (config(ps=[]), "needs a ps"),
        (config(chief=[]), "needs one chief, not 0"),
        (config(chief=["h:5", "h:6"]), "needs one chief, not 2"),
        (config(evaluator=["h:5"]), "not 'evaluator'"),
        (config(worker="h:5"), "must be a list"),
        (config(worker=["h"]), "HOST:PORT, not 'h'"),
        (config(worker=["h:0"]), "HOST:PORT, not 'h:0'"),
        (config(worker=["h:65536"]), "HOST:PORT, not 'h:65536'"),
        (config(worker=[":5"]), "HOST:PORT, not ':5'"),
        (config(worker=["h:http"]), "HOST:PORT, not 'h:http'"),
        (config(worker=[5]), "HOST:PORT, not 5"),
        (config(worker=["h:1"]), "h:1 is there twice"),
        (json.dumps(dict(cluster=dict(chief=None), task={})), "chief must be a list of addresses"),
        (config("master"), "not 'master'"),
        (config("worker", 2), "no worker 2: there are 2, numbered from 0"),
        (config("worker", -1), "no worker -1"),
        (config("worker", "0"), "not '0'"),
        (config("worker", True), "not True"),
        (config("worker", None), "not None"),
    ],
)
def test_a_wrong_description_gets_one_line_that_says_what_is_wrong(text, words):
    with pytest.raises(ValueError) as error:
        described(text)
    assert words in str(error.value)
    assert "\n" not in str(error.value) and str(error.value).startswith("TF_CONFIG")


def test_workers_are_limited_where_a_process_has_some(monkeypatch, tmp_path):
    for job in "ps", "worker":
        monkeypatch.setenv("TF_CONFIG", config(job, **{job: [f"h:{free_port()}"]}))
        if job == "ps":
            assert cluster_member({"num_workers": 101}).job == "ps"
        else:
            with pytest.raises(SystemExit, match="2"):
                cluster_member({"num_workers": 101})


def test_a_chief_of_another_version_is_named():
    chiefs = dataclasses.asdict(a3c_pong.Settings()) | {"new": 1, "newer": 2}
    with pytest.raises(ValueError, match="another version: it has the settings new, newer$"):
        worker_settings(a3c_pong.Settings, chiefs, {}, [])


def test_a_process_with_a_server_ends_at_once_after_a_signal():
    source = """if True:
        import signal, threading
        from cluster import server
        server.serving = True
        threading.Thread(target=threading.Event().wait).start()  # as a thread that never ends
        with server.leaving():
            raise KeyboardInterrupt(signal.SIGINT)"""
    command = [sys.executable, "-c", source]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=HANGS)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"")


@pytest.mark.slow
def test_the_script_says_it_on_one_line_with_status_2(start, tmp_path):
    settings = dataclasses.asdict(a3c_pong.Settings(num_workers=101))
    many = tmp_path / "many"
    many.mkdir()
    (many / "config.json").write_text(json.dumps(dict(settings=settings)))
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        runs = {
            start(TF_CONFIG="{"): "TF_CONFIG is not JSON",
            start(TF_CONFIG=config(ps=[f"h:{port}"])): f"port {port} of this machine: it is in use",
            start("--num-workers", "101", TF_CONFIG=config("chief")): "at most 100 --num-workers",
            start("--resume", str(many), TF_CONFIG=config("chief")): "at most 100",
        }
        for run, words in runs.items():
            assert run.wait() == 2
            assert run.err.count("\n") == 1 and words in run.err
            assert run.out == "" and not (run.folder / "run").exists()


# ----------------------------------------------------------------------------------- on one machine


class Cluster:
    """Processes of the script that make a cluster; `start` is the fixture."""

    def __init__(self, start, hosts=None, workers=2):
        """hosts: job and index -> (address, command to run a program there); None: loopback."""
        self.start, self.hosts = start, hosts
        tasks = [("ps", 0), ("chief", 0), *(("worker", k) for k in range(workers))]
        self.addresses = {"ps": [], "chief": [], "worker": []}
        self.run = None
        for job, index in tasks:
            host = hosts[job, index][0] if hosts else "127.0.0.1"
            self.addresses[job].append(f"{host}:{3000 if hosts else free_port()}")

    def __call__(self, job, index=0, *options, program=SCRIPT, **variables):
        """Start a task; a `Program`."""
        text = config(job, index, **self.addresses)
        command = self.hosts[job, index][1] if self.hosts else ()
        proxy = "http://127.0.0.1:9"  # where nobody is, and no cluster's process must ask
        variables |= dict(TF_CONFIG=text, http_proxy=proxy, https_proxy=proxy)
        started = self.start(*options, program=program, command=command, **variables)
        if job == "chief" and not self.run:
            self.run = started.folder / "run"
        return started


def three_that_save_often(start):
    """A `Cluster` of a parameter server, a chief and a worker, and the three, started."""
    cluster = Cluster(start, workers=1)
    options = "--num-workers", "1", "--render", "never", "--autosave-minutes", "0.03", "--seed", "1"
    ps, chief = cluster("ps"), cluster("chief", 0, *options)
    return cluster, ps, chief, cluster("worker", 0, "--num-workers", "1")


def free_port():
    """A port that the system gives to nobody who asks for any, until the task has it."""
    while True:
        port = random.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def games_of(*programs):
    return sum(len(program.games()) for program in programs)


def games_by(program, *names):
    """How many games each of these workers has played, the fewest of them."""
    workers = [game[0] for game in program.games()]
    return min(workers.count(name) for name in names)


def assert_quiet(*programs):
    for program in programs:
        assert program.err == ""


SAYS_ITS_BETA = """if True:  # the script, but that a worker process ends with its beta
    import sys, a3c_pong
    from cluster.launch import Follower
    plot = Follower.plot
    def saying(follower):
        print("its beta:", follower.run.globalnet.beta())
        return plot(follower)
    Follower.plot = saying
    with a3c_pong.leaving():
        sys.exit(a3c_pong.main(sys.argv[1:]))"""


@pytest.fixture(scope="module")
def four(start_shared):
    """(the `Cluster`, ps, chief, workers) of a run of 20 games that has ended."""
    cluster = Cluster(start_shared)
    options = "--max-global-episodes 20 --num-workers 1 --render never --seed 3".split()
    workers = [
        cluster("worker", 0, "--num-workers", "2", program=Edited(SAYS_ITS_BETA)),
        cluster("worker", 1, "--num-workers", "1", "--gamma", "0.5"),
    ]
    options += "--beta 0.5 --beta-power 1 --pull before".split()
    chief = cluster("chief", 0, *options)
    ps, actors = cluster("ps"), []
    for program, number in (chief, 1), (workers[0], 2), (workers[1], 1):
        assert wait_until(lambda: len(program.actors()) == number)  # noqa: B023
        actors += program.actors()
        for actor in program.actors():  # none plays before all can
            os.kill(actor, signal.SIGSTOP)
    assert wait_until(lambda: all("trains with" in worker.out for worker in workers))
    for actor in actors:
        os.kill(actor, signal.SIGCONT)
    for program in (chief, *workers, ps):
        program.wait()
    return cluster, ps, chief, workers


@pytest.mark.slow
def test_four_processes_train_to_the_last_game_and_end_together(four):
    cluster, ps, chief, workers = four
    assert [program.wait() for program in (chief, *workers, ps)] == [0, 0, 0, 0]
    assert_quiet(chief, ps, *workers)

    rows = rows_of(cluster.run)  # numbered from 0, T rising strictly
    assert len(rows) == 20
    assert chief.played()[:2] == ("20 games played", 20)
    names = {row["worker"] for row in rows}
    assert names <= {"W_0", "W_100", "W_101", "W_200"} and len(names) > 1
    assert [game[:2] for game in chief.games()] == [(r["worker"], r["episode"]) for r in rows]
    arrays, about = newest(cluster.run)
    assert about["games"] == 20 and about["agent_steps"] >= int(rows[-1]["agent_steps"])
    assert arrays["row_log/touched_by"].max() == about["updates"]
    settings = json.loads((cluster.run / "config.json").read_text())["settings"]
    assert settings["gamma"] == 0.9  # the chief's, whatever a worker was told
    assert "--gamma 0.5 is ignored: the chief's value is 0.9" in workers[1].out
    assert "trains with W_100, W_101" in workers[0].out
    for program in (*workers, ps):
        assert "the chief has ended the run: 20 games played" in program.out
        assert not program.games()
    assert all(program.no_actor_is_left() for program in (chief, *workers))


@pytest.mark.slow
def test_a_worker_has_its_beta_from_the_chief_who_knows_all_games(four):
    cluster, _, _, workers = four
    lost, betas = 1.0, []
    for row in rows_of(cluster.run):
        lost += 0.1 * ((21 - int(row["score"])) / 42 - lost)
        betas.append(0.5 * lost)
    its = float(re.search(r"its beta: (\S+)", workers[0].out)[1])
    assert its < 0.5 and min(abs(its - beta) for beta in betas) < 1e-9, (its, betas)


@pytest.fixture(scope="module")
def alone(start_shared):
    """alone(option, ...): the run of one worker alone with these options, made once."""
    runs = {}

    def alone(*options):
        if options not in runs:
            runs[options] = start_shared(*EXACT, *options)
        return runs[options]

    return alone


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--max-steps", "3000"],
        ["--method", "one-step-sarsa", "--frames", "2", "--target-steps", "700",
         "--epsilon-frames", "9000", "--anneal-steps", "9000", "--max-steps", "2400",
         "--pull", "both"],
    ],
    ids=["a3c", "one-step-sarsa"],
)  # fmt: skip
def test_one_worker_has_the_numbers_of_a_run_alone_bit_for_bit(start, alone, options):
    cluster, alone = Cluster(start, workers=0), alone(*options)
    ps, chief = cluster("ps"), cluster("chief", 0, *EXACT, *options)
    assert chief.wait() == alone.wait() == 0
    assert_quiet(chief, alone)
    (arrays, about), (expected, about_alone) = newest(cluster.run), newest(alone.folder / "run")
    assert about["updates"] == about_alone["updates"] > 100
    assert expected.keys() - arrays.keys() == {"actor/W_0"}
    assert any("RMSProp" in name for name in arrays) and "globalnet/mean_square" in arrays
    for name in arrays.keys() - {"curve/seconds"}:
        assert np.array_equal(arrays[name], expected[name]), name
    assert chief.games() == alone.games() and chief.games()
    assert ps.wait() == 0


@pytest.mark.slow
def test_several_parameter_servers_hold_the_same_numbers(start, alone):
    cluster, alone = Cluster(start, workers=0), alone("--max-steps", "3000")
    cluster.addresses["ps"].append(f"127.0.0.1:{free_port()}")
    servers = [cluster("ps", 0), cluster("ps", 1)]
    chief = cluster("chief", 0, *EXACT, "--max-steps", "3000")
    assert chief.wait() == alone.wait() == 0
    arrays, expected = newest(cluster.run)[0], newest(alone.folder / "run")[0]
    assert arrays.keys() == expected.keys() - {"actor/W_0"}  # the game in play
    for name in arrays.keys() - {"curve/seconds"}:
        assert np.array_equal(arrays[name], expected[name]), name
    assert [ps.wait() for ps in servers] == [0, 0]
    assert_quiet(chief, *servers)


def test_the_networks_are_spread_over_the_parameter_servers(tf):
    settings, member = a3c_pong.Settings(), described(config("chief", ps=["h:1", "h:5"]))
    parameters = Parameters(settings, member)
    heads = a3c_pong.ActorCriticNetwork.heads(settings, 6)
    with parameters.placed():
        trains = {name: tf.train.RMSPropOptimizer(0.1) for name in heads}
        parameters.build("globalnet", heads, trains, tf.random_normal_initializer, False)
    tasks = {name: v.device.split("/")[2] for name, v in parameters.arrays.items()}
    assert {tasks[name] for name in tasks if "/actor_network/" in name} == {"task:1"}
    assert {tasks[name] for name in tasks if "/actor_network/" not in name} == {"task:0"}


@pytest.mark.slow
def test_a_workers_death_its_return_and_its_ctrl_c_are_nobody_elses_concern(start):
    cluster = Cluster(start, workers=2)
    ps, chief = cluster("ps"), cluster("chief", 0, "--num-workers", "1", "--render", "never")
    workers = [cluster("worker", k, "--num-workers", "1") for k in (0, 1)]
    assert wait_until(lambda: games_by(chief, "W_100", "W_200"))
    workers[0].process.kill()
    assert workers[0].no_actor_is_left()
    workers[1].signal(signal.SIGINT)
    assert workers[1].wait() == 130
    assert "Ctrl-C: this worker leaves, the others continue" in workers[1].out
    before = games_of(chief)
    assert wait_until(lambda: games_of(chief) > before + 1)
    back = cluster("worker", 0, "--num-workers", "1")
    before = games_by(chief, "W_100")
    assert wait_until(lambda: games_by(chief, "W_100") > before)
    chief.signal(signal.SIGINT)
    assert chief.wait() == 130 and back.wait() == 0 and ps.wait() == 0
    assert chief.played()[0] == "Ctrl-C"
    rows_of(cluster.run)
    assert_quiet(ps, chief, *workers, back)


@pytest.mark.slow
def test_a_parameter_server_that_returns_from_a_kill_gets_the_last_checkpoint(start):
    cluster, ps, chief, worker = three_that_save_often(start)
    assert wait_until(lambda: games_of(chief) >= 3)
    assert wait_until(lambda: newest_steps(cluster.run) > 0)
    waits = f"waiting for /job:ps/task:0 at {cluster.addresses['ps'][0]}"
    # once more than before: they may have been there before the parameter server was
    once_more = {member: member.out.count(waits) + 1 for member in (chief, worker)}
    ps.process.kill()
    ps.wait()
    assert wait_until(lambda: all(member.out.count(waits) == n for member, n in once_more.items()))
    kept = newest(cluster.run)[1]
    ps, before = cluster("ps"), games_of(chief)
    assert wait_until(lambda: "listens on port" in ps.out)
    assert games_of(chief) == before and chief.process.poll() is worker.process.poll() is None
    back = f"last checkpoint: {kept['games']:,} games, {kept['agent_steps']:,} steps"
    assert wait_until(lambda: back in chief.out)
    after = lambda: {game[0] for game in chief.games()[before:]}
    assert wait_until(lambda: games_of(chief) >= before + 3 and after() == {"W_0", "W_100"})
    assert all(member.out.count(waits) == n for member, n in once_more.items())
    chief.signal(signal.SIGTERM)
    assert chief.wait() == worker.wait() == ps.wait() == 0
    rows = rows_of(cluster.run)
    assert len(rows) == kept["games"] + games_of(chief) - before
    assert_quiet(ps, chief, worker)


@pytest.mark.slow
def test_a_chief_that_returns_from_a_kill_goes_on_from_its_last_checkpoint(start):
    cluster, ps, chief, worker = three_that_save_often(start)
    assert wait_until(lambda: games_of(chief) >= 2 and newest_steps(cluster.run) > 0)
    chief.process.kill()
    chief.wait()
    kept = newest(cluster.run)[1]
    waits = f"waiting for /job:chief/task:0 at {cluster.addresses['chief'][0]}"
    assert wait_until(lambda: waits in worker.out and waits in ps.out)
    again = cluster("chief", 0, "--resume", str(cluster.run))
    assert wait_until(lambda: games_by(again, "W_0", "W_100"))
    again.signal(signal.SIGTERM)
    assert again.wait() == worker.wait() == ps.wait() == 0
    assert "resuming from" in again.out and "training continues" in worker.out
    rows = rows_of(cluster.run)
    assert len(rows) == kept["games"] + games_of(again)
    assert_quiet(ps, again, worker)


KILLS_THE_SERVER = """if True:  # the script, but the parameter server dies while it connects
    import json, os, signal, sys, a3c_pong
    from cluster import link
    make_callable, made = link.make_callable, []
    def killing(*arguments):
        made.append(arguments)
        if len(made) == 3:
            os.kill(int(os.environ["SERVER"]), signal.SIGKILL)
            (address,) = json.loads(os.environ["TF_CONFIG"])["cluster"]["ps"]
            while link.answers(address):
                pass
        return make_callable(*arguments)
    link.make_callable = killing
    with a3c_pong.leaving():
        sys.exit(a3c_pong.main(sys.argv[1:]))"""


@pytest.mark.slow
def test_a_parameter_server_may_die_while_a_process_connects(start):
    cluster = Cluster(start, workers=1)
    ps = cluster("ps")
    assert wait_until(lambda: "listens on port" in ps.out)
    killer = dict(program=Edited(KILLS_THE_SERVER), SERVER=str(ps.process.pid))
    worker = cluster("worker", 0, **killer)
    assert wait_until(lambda: "waiting for /job:ps" in worker.out)
    ps.wait()
    ps = cluster("ps")
    assert wait_until(lambda: "waiting for /job:chief" in worker.out)
    for program in worker, ps:
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
    assert_quiet(ps, worker)


@pytest.mark.slow
def test_a_chief_that_fails_leaves_a_checkpoint_and_ends_the_others(start):
    cluster = Cluster(start, workers=1)
    ps, worker = cluster("ps"), cluster("worker", 0, "--num-workers", "1")
    options = "--num-workers", "1", "--render", "never"
    chief = cluster("chief", 0, *options, program=Edited(FAILS_WHEN_TOLD))
    assert wait_until(lambda: games_by(chief, "W_0", "W_100"))
    (chief.folder / "fail").touch()
    assert chief.wait() == 1
    assert chief.err.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert worker.wait() == ps.wait() == 0
    for program in worker, ps:
        assert "the chief has ended the run: it has failed" in program.out
    rows, (_, about) = rows_of(cluster.run), newest(cluster.run)
    assert len(rows) == about["games"] == games_of(chief)
    assert about["agent_steps"] >= int(rows[-1]["agent_steps"])
    assert_quiet(ps, worker)


@pytest.mark.slow
def test_another_run_of_the_chiefs_is_the_workers_too(start):
    cluster = Cluster(start, workers=1)
    ps, chief = cluster("ps"), cluster("chief", 0, "--num-workers", "1", "--render", "never")
    worker = cluster("worker", 0, "--num-workers", "1")
    assert wait_until(lambda: "trains with" in worker.out)
    chief.process.kill()
    chief.wait()
    options = "--method", "n-step-q", "--num-workers", "1", "--render", "never"
    other = cluster("chief", 0, *options)
    assert wait_until(lambda: games_by(other, "W_0", "W_100"))
    other.signal(signal.SIGTERM)
    assert other.wait() == worker.wait() == ps.wait() == 0
    assert "starting again with its settings" in worker.out
    assert {row["worker"] for row in other.rows()} == {"W_0", "W_100"}
    assert len(other.rows()) == games_of(other)
    assert_quiet(ps, other, worker)


@pytest.mark.slow
def test_a_run_goes_on_in_a_cluster_and_alone_again(start, alone, tmp_path):
    alone, cluster = alone("--max-steps", "3000"), Cluster(start, workers=0)
    assert alone.wait() == 0
    run = pathlib.Path(shutil.copytree(alone.folder / "run", tmp_path / "run"))
    ps = cluster("ps")
    chief = cluster("chief", 0, "--resume", str(run), "--num-workers", "1", "--max-steps", "4500")
    assert chief.wait() == ps.wait() == 0
    assert newest(run)[1]["agent_steps"] == 4500
    assert json.loads((run / "config.json").read_text())["resumed"][-1]["agent_steps"] == 3000
    again = start("--resume", str(run), "--max-steps", "5000")
    assert again.wait() == 0
    assert_quiet(alone, chief, ps, again)
    about = newest(run)[1]
    assert about["agent_steps"] == 5000 and about["updates"] >= 250
    assert len(rows_of(run)) == about["games"] > 0


@pytest.mark.slow
def test_a_chief_that_cannot_reach_its_parameter_server_says_what_is_lost(start):
    cluster = Cluster(start, workers=0)
    ps, chief = cluster("ps"), cluster("chief", 0, "--num-workers", "1", "--render", "never")
    assert wait_until(lambda: games_of(chief) > 0)
    ps.process.kill()
    ps.wait()
    assert wait_until(lambda: "waiting for /job:ps/task:0" in chief.out)
    chief.signal(signal.SIGTERM)
    assert chief.wait() == 1
    assert chief.err.count("\n") == 1 and "the last checkpoint was not written" in chief.err
    assert len(rows_of(cluster.run)) == games_of(chief)


@pytest.mark.slow
def test_ctrl_c_ends_those_who_wait_for_others(start):
    cluster = Cluster(start, workers=1)
    waiting = cluster("worker"), cluster("chief", 0, "--num-workers", "1"), cluster("ps")
    waiting[2].process.kill()
    waiting[2].wait()
    for program in waiting[:2]:
        assert wait_until(lambda: "waiting for /job:ps/task:0 at" in program.out)  # noqa: B023
        program.signal(signal.SIGINT)
        assert program.wait() == 130
        assert program.err == "" and program.no_actor_is_left()
    assert not cluster.run.exists()  # the run has not begun


def newest_steps(run):
    return max((int(path.name[5:-4]) for path in run.glob("checkpoints/step-*")), default=-1)


# ------------------------------------------------------------------------------ on several machines


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Network:
    """Hosts, network namespaces each with an address of its own, on one bridge."""

    def __init__(self, names):
        self.mark = f"a3c{os.getpid()}"
        self.names = names
        self.bridge = f"{self.mark}-switch"

    def open(self):
        ip("netns", "add", self.bridge)
        ip("-n", self.bridge, "link", "add", "switch", "type", "bridge")
        ip("-n", self.bridge, "link", "set", "switch", "up")
        for number, name in enumerate(self.names):
            host, port = self.host(name), f"port{number}"
            ip("netns", "add", host)
            ip("-n", host, "link", "add", "eth0", "type", "veth", "peer", "name", port,
               "netns", self.bridge)  # fmt: skip
            ip("-n", self.bridge, "link", "set", port, "master", "switch", "up")
            ip("-n", host, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
            ip("-n", host, "link", "set", "eth0", "up")
            ip("-n", host, "link", "set", "lo", "up")

    def host(self, name):
        return f"{self.mark}-{name}"

    def address(self, name):
        return f"10.66.0.{self.names.index(name) + 1}"

    def on(self, name):
        """(address, what runs a command on that host)."""
        return self.address(name), ("ip", "netns", "exec", self.host(name))

    def cable(self, name, state):
        """Plug a host's cable in ("up") or out ("down"), at the switch."""
        port = f"port{self.names.index(name)}"
        ip("-n", self.bridge, "link", "set", port, state)

    def bytes_at(self, name):
        """(received, sent) by a host so far."""
        command = [*self.on(name)[1], "cat", "/proc/net/dev"]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        fields = re.search(r"eth0:(.*)", text)[1].split()
        return int(fields[0]), int(fields[8])

    def close(self):
        for name in [*map(self.host, self.names), self.bridge]:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.fixture
def network():
    if not shutil.which("ip"):
        pytest.skip("not installed: ip, of iproute2")
    network = Network(["ps", "chief", "worker"])
    try:
        try:
            network.open()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        yield network
    finally:
        network.close()


@pytest.mark.slow
def test_hosts_with_a_link_cut_for_10_seconds_go_on_and_rows_are_all_that_crosses(start, network):
    hosts = {(name, 0): network.on(name) for name in network.names}
    cluster = Cluster(start, hosts, workers=1)
    ps = cluster("ps")
    chief = cluster("chief", 0, "--num-workers", "1", "--render", "never", "--seed", "2")
    worker = cluster("worker", 0, "--num-workers", "1")
    assert wait_until(lambda: games_by(chief, "W_0", "W_100"))

    network.cable("worker", "down")
    cut = time.monotonic()
    waits = f"waiting for /job:ps/task:0 at {network.address('ps')}:3000"
    assert wait_until(lambda: waits in worker.out)
    for _ in range(2):  # W_0 is not held up
        others, its = games_by(chief, "W_0"), games_by(chief, "W_100")
        assert wait_until(lambda others=others: games_by(chief, "W_0") > others)
    assert wait_until(lambda: time.monotonic() - cut > 10)
    assert games_by(chief, "W_100") == its
    network.cable("worker", "up")
    assert wait_until(lambda: games_by(chief, "W_100") > its)

    received, sent = network.bytes_at("worker")
    its = games_by(chief, "W_100")
    assert wait_until(lambda: games_by(chief, "W_100") >= its + 3)
    bytes_after = network.bytes_at("worker")
    games = games_by(chief, "W_100") - its + 1  # and the one that it is playing
    chief.signal(signal.SIGINT)
    assert chief.wait() == 130 and worker.wait() == ps.wait() == 0
    assert_quiet(ps, chief, worker)
    rows = rows_of(cluster.run)
    # a game of some 1,000 steps is 50 updates, of 10 MB each way if the gradients were dense
    both_ways = sum(bytes_after) - received - sent
    assert 0 < both_ways < games * 50 * 20e6 / 10
    assert {row["worker"] for row in rows} == {"W_0", "W_100"}
