"""``tvm-flash doctor`` where kernels run and nothing else is installed: lines, not tables."""

from __future__ import annotations

from . import diagnosis


def report() -> int:
    """Print what ``doctor`` finds; exit status 1: kernels cannot run here."""
    for package, version in diagnosis.versions().items():
        print(f"{package}: {version or 'missing'}")
    found = diagnosis.findings()
    for finding in found:
        # One line each: a linker's complaint has many.
        detail = " ".join(finding.detail.split())
        print(f"{finding.name}: {'ok' if finding.ok else 'fails'}: {detail}")
        if not finding.ok:
            print(f"  {finding.remedy}")
    verdicts = diagnosis.verdicts(found)
    for purpose, verdict in verdicts.items():
        print(f"works here, {purpose}: {verdict}")
    return 0 if verdicts["run"] == "yes" else 1
