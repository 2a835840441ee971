"""Batches of texts: how a long list is cut into requests, and how its output is written."""
