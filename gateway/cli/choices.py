"""Words that an option takes; here, so that `--help` need not import the command that it is about."""

from enum import StrEnum


class KeyChoice(StrEnum):
    """Which kinds of DKIM keys to make."""

    RSA = "rsa"
    ED25519 = "ed25519"
    BOTH = "both"
