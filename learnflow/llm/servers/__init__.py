"""Model servers: probes of their pages, a catalog of their models, prices, and the loading of a model."""
