"""One domain, one image: what is checked first, the engine's work, and what becomes of the domain."""
