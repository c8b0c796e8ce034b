"""Property tests here must not fail because a shared machine is slow."""

from hypothesis import settings

settings.register_profile("recipe", deadline=None)
settings.load_profile("recipe")
