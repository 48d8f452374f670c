"""Sender Policy Framework (RFC 7208): may this address send mail for this domain?

HELO and MAIL FROM are checked and reported separately, because DMARC uses only the second (RFC 9989 §4.4.2).
"""

from gateway.auth.spf.check import check_helo, check_mail_from

__all__ = ["check_helo", "check_mail_from"]
