import sys
from pathlib import Path

# The samples belong to the vectors, and are shared by several folders of tests; the host without Xen to operations.
TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(TESTS / "vectors"), str(TESTS / "unit/operations")]
