"""Runs: their settings, one run of each kind, many runs over the cores."""
