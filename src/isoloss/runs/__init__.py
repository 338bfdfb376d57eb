"""Runs of the experiments: their settings, one run, many runs over the cores."""
