"""libxl's save helper: `xl save`, `xl restore` and `xl migrate` on this engine, libxl doing the devices."""
