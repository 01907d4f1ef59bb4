"""Which runs there are to be: from files and settings to configurations. Reads no run."""
