"""``python -m ditf`` is the command ``ditf``."""

import sys

from .cli import main

sys.exit(main())
