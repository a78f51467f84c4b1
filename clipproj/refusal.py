"""The error of every refused input: which operation refuses which argument, and why."""

from __future__ import annotations


class Refusal(ValueError):
    """An input that cannot be what was meant. Nothing was changed, lost or half written.

    A bug raises something else, so that a program may tell "this cannot be done" from "this went
    wrong": audits leave out what refuses them and stop at anything else.

    Args:
        op: the operation that refuses, as errors name it.
        argument: the argument that is refused; None where it is no single one.
        why: what it must be and what it is: "must be ..., got ...".

    Example:
        >>> str(Refusal("nullspace", "rank", "must be at least 1, got 0"))
        'nullspace: rank must be at least 1, got 0'
    """

    def __init__(self, op: str, argument: str | None, why: str) -> None:
        super().__init__(op, argument, why)  # what a pickle makes it from again
        self.op, self.argument, self.why = op, argument, why

    def __str__(self) -> str:
        return f"{self.op}: {self.text}"

    @property
    def text(self) -> str:
        """The message without its operation."""
        return self.why if self.argument is None else f"{self.argument} {self.why}"


def refusal(error: ValueError | ImportError) -> str:
    """The message of an error that refuses: a Refusal, or an extra that is not installed.

    Any other is a bug, which must not look like a refusal: it is raised again.

    Example:
        >>> try:
        ...     projector = method(task)
        ... except (Refusal, ImportError) as error:
        ...     refused = refusal(error)
    """
    root = error
    while isinstance(root.__cause__, ImportError):  # "install clipproj[audit]", from what it lacks
        root = root.__cause__
    foreign = isinstance(root, ModuleNotFoundError) and not str(root.name).startswith("clipproj")
    if isinstance(error, Refusal) or foreign:
        return str(error)
    raise error
