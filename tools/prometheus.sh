#!/bin/sh
# Makes sure that `prometheus` and `promtool` are on PATH, for the tests that let a real Prometheus scrape the service.
# Does nothing when they are; otherwise installs Debian's package, without starting its daemon.
set -eu

found() { command -v prometheus >/dev/null 2>&1 && command -v promtool >/dev/null 2>&1; }

give_up() {
    echo "tools/prometheus.sh: prometheus and promtool are not installed, and $1;" >&2
    echo "install them by hand, or the tests that need them are skipped" >&2
    exit 1
}

found && exit 0
command -v apt-get >/dev/null 2>&1 || give_up "there is no apt-get here"

as_root=""
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 || give_up "this is neither root nor is there sudo"
    sudo -n true 2>/dev/null || give_up "sudo wants a password"
    as_root="sudo"
fi

# Debian starts what it installs unless this program forbids it. One that is there already is the machine's own decision.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '$as_root rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
fi

$as_root apt-get update -qq || echo "tools/prometheus.sh: the package lists could not be updated" >&2
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus >&2 \
    || give_up "apt-get could not install them"
# Installed is not wanted at every start of the machine.
$as_root update-rc.d prometheus disable >/dev/null 2>&1 || true
found || give_up "apt-get installed none"
