"""CHANGELOG.md has the form of Keep a Changelog 1.1.0, and its newest version is that of netsvc."""

from __future__ import annotations

import re
from datetime import date

import pytest

from netsvc import __version__
from tests.builders.processes import ROOT

TEXT = (ROOT / "CHANGELOG.md").read_text("utf-8")
KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
RELEASE = re.compile(r"\[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d\d-\d\d)")
#: Characters of one item: more is a manual, which belongs to docs/.
LONGEST = 400


def parsed(text: str) -> dict[str, dict[str, list[str]]]:
    """Return the items of each kind of each version; AssertionError if the text has another form."""
    title, *versions = re.split(r"^## ", text, flags=re.M)
    assert title.startswith("# Changelog\n")
    found: dict[str, dict[str, list[str]]] = {}
    for version in versions:
        head, *kinds = re.split(r"^### ", version, flags=re.M)
        name = head.splitlines()[0]
        assert name not in found
        found[name] = {}
        assert "\n- " not in head, "an item has no kind"
        for kind in kinds:
            heading, _, body = kind.partition("\n")
            assert heading in KINDS and heading not in found[name]
            items = [" ".join(item.split()) for item in re.split(r"^- ", body, flags=re.M)]
            assert items[0] == "" and len(items) > 1
            assert all(item.endswith(".") and len(item) <= LONGEST for item in items[1:]), items
            found[name][heading] = items[1:]
    names = list(found)
    assert names[0] == "[Unreleased]"
    releases = [RELEASE.fullmatch(name) for name in names[1:]]
    assert all(releases)
    numbers = [tuple(map(int, release.groups()[:3])) for release in releases if release]
    dates = [date.fromisoformat(release[4]) for release in releases if release]
    assert numbers == sorted(set(numbers), reverse=True)
    assert dates == sorted(dates, reverse=True)
    return found


def test_it_has_the_form() -> None:
    assert parsed(TEXT)


def test_a_version_that_is_out_is_the_newest_in_it() -> None:
    newest = [name for name in parsed(TEXT) if name != "[Unreleased]"][:1]
    assert not newest or newest[0].startswith(f"[{__version__}] - ")


@pytest.mark.parametrize(
    "text",
    [
        "# Changes\n\n## [Unreleased]\n",
        "# Changelog\n\n## [1.0.0] - 2030-01-01\n",
        "# Changelog\n\n## [Unreleased]\n\n## 1.0.0\n",
        "# Changelog\n\n## [Unreleased]\n\n## [1.0.0] - 2030-13-01\n",
        "# Changelog\n\n## [Unreleased]\n\n## [1.0.0] - 2030-01-01\n\n## [1.1.0] - 2030-02-01\n",
        "# Changelog\n\n## [Unreleased]\n\n## [1.1.0] - 2030-01-01\n\n## [1.0.0] - 2030-02-01\n",
        "# Changelog\n\n## [Unreleased]\n\n- Without a kind.\n",
        "# Changelog\n\n## [Unreleased]\n\n### Improved\n\n- Another kind.\n",
        "# Changelog\n\n## [Unreleased]\n\n### Added\n",
        "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- No sentence\n",
        f"# Changelog\n\n## [Unreleased]\n\n### Added\n\n- {'long ' * 80}item.\n",
    ],
)
def test_another_form_is_seen(text: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        parsed(text)


def test_the_form_itself_is_accepted() -> None:
    text = "# Changelog\n\n## [Unreleased]\n\n## [1.0.0] - 2030-01-01\n\n### Fixed\n\n- One,\n  and more.\n- Two.\n"
    assert parsed(text) == {"[Unreleased]": {}, "[1.0.0] - 2030-01-01": {"Fixed": ["One, and more.", "Two."]}}
