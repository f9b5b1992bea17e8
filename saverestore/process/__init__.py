"""What concerns this process and not a domain: one that is kept ready, and an end that nobody waits for."""
