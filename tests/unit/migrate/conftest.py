import sys
from pathlib import Path

# The samples belong to the vectors, and are shared by several folders of tests.
sys.path.insert(0, str(Path(__file__).parents[2] / "vectors"))
