"""What published rules say of a run's learning rate, batch and schedule, and a proposal made of them.

`subject` is what is asked about (a model, a budget of tokens, an optimizer), `rules` the published rules,
each with its source and the range in which it was fitted, `proposal` the settings chosen among them and why.
"""

from cupola.suggest.proposal import Proposal, propose
from cupola.suggest.rules import Estimate, estimates
from cupola.suggest.subject import Subject, subject_of

__all__ = ["Estimate", "Proposal", "Subject", "estimates", "propose", "subject_of"]
