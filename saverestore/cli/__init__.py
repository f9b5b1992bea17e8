"""The commands: arguments, exit codes, progress on a terminal."""
