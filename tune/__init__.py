"""The parallel search over configurations: `python -m tune.search`."""
