"""MTA-STS (RFC 8461): a domain says over HTTPS which mail servers are its own and that they must prove it.

`record` and `policy` are pure; `fetch` goes to the policy host; `cache` is the stateful twin of all three, and tells what becomes
of policies in the words of `events`.
"""
