"""Fixtures that several files share."""

import shutil
import signal

import pytest
from program import ROOT, Program, Screen

import a3c_pong

# nohup and a shell's background ignore them, and so would the programs that the tests send them to
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="module")
def tf():
    """TensorFlow, as the script has it."""
    a3c_pong.load_tensorflow()
    return a3c_pong.tf


@pytest.fixture
def start(tmp_path):
    """start(option, ...) starts the script; all its processes are gone when the test is over."""
    programs = []

    def start(*options, program=(str(ROOT / "a3c_pong.py"),), command=(), **variables):
        folder = tmp_path / f"run{len(programs)}"
        programs.append(Program(folder, options, program, variables, command))
        return programs[-1]

    yield start
    for program in programs:
        program.kill_all()


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
