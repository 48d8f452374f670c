"""One standard, one module: who says this message is theirs, and can they prove it?"""
