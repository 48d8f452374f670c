"""What our domains publish in the DNS so that others can check our mail and deliver to us safely.

`wanted` says what, from the config; `master_file` writes it down; `compare` holds it against the live DNS; `update` puts it there.
"""
