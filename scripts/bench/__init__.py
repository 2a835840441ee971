"""Benchmarks: each prints our figure and the bare limit from the same run."""
