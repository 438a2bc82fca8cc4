"""``python -m tornado_rbkit``."""

import sys

from tornado_rbkit.cli.main import main

sys.exit(main())
