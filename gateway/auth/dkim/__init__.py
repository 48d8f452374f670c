"""DomainKeys Identified Mail (RFC 6376, 8301, 8463, 8616): did this domain put its name to these very bytes?

`tags`, `signature` and `key` read what was written, `canonical` says what may change on the way, `content` computes,
`verify` asks and decides.
"""

from gateway.auth.dkim.verify import check_dkim

__all__ = ["check_dkim"]
