"""The cores that this process may use, on any operating system and in any container."""

import contextlib
import math
import os
import pathlib


def allowed_cores():
    """Return the numbers of the cores that this process may run on, which may not be all."""
    with contextlib.suppress(AttributeError, OSError):  # macOS has no such call, a sandbox refuses
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def usable_cores(proc="/proc/self"):
    """Return how many cores are worth a worker each: those allowed, or a container's CPU quota."""
    return max(1, math.ceil(min(len(allowed_cores()), cpu_quota(proc))))


def bind(process_id, core):
    """Bind a process or thread (0: the calling one) to a core, if the system can do that."""
    with contextlib.suppress(AttributeError, OSError):  # it may also have died
        os.sched_setaffinity(process_id, {core})


def cpu_quota(proc="/proc/self"):
    """Return the smallest CPU quota of this process' control groups, in cores; math.inf: none.

    `docker --cpus=2` sets such a quota. Each group up the tree can have one.

    proc: the folder of the process under /proc.
    """
    quotas = [math.inf]
    with contextlib.suppress(OSError, ValueError):
        for mount, group in control_groups(pathlib.Path(proc)):
            while True:
                quotas.append(quota_of(mount / group))
                if group == pathlib.PurePath("."):
                    break
                group = group.parent
    return min(quotas)


def control_groups(proc):
    """Yield (mount point, this process' group below it) of each hierarchy that has CPU quotas."""
    groups = {}  # "cpu" for cgroup v1, "" for v2 -> path of the group
    for line in (proc / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            groups[controller] = pathlib.PurePath(path)
    for line in (proc / "mountinfo").read_text().splitlines():
        where, _, what = line.partition(" - ")
        root, mount = where.split()[3:5]
        kind, _, options = what.split()[:3]
        if kind == "cgroup2":
            controller = ""
        elif kind == "cgroup" and "cpu" in options.split(","):
            controller = "cpu"
        else:
            continue
        if controller in groups:
            # in a container the mount may show a part of the tree, or the path may lie outside it
            group = pathlib.PurePath("/")
            with contextlib.suppress(ValueError):
                group = groups[controller].relative_to(root)
            yield pathlib.Path(mount), pathlib.PurePath(str(group).lstrip("/") or ".")


def quota_of(group):
    """Return the CPU quota of one group's folder in cores, or math.inf."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)  # "max" is no int
    with contextlib.suppress(OSError, ValueError):
        quota = int((group / "cpu.cfs_quota_us").read_text())
        if quota > 0:
            return quota / int((group / "cpu.cfs_period_us").read_text())
    return math.inf
