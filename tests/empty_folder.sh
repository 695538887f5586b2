#!/usr/bin/env bash
# empty_folder.sh WHEEL [ENVIRONMENT]: the wheel has every file of the package, and what the README promises first works
# from an empty folder. Without ENVIRONMENT a new one is made, with $PYTHON.
set -euo pipefail
wheel="$(realpath "$1")"
checkout="$(cd "$(dirname "$0")/.." && pwd)"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
if [ -n "${2:-}" ]; then
  environment="$(realpath "$2")"
else
  environment="$folder/venv"
  "${PYTHON:-python3}" -m venv "$environment"
  "$environment/bin/python" -m pip install --quiet "$wheel"
  "$environment/bin/python" -m pip check
fi
mkdir "$folder/empty" && cd "$folder/empty"
export PATH="$environment/bin:$PATH" JAXMLIC_DATA="$folder/data"
unset PYTHONPATH

python - "$checkout" <<'EOF'
import sys
from importlib.metadata import metadata
from pathlib import Path

import jaxmlic

checkout, package = Path(sys.argv[1]), Path(jaxmlic.__file__).parent
assert package.parent.name == "site-packages" and not package.is_relative_to(checkout), package

def files(folder):
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

wanted = files(checkout / "jaxmlic") | {f"configs/{name}": data for name, data in files(checkout / "configs").items()}
found = files(package)
assert wanted == found, sorted({name for name in wanted.keys() | found if wanted.get(name) != found.get(name)})
assert "Typing :: Typed" in metadata("jaxmlic").get_all("Classifier") and "py.typed" in found
print(f"{len(found)} files installed; version {jaxmlic.__version__}, Python {sys.version.split()[0]}")
EOF

jaxmlic --help > help.txt
grep -q evaluate help.txt
jaxmlic reproduce --list > rows.txt
jaxmlic data prepare scenes
jaxmlic plan --config=quickstart:smoke
jaxmlic train --config=quickstart:smoke --workdir=runs/quickstart
jaxmlic evaluate --workdir=runs/quickstart
jaxmlic report runs/quickstart --out=page.html
test -s page.html
echo "the wheel works from an empty folder"
