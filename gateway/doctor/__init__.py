"""Would mail for this domain arrive, and would mail from it be believed? Everything that its DNS and its servers show, looked at once.

Pure checks over a resolver and a few adapters: `examine` makes a `Report` of typed findings; nothing here prints, and nothing is
decided here that another part decides already.
"""
