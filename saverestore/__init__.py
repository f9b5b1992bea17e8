"""Save, restore and live-migrate Xen domains."""

__version__ = "0.1.0"
