"""What Postfix asks about outbound TLS, and what it tells of it afterwards: bytes in, values and bytes out, no sockets.

`netstring` and `question` read socketmap_table(5), `answer` writes it in the syntax of smtp_tls_policy_maps, `tlsrpt` reads
the reports that Postfix 3.10 and newer send. `gateway.listeners` has the sockets.
"""
