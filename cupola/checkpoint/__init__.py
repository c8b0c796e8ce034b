"""Checkpoints that exist whole or not at all, and are never loaded unverified."""
