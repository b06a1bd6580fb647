"""What can go wrong between a function worker and the process that started it."""

from __future__ import annotations

__all__ = ["ArgumentNotPicklable", "FunctionNotLoadable", "ReturnValueNotPicklable"]


class ArgumentNotPicklable(TypeError):
    """A function or one of its arguments cannot be sent to the process that is to run it."""

    def __init__(self, local_rank: int, what: str, value: object, problem: BaseException) -> None:
        self.local_rank = local_rank
        """Which of the node's workers it is."""
        self.what = what
        """`the function`, or `argument <position>`."""
        self.type_name = type(value).__qualname__
        """The class of what cannot be sent."""
        super().__init__(
            f"local rank {local_rank}: {what}, a {self.type_name}, cannot be sent to the worker "
            f"({type(problem).__name__}: {problem}). Define it at module level and pass only what can be "
            "pickled, or use start_method='fork', which sends nothing."
        )


class FunctionNotLoadable(RuntimeError):
    """A worker cannot find its function, or a class of its arguments."""

    def __init__(self, local_rank: int, function: str, what: str, problem: BaseException) -> None:
        self.local_rank = local_rank
        """Which of the node's workers it is."""
        self.function = function
        """Its module and name."""
        self.what = what
        """`the function` or `the arguments`."""
        super().__init__(
            f"local rank {local_rank} cannot load {what} of {function} "
            f"({type(problem).__name__}: {problem}). The worker imports them anew: they must be at the top "
            "of a module that it can import, and not only exist in the process that started it; or use "
            "start_method='fork'."
        )


class ReturnValueNotPicklable(TypeError):
    """What a worker's function returned cannot be sent back."""

    def __init__(self, local_rank: int, function: str, value: object, problem: BaseException) -> None:
        self.local_rank = local_rank
        """Which of the node's workers it is."""
        self.function = function
        """Its module and name."""
        self.type_name = type(value).__qualname__
        """The class of what cannot be sent."""
        super().__init__(
            f"local rank {local_rank}: {function} returned a {self.type_name} that cannot be sent back "
            f"({type(problem).__name__}: {problem}). Return plain data, or write it to a file and return "
            "its path."
        )
