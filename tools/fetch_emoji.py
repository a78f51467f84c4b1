"""Fetches the drawings and their names: the pinned npm packages of styles.json, by name."""

import argparse
import json
import subprocess
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=Path("build/emoji"), help="scratch folder")
    to: Path = parser.parse_args().to
    styles = json.loads((Path(__file__).parent / "styles.json").read_text())
    to.mkdir(parents=True, exist_ok=True)
    manifest = {"private": True, "dependencies": styles["packages"]}
    (to / "package.json").write_text(json.dumps(manifest, indent=2))
    subprocess.run(["npm", "install", "--no-audit", "--no-fund"], cwd=to, check=True)


if __name__ == "__main__":
    main()
