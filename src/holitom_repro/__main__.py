"""``python -m holitom``."""

import sys

from holitom_repro.cli import main

sys.exit(main())
