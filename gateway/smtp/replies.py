"""Everything that the gateway itself says to a client, in one place (codes: RFC 5321 §4.2, RFC 3463, RFC 5248).

What downstream or a rule of the operator says is not here: it is passed on in its own words.
"""

from typing import Final

from gateway.mail.reply import Reply

# Conversation
OK: Final = Reply.of(250, "2.0.0", "Ok")
BYE: Final = Reply.of(221, "2.0.0", "Bye")
START_DATA: Final = Reply.of(354, None, "End data with <CR><LF>.<CR><LF>")
START_TLS: Final = Reply.of(220, "2.0.0", "Ready to start TLS")
CANNOT_VERIFY: Final = Reply.of(252, "2.0.0", "Cannot VRFY, but will take mail for this user")
SENDER_OK: Final = Reply.of(250, "2.1.0", "Sender ok")
HELP: Final = Reply.of(214, "2.0.0", "See RFC 5321")

# The client's syntax
UNKNOWN_COMMAND: Final = Reply.of(500, "5.5.2", "Command not recognised")
LINE_TOO_LONG: Final = Reply.of(500, "5.5.2", "Line too long")
BAD_CHARACTER: Final = Reply.of(500, "5.5.2", "Commands are printable ASCII, and end with <CR><LF>")
NOT_SMTP: Final = Reply.of(421, "4.7.0", "This is not SMTP")
NOT_OFFERED: Final = Reply.of(502, "5.5.1", "Command not offered here")
NO_ARGUMENT: Final = Reply.of(501, "5.5.4", "This command takes no argument")
BAD_HELO: Final = Reply.of(501, "5.5.4", "Syntax: EHLO hostname")
BAD_SENDER: Final = Reply.of(501, "5.1.7", "Bad sender address syntax")
BAD_RECIPIENT: Final = Reply.of(501, "5.1.3", "Bad recipient address syntax")
NEEDS_SMTPUTF8: Final = Reply.of(553, "5.6.7", "An internationalised address needs SMTPUTF8")
BAD_PARAMETER: Final = Reply.of(501, "5.5.4", "Bad parameter value")
UNKNOWN_PARAMETER: Final = Reply.of(555, "5.5.4", "Parameter not offered here")
BAD_CHUNK_SIZE: Final = Reply.of(501, "5.5.4", "Syntax: BDAT size [LAST]")

# Its order
HELO_FIRST: Final = Reply.of(503, "5.5.1", "Send EHLO first")
MAIL_FIRST: Final = Reply.of(503, "5.5.1", "Send MAIL first")
NESTED_MAIL: Final = Reply.of(503, "5.5.1", "A mail transaction is open")
RCPT_FIRST: Final = Reply.of(503, "5.5.1", "Send RCPT first")
NO_RECIPIENTS: Final = Reply.of(554, "5.5.1", "No valid recipients")
CHUNKS_ONLY: Final = Reply.of(503, "5.5.1", "BDAT has begun: only BDAT and RSET may follow")
TLS_ACTIVE: Final = Reply.of(503, "5.5.1", "TLS is active")

# Log-in (RFC 4954 §4, §6)
AUTH_REQUIRED: Final = Reply.of(530, "5.7.0", "Authentication required")
NEEDS_TLS: Final = Reply.of(538, "5.7.11", "Encryption required: use STARTTLS")
LOGGED_IN_ALREADY: Final = Reply.of(503, "5.5.1", "Already authenticated")
UNKNOWN_MECHANISM: Final = Reply.of(504, "5.5.4", "Mechanism not offered")
NO_INITIAL_RESPONSE: Final = Reply.of(501, "5.7.0", "This mechanism takes no initial response")
BAD_BASE64: Final = Reply.of(501, "5.5.2", "Cannot decode the response")
BAD_RESPONSE: Final = Reply.of(501, "5.5.2", "The response does not name one user in this mechanism's form")
RESPONSE_TOO_LONG: Final = Reply.of(500, "5.5.6", "Authentication exchange line is too long")
TOO_MANY_ROUNDS: Final = Reply.of(501, "5.5.2", "Authentication exchange goes on for too long")
AUTH_CANCELLED: Final = Reply.of(501, "5.7.0", "Authentication cancelled")
AUTH_UNAVAILABLE: Final = Reply.of(454, "4.7.0", "Temporary authentication failure")
TOO_MANY_GUESSES: Final = Reply.of(421, "4.7.0", "Too many failed log-ins, try again later")

# What it may not
RELAY_DENIED: Final = Reply.of(550, "5.7.1", "Relaying denied")
XCLIENT_DENIED: Final = Reply.of(550, "5.7.0", "Not authorised to use XCLIENT")
TOO_MANY_ERRORS: Final = Reply.of(421, "4.7.0", "Too many errors")
TOO_MANY_RECIPIENTS: Final = Reply.of(452, "4.5.3", "Too many recipients")
NOT_A_CLIENT: Final = Reply.of(554, "5.7.1", "Relay access denied: not one of our mail servers")
OTHER_DOMAIN: Final = Reply.of(
    452, "4.5.3", "One recipient domain at a time: send this one in a transaction of its own"
)
TOO_MANY_SESSIONS: Final = Reply.of(421, "4.3.2", "Too many connections, try again later")
TOO_MANY_FROM_CLIENT: Final = Reply.of(421, "4.7.0", "Too many connections from your address")
TOO_LARGE: Final = Reply.of(552, "5.3.4", "Message exceeds the size limit")
NUL_IN_MESSAGE: Final = Reply.of(550, "5.6.0", "Message contains a NUL byte")
BARE_LINE_END: Final = Reply.of(550, "5.6.0", "Message contains a bare <CR> or <LF> (RFC 5321 section 2.3.8)")

# What the remote mail server cannot take
NEEDS_DOMAIN: Final = Reply.of(550, "5.1.3", "A recipient elsewhere needs a domain")
REMOTE_NO_SMTPUTF8: Final = Reply.of(
    550, "5.6.7", "The recipient's mail server takes no internationalised mail"
)
REMOTE_NO_UTF8_HEADER: Final = Reply.of(
    550, "5.6.9", "The recipient's mail server takes no UTF-8 header fields"
)
REMOTE_NO_8BIT: Final = Reply.of(554, "5.6.3", "The recipient's mail server takes no 8-bit content")
REMOTE_NO_DSN: Final = Reply.of(
    554,
    "5.3.3",
    "The recipient's mail server sends no reports of successful delivery; send without asking for one",
)
REMOTE_TOO_LARGE: Final = Reply.of(
    552, "5.3.4", "Message exceeds the size limit of the recipient's mail server"
)
REMOTE_NO_REQUIRETLS: Final = Reply.of(550, "5.7.30", "REQUIRETLS support required")  # RFC 8689 §5
HELD_BACK: Final = Reply.of(451, "4.7.1", "Held back for the postmaster to look at")

# What we cannot now
NO_ROOM: Final = Reply.of(452, "4.3.1", "Insufficient storage, try again later")
DOWNSTREAM_FAILED: Final = Reply.of(451, "4.3.0", "Mail server not available, try again later")
DOWNSTREAM_DOWN: Final = Reply.of(421, "4.3.2", "Mail server not available, try again later")
DOWNSTREAM_CHANGED: Final = Reply.of(451, "4.3.0", "Mail server no longer offers this, try again later")
REMOTE_FAILED: Final = Reply.of(451, "4.4.2", "The recipient's mail server went away; try again later")
INTERNAL: Final = Reply.of(451, "4.3.0", "Internal error, try again later")
INTERNAL_CLOSING: Final = Reply.of(421, "4.3.0", "Internal error, try again later")
TIMEOUT: Final = Reply.of(421, "4.4.2", "Timeout")
CLOSING: Final = Reply.of(421, "4.3.2", "Service closing, try again later")
TLS_UNAVAILABLE: Final = Reply.of(454, "4.7.0", "TLS not available due to temporary reason")  # RFC 3207 §4
