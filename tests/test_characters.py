"""What a terminal is shown."""

from cupola.characters import shown


def test_a_terminal_is_told_nothing():
    assert shown("a\x1b[31mb\x07\x00\x9b c\n\td é") == "a�[31mb��� c\n\td é"
