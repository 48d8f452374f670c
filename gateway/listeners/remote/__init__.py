"""The world's mail servers, as our relay meets them: one opened under the demands that hold for it, and kept for reuse.

`tls` judges certificates, `session` opens a conversation with one host and says what happened, `search` goes through a
domain's hosts, `pool` keeps connections and counts them.
"""
