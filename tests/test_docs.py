"""The pages of `docs/` are all in its index, and what they link to is there."""

import re

import pytest

from tests.docs_code import ROOT, Page

PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
LINKING = [*(f"docs/{name}" for name in PAGES), "README.md", "samples/README.md"]
LINKING += ["samples/quickstart.ipynb"]


def anchors(path):
    """The names that GitHub gives to a page's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(text):
    return re.findall(r"\]\((?!http)([^)\s]+)\)", text)


@pytest.mark.parametrize("name", LINKING)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for link in links(page.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


def test_the_index_has_every_page():
    index = links((ROOT / "docs/README.md").read_text(encoding="utf-8"))
    assert set(PAGES) - {"README.md"} <= {link.partition("#")[0] for link in index}
    assert "docs/README.md" in links((ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PAGES)
def test_sections_are_numbered_in_order(name):
    titles = "\n".join(Page(name).sections)
    numbers = [int(number) for number in re.findall(r"^(\d+)\. ", titles, re.M)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_files_on_the_path_of_a_video_are_there():
    section = Page("contributing.md").sections["3. The path of a video"]
    names = {path.name for path in (ROOT / "video_diffusion_pytorch").rglob("*.py")}
    listed = re.findall(r"(\w+\.py)`", section)
    assert len(listed) > 30
    assert names.issuperset(listed), set(listed) - names
