"""Every public name of the elastic library says what it is, and docs/api.md is made of that."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import agentd.procs.spare  # noqa: F401 - keeps a descriptor from its import on, which is no test's
from tests.support import compatibility
from tools import apidoc
from tools.apisource import PUBLIC, ApiError, Source, says_something, undocumented

SHOP = '''
"""A shop."""
from dataclasses import dataclass, field
from shop.parts import Till, open_shop

__all__ = ["LIMIT", "Basket", "Till", "open_shop"]

LIMIT: int = 3
"""The most goods of a basket."""

@dataclass(kw_only=True)
class Basket(Till):
    """What a customer carries to the `Till`; see `Basket.add`."""

    goods: list[str] = field(default_factory=list)
    """In the order they came."""
    owner: str
    """The owner."""

    def add(self, good: str = LIMIT, /, *more: str) -> None: ...
    def ring(self) -> None: ...
    def _own(self) -> None: ...
'''
PARTS = '''
from abc import abstractmethod

class Till:
    """Where one pays."""

    def __init__(self, drawer: str) -> None:
        """`drawer`: its name."""
        self.drawer = drawer
        self.open = False

    @abstractmethod
    def ring(self) -> None:
        """Make a sound.

        A loud one.
        """

    @abstractmethod
    def _count(self) -> int: ...

def open_shop(): ...
'''


@pytest.fixture
def shop(tmp_path: Path) -> Source:
    """A package of one public and one internal module."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/__init__.py").write_text(SHOP)
    (tmp_path / "shop/parts.py").write_text(PARTS)
    return Source(tmp_path, ["shop"])


def test_every_public_name_of_the_library_says_what_it_is() -> None:
    assert undocumented(Source()) == []


def test_what_the_source_shows_is_what_python_imports() -> None:
    source = Source()
    for module in source.public_modules:
        loaded = importlib.import_module(module.name)
        assert tuple(loaded.__all__) == module.exports
        for name in module.exports or ():
            found, entry = getattr(loaded, name), source.entry(module, name)
            # Python 3.10 takes the name of a type with arguments, as Callable[...], for a class.
            if inspect.isclass(found) and not hasattr(found, "__origin__"):
                assert (entry.kind, entry.module.name) == ("class", found.__module__), name
                assert set(vars(found)) >= {m.name for m in entry.members if m.signature is not None}, name


def test_every_public_module_is_there() -> None:
    assert Source().absent_modules == []


def test_the_modules_that_torchs_users_import_are_public() -> None:
    page = compatibility.sections(compatibility.PAGE.read_text(encoding="utf-8"))
    mapped = {section.ours for section in page if any(row.status != "absent" for row in section.rows)} - {""}
    assert mapped <= set(PUBLIC)


@pytest.mark.parametrize(
    ("name", "doc"),
    [("run_id", ""), ("run_id", "The run's id."), ("RunResult", "The run result"), ("names", "A name.")],
)
def test_a_repeated_name_is_no_docstring(name: str, doc: str) -> None:
    assert not says_something(name, doc)
    assert says_something(name, doc + " Unique in the fleet.")


def test_what_lacks_a_docstring_is_named_with_its_line(shop: Source) -> None:
    assert undocumented(shop) == [
        "shop/__init__.py:17: Basket.owner",
        "shop/__init__.py:20: Basket.add",
        "shop/parts.py:10: Till.open",
        "shop/parts.py:20: Till._count",
        "shop/parts.py:22: open_shop",
    ]


def test_the_page_shows_signatures_members_and_links(shop: Source) -> None:
    page = apidoc.render(shop)
    assert "class Basket(*, goods: list[str] = [], owner: str)" in page
    assert "**`add(good: str = 3, /, *more: str) -> None`**" in page
    assert (
        "What a customer carries to the [`Till`](#shop.Till); see [`Basket.add`](#shop.Basket.add)." in page
    )
    assert "LIMIT: int = 3" in page
    assert "**`_count() -> int`** *(abstract)*" in page, "who extends a class must know its abstract methods"
    assert "_own" not in page


def test_every_link_of_the_page_leads_somewhere() -> None:
    page = apidoc.render(Source())
    anchors = re.findall(r'<a id="([^"]+)">', page)
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= set(anchors)
    assert all((apidoc.PAGE.parent / name).is_file() for name in re.findall(r"\]\(([^)#]+\.md)\)", page))


def test_an_override_without_words_keeps_the_promise_of_its_base(shop: Source) -> None:
    basket = apidoc.render(shop).partition("### `Basket`")[2].partition("### `Till`")[0]
    assert "**`ring() -> None`**: Make a sound.\n\n  A loud one." in basket


def test_a_changed_docstring_makes_the_page_stale(shop: Source, tmp_path: Path) -> None:
    page = tmp_path / "api.md"
    assert apidoc.stale(page, shop)
    page.write_text(apidoc.render(shop))
    assert not apidoc.stale(page, Source(tmp_path, ["shop"]))
    (tmp_path / "shop/parts.py").write_text(PARTS.replace("loud", "soft"))
    assert apidoc.stale(page, Source(tmp_path, ["shop"]))


def test_a_public_module_says_what_it_exports(tmp_path: Path) -> None:
    assert Source(tmp_path, ["shop"]).absent_modules == ["shop"]
    (tmp_path / "shop.py").write_text("x = 1\n")
    with pytest.raises(ApiError, match="shop is public: give it an __all__"):
        undocumented(Source(tmp_path, ["shop"]))


def test_an_export_that_nothing_defines_is_an_error_that_names_it(shop: Source, tmp_path: Path) -> None:
    (tmp_path / "shop/parts.py").write_text(PARTS.replace("open_shop", "close_shop"))
    with pytest.raises(ApiError, match=r"shop\.open_shop"):
        apidoc.render(Source(tmp_path, ["shop"]))
