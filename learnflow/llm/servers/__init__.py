"""Model servers: probes of their pages, a catalog of their models, and prices."""
