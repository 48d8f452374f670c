"""Outbound TLS that cannot be stripped: where mail for a domain goes, and what each of its servers must prove.

`mx` finds the route (RFC 5321 §5), `mta_sts` and `dane` are two independent sources of demands (RFC 8461; RFC 7672, 6698,
7671), `decide` derives the answer from both at each question. The relay obeys it, Postfix asks for it over the socketmap,
`gateway tls` explains it.
"""
