"""One run of ours, in a process of its own: `python -m benchmarks.child MODULE NEEDS ARGUMENTS…`.

Imports MODULE, and NEEDS (separated by commas), which it would import while it works; runs MODULE's
`main(arguments)`, and says on standard error how long that took: the rest of the process's time is Python's start and
the imports.
"""

from __future__ import annotations

import importlib
import sys
import time

from benchmarks.running import WORK_LINE


def main(module: str, needs: str, *arguments: str) -> int:
    run = importlib.import_module(module)
    for name in filter(None, needs.split(",")):
        importlib.import_module(name)
    started = time.perf_counter()
    code: int = run.main(list(arguments))
    print(f"{WORK_LINE}{time.perf_counter() - started:.6f}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
