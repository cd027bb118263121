"""Plugins are found by the metadata of the distributions on the path, without importing any of them."""

from __future__ import annotations

import zipfile
from importlib.metadata import entry_points

import pytest

from sw_agent._discovery import GROUP, find_plugins
from sw_agent.plugin import Plugin


@pytest.fixture
def distribution(tmp_path):
    def distribution(folder, name, *lines):
        info = tmp_path / folder / name
        info.mkdir(parents=True)
        (info / "entry_points.txt").write_text("\n".join((f"[{GROUP}]", *lines)), encoding="utf-8")
        return str(tmp_path / folder)

    return distribution


def test_an_entry_point_says_name_module_attribute_and_the_modules_that_trigger_it(distribution):
    path = distribution("a", "Pool_Plugins-1.0.dist-info", "my-pool = pool.plugin:its.plugin [pool, pool.queue]")

    entry = find_plugins([path])["my-pool"]

    assert (entry.module, entry.attribute, entry.triggers) == ("pool.plugin", "its.plugin", ("pool", "pool.queue"))
    assert entry.distribution == "pool_plugins"


def test_what_is_left_out_of_an_entry_point_has_a_meaning(distribution):
    entry = find_plugins([distribution("a", "x.egg-info", "mine=m")])["mine"]

    assert (entry.module, entry.attribute, entry.triggers) == ("m", "plugin", ())


def test_entry_points_of_other_groups_and_comments_are_none(distribution):
    path = distribution("a", "x.dist-info", "# c = m:a", "; d = m:a", "", "[console_scripts]", "e = m:a")

    assert find_plugins([path]) == {}


def test_of_two_plugins_of_one_name_the_first_on_the_path_counts(distribution):
    first = distribution("a", "one.dist-info", "mine = first:plugin")
    second = distribution("b", "two.dist-info", "mine = second:plugin", "other = second:other")

    found = find_plugins([first, second])

    assert {name: entry.module for name, entry in found.items()} == {"mine": "first", "other": "second"}


def test_of_two_versions_of_a_distribution_the_first_on_the_path_counts(distribution):
    first = distribution("a", "one-2.0.dist-info", "mine = new:plugin")
    second = distribution("b", "one-1.0.dist-info", "gone = old:plugin")

    assert list(find_plugins([first, second])) == ["mine"]


def test_what_is_no_folder_is_passed_by(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("x.dist-info/entry_points.txt", f"[{GROUP}]\nmine = m:a\n")

    assert find_plugins([str(tmp_path / "nowhere"), str(tmp_path / "x.zip"), ""]) == {}


def test_what_is_installed_here_is_what_importlib_metadata_finds():
    found = {entry.name: f"{entry.module}:{entry.attribute}" for entry in find_plugins().values()}

    assert found == {entry.name: entry.value.partition("[")[0].strip() for entry in entry_points(group=GROUP)}


@pytest.mark.parametrize("entry", find_plugins().values(), ids=lambda entry: entry.name)
def test_every_plugin_here_loads_and_describes_its_options(entry):
    plugin = entry.load()

    assert isinstance(plugin, Plugin)
    assert plugin.name == entry.name
    for option in plugin.options:
        assert option.help
        assert isinstance(option.default, bool | int | float | str | list)
