"""Running it: configuration, logs, metrics."""
