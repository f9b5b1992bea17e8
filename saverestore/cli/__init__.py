"""Commands: arguments, exit codes, progress on a terminal."""

import os

# numpy's BLAS, which we do not use, starts a thread for each core when it is imported, and they spin a while.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
