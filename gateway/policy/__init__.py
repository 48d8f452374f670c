"""The operator's rules: from evidence to a disposition."""
