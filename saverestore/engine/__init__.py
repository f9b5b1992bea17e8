"""Save and restore: rounds, batches, pipeline, policy. Sees a domain only through `guest.ports`."""
