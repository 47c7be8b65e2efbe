"""The build step that pyproject.toml cannot say: a wheel holds the best lines of tuning_logs/."""

import json
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """setuptools' own, but for the tuning logs that it copies."""

    def copy_file(self, infile, outfile, *args, **kwargs):
        done = super().copy_file(infile, outfile, *args, **kwargs)
        path = Path(outfile)
        if path.suffix == ".jsonl" and path.parts[-3] == "tuning_logs" and not self.editable_mode:
            path.write_text(best_lines(path.read_text(encoding="utf-8")), encoding="utf-8")
        return done


def best_lines(log: str) -> str:
    """What builds read of a log: lines marked best, and the headers of their searches."""
    lines = [(text, json.loads(text)) for text in log.splitlines()]
    searches = {line.get("search") for _, line in lines if line.get("best") is True} - {None}
    kept = [
        text for text, line in lines if line.get("best") is True or line.get("header") in searches
    ]
    return "".join(f"{text}\n" for text in kept)


setup(cmdclass={"build_py": BuildPy})
