"""The planner's scoreboard: what it predicts of published runs, beside what was published."""
