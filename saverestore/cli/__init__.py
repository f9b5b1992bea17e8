"""Commands: arguments, exit codes, progress on a terminal."""
