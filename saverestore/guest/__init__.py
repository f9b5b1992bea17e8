"""Domains as the engine sees them: ports, and what differs by guest kind."""
