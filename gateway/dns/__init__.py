"""The Domain Name System as the checks see it: three outcomes, a secure bit, bounded work."""
