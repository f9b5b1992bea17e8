"""64-bit ARM domains, on real Xen: what no hypercall tells of their vCPUs is read and written by code they run."""
