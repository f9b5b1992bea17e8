"""The lab: real Xen, its dom0 and guests, in software emulation on any Debian machine.

`machine.Machine` is the face for other tools; `cli` is the face for people.
"""
