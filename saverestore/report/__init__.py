"""What a save or restore did, for programs (JSON), for people (lines of text) and to look at (one HTML page)."""
