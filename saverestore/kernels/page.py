"""The size of a page, declared once. (`pyxc`, which can be used alone, has its own.)

A module without imports: commands need it before anything heavy is loaded.
"""

from __future__ import annotations

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PAGE_WORDS = PAGE_SIZE // 8
"""Words of 64 bits in a page."""
