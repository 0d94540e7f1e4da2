"""Python without the calls that only Linux has; Python reads this before any program.

PYTHONPATH=tests/no_linux python -m pytest -m 'not slow'
"""

import os

for name in ("memfd_create", "sched_getaffinity", "sched_setaffinity"):
    delattr(os, name)
