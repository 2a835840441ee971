"""The chaos run: the real stack under faults, and a checker of what clients saw. `./scripts/chaos --help`."""
