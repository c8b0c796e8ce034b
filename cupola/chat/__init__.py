"""Conversations: users' formats in, tokens and the mask of what an assistant says out. No torch."""
