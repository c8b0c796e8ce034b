"""Post-training beside TRL: `python -m bench.posttraining`."""
