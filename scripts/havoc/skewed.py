"""Runs a module with a clock that is wrong: `python -m scripts.havoc.skewed SECONDS MODULE [ARGUMENT …]`."""

from __future__ import annotations

import runpy
import sys
import time


def main() -> None:
    """Shifts the wall clock of this process, then becomes the module."""
    seconds, module = float(sys.argv[1]), sys.argv[2]
    true_time, true_time_ns = time.time, time.time_ns
    time.time = lambda: true_time() + seconds
    time.time_ns = lambda: true_time_ns() + int(seconds * 1e9)
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
