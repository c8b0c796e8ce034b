"""What a run is: the recipe's schema, its quantities and schedules, and how it is loaded. No torch."""
