"""TensorFlow 1's graph and session on today's TensorFlow: the chapter's way, and the fast one.

TensorFlow itself is imported by `load_tensorflow`.
"""

import contextlib
import os
import re
import signal
import sys

from runtime.checkpoints import why
from runtime.command_line import fail
from runtime.signals import Signals


class LoadedLater:
    """A stand-in for `tensorflow.compat.v1`, which works after `load_tensorflow`."""

    module = None

    def __getattr__(self, name):
        return getattr(self.module, name)


tf = LoadedLater()


def load_tensorflow():
    """Import TensorFlow, as `tf`.

    That takes seconds, and it writes to stderr before any log level counts. So a script calls this
    once its settings are known to be good, and meanwhile its stderr is kept back.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # no gain on matrices of this size
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # or Keras is imported, a third of the time
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # everything is on /cpu:0, so leave a GPU alone
    try:
        with last_words():
            import tensorflow.compat.v1
    except (ImportError, OSError, MemoryError) as error:  # as with too little memory
        fail(f"TensorFlow cannot be imported: {why(error)}", status=1)
    tf.module = tensorflow.compat.v1
    tf.logging.set_verbosity(tf.logging.ERROR)
    tf.disable_eager_execution()


@contextlib.contextmanager
def last_words():
    """Keep back what is written to stderr; show it only if the process fails or is killed.

    A process that is killed can show nothing any more, so a child does it.
    """
    sys.stderr.flush()
    stderr, (reading, writing) = os.dup(2), os.pipe()
    child = os.fork()
    if child == 0:
        show_unless_good(reading, writing)
    os.close(reading)
    os.dup2(writing, 2)
    end = ERROR
    try:
        yield
        end = GOOD
    except KeyboardInterrupt:  # a signal is no failure
        end = GOOD
        raise
    finally:
        os.write(writing, end)  # a SIGHUP has given standard error to nowhere
        os.close(writing)
        os.dup2(stderr, 2)
        os.close(stderr)
        os.waitpid(child, 0)


GOOD, ERROR = b"\0good", b"\0error"  # at the end of the text; neither is there if it was killed
KILLED = b"a3c_pong.py: killed while it imported TensorFlow, which needs AVX and 1 GB of memory\n"
# what TensorFlow always says: lines of information, "I0000 ...", and one about such lines
CHATTER = re.compile(rb"WARNING: All log messages before|I\d{4} |[-\d]+ [\d:.]+: I ")


def show_unless_good(reading, writing):
    """Be the child of `last_words`: read a pipe to its end, and show its last lines if need be."""
    os.close(writing)
    for number in *Signals.NUMBERS, signal.SIGTSTP:
        signal.signal(number, signal.SIG_IGN)  # it ends with its parent
    text = b""
    while more := os.read(reading, 65536):
        text = (text + more)[-4096:]
    if not text.endswith(GOOD):
        lines = text.removesuffix(ERROR).splitlines(keepends=True)
        lines = [line for line in lines if not CHATTER.match(line)]
        if not text.endswith(ERROR):
            lines.append(KILLED if text.endswith(b"\n") or not text else b"\n" + KILLED)
        os.write(2, b"".join(lines))
    os._exit(0)


def on_cpu(initializer):
    """Return an initialiser whose operations are on /cpu:0. TensorFlow gives them no device."""

    def initial_value(shape, dtype, partition_info=None):
        with tf.device("/cpu:0"):
            return initializer(shape, dtype)

    return initial_value


def new_session():
    """Return a session whose work is done by the threads that call it."""
    one_thread = dict(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
    return tf.Session(config=tf.ConfigProto(**one_thread))


def make_callable(session, fetches, feeds, seconds=None):
    """Return a part of the graph as a function: values of feeds in, list of fetched tensors out.

    It runs on the calling thread and costs 10 us a call, while `Session.run` costs 100 and more.
    TensorFlow's function for that is private (Keras used it for years). If it is missing, the
    public one does the same more slowly.

    Args:
        session: a `tf.Session`.
        fetches: list of tensors and operations.
        feeds: list of placeholders.
        seconds: time-out of a call, for a session on other machines.
    """
    tensors = [fetch for fetch in fetches if isinstance(fetch, tf.Tensor)]
    operations = [fetch for fetch in fetches if not isinstance(fetch, tf.Tensor)]
    if not hasattr(session, "_make_callable_from_options"):
        run = session.make_callable(tensors + operations, feeds, accept_options=True)
        how = tf.RunOptions(timeout_in_ms=1000 * (seconds or 0))  # 0: none
        return lambda *values: run(*values, options=how)[: len(tensors)]
    from tensorflow.core.protobuf import config_pb2

    options = config_pb2.CallableOptions(
        feed=[tensor.name for tensor in feeds],
        fetch=[tensor.name for tensor in tensors],
        target=[operation.name for operation in operations],
    )
    if seconds:
        options.run_options.timeout_in_ms = 1000 * seconds
    else:
        options.run_options.inter_op_thread_pool = -1  # the calling thread
    return session._make_callable_from_options(options)
