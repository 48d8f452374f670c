"""What touches sockets: each listener drives a sans-IO core or a library."""
