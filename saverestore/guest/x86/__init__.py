"""x86 domains on real Xen: PV, and PVH (which the stream calls HVM)."""
