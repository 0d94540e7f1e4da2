"""TensorFlow 1's graph and session on today's TensorFlow: the chapter's way, and the fast one.

TensorFlow itself is imported by `load_tensorflow`.
"""

import os
import sys


class LoadedLater:
    """`tensorflow.compat.v1`, which has its names from `load_tensorflow` on."""

    module = None

    def __getattr__(self, name):
        return getattr(self.module, name)


tf = LoadedLater()


def load_tensorflow():
    """Import TensorFlow, as `tf`.

    That takes seconds, and it writes to stderr before any log level counts. So a script calls this
    once its settings are known to be good, and meanwhile that file descriptor points nowhere.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # no gain on matrices of this size
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # or Keras is imported, a third of the time
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import tensorflow.compat.v1
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
    tf.module = tensorflow.compat.v1
    tf.logging.set_verbosity(tf.logging.ERROR)
    tf.disable_eager_execution()


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
        run = session.make_callable(tensors + operations, feeds)
        return lambda *values: run(*values)[: len(tensors)]
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
