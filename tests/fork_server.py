"""The script in new processes that have imported TensorFlow and Matplotlib, which takes seconds.

A server imports what the script imports, and forks for each request. The new process then runs the
script's file as a program, with arguments, folder, variables and files of its own. Signals, its end
and its children are as those of any process. What happens before `main` is tested with processes
that Python starts.
"""

import atexit
import contextlib
import gc
import io
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPT = os.path.join(os.path.dirname(HERE), "a3c_pong.py")
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGTSTP


# ------------------------------------------------------------------------------ in a test's process


class ForkServer:
    """A test process' handle on its server."""

    def __init__(self):
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.server = subprocess.Popen([sys.executable, __file__], **pipes)
        atexit.register(self.server.stdin.close)
        self.lock, self.ended, self.started = threading.Lock(), {}, {}
        self.changed = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self.server.stdout:
            kind, number, value = line.split()
            with self.changed:
                if kind == b"started":  # the process id may have been another's before
                    self.ended.pop(int(value), None)
                    self.started[int(number)] = int(value)
                else:
                    self.ended[int(number)] = int(value)
                self.changed.notify_all()

    def start(self, arguments, cwd, env, out, err, code=None):
        """Start the script, or code; out, err: files to write. Returns a `ForkedProcess`."""
        with self.lock:
            number = len(self.started)
            request = dict(arguments=arguments, cwd=str(cwd), env=env, out=str(out), err=str(err))
            request.update(number=number, code=code)
            self.server.stdin.write(json.dumps(request).encode() + b"\n")
            self.server.stdin.flush()
            with self.changed:
                self.changed.wait_for(lambda: number in self.started)
        return ForkedProcess(self, self.started[number])


class ForkedProcess:
    """What the tests use of `subprocess.Popen`, of a process that the server has forked."""

    def __init__(self, server, pid):
        self.server, self.pid = server, pid

    def poll(self):
        """The exit status, or minus a signal's number; None while it runs."""
        return self.server.ended.get(self.pid)

    returncode = property(poll)

    def wait(self, seconds=None):
        """Wait for its end; return the exit status."""
        with self.server.changed:
            if not self.server.changed.wait_for(lambda: self.pid in self.server.ended, seconds):
                raise subprocess.TimeoutExpired(f"process {self.pid}", seconds)
        return self.poll()

    def send_signal(self, number):
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self):
        """Kill it."""
        self.send_signal(signal.SIGKILL)


# -------------------------------------------------------------------------- in the server's process


def serve():
    """Fork for each line of standard input, and tell of each start and end, until its end."""
    sys.path.insert(0, os.path.dirname(SCRIPT))
    import a3c_pong
    from runtime.plots import load_matplotlib, save_curve

    a3c_pong.load_tensorflow()
    load_matplotlib()
    save_curve([], io.BytesIO())  # imports more
    gc.freeze()  # or each process would look through, and so copy, all of this when it ends
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    buffered = b""
    while True:
        ready, _, _ = select.select([0, reading], [], [])
        if reading in ready:
            os.read(reading, 4096)
            tell_of_ends()
        if 0 in ready:
            text = os.read(0, 65536)
            if not text:
                return
            *lines, buffered = (buffered + text).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    os.close(reading)
                    os.close(writing)
                    become(request)
                os.write(1, f"started {request['number']} {pid}\n".encode())


def tell_of_ends():
    """Write a line for each child that has ended."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            os.write(1, f"ended {pid} {os.waitstatus_to_exitcode(status)}\n".encode())


def become(request):
    """Run the script, or the code that is given, in this process, and end it."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for number, name in enumerate([os.devnull, request["out"], request["err"]]):
        file = os.open(name, os.O_WRONLY if number else os.O_RDONLY)
        os.dup2(file, number)
        os.close(file)
    code, arguments = request["code"], request["arguments"]
    sys.argv = ["-c" if code else SCRIPT, *arguments]
    sys.orig_argv = [sys.executable, *(["-c", code] if code else [SCRIPT]), *arguments]
    if code:
        exec(code, {"__name__": "__main__"})
    else:
        runpy.run_path(SCRIPT, run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    serve()
