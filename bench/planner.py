"""`python bench/planner.py`: the scoreboard, as `python -m bench.planner` prints it, from any folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.planner.__main__ import main

if __name__ == "__main__":
    main()
