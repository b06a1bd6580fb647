"""Which commands of Python workers can be forked, and what such a command is made of. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from agentd.quickdata import dataclass

WITH_VALUE = "XW"
"""Flags of the interpreter that take a value, in the same word or the next."""
FINAL = "cm"
"""Flags that name the program; what follows are its arguments."""
REASONS = {
    "S": "it imports no site module",
    "E": "it ignores PYTHONPATH",
    "I": "it ignores PYTHONPATH",
    "i": "it becomes interactive",
    "V": "it runs nothing",
    "h": "it runs nothing",
    "?": "it runs nothing",
}
"""Flags with which there can be no zygote, and why."""


class NotForkable(Exception):
    """Workers of this command cannot be forked; the text is why."""


@dataclass(frozen=True, slots=True)
class PythonCommand:
    """A Python interpreter that runs a program."""

    flags: tuple[str, ...]
    """The interpreter's, between it and the program."""
    kind: str
    """`script`, `module` or `command`."""
    target: str
    arguments: tuple[str, ...]
    """The program's."""

    @property
    def safe_path(self) -> bool:
        """Whether -P keeps the program's own folder off its path."""
        return any(flag[0:2] != "--" and "P" in flag and flag[1] not in WITH_VALUE for flag in self.flags)


def python_command(argv: Sequence[str]) -> PythonCommand:
    """What a command line is, if its workers can be forked. Raises `NotForkable`."""
    name = argv[0].rpartition("/")[2].lower()
    if not name.startswith(("python", "pypy")):
        raise NotForkable(f"{argv[0]} is not called python")
    flags: list[str] = []
    words = list(argv[1:])
    while words:
        word = words.pop(0)
        if word == "-" or not word.startswith("-"):
            if word == "-":
                break
            return PythonCommand(tuple(flags), "script", word, tuple(words))
        if word.startswith("--"):
            flags.append(word)
            if word == "--check-hash-based-pycs" and words:
                flags.append(words.pop(0))
            continue
        done = _cluster(word, words, flags)
        if done is not None:
            return done
    raise NotForkable("the command line names no program")


def _cluster(word: str, words: list[str], flags: list[str]) -> PythonCommand | None:
    """One word of single-letter flags; the command, if one of them names the program."""
    for index, letter in enumerate(word[1:], 1):
        if letter in REASONS:
            raise NotForkable(f"with -{letter} {REASONS[letter]}")
        rest = word[index + 1 :]
        if letter in WITH_VALUE:
            flags.append(word)
            if not rest and words:
                flags.append(words.pop(0))
            return None
        if letter in FINAL:
            if index > 1:
                flags.append(word[:index])
            if not rest and not words:
                raise NotForkable(f"-{letter} lacks its value")
            target = rest or words.pop(0)
            return PythonCommand(tuple(flags), "module" if letter == "m" else "command", target, tuple(words))
    flags.append(word)
    return None
