"""Checkpoints that exist whole or not at all, and are never loaded unverified."""

from cupola.checkpoint.folder import (
    Checkpoint,
    checkpoints,
    load,
    newest_verified,
    retain,
    save,
    weights_sha256,
)

__all__ = ["Checkpoint", "checkpoints", "load", "newest_verified", "retain", "save", "weights_sha256"]
