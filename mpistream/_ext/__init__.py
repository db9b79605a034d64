"""The compiled loops; their sources stand in ``ext/``."""
