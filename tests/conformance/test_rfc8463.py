"""The worked examples of the standards themselves: RFC 8463 Appendix A (one message, two algorithms), RFC 6376 Appendix A."""

import pytest

from gateway.auth.dkim import check_dkim
from gateway.auth.results import DkimStatus, Problem
from gateway.dns.zone import ZoneResolver
from gateway.mail.message import Message

ZONE = """
brisbane._domainkey.football.example.com. TXT "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
test._domainkey.football.example.com. TXT ( "v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWR"
  "iGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J16JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hst"
  "T5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB" )
brisbane._domainkey.example.com. TXT ( "v=DKIM1; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDwIRP/UC3SBsEmGqZ9ZJW3/DkMo"
  "GeLnQg1fWn7/zYtIxN2SnFCjxOCKG9v3b4jYfcTNh5ijSsq631uBItLa7od+v/RtdC2UzJ1lWT947qR+Rcac2gbto/NMqJ0fzfVjH4OuKhitdY9tf"
  "6mcwGjaNBcWToIMmPSPDdQPNUYckcQ2QIDAQAB" )
"""

BODY = b"""\r
Hi.\r
\r
We lost the game.  Are you hungry yet?\r
\r
Joe.\r
"""

RFC8463 = (
    b"""\
DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r
 d=football.example.com; i=@football.example.com;\r
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :\r
 subject : date : message-id : from : subject : date;\r
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r
 b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus\r
 Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==\r
DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;\r
 d=football.example.com; i=@football.example.com;\r
 q=dns/txt; s=test; t=1528637909; h=from : to : subject :\r
 date : message-id : from : subject : date;\r
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r
 b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3\r
 DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz\r
 dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=\r
From: Joe SixPack <joe@football.example.com>\r
To: Suzie Q <suzie@shopping.example.net>\r
Subject: Is dinner ready?\r
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r
Message-ID: <20030712040037.46341.5F8J@football.example.com>\r
"""
    + BODY
)

RFC6376 = b"""\
DKIM-Signature: v=1; a=rsa-sha256; s=brisbane; d=example.com;\r
      c=simple/simple; q=dns/txt; i=joe@football.example.com;\r
      h=Received : From : To : Subject : Date : Message-ID;\r
      bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r
      b=AuUoFEfDxTDkHlLXSZEpZj79LICEps6eda7W3deTVFOk4yAUoqOB\r
      4nujc7YopdG5dWLSdNg6xNAZpOPr+kHxt1IrE+NahM6L/LbvaHut\r
      KVdkLLkpVaVVQPzeRDI009SO2Il5Lu7rDNH6mZckBdrIx0orEtZV\r
      4bmp/YzhwvcubU4=;\r
Received: from client1.football.example.com  [192.0.2.1]\r
      by submitserver.example.com with SUBMISSION;\r
      Fri, 11 Jul 2003 21:01:54 -0700 (PDT)\r
From: Joe SixPack <joe@football.example.com>\r
To: Suzie Q <suzie@shopping.example.net>\r
Subject: Is dinner ready?\r
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r
Message-ID: <20030712040037.46341.5F8J@football.example.com>\r
""" + BODY.replace(b".  Are", b". Are")  # one blank here, two above: relaxed forgives it, simple does not

NOW = 1_600_000_000.0


@pytest.fixture
def resolver() -> ZoneResolver:
    return ZoneResolver.from_text(ZONE)


async def test_both_signatures_of_rfc8463_verify(resolver: ZoneResolver) -> None:
    ed25519, rsa = await check_dkim(Message(RFC8463), resolver, now=NOW)

    assert (ed25519.status, ed25519.algorithm, ed25519.key_bits) == (DkimStatus.PASS, "ed25519-sha256", 256)
    assert (rsa.status, rsa.algorithm, rsa.key_bits) == (DkimStatus.PASS, "rsa-sha256", 1024)
    assert (ed25519.signature_start, rsa.signature_start) == ("/gCrinpc", "F45dVWDf")


async def test_an_altered_body_fails_both(resolver: ZoneResolver) -> None:
    results = await check_dkim(Message(RFC8463.replace(b"lost", b"won")), resolver, now=NOW)

    assert [(result.status, result.problem) for result in results] == [
        (DkimStatus.FAIL, Problem.DKIM_BODY_HASH),
    ] * 2


async def test_the_signature_of_rfc6376_verifies(resolver: ZoneResolver) -> None:
    (result,) = await check_dkim(Message(RFC6376), resolver, now=NOW)

    assert (result.status, result.problem) == (DkimStatus.PASS, None)
    assert result.auid == "joe@football.example.com"
