"""The dashboards, one module each; `python -m grafana.dashboards` writes them to `grafana/json/`.

Each module has a `build()`; what they share is in `panels` (how things look) and `queries` (how Prometheus is asked).
"""
