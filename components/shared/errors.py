"""The one error that a user's input can cause."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message names what was given, what is wrong with it and what to do about it. Steps raise it before they start
    any long work and before they write anything that could be taken for a result.

    Args:
        subject: The file, option or value at fault, as the user knows it.
        problem: What is wrong with it.
        remedy: What the user can do.
    """

    def __init__(self, subject: object, problem: str, remedy: str) -> None:
        super().__init__(f"{subject}: {problem}. {remedy}")
        self.subject = str(subject)
        self.problem = problem
        self.remedy = remedy


def spoken(message: str) -> str:
    """Return what pydantic says of a value as it reads behind the value's name."""
    return message.removeprefix("Value error, ").replace("Input should", "it should")
