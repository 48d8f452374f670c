"""A mail-flow security gateway: is this message really from whom it says, and may it pass?"""

__version__ = "0.1.0"
