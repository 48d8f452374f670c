"""Domain-based Message Authentication, Reporting, and Conformance (RFC 9989): is the author domain behind this message?"""
