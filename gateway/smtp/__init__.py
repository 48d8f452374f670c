"""SMTP without sockets: bytes and events in, commands out (RFC 5321)."""
