"""`pyimage`: look into images of Xen domains, on any machine; neither Xen nor its libraries are needed."""

from saverestore.cli.pyimage.command import main

__all__ = ["main"]
