"""Benchmarks: this project next to its peers, on the same bytes, in one run.

`cli` is the face for people; one module for each subject, and what they share: `running`, `results`, `chart`.
"""
