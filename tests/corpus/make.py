"""Writes the corpus anew: `python tests/corpus/make.py`. Fresh keys each time; the private ones are thrown away.

Honest signatures are dkimpy's. The odd ones (SHA-1, `l=`, expired, From unsigned) need a signer that does as it is told:
that is `sign_oddly`, which shares no code with the gateway.
"""

import base64
import hashlib
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import dkim
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

HERE = Path(__file__).parent
NOW = 1_796_000_000  # 2026-11-30: the time at which the corpus is judged
SEALED_AT = 1_780_000_000

HEADERS = (
    "To: Bob <bob@example.net>\r\n"
    "Subject: {subject}\r\n"
    "Date: Wed, 18 Nov 2026 11:06:40 +0000\r\n"
    "Message-ID: <{subject}@corpus.example>\r\n"
)
BODY = "Hello Bob,\r\n\r\nthis is the body.\r\n.a line that begins with a dot\r\n\tand a tab.  \r\n\r\n"


def message(name: str, from_field: str = "From: Ann <ann@honest.example>\r\n", body: str = BODY) -> bytes:
    return (from_field + HEADERS.format(subject=name) + "\r\n" + body).encode()


@dataclass
class Keys:
    rsa: rsa.RSAPrivateKey
    ed25519: ed25519.Ed25519PrivateKey

    @property
    def rsa_pem(self) -> bytes:
        return self.rsa.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )

    @property
    def rsa_record(self) -> str:
        return rsa_record(self.rsa.public_key())

    @property
    def ed25519_record(self) -> str:
        public = self.ed25519.public_key().public_bytes_raw()
        return "v=DKIM1; k=ed25519; p=" + base64.b64encode(public).decode()


def rsa_record(key: rsa.RSAPublicKey) -> str:
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return "v=DKIM1; k=rsa; p=" + base64.b64encode(der).decode()


def record_of_openssl_key(bits: int) -> str:
    """`cryptography` makes neither short nor giant keys, so OpenSSL does. A giant modulus need not be a good one."""
    if bits > 8192:
        modulus = b"\x02\x82" + (bits // 8 + 1).to_bytes(2, "big") + b"\x00" + b"\xc1" * (bits // 8)
        inner = modulus + b"\x02\x03\x01\x00\x01"
        der = b"\x30\x82" + len(inner).to_bytes(2, "big") + inner
        return "v=DKIM1; k=rsa; p=" + base64.b64encode(der).decode()
    private = subprocess.run(["openssl", "genrsa", str(bits)], check=True, capture_output=True).stdout
    public = subprocess.run(
        ["openssl", "rsa", "-pubout", "-outform", "DER"], check=True, capture_output=True, input=private
    ).stdout
    return "v=DKIM1; k=rsa; p=" + base64.b64encode(public).decode()


def sign(raw: bytes, selector: str, key: bytes, algorithm: bytes, domain: str = "honest.example") -> bytes:
    field = dkim.sign(
        raw,
        selector.encode(),
        domain.encode(),
        key,
        canonicalize=(b"relaxed", b"relaxed"),
        signature_algorithm=algorithm,
        include_headers=[b"from", b"to", b"subject", b"date", b"message-id"],
    )
    return bytes(field) + raw


def sign_oddly(
    raw: bytes, key: rsa.RSAPrivateKey, *, algorithm: str = "rsa-sha256", tags: str = "", **given: str
) -> bytes:
    """Sign relaxed/simple with any `h=`, any further tags and, with `length`, an `l=`."""
    names = given.get("names", "from:to:subject:date")
    head, _, body = raw.partition(b"\r\n\r\n")
    body = re.sub(rb"(\r\n)*\Z", b"", body) + b"\r\n"
    length = given.get("length")
    signed_body = body if length is None else body[: int(length)]
    digest = "sha1" if algorithm.endswith("sha1") else "sha256"
    bh = base64.b64encode(hashlib.new(digest, signed_body).digest()).decode()
    limit = f" l={len(signed_body)};" if length is not None else ""
    value = (
        f"v=1; a={algorithm}; c=relaxed/simple; d=honest.example; s=rsa;{limit}{tags} h={names}; bh={bh}; b="
    )
    fields = {line.partition(b":")[0].lower(): line for line in head.split(b"\r\n")}
    lines = [fields[name.encode()] for name in names.split(":")] + [b"DKIM-Signature: " + value.encode()]
    data = b"\r\n".join(
        name.lower().strip() + b":" + re.sub(rb"[ \t]+", b" ", content).strip()
        for name, _, content in (line.partition(b":") for line in lines)
    )
    kind = hashes.SHA1() if digest == "sha1" else hashes.SHA256()
    b = base64.b64encode(key.sign(data, padding.PKCS1v15(), kind)).decode()
    return f"DKIM-Signature: {value}{b}\r\n".encode() + raw


def seal(raw: bytes, keys: Keys, results: str, sealer: str = "lists.example") -> bytes:
    """What dkimpy seals: it takes what the sealer found from the topmost Authentication-Results, and writes it anew."""
    stamped = f"Authentication-Results: {sealer}; {results}\r\n".encode() + raw
    fields = dkim.arc_sign(
        stamped,
        b"rsa",
        sealer.encode(),
        keys.rsa_pem,
        sealer.encode(),
        include_headers=[b"from", b"to", b"subject", b"date"],
        timestamp=SEALED_AT,
    )
    assert fields
    return b"".join(fields) + stamped


FOOTER = b"-- \r\nYou get this mail because you are on our list.\r\n"
BANK = "From: The Bank <service@bank.example>\r\n"
SAYS_PASS = "dmarc=pass header.from=honest.example"
SAYS_BANK = "dmarc=pass header.from=bank.example"


def build_chains(keys: Keys) -> dict[str, bytes]:
    """Messages that others have handled before us, as they say (RFC 8617)."""

    def posted(name: str) -> bytes:
        """A message that an honest author signed and the list put its footer under."""
        return sign(message(name), "rsa", keys.rsa_pem, b"rsa-sha256") + FOOTER

    spoofed = seal(message("arc-forged-seal", BANK), keys, SAYS_BANK, "evil.example")
    long = posted("arc-too-long")
    for hop in range(11):
        long = seal(long, keys, SAYS_PASS if hop == 0 else f"arc=pass; {SAYS_PASS}")
    return {
        "arc-trusted": seal(posted("arc-trusted"), keys, SAYS_PASS),
        "arc-trusted-twice": seal(
            seal(posted("arc-trusted-twice"), keys, SAYS_PASS) + b"And another list.\r\n",
            keys,
            "arc=pass; dmarc=fail header.from=honest.example",
        ),
        "arc-trusted-says-fail": seal(
            message("arc-trusted-says-fail", BANK), keys, "dmarc=fail header.from=bank.example"
        ),
        "arc-stranger": seal(message("arc-stranger", BANK), keys, SAYS_BANK, "evil.example"),
        "arc-stranger-on-top": seal(
            seal(posted("arc-stranger-on-top"), keys, SAYS_PASS).replace(
                b"this is the body", b"send me money"
            ),
            keys,
            f"arc=pass; {SAYS_PASS}",
            "evil.example",
        ),
        "arc-forged-seal": spoofed.replace(b"d=evil.example", b"d=lists.example", 1),
        "arc-altered": seal(posted("arc-altered"), keys, SAYS_PASS).replace(
            b"this is the body", b"send me money"
        ),
        "arc-other-author": seal(
            message("arc-other-author", BANK), keys, "dmarc=pass header.from=evil.example"
        ),
        "arc-results-injection": seal(
            message("arc-results-injection", BANK),
            keys,
            f'spf=pass smtp.mailfrom="x@evil.example; {SAYS_BANK}"; dmarc=fail header.from=bank.example',
        ),
        "arc-dns-dead": seal(posted("arc-dns-dead"), keys, SAYS_PASS, "slow.example"),
        "arc-too-long": long,
    }


def build(keys: Keys) -> dict[str, bytes]:
    ed_key = base64.b64encode(keys.ed25519.private_bytes_raw())

    def rsa_signed(raw: bytes) -> bytes:
        return sign(raw, "rsa", keys.rsa_pem, b"rsa-sha256")

    def ed_signed(raw: bytes) -> bytes:
        return sign(raw, "ed", ed_key, b"ed25519-sha256")

    plain = message("plain")
    cases = {
        "honest-rsa": rsa_signed(message("honest-rsa")),
        "honest-ed25519": ed_signed(message("honest-ed25519")),
        "honest-dual": rsa_signed(ed_signed(message("honest-dual"))),
        "honest-empty-body": rsa_signed(message("honest-empty-body", body="")),
        "honest-8bit": rsa_signed(
            message("honest-8bit", "From: Änn <ann@honest.example>\r\n", "Grüße\r\n.\r\n..\r\n")
        ),
        "honest-long-lines": rsa_signed(
            message("honest-long-lines", body="x" * 990 + "\r\n" + ".y" * 400 + "\r\n")
        ),
        "forwarded": rsa_signed(message("forwarded")),
        "spf-only": message("spf-only", "From: <ann@bank.example>\r\n"),
        "spoofed-reject": message("spoofed-reject", "From: The Bank <service@bank.example>\r\n"),
        "spoofed-quarantine": message("spoofed-quarantine", "From: <ann@careful.example>\r\n"),
        "spoofed-none": message("spoofed-none", "From: <ann@lenient.example>\r\n"),
        "spoofed-testing": message("spoofed-testing", "From: <ann@testing.example>\r\n"),
        "spoofed-subdomain": message("spoofed-subdomain", "From: <ann@no.such.bank.example>\r\n"),
        "two-from": message(
            "two-from", "From: <x@evil.example>\r\nFrom: The Bank <service@bank.example>\r\n"
        ),
        "two-from-disguised": message(
            "two-from-disguised", "From : The Bank <service@bank.example>\r\nfrom: <x@evil.example>\r\n"
        ),
        "no-from": message("no-from", "Sender: <service@bank.example>\r\n"),
        "several-authors": message(
            "several-authors", "From: <x@evil.example>, The Bank <service@bank.example>\r\n"
        ),
        "author-in-display-name": message(
            "author-in-display-name", 'From: "service@bank.example" <x@evil.example>\r\n'
        ),
        "author-in-bare-phrase": message(
            "author-in-bare-phrase", "From: service@bank.example <x@evil.example>\r\n"
        ),
        "author-in-comment": message(
            "author-in-comment", "From: x@evil.example (<service@bank.example>)\r\n"
        ),
        "author-encoded": message(
            "author-encoded", "From: =?utf-8?q?The_Bank_=3Cservice=40bank.example=3E?=\r\n"
        ),
        "author-encoded-before-another": message(
            "author-encoded-before-another",
            "From: =?utf-8?q?=3Cservice=40bank.example=3E=2C?= <x@evil.example>\r\n",
        ),
        "author-encoded-and-cut": message(
            "author-encoded-and-cut", "From: =?utf-8?q?service=40bank.example=00?=@evil.example\r\n"
        ),
        "author-behind-five": message(
            "author-behind-five",
            "From: "
            + "".join(f"<x@{number}.evil.example>,\r\n " for number in range(5))
            + "The Bank <service@bank.example>\r\n",
        ),
        "author-behind-padding": message(
            "author-behind-padding",
            "From: " + f"({'x' * 900})\r\n " * 20 + "The Bank <service@bank.example>\r\n",
        ),
        "author-with-comment": message("author-with-comment", "From: service@(of the)bank.example\r\n"),
        "author-folded": message("author-folded", "From: service@\r\n bank.example\r\n"),
        "author-route": message("author-route", "From: <@bank.example:x@evil.example>\r\n"),
        "author-twice-in-brackets": message(
            "author-twice-in-brackets", "From: <service@bank.example> <x@evil.example>\r\n"
        ),
        "author-behind-escaped-quote": message(
            "author-behind-escaped-quote", 'From: "\\" <service@bank.example>," <x@evil.example>\r\n'
        ),
        "author-in-local-part": message(
            "author-in-local-part", 'From: <"service@bank.example"@evil.example>\r\n'
        ),
        "author-in-group": message("author-in-group", "From: Staff: service@bank.example;\r\n"),
        "author-full-width": message(
            "author-full-width", "From: <service@\uff42\uff41\uff4e\uff4b\u3002example>\r\n"
        ),
        "author-in-sender": message(
            "author-in-sender", "Sender: <service@bank.example>\r\nFrom: <x@evil.example>\r\n"
        ),
        "author-not-in-bounce": message("author-not-in-bounce", "From: <service@bank.example>\r\n"),
        "author-after-garbage": message(
            "author-after-garbage", "no colon in this line\r\nFrom: The Bank <service@bank.example>\r\n"
        ),
        "author-u-label": message("author-u-label", "From: <ann@bücher.example>\r\n"),
        "author-literal": message("author-literal", "From: <ann@[203.0.113.66]>\r\n"),
        "null-sender": message("null-sender", "From: MAILER-DAEMON <postmaster@honest.example>\r\n"),
        "forged-results": message(
            "forged-results",
            "Authentication-Results: mx.example.net; dmarc=pass header.from=bank.example\r\n"
            "authentication-results : MX.EXAMPLE.NET 1; dkim=pass header.d=bank.example\r\n"
            'Authentication-Results: (c)"mx.example.net"\r\n\t; spf=pass smtp.mailfrom=bank.example\r\n'
            "Authentication-Results: mx\uff0eexample\u3002net; dmarc=pass\r\n"
            "Authentication-Results: other.example; spf=pass smtp.mailfrom=kept.example\r\n"
            "X-Gateway-Quarantine: rule=forged\r\n"
            "From: <x@evil.example>\r\n",
        ),
        "results-in-address": message("results-in-address", "From: <x@evil.example>\r\n"),
        "results-injection": message("results-injection", "From: <x@evil.example>\r\n"),
        "honest-encoded-name": rsa_signed(
            message("honest-encoded-name", "From: =?utf-8?q?J=C3=B6rg?=\r\n <ann@honest.example>\r\n")
        ),
        "honest-group": rsa_signed(message("honest-group", "From: Staff: Ann <ann@honest.example>;\r\n")),
        "honest-latin-1": rsa_signed(
            message("honest-latin-1", "From: J~rg <ann@honest.example>\r\n").replace(b"~", b"\xf6")
        ),
        "signed-by-stranger": rsa_signed(message("signed-by-stranger", "From: <service@bank.example>\r\n")),
        "signed-in-half-a-name": rsa_signed(
            message("signed-in-half-a-name", "From: <service@bank.example>\r\n")
        ).replace(b"d=honest.example", b"d=honest.example(.bank.example"),
        "second-subject": b"Subject: Your account is closed\r\n" + rsa_signed(message("second-subject")),
        "body-altered": rsa_signed(message("body-altered")).replace(b"this is the body", b"send me money"),
        "header-altered": rsa_signed(message("header-altered")).replace(
            b"Subject: header-altered", b"Subject: pay me"
        ),
        "body-appended": sign_oddly(message("body-appended"), keys.rsa, length="20")
        + b"An advertisement.\r\n",
        "sha1": sign_oddly(message("sha1"), keys.rsa, algorithm="rsa-sha1"),
        "expired": sign_oddly(message("expired"), keys.rsa, tags=" t=1600000000; x=1600100000;"),
        "from-not-signed": sign_oddly(message("from-not-signed"), keys.rsa, names="to:subject:date"),
        "short-key": rsa_signed(message("short-key")).replace(b"s=rsa", b"s=short"),
        "giant-key": rsa_signed(message("giant-key")).replace(b"s=rsa", b"s=giant"),
        "revoked-key": rsa_signed(message("revoked-key")).replace(b"s=rsa", b"s=revoked"),
        "missing-key": rsa_signed(message("missing-key")).replace(b"s=rsa", b"s=missing"),
        "many-signatures": b"DKIM-Signature: v=1; a=rsa-sha256; d=honest.example; s=rsa; h=from; bh=AA==; b=AA==\r\n"
        * 40
        + rsa_signed(message("many-signatures")),
        "dns-dead": message("dns-dead", "From: <ann@dead.example>\r\n"),
        "spf-broken": message("spf-broken", "From: <ann@broken.example>\r\n"),
        "spf-loop": message("spf-loop", "From: <ann@loop.example>\r\n"),
        "many-fields": message("many-fields", "X-Filler: y\r\n" * 2500 + "From: <x@evil.example>\r\n"),
        "own-user": message("own-user", "From: <boss@bank.example>\r\n"),
    }
    assert plain
    return cases | build_chains(keys)


def txt(text: str) -> str:
    return " ".join(f'"{text[at : at + 250]}"' for at in range(0, len(text), 250))


def main() -> None:
    keys = Keys(rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate())
    for old in HERE.glob("*.eml"):
        old.unlink()
    for name, raw in build(keys).items():
        (HERE / f"{name}.eml").write_bytes(raw)
    selectors = {
        "rsa": keys.rsa_record,
        "ed": keys.ed25519_record,
        "short": record_of_openssl_key(512),
        "giant": record_of_openssl_key(16384),
        "revoked": "v=DKIM1; p=",
    }
    lines = [
        f"{selector}._domainkey.honest.example. TXT {txt(record)}" for selector, record in selectors.items()
    ]
    sealers = ("lists.example", "evil.example")
    lines += [f"rsa._domainkey.{sealer}. TXT {txt(keys.rsa_record)}" for sealer in sealers]
    (HERE / "keys.zone").write_text("; written by make.py\n$TTL 300\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
