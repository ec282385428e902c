"""How servers are: probes, an inventory of their models, context windows and prices."""
