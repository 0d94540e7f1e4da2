"""TF_CONFIG: the processes of a cluster, and which of them this one is."""

import contextlib
import errno
import json
import os
import socket
from typing import NamedTuple

from runtime.command_line import fail
from runtime.cores import usable_cores

JOBS = "ps", "chief", "worker"
EXAMPLE = (
    '{"cluster": {"ps": ["HOST:PORT"], "chief": ["HOST:PORT"], "worker": ["HOST:PORT", ...]}, '
    '"task": {"type": "ps", "index": 0}}'
)


class Cluster(NamedTuple):
    """The processes of a cluster, and which of them this one is."""

    addresses: dict  # job -> list of "host:port"
    job: str
    index: int

    def task(self, job=None, index=None):
        """Return the name TensorFlow has for a task, by default for this process' own."""
        return f"/job:{job or self.job}/task:{self.index if index is None else index}"

    def where(self, job=None, index=None):
        """Return a task's name and address, for the user."""
        address = self.addresses[job or self.job][self.index if index is None else index]
        return f"{self.task(job, index)} at {address}"

    def first_worker(self):
        """Return the number of its first worker, W_n, which no other in the cluster has."""
        return WORKERS_EACH * (self.index + 1) if self.job == "worker" else 0


WORKERS_EACH = 100  # numbers set aside for a process


def described(text):
    """Return the `Cluster` that a TF_CONFIG describes. Raises ValueError, with one line."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"TF_CONFIG is not JSON: {error}") from None
    cluster = config.get("cluster") if isinstance(config, dict) else None
    task = config.get("task") if isinstance(config, dict) else None
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise ValueError(f"TF_CONFIG must be like {EXAMPLE}")
    for job, addresses in cluster.items():
        if job not in JOBS:
            raise ValueError(f"TF_CONFIG: a cluster has ps, chief and worker, not {job!r}")
        if not isinstance(addresses, list):
            raise ValueError(f"TF_CONFIG: {job} must be a list of addresses, not {addresses!r}")
        for address in addresses:
            split_address(address)
    addresses = {job: cluster.get(job, []) for job in JOBS}
    if not addresses["ps"]:
        raise ValueError("TF_CONFIG: the cluster needs a ps, a parameter server")
    if len(addresses["chief"]) != 1:
        raise ValueError(f"TF_CONFIG: the cluster needs one chief, not {len(addresses['chief'])}")
    every = [address for job in JOBS for address in addresses[job]]
    for address in every:
        if every.count(address) > 1:
            raise ValueError(f"TF_CONFIG: {address} is there twice")
    job, index = task.get("type"), task.get("index")
    if job not in JOBS:
        raise ValueError(f"TF_CONFIG: task type must be ps, chief or worker, not {job!r}")
    if type(index) is not int:
        raise ValueError(f"TF_CONFIG: task index must be a whole number, not {index!r}")
    if not 0 <= index < len(addresses[job]):
        there = f"there are {len(addresses[job])}, numbered from 0"
        raise ValueError(f"TF_CONFIG: the cluster has no {job} {index}: {there}")
    return Cluster(addresses, job, index)


def is_alone(text):
    """Return whether a TF_CONFIG describes a single machine, as platforms set it there too."""
    with contextlib.suppress(ValueError, RecursionError):
        config = json.loads(text)
        if isinstance(config, dict):
            cluster = config.get("cluster", {})
            if cluster == {}:
                return True
            if isinstance(cluster, dict) and len(cluster) == 1:
                ((job, addresses),) = cluster.items()
                alone = isinstance(addresses, list) and len(addresses) == 1
                return alone and job in ("worker", "chief", "master")
    return False


def split_address(address):
    """Return (host, port) of "host:port". Raises ValueError, with one line for the user."""
    host, colon, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(f"TF_CONFIG: an address is HOST:PORT, not {address!r}")
    return host.strip("[]"), int(port)


def check_port(cluster):
    """Raise ValueError, with one line for the user, if its port is taken on this machine.

    TensorFlow itself would share the port with another server, without a word.
    """
    _, port = split_address(cluster.addresses[cluster.job][cluster.index])
    try:
        probe = socket.socket(socket.AF_INET6)
    except OSError:  # Python was built with IPv6, and the kernel has none
        probe = socket.socket(socket.AF_INET)
    with probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError as error:
            why = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror
            line = f"{cluster.task()} of TF_CONFIG cannot listen on port {port} of this machine"
            raise ValueError(f"{line}: {why}") from None


def answers(address):
    """Return whether something listens there."""
    try:
        with socket.create_connection(split_address(address), timeout=1):
            return True
    except OSError:
        return False


def check_workers(number):
    """Raise ValueError if a process has too many workers; number: None is one a core."""
    if (number or usable_cores()) > WORKERS_EACH:
        raise ValueError(f"a process of a cluster has at most {WORKERS_EACH} --num-workers")


def cluster_member(given):
    """Return the `Cluster` that TF_CONFIG describes, or None if it is not set.

    given: dict of the settings on the command line.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        return None
    if is_alone(text):
        with contextlib.suppress(OSError):
            print("TF_CONFIG describes a single process: it trains alone", flush=True)
        return None
    try:
        member = described(text)
        check_port(member)
        if member.job == "worker":  # a chief's number may be that of the run it resumes
            check_workers(given.get("num_workers"))
    except ValueError as error:
        fail(error)
    return member
