"""The milter flow without sockets: callbacks to values, a verdict to actions."""
