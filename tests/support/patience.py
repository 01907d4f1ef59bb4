"""How long a test waits for another process before it takes it for one that hangs.

Nothing is measured with it: on a busy machine each of them can take minutes.
"""

PATIENCE = 600.0  # seconds
