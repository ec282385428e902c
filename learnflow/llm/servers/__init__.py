"""Model servers: probes of their state and models, a catalog of the models, and prices."""
