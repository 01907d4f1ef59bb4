"""Whether there is time for everything: `NIGHTLY=1`, which the matrix's entry `thorough` sets."""

import os

NIGHTLY = bool(os.environ.get("NIGHTLY"))
