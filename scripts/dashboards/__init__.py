"""Grafana dashboards and Prometheus alerts as code: `python -m scripts.dashboards` writes them to deploy/."""
