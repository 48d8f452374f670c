"""What an operator looks at in a browser: does mail flow, and why was this one refused?

Rendered here, on the http listener, without anything from elsewhere: no script or style but our own files, nothing of a
message's body, and every word of a stranger's made harmless in one place (`gateway.pages.render`).
"""

from gateway.pages.access import Access
from gateway.pages.site import Site, Sources

__all__ = ["Access", "Site", "Sources"]
