"""A run on disk: its directory, who writes to it, and what its files say."""
