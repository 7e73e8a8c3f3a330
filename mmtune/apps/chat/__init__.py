"""Chat page: server, sessions, uploads, limits."""
