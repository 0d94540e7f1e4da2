"""Fixtures that several files share."""

import contextlib
import os
import shutil
import signal
import subprocess

import pytest
from program import SCRIPT, Program, Screen

import a3c_pong
from runtime.cores import allowed_cores

# nohup and a shell's background ignore them, and so would the programs that the tests send them to
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="module")
def tf():
    """TensorFlow, as the script has it."""
    a3c_pong.load_tensorflow()
    return a3c_pong.tf


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """How many processes run tests: two more than cores, as a test waits for its programs."""
    return min(4, len(allowed_cores()) + 2)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hand out the tests one by one, but the files whole that make something for several tests."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file, _, _ = nodeid.partition("::")
            whole = file.endswith(("test_cluster.py", "test_resume.py", "test_search.py"))
            return file if whole else nodeid

    return Scheduling(config, log)


@contextlib.contextmanager
def starter(folder):
    """start(option, ...) starts the script; all its processes are gone after the `with`."""
    programs = []

    def start(*options, program=SCRIPT, command=(), **variables):
        programs.append(
            Program(folder / f"run{len(programs)}", options, program, variables, command)
        )
        return programs[-1]

    try:
        yield start
    finally:
        for program in programs:
            program.kill_all()


@pytest.fixture
def start(tmp_path):
    """start(option, ...) starts the script; all its processes are gone when the test is over."""
    with starter(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def start_shared(tmp_path_factory):
    """The same for runs that several tests of a file look at, until the last of them is over."""
    with starter(tmp_path_factory.mktemp("shared")) as start:
        yield start


@pytest.fixture
def screen(tmp_path):
    """A `Screen`."""
    missing = [name for name in ("Xvfb", "xdotool") if not shutil.which(name)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    screen = Screen(tmp_path)
    try:
        yield screen
    finally:
        screen.process.kill()
        screen.process.wait()


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 110 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=110m", "none", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
