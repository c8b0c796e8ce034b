"""A display that remembers."""

from cupola.display import Display


class Heard(Display):
    """Remembers what was said and warned of."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warnings: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
