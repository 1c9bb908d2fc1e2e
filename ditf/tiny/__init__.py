"""The bundled model ``ditf-tiny``: its weights, the procedural scenes it learned from, its training and its card."""
