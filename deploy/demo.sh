#!/bin/sh
# The main job in one command: starts a gateway on an embedded world and sends mail through it.
#
#   sh deploy/demo.sh             the tour, then stays up until Ctrl-C
#   sh deploy/demo.sh --once      ends after the tour
#   sh deploy/demo.sh --postfix   a private real Postfix behind it instead of a Maildir sink (needs root or sudo)
set -eu
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }

sudo=""
[ "$(id -u)" = 0 ] || sudo=sudo
install() {
    say "Installing from Debian: $*"
    $sudo apt-get update -q >&2 || { say "apt-get update failed: is this Debian or Ubuntu, and is there a network?"; exit 1; }
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@" >&2 ||
        { say "apt-get could not install: $*"; exit 1; }
}

python=""
for candidate in python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    install python3 python3-venv
    python=python3
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { say "Python 3.11 or newer is needed; this system's is $("$python" --version)."; exit 1; }
fi
"$python" -c 'import venv, ensurepip' 2>/dev/null || install python3-venv
case " $* " in
    *" --postfix "*)
        PATH="$PATH:/usr/sbin"
        command -v postfix >/dev/null 2>&1 || install postfix
        ;;
esac

venv=.demo/venv
if [ ! -x "$venv/bin/python" ]; then
    say "Making a Python environment in $venv …"
    "$python" -m venv "$venv"
fi
"$venv/bin/pip" install -q -e '.[demo]' || { say "pip could not install the project: see above."; exit 1; }
exec "$venv/bin/python" deploy/demo.py "$@"
