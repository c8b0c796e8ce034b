"""Cupola trains foundation models: one recipe, one command, from raw text to a model that speaks.

Importing the package costs nothing: torch is loaded only by the modules that compute with it.
"""

__version__ = "0.1.0"
