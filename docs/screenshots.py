"""Make the screenshots of the README: ``python docs/screenshots.py``. Needs Chromium and the extra ``test``."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.server import running_server  # noqa: E402

IMAGES = ROOT / "docs" / "images"
POPULATION = ("--direct", "--events", "300000", "--users", "12000", "--days", "120")
PORT = "38121"
SIZE = {"width": 1100, "height": 1000}


def main() -> None:
    """Start a server with sample data, and save the overview in light and in dark mode."""
    IMAGES.mkdir(exist_ok=True)
    with running_server(TK__ADMIN__PORT=PORT, TK__INSIGHT__ENABLED="false") as server, sync_playwright() as playwright:
        server.run_command("demo", *POPULATION)
        server.run_command("stats", "sample-cli")
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        for scheme in ("light", "dark"):
            link = json.loads(server.run_command("dashboard", "--json", TK__ADMIN__PORT=PORT))["url"]
            page = browser.new_page(viewport=SIZE, color_scheme=scheme)  # type: ignore[arg-type]
            page.goto(link)
            page.click("main button")
            page.click("text=sample-cli")
            page.screenshot(path=IMAGES / f"dashboard-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    main()
