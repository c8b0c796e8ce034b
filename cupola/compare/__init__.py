"""Many runs beside each other: variants over seeds (`cupola compare`), the best of a range (`cupola sweep`).

Every run is an ordinary `cupola run` of a resolved recipe, in a process and a folder of its own; nothing here
computes with tensors, and nothing here imports torch.
"""
