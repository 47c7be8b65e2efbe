"""A folder of HTML as a reader has it: where links lead, and what a browser makes of its width."""

from __future__ import annotations

import functools
import json
import queue
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Shows pages one after the other in a frame of some width and writes down what it sees of each.
_FRAME = """\
<iframe id=frame style="border:0;width:{width}px;height:900px"></iframe><script>
const frame = document.getElementById("frame"), seen = {{}}, pages = {pages};
function next() {{
  if (!pages.length) return fetch("/seen", {{method: "POST", body: JSON.stringify(seen)}});
  const page = pages.shift();
  frame.onload = () => {{
    const inside = frame.contentDocument;
    seen[page] = {{
      width: inside.scrollingElement.scrollWidth,
      missing: [...inside.images].filter(x => x.complete && !x.naturalWidth).map(x => x.src),
      loaded: frame.contentWindow.performance.getEntriesByType("resource").map(x => x.name),
      heading: (inside.querySelector("h1") || {{}}).innerText || "",
    }};
    next();
  }};
  frame.src = page;
}}
next();
</script>"""


class Page(HTMLParser):
    """What a page refers to, and the places in it that others can refer to."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.loaded, self.places = [], [], {""}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.places |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        self.loaded += [given[k] for k in ("src",) if given.get(k)]
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(given["href"])


def pages_of(folder: Path) -> dict[str, Page]:
    """By path in ``folder``, every page but the one for missing ones, whose links are absolute."""
    return {
        path.relative_to(folder).as_posix(): Page(path.read_text(encoding="utf-8"))
        for path in folder.rglob("*.html")
        if path.name != "404.html"
    }


def broken_links(folder: Path) -> list[str]:
    """Links between pages whose page or place in it is not there, as "page: link"."""
    pages, broken = pages_of(folder), []
    for name, page in pages.items():
        for link in {*page.links, *page.loaded}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = folder / name if not parts.path else (folder / name).parent / parts.path
            key = target.resolve().relative_to(folder.resolve()).as_posix()
            place = unquote(parts.fragment)
            if not target.is_file() or (key in pages and place not in pages[key].places):
                broken.append(f"{name}: {link}")
    return sorted(broken)


def loaded_from_elsewhere(folder: Path) -> list[str]:
    """What pages load of other hosts, as "page: address"."""
    return sorted(
        f"{name}: {link}"
        for name, page in pages_of(folder).items()
        for link in page.loaded
        if urlsplit(link).netloc
    )


def seen_by_browser(chromium: str, folder: Path, width: int) -> dict[str, dict]:
    """By page, its width in pixels in a window of ``width``, images that are missing, addresses
    loaded, and the heading, as a headless Chromium has them."""
    frame = folder / "_frame.html"
    pages = json.dumps(sorted(set(pages_of(folder)) - {frame.name}))
    frame.write_text(_FRAME.format(width=width, pages=pages), encoding="utf-8")
    try:
        with serving(folder) as (address, posted), tempfile.TemporaryDirectory() as profile:
            browser = subprocess.Popen(
                [chromium, "--headless", "--no-sandbox", "--disable-gpu",
                 "--remote-debugging-port=0",  # stay, though nobody asks for a picture
                 f"--user-data-dir={profile}", f"{address}/{frame.name}"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                return json.loads(posted.get(timeout=300))
            finally:
                browser.terminate()
                browser.wait()
    finally:
        frame.unlink()


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, queue.Queue]]:
    """The address of ``folder`` on this machine while inside, and what is posted to it."""
    posted: queue.Queue = queue.Queue()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            posted.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", posted
    finally:
        server.shutdown()
        server.server_close()
