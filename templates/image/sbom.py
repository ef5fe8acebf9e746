"""Print what is installed in an image, as CycloneDX: Python's distributions and Debian's packages.

Runs while the image is built, with the image's own Python; it needs nothing else. The same image gives the same text.
"""

import json
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import quote


def python_components() -> Iterator[dict[str, object]]:
    """Yield every distribution that this Python sees."""
    for found in distributions():
        name, version = found.metadata["Name"], found.version
        purl = f"pkg:pypi/{quote(name.lower().replace('_', '-'))}@{quote(version)}"
        component: dict[str, object] = {"type": "library", "name": name, "version": version, "purl": purl}
        said = found.metadata.get("License-Expression") or found.metadata.get("License") or ""
        if said and "\n" not in said and len(said) < 100:
            component["licenses"] = [{"license": {"name": said}}]
        yield component


def debian_components(status: Path) -> Iterator[dict[str, object]]:
    """Yield every package that dpkg has installed; none where the image is no Debian."""
    for paragraph in status.read_text(encoding="utf-8").split("\n\n") if status.is_file() else ():
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status", "").endswith(" installed"):
            name, version = fields["Package"], fields["Version"]
            purl = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={fields['Architecture']}"
            yield {"type": "library", "name": name, "version": version, "purl": purl}


def main() -> None:
    """Print the list, in the order of its package URLs."""
    components = [*python_components(), *debian_components(Path("/var/lib/dpkg/status"))]
    unique = {str(component["purl"]): component for component in components}
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "components": [unique[purl] for purl in sorted(unique)],
    }
    json.dump(document, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
