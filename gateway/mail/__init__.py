"""Values of Internet mail: no I/O, no clock. Every other layer speaks in these."""
