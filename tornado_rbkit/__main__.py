"""``python -m tornado_rbkit``."""

import sys

from tornado_rbkit.cli import main

sys.exit(main())
