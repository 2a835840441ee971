"""Sends the events of jobs to the URLs that they name: what an answer means, one request, and the courier of a
worker."""
