"""The documentation as a site: what its pages are, that links between them lead somewhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import built_site
import pages
import pytest
from notebook import NAMES, cells_of
from prose import markdown
from reference import PAGES
from source_pages import Site

import tvm_flash

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
NAVIGATION = SETTINGS[SETTINGS.index("\nnav:") :]
IN_MENU = re.findall(r"([\w/-]+\.md)$", NAVIGATION, re.MULTILINE)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The Markdown that the site is built from."""
    folder = tmp_path_factory.mktemp("site") / "pages"
    pages.write(ROOT, folder)
    return folder


def test_every_page_stands_in_the_menu_once():
    docs = ROOT / "docs"
    own = [path.relative_to(docs).as_posix() for path in docs.rglob("*.md")]
    made = ["index.md", "changelog.md", *(f"reference/{name}.md" for name in PAGES)]
    assert sorted(IN_MENU) == sorted([*own, *made])


def test_every_public_name_stands_in_the_reference_once():
    listed = [name for page in PAGES.values() for name in page.names if "." not in name]
    assert sorted(listed) == sorted({*tvm_flash.__all__, "build"} - {"__version__"})


def links_of(text):
    """Targets of the links in Markdown, code left out."""
    prose = re.sub(r"(```|~~~~~~).*?\1", "", text, flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose))


def places_in(text):
    """What links may name behind "#": headings, as both GitHub and the site write them."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    words = (re.sub(r"[^\w -]", "", heading.lower()) for heading in headings)
    return {"", *(word.strip().replace(" ", "-") for word in words)}


def test_links_of_the_site_lead_somewhere(written):
    texts = {path: path.read_text(encoding="utf-8") for path in written.rglob("*.md")}
    assert len(texts) > 50
    broken = []
    for path, text in texts.items():
        for link in links_of(text):
            file, _, place = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            here = "://" not in link
            if here and not (target.is_file() and place in places_in(texts.get(target, ""))):
                broken.append(f"{path.relative_to(written)}: {link}")
    assert not broken


def test_pages_of_sources_show_them(written):
    shown = (written / "repository/examples/serving.py.md").read_text(encoding="utf-8")
    assert (ROOT / "examples/serving.py").read_text(encoding="utf-8") in shown
    link = Site(ROOT).relinked("examples/cpp/README.md", "[x](../../docs/cuda.md#proof)")
    assert link == "[x](../../../cuda.md#proof)"


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        (
            "A sum.\n\nx (B, S): of rows. scale: by what;\nnone is 1. Slow.\n\nRaises ValueError.",
            {"x", "scale"},
            "A sum.\n\n- **x** (B, S): of rows.\n\n- **scale**: by what; none is 1. Slow.\n\n"
            "**Raises** ValueError.",
        ),
        ("lo (x). lo, hi: ends. a: b.", {"lo", "hi"}, "lo (x).\n\n- **lo, hi**: ends. a: b."),
        ("a * b[0] ``c * d`` < e", (), r"a \* b\[0\] ``c * d`` &lt; e"),
        ("See docs/bias.md.", (), 'See <a href="../bias.html">docs/bias.md</a>.'),
        ("Of:\n\n- one * x\n- two", (), "Of:\n\n- one \\* x\n- two"),
    ],
    ids=["parameters", "two at once", "marks", "pages", "lists"],
)  # fmt: skip
def test_docstrings_become_markdown(text, names, expected):
    assert markdown(text, names) == expected


@pytest.mark.parametrize("name", NAMES)
def test_pages_of_scripts_are_those_scripts(name):
    """Code and text; what they print is compared where they run."""
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    cells = cells_of((ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8"))
    assert [c.source for c in cells if not c.is_text] == re.findall(
        r"```python\n(.*?)\n```", page, re.DOTALL
    )
    for picture in re.findall(r"!\[[^]]+\]\((.+)\)", page):
        assert (ROOT / "docs" / picture).read_bytes().startswith(b"\x89PNG")


def test_what_a_browser_refuses_is_noticed(tmp_path):
    """The checks of the built site, on a site with one fault of each kind."""
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><a href="b.html#there">b</a><a href="b.html#not">b</a>'
        '<a href="c.html">c</a><img src="https://elsewhere.org/x.png">'
    )
    (tmp_path / "b.html").write_text('<p id="there"><a href="a.html#top">a</a></p>')
    assert built_site.broken_links(tmp_path) == ["a.html: b.html#not", "a.html: c.html"]
    assert built_site.loaded_from_elsewhere(tmp_path) == ["a.html: https://elsewhere.org/x.png"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as `make docs` builds it, where its tools are installed."""
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("built")
    pages.write(ROOT, ROOT / "build" / "pages")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-d", str(folder)]
    environment = {"PYTHONPATH": str(ROOT / "docs/site"), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.sweep
def test_the_built_site_is_whole(site):
    assert not built_site.broken_links(site)
    assert not built_site.loaded_from_elsewhere(site)
    reference = (site / "reference/attention.html").read_text(encoding="utf-8")
    assert 'id="tvm_flash.attention"' in reference and "<strong>softcap</strong>" in reference


@pytest.mark.sweep
@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desk"])
def test_pages_keep_to_the_width_of_a_window(site, width):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium")
    wide = site / "wide.html"
    wide.write_text('<h1>Wide</h1><div style="width:2000px">x</div><img src="none.png">')
    seen = built_site.seen_by_browser(chromium, site, width)
    control = seen.pop(wide.name)
    wide.unlink()
    assert control["width"] >= 2000 and control["missing"]
    assert {page for page, has in seen.items() if has["width"] > width} == set()
    assert not [(page, has["missing"]) for page, has in seen.items() if has["missing"]]
    assert all(has["heading"] for has in seen.values())
    loaded = {address for has in seen.values() for address in has["loaded"]}
    assert loaded and all(address.startswith("http://127.0.0.1:") for address in loaded)
