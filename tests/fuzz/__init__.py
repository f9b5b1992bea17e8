"""Fuzzing of everything that reads bytes of others: `python -m tests.fuzz`, see docs/testing.md."""
