"""Training: one loop and one step for every objective, what they measure, and what they decide once."""
