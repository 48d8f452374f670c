"""DKIM keys that change without hands: the directory in which they are kept, and the steps from one key to the next.

`model` and `state_file` are pure; `directory` is the only module that touches files; `rotation` decides and acts.
"""
