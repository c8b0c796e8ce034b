"""`python -m cupola` is the command `cupola`."""

import sys

from cupola.cli import main

sys.exit(main())
