"""Model servers: probes of their pages, a catalog of their models, prices, and how a model is loaded."""
