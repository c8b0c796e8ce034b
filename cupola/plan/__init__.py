"""What a run needs, takes and costs, before it is started: counts, memory, time, failures, cost; no torch."""
