"""Does each stage do what it is for? Recipes of a few minutes with controls, over seeds; docs/stages.md has
what they came to."""
