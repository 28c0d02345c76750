"""`--files-links`: which symbolic links are served, by every protocol and in listings."""

from __future__ import annotations

from pathlib import Path

import pytest

from netsvc.base.errors import UserError
from tests.builders.files import make_core, plant_tree, read_all
from tests.builders.files_http import FilesSite

#: By setting: the names of links that are served.
SERVED: dict[str, set[str]] = {
    "inside": {"near", "near-directory"},
    "follow": {"near", "near-directory", "far", "far-directory"},
    "none": set(),
}


@pytest.mark.parametrize("links", SERVED)
def test_links_are_served_and_listed_as_the_setting_says(links: str, tmp_path: Path) -> None:
    root = plant_tree(tmp_path)
    for name, target in (
        ("near", "d/f"),
        ("near-directory", "d"),
        ("far", "../secret"),
        ("far-directory", "../public-not"),
    ):
        (root / name).symlink_to(target)
    site = FilesSite(root, links=links)
    listed = site.ask("/?json").json
    names = {each["name"] for each in listed["entries"]}
    assert names - {"d", "f"} == SERVED[links]
    for name in ("near", "near-directory/f", "far", "far-directory/f"):
        served = name.partition("/")[0] in SERVED[links]
        # A small file is in memory the second time.
        for _ in range(2):
            assert site.ask(f"/{name}").code == (200 if served else 404)
        if served:
            assert read_all(site.core, name)
    assert site.ask("/far-directory/../../secret").code == 404
    if links == "none":
        refused = {event["result"] for event in site.events if event.get("status") == 404}
        assert refused == {"a symbolic link"}
    site.core.stop()


def test_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="inside, follow or none"):
        make_core(tmp_path, links="some")
