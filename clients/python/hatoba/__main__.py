"""`python -m hatoba`: the same as the console script."""

from __future__ import annotations

import sys

from hatoba.cli.main import main

sys.exit(main())
