"""The TensorFlow server of a process, and how a process that runs one ends."""

import contextlib
import os
import sys
import traceback

from runtime.graph import tf
from runtime.signals import status_of

serving = False  # whether this process has a server
kept = []  # this process' server and sessions, for they cannot be taken apart without noise


def start_server(cluster):
    """Start this process' `tf.distribute.Server`."""
    global serving
    serving = True
    for name in "grpc_proxy", "http_proxy", "https_proxy":  # they lead out of the cluster
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)
    spec = {job: addresses for job, addresses in cluster.addresses.items() if addresses}
    # One thread an operation: the process' other sessions share the server's, and must sum in
    # the order of a run alone to have its numbers.
    config = tf.ConfigProto(intra_op_parallelism_threads=1)
    kept.append(tf.distribute.Server(spec, cluster.job, cluster.index, config=config))


@contextlib.contextmanager
def leaving():
    """End the process as an exception says, at once where TensorFlow's server runs.

    It cannot be shut down, and threads may be waiting for an answer that never comes.
    """
    try:
        try:
            yield
        except KeyboardInterrupt as end:  # a signal before the run had anything to end
            sys.exit(status_of(end.args))
    except BaseException as end:
        if not serving:
            raise
        status = end.code if isinstance(end, SystemExit) else 1
        if not isinstance(end, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)
