"""How much memory work takes above the loaded model: in a process of its own, which does one side's work alone.

    python -m benchmarks.speed.memory KEY SIDE DTYPE

Prints bytes. Linux alone tells the peak of a stretch of time. Tensors are given back to the system as soon as they are
freed (`MALLOC_MMAP_THRESHOLD_`), so that what is measured is what the work holds, not what the allocator holds back.
"""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from pathlib import Path

from transformers.utils import logging

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

GIVEN_BACK = 2**20
"""Bytes from which on a tensor's memory is asked of the system for it alone."""


def measured(key: str, side: str, dtype: str) -> int:
    """In bytes, by a process of its own.

    Raises:
        RuntimeError: that process failed.
    """
    command = [sys.executable, "-m", "benchmarks.speed.memory", key, side, dtype]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(GIVEN_BACK)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])


def kilobytes(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def main() -> None:
    from benchmarks.speed.table import MEMORY
    from benchmarks.speed.workbench import Workbench

    key, side, dtype = sys.argv[1:]
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    bench = Workbench(dtype)
    work = MEMORY[key].make(bench).sides[side]
    # Weights are mapped, and come into memory when they are first read: that is loading, not work.
    for parameter in (*bench.model.parameters(), *bench.backbone.model.parameters()):
        parameter.sum()
    gc.collect()
    # What loading took and gave back must not be there to be taken again unseen.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = kilobytes("VmRSS")
    RESET.write_text("5")
    work()
    print((kilobytes("VmHWM") - before) * 1024)


if __name__ == "__main__":
    main()
