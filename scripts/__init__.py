"""What a person runs: set-up, start, demo, tests, command line, benchmarks."""
