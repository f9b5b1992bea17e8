"""What a decoder raises, which knows neither the record nor its place; the reader makes a `BadRecord` of it."""

from __future__ import annotations


class Undecodable(ValueError):
    """Coded page data that do not decode to what they should; the text says what is wrong with them."""
