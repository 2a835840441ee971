# Sourced by the scripts: sets $python to a Python 3.11 or later, or ends with one line and exit code 2.
supported='import sys; sys.exit(0 if sys.version_info >= (3, 11) else 1)'
if [ -n "${PYTHON:-}" ]; then
  if ! command -v "$PYTHON" >/dev/null 2>&1; then
    echo "errand: PYTHON=$PYTHON is not a program" >&2
    exit 2
  fi
  if ! "$PYTHON" -c "$supported" >/dev/null 2>&1; then
    echo "errand: PYTHON=$PYTHON is $("$PYTHON" --version 2>&1); Errand needs Python 3.11 or later" >&2
    exit 2
  fi
  python=$PYTHON
else
  python=
  for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
    if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c "$supported" >/dev/null 2>&1; then
      python=$candidate
      break
    fi
  done
  if [ -z "$python" ]; then
    found=$(python3 --version 2>&1 || true)
    echo "errand: Errand needs Python 3.11 or later; found: ${found:-none}. Install one, or set PYTHON to it" >&2
    exit 2
  fi
fi
