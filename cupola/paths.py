"""Where things lie: one cache for all runs (content-addressed), one folder for each run.

`CUPOLA_CACHE` and `CUPOLA_RUNS` move them; nothing is written anywhere else.
"""

import os
from pathlib import Path

import platformdirs


def cache_root() -> Path:
    """The cache of fetched packages, cleaned text, tokenizers and token stores."""
    return Path(os.environ.get("CUPOLA_CACHE") or platformdirs.user_cache_dir("cupola")).expanduser()


def runs_root() -> Path:
    """The folder in which `cupola run` makes a run's folder when `--out` does not name one."""
    return Path(os.environ.get("CUPOLA_RUNS") or "runs").expanduser()
