"""Runs that are killed, torn, filled up and fought over: `python -m tests.torture --long`."""
