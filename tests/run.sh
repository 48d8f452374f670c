#!/bin/sh
# Installs what the tests need (Debian or Ubuntu), then runs all of them.
#
#   sh tests/run.sh                 everything: ruff, mypy, pytest with real servers
#   sh tests/run.sh tests/smtp -x   these arguments go to pytest instead; linters are left out
#   sh tests/run.sh --bench         the benches (minutes; figures go to the terminal)
#   PYTHON=/usr/bin/python3 sh tests/run.sh …   with that interpreter, in a virtual environment for its version
set -eu
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }

python=""
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || {
    [ -z "${PYTHON:-}" ] || { say "PYTHON=$PYTHON is no Python 3.11 or newer"; exit 1; }
    say "Python 3.11 or newer is needed: apt-get install python3 python3-venv"
    exit 1
}
venv=.tests-venv
[ -z "${PYTHON:-}" ] || venv=$venv-$("$python" -c 'import platform; print(platform.python_version())')

# command:package, and files for what has no command
wanted="postfix:postfix smtp-sink:postfix knotd:knot keymgr:knot unbound:unbound swaks:swaks dovecot:dovecot-core
opendkim:opendkim opendkim-testmsg:opendkim-tools prometheus:prometheus promtool:prometheus cc:gcc chromium:chromium npm:npm valgrind:valgrind
haproxy:haproxy"
# The gateway's peers, and what stands around it, only where they are measured
[ "${1:-}" != --bench ] || wanted="$wanted rspamd:rspamd opendmarc:opendmarc"
missing=""
PATH="$PATH:/usr/sbin:/sbin"
for pair in $wanted; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
done
# Debian keeps PostgreSQL's server out of PATH
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
[ -e /usr/include/libmilter/mfapi.h ] || missing="$missing libmilter-dev"
[ "${1:-}" != --bench ] || [ -e /usr/include/openssl/ssl.h ] || missing="$missing libssl-dev"
perl -MNet::SSLeay -e 1 2>/dev/null || missing="$missing libnet-ssleay-perl"  # swaks' TLS
"$python" -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3-venv"
"$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
    missing="$missing python3-dev"
if [ -n "$missing" ]; then
    sudo=""
    [ "$(id -u)" = 0 ] || sudo=sudo
    say "Installing from Debian:$missing"
    $sudo apt-get update -q || { say "apt-get update failed: is this Debian or Ubuntu, and is there a network?"; exit 1; }
    # shellcheck disable=SC2086
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing ||
        { say "apt-get could not install:$missing"; exit 1; }
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/pip" install -q -e '.[dev,demo,milter]' ||
    { say "pip could not install the project: see above. libmilter-dev and a C compiler are needed for pymilter."; exit 1; }

if [ "${1:-}" = --bench ]; then
    shift
    exec "$venv/bin/python" -m pytest -m bench -s tests/bench "$@"
fi
if [ $# -gt 0 ]; then
    exec "$venv/bin/python" -m pytest "$@"
fi
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/mypy"
exec "$venv/bin/python" -m pytest -m "not bench"
