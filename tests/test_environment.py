"""Where the program's users are: notebooks, containers, batch systems, odd file systems."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import uuid

import numpy as np
import pytest
from in_process import InProcess
from program import ROOT, count_pixels, read_picture, save_agent, wait_until

from a3c_pong import Settings
from cluster.config import is_alone
from runtime import checkpoints, cores, playback, plots
from runtime.curve import Episode
from runtime.graph import KILLED
from runtime.run_folder import RunFolder, new_path

# ------------------------------------------------------------------------------- the whole program

# A network file system without locks, and without fsync of folders.
NO_LOCKS = r"""
#include <errno.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
int flock(int number, int operation) { errno = ENOLCK; return -1; }
int fsync(int number) {
    struct stat about;
    if (fstat(number, &about) == 0 && S_ISDIR(about.st_mode)) { errno = EINVAL; return -1; }
    return syscall(SYS_fsync, number);
}
"""
DAEMON = """import os, sys
os.close(0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def compiled(folder, code):
    """A C file's shared library, for LD_PRELOAD."""
    if not shutil.which("gcc"):
        pytest.skip("not installed: gcc")
    (folder / "code.c").write_text(code)
    library = folder / "code.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, folder / "code.c"], check=True)
    return str(library)


@pytest.mark.slow
def test_it_trains_quietly_in_a_strange_environment(start, tmp_path):
    """A notebook's variables, a daemon's streams, a platform's TF_CONFIG, a poor file system."""
    script, rc = str(ROOT / "a3c_pong.py"), tmp_path / "matplotlibrc"
    rc.write_text("text.usetex: True\n")  # which takes LaTeX
    run = start(
        *("--run-dir", "läufe", "--num-workers", "1", "--max-global-episodes", "2"),
        program=("-c", DAEMON, script),
        MPLBACKEND="module://matplotlib_inline.backend_inline",
        HOME="/nonexistent", COLUMNS="0", FORCE_COLOR="1", TTY_COMPATIBLE="1",
        PYTHONIOENCODING="ascii", MATPLOTLIBRC=str(rc),
        CUDA_VISIBLE_DEVICES="0", TF_CONFIG='{"cluster": {"worker": ["localhost:1"]}}',
        PYTHONPATH=f"{ROOT}/tests/no_linux:{ROOT}", LD_PRELOAD=compiled(tmp_path, NO_LOCKS),
    )  # fmt: skip
    assert run.wait() == 0
    assert run.err == ""
    lines = run.out.splitlines()
    assert lines[0] == "TF_CONFIG describes a single process: it trains alone"
    assert re.match(r"1 worker on \d+ cores?; the chapter's settings", lines[1])
    missing = "l\\xe4ufe cannot be locked (No locks available): start no other run in it"
    assert run.out.count(missing) == 1
    assert run.out.count("l\\xe4ufe cannot be synced: a power cut may lose the last") == 1
    assert len(run.games()) == 2
    assert lines[-1].startswith("2 games played: ") and "l\\xe4ufe/reward.png" in lines[-1]
    assert "\x1b" not in run.out
    assert checkpoints.load_newest(run.folder / "läufe").about["games"] == 2
    assert (run.folder / "läufe" / "reward.png").exists()


# In a mount namespace of its own; arguments: the volume, and the program with its options.
READ_ONLY = """
mount --make-rprivate / || exit 77
for mount in /dev/shm /tmp /; do
    mountpoint -q $mount && { mount -o remount,ro,bind $mount || exit 77; }
done
mount -t tmpfs none "$1" || exit 77
cd /
touch /tmp/file "$HOME/file" 2> /dev/null && exit 77
shift
exec "$@"
"""


@pytest.mark.slow
def test_it_runs_where_nothing_but_its_volume_can_be_written(start, tmp_path):
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("mounting a file system is not permitted here")
    (tmp_path / "volume").mkdir()
    options = "--run-dir", str(tmp_path / "volume" / "run"), "--max-global-episodes", "1"
    alone = "unshare", "-m", "bash", "-c", READ_ONLY, "bash", str(tmp_path / "volume")
    run = start(*options, "--num-workers", "1", command=alone)
    if run.wait() == 77:
        pytest.skip("file systems cannot be made read-only here")
    assert run.wait() == 0
    assert run.err == ""
    assert len(run.games()) == 1 and run.played()[0] == "1 games played"
    assert "cannot write" not in run.out


@pytest.mark.slow
def test_too_little_memory_for_tensorflow_is_said_and_leaves_no_folder(start):
    run = start(
        "--num-workers", "1", command=("prlimit", f"--as={1_500_000_000}"), OPENBLAS_NUM_THREADS="1"
    )
    assert run.wait() not in (0, 2)
    said = "a3c_pong.py: TensorFlow cannot be imported: ", KILLED.decode()
    assert run.err.splitlines(keepends=True)[-1].startswith(said)
    assert not (run.folder / "run").exists()
    assert run.no_actor_is_left()


LAST_WORDS = """import os, sys
from runtime.graph import last_words
with last_words():
    os.write(2, b"I0000 00:00:1.2 3 a.cc:1] Could not find cuda drivers\\n")
    os.write(2, b"no memory is left\\n")
    {end}
print("goes on")
"""
SAID = "no memory is left\n"


@pytest.mark.parametrize(
    "end, status, shown",
    [
        ("pass", 0, ""),
        ("os.abort()", -signal.SIGABRT, SAID + KILLED.decode()),
        ("os.kill(os.getpid(), 9)", -signal.SIGKILL, SAID + KILLED.decode()),
        ("sys.exit(3)", 3, SAID),
        ("raise KeyboardInterrupt", -signal.SIGINT, None),
    ],
)
def test_an_imports_last_words_are_shown_if_it_fails(end, status, shown):
    code = [sys.executable, "-c", LAST_WORDS.format(end=end)]
    ended = subprocess.run(code, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == status
    if shown is None:
        assert SAID not in ended.stderr and "AVX" not in ended.stderr
    else:
        assert ended.stderr == shown
    assert ended.stdout == ("goes on\n" if status == 0 else "")


IMPORTED = b"_multiarray_umath"  # NumPy's, which is among the first to be imported


def test_ctrl_c_while_the_script_is_imported_is_quiet(start):
    run = start("--num-workers", "1", command=("env",))
    assert wait_until(lambda: IMPORTED in run.maps())
    run.signal(signal.SIGINT)
    assert run.wait() in (-signal.SIGINT, 130)  # a shell says 130 of both
    assert (run.out, run.err) == ("", "")


# -------------------------------------------------------------------------------- what it has there


@pytest.mark.parametrize("method", ["a3c", "n-step-q"])
def test_every_operation_is_on_the_cpu(tf, method):
    run, _ = InProcess(Settings(method=method, seed=1), workers=2, play=False).build()
    operations = run.globalnet.session.graph.get_operations()
    assert len(operations) > 100
    # reading a variable has no device of its own, and is done where the variable is
    devices = {operation.device or operation.inputs[0].op.device for operation in operations}
    assert devices == {"/device:CPU:0"}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "-1"


def usable_cores_in(group):
    """What a process in a control group finds, its quota and its number of usable cores."""
    code = "from runtime import cores; print(cores.cpu_quota(), cores.usable_cores())"
    enter = f'echo $$ > {group}/cgroup.procs && exec "$0" -c "{code}"'
    command = ["sh", "-c", enter, sys.executable]
    return subprocess.check_output(command, cwd=ROOT, text=True).split()


def a_group(parent):
    """A new control group, and one in it."""
    outer = pathlib.Path(parent, f"test-{uuid.uuid4().hex[:8]}")
    try:
        (outer / "inner").mkdir(parents=True)
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    return outer


@pytest.mark.parametrize("quota, found", [(150_000, "1.5 2"), (50_000, "0.5 1")])
def test_a_container_of_cgroup_v1_has_as_many_workers_as_its_quota_has_cores(quota, found):
    if not os.path.exists("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"):
        pytest.skip("this machine has no cgroup v1")
    group = a_group("/sys/fs/cgroup/cpu")
    try:
        (group / "cpu.cfs_quota_us").write_text(f"{quota}")  # of 100,000, up the tree
        expected = found.split()
        expected[1] = str(min(int(expected[1]), len(cores.allowed_cores())))
        assert usable_cores_in(group / "inner") == expected
    finally:
        (group / "inner").rmdir()
        group.rmdir()


def test_a_container_of_cgroup_v2_has_as_many_workers_as_its_quota_has_cores():
    controllers = pathlib.Path("/sys/fs/cgroup/cgroup.controllers")
    if not controllers.exists() or "cpu" not in controllers.read_text().split():
        pytest.skip("this machine has no cgroup v2 with CPU quotas")
    group = a_group("/sys/fs/cgroup")
    try:
        (group / "cpu.max").write_text("50000 100000")
        assert usable_cores_in(group / "inner") == ["0.5", "1"]
    finally:
        (group / "inner").rmdir()
        group.rmdir()


@pytest.mark.parametrize(
    "kind, root, path, quota",
    [
        ("cgroup2 cgroup2 rw", "/", "0::/a/b", 0.5),  # the smallest up the tree
        ("cgroup2 cgroup2 rw", "/a", "0::/a/b", 0.5),  # the mount shows a part of the tree
        ("cgroup2 cgroup2 rw", "/other", "0::/a/b", 3.0),  # a container's, at its mount's root
        ("cgroup cgroup rw,memory", "/", "0::/a/b", float("inf")),
    ],
)
def test_quotas_are_found_wherever_the_tree_is_mounted(tmp_path, kind, root, path, quota):
    """As the kernel's manual has it, with a tree of files in place of the kernel's."""
    mount, proc = tmp_path / "mount", tmp_path / "proc"
    (mount / "a" / "b").mkdir(parents=True)
    (mount / "b").mkdir()
    proc.mkdir()
    (proc / "cgroup").write_text(f"{path}\n1:memory:/\n")
    (proc / "mountinfo").write_text(f"31 23 0:28 {root} {mount} rw shared:1 - {kind}\n")
    (mount / "cpu.max").write_text("300000 100000")
    (mount / "a" / "cpu.max").write_text("50000 100000")
    (mount / "a" / "b" / "cpu.max").write_text("max 100000")
    (mount / "b" / "cpu.max").write_text("50000 100000")
    assert cores.cpu_quota(proc) == quota
    assert 1 <= cores.usable_cores(proc) <= max(1, np.ceil(quota))


def test_the_version_is_that_of_whichever_build_is_installed(tmp_path, monkeypatch):
    about = tmp_path / "some_library_cpu-1.2.3.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: some-library-cpu\nVersion: 1.2.3")
    (about / "top_level.txt").write_text("some_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert checkpoints.version("some_library") == "1.2.3"
    assert checkpoints.version("numpy") == np.__version__


@pytest.mark.parametrize(
    "text, alone",
    [
        ("{}", True),
        ('{"task": {"type": "worker", "index": 0}}', True),
        ('{"cluster": {}, "environment": "cloud"}', True),
        ('{"cluster": {"chief": ["h:1"]}, "task": {"type": "chief", "index": 0}}', True),
        ('{"cluster": {"master": ["h:1"]}, "task": {"type": "master", "index": 0}}', True),
        ('{"cluster": {"worker": ["h:1", "h:2"]}}', False),
        ('{"cluster": {"ps": ["h:1"]}}', False),
        ('{"cluster": {"ps": ["h:1"], "chief": ["h:2"]}}', False),
        ("[]", False),
        ("nonsense", False),
    ],
)
def test_a_platforms_tf_config_of_one_machine_is_no_cluster(text, alone):
    assert is_alone(text) == alone


def test_a_folder_that_was_only_tried_is_not_left(tmp_path):
    path = tmp_path / "deep" / "run"
    assert new_path(path) == path
    assert not (tmp_path / "deep").exists()
    made = RunFolder.new(path, {"run_dir": str(path)}, {}, [])
    assert (path / "config.json").exists() and made.path == path


# ------------------------------------------------------------------------------------ the pictures


def episodes(number, score=lambda k: -21 + k / 10):
    rows = []
    for k in range(number):
        mean = score(k)
        rows.append(Episode(k, "W_0", 10 * k, k / 7, int(score(k)), -40.0, mean, mean - 19))
    return rows


@pytest.mark.parametrize("number", [0, 1, 2, 200, 12_000])
def test_a_picture_has_a_panel_for_scores_and_the_chapters(tmp_path, number):
    plots.load_matplotlib()
    plots.save_curve(episodes(number, lambda k: -21 + 20 * k / max(1, number)), tmp_path / "x.png")
    picture = read_picture(tmp_path / "x.png")
    upper, lower = picture[: len(picture) // 2], picture[len(picture) // 2 :]
    blue, orange = (0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)
    if number:
        # the legend, above the panel, is blue, too
        assert count_pixels(upper[60:], blue) >= 2
        assert count_pixels(lower, orange) >= 2
    assert count_pixels(lower, blue) == count_pixels(upper, orange) == 0
    light = (np.abs(upper[60:].astype(int) - (199, 221, 236)).max(axis=2) < 8).sum()
    assert (light > 50) == (number >= 200) or number < 200


def test_a_zoomed_plot_stays_as_it_is_until_it_is_taken_back():
    plots.load_matplotlib()
    plot = plots.CurvePlot(plots.matplotlib.figure.Figure())
    plot.update(episodes(100))
    home = plot.score_axes.get_xlim()
    assert home[1] > 98
    plot.score_axes.set_xlim(10, 20)  # as the toolbar does
    plot.update(episodes(300))
    assert plot.score_axes.get_xlim() == (10, 20)
    assert len(plot.score.get_xdata()) == 300  # but its curve goes on
    plot.score_axes.set_xlim(*home)  # the toolbar's home
    plot.update(episodes(300))
    assert plot.score_axes.get_xlim()[1] > 298


def test_a_policy_that_has_diverged_is_neither_saved_nor_played(tmp_path):
    _, arrays = save_agent(tmp_path, agent_steps=1000)
    assert playback.load_policy(tmp_path)[1].about["agent_steps"] == 1000
    for number, bad in enumerate((np.nan, np.inf, 1e30), 2):
        file, _ = save_agent(tmp_path, agent_steps=1000 * number)
        checkpoint = checkpoints.load(file)
        checkpoint.arrays["globalnet/actor_network/bias"][7] = bad
        checkpoints.save(file, checkpoint)
        _, loaded = playback.load_policy(tmp_path)
        assert loaded.about["agent_steps"] == 1000
        assert "its weights are NaN, infinite or huge" in loaded.passed_over[0]


def test_a_better_checkpoint_than_the_last_is_named(tmp_path):
    file, _ = save_agent(tmp_path)
    for name, score in ("best.npz", 3.25), (file.name, 1.0):
        checkpoint = checkpoints.load(file)
        checkpoint.about["running_score"] = score
        checkpoints.save(file.with_name(name), checkpoint)
    best = file.with_name("best.npz")
    (line,) = playback.load_policy(tmp_path)[1].passed_over
    assert "had a running score of 3.2, this one has 1.0" in line and line.endswith(f"{best}")
    assert playback.load_policy(best)[1].passed_over == []
