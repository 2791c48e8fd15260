# Sets up what a script of this directory needs: Python's virtual environment and Debian's packages.
#
# Sourced by demo, test, check, bench and lab. It sets ROOT, PYTHON and lists of packages, and defines
#
#     need_packages PURPOSE PACKAGE...   root installs what is missing; a plain user is told, and the script goes on
#     need_python EXTRA                  .venv in the checkout holds the package with that extra of pyproject.toml
#
# Both are idempotent and cost a few milliseconds when there is nothing to do. With CI=true whatever is missing and
# cannot be installed ends the script.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
VENV=$ROOT/.venv
PYTHON=$VENV/bin/python
PATH=$PATH:/usr/sbin:/sbin # tgtd, mke2fs and sshd live there, where a plain user's PATH does not look

# What scripts/lab needs; and what a real `vagrant up` does, which only the tests run.
LAB_PACKAGES=(qemu-system-x86 qemu-utils mmdebstrap debian-archive-keyring e2fsprogs kmod zstd openssh-client)
[[ $EUID == 0 ]] || LAB_PACKAGES+=(fakeroot uidmap)
VAGRANT_PACKAGES=(vagrant vagrant-libvirt libvirt-daemon libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients
    dnsmasq-base iptables iproute2)

say() { printf '%s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
in_ci() { [[ ${CI:-} == true ]]; }

missing_packages() { # PACKAGE... -> those that are not installed, on one line
    local package missing=()
    for package; do
        [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done
    printf '%s' "${missing[*]}"
}

# Installing tgt or openssh-server would start their daemons, now and at every boot; the tests start their own on
# ports of their own, and nobody asked for more.
install_packages() { # PACKAGE...
    local policy=/usr/sbin/policy-rc.d made_policy='' result=0 package
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
        made_policy=$policy
    fi
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -q && apt-get install -q -y --no-install-recommends "$@"; } </dev/null >&2 || result=$?
    [[ -z $made_policy ]] || rm -f "$made_policy"
    if [[ $result == 0 && -d /run/systemd/system ]]; then
        for package; do
            case $package in
                tgt) systemctl --quiet disable tgt.service || true ;;
                libvirt-daemon-system) systemctl --quiet disable libvirtd.service libvirtd.socket || true ;;
                openssh-server) systemctl --quiet disable ssh.service ssh.socket || true ;;
            esac
        done
    fi
    return "$result"
}

need_packages() { # PURPOSE PACKAGE...
    local purpose=$1 missing
    shift
    missing=$(missing_packages "$@")
    [[ -n $missing ]] || return 0
    if [[ $EUID == 0 ]]; then
        say "Installing for the $purpose: $missing"
        # shellcheck disable=SC2086 # one word a package
        if install_packages $missing; then return 0; fi
    fi
    in_ci && fail "The $purpose needs these Debian packages, and CI goes without none: $missing"
    say "Missing for the $purpose: $missing"
    say "It goes on without them. To have them: apt-get install $missing"
}

# A command that is only a version manager's shim may be there and refuse to run: try, do not look.
find_python() { # -> a Python that can make a virtual environment
    local candidate
    for candidate in python3.13 python3.12 python3.11 python3; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            printf '%s' "$candidate"
            return 0
        fi
    done
    return 1
}

make_environment() { # EXTRA
    local python
    if ! python=$(find_python); then
        if [[ $EUID == 0 ]]; then
            say "Installing Python's venv module"
            install_packages python3 python3-venv || fail "apt-get could not install python3-venv"
        fi
        python=$(find_python) || fail "Python 3.11 or later with its venv module is needed: apt-get install python3-venv"
    fi
    if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
        say "Making $VENV with $("$python" --version)"
        "$python" -m venv --clear "$VENV"
    fi
    say "Installing replctl[$1] and what it needs into $VENV"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-input --editable "$ROOT[$1]" </dev/null ||
        fail "pip could not install the packages that pyproject.toml names; its message is above"
}

# The stamp says for which pyproject.toml, at which place, an extra was installed: a moved checkout has a dead .venv.
need_python() { # EXTRA
    local stamp=$VENV/installed-$1 wanted
    wanted="$ROOT $(sha256sum <"$ROOT/pyproject.toml")"
    [[ -x $PYTHON && -e $stamp && $(<"$stamp") == "$wanted" ]] && return 0
    exec 9<"$ROOT/pyproject.toml"
    flock 9 # two scripts started together: the second waits for the first
    if [[ ! -x $PYTHON || ! -e $stamp || $(<"$stamp") != "$wanted" ]]; then
        [[ ! -e $stamp || $(<"$stamp") == "$ROOT "* ]] || rm -rf "$VENV"
        make_environment "$1"
        printf '%s' "$wanted" >"$stamp"
    fi
    exec 9<&-
}
