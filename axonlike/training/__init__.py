"""Training: one pure step, one plain loop."""
