#!/usr/bin/env bash
# Makes a Debian 12 machine a site of replctl. The QEMU lab (scripts/lab) and Vagrant run this same script.
#
#     provision.sh install SOURCE [WHEELS]    packages, Python environment, units: provision/install.sh
#     provision.sh update SOURCE              the project's code alone, from a newer checkout or an archive of it
#     provision.sh configure SETTINGS KEYS    volumes, site.toml, fabric, daemons: provision/configure.sh
#
# Run as root. What is there already stays, so that each may be run again.
set -euo pipefail

PREFIX=/opt/replctl
SOURCE=$PREFIX/source
VENV=$PREFIX/venv
CONFIG=/etc/replctl
STATE=/var/lib/replctl
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

say() { printf 'provision: %s\n' "$*"; }
fail() { printf 'provision: %s\n' "$*" >&2; exit 1; }
usage() { fail "usage: provision.sh install SOURCE [WHEELS] | update SOURCE | configure SETTINGS KEYS"; }

case "${1:-}" in
    install)
        [[ $# -ge 2 ]] || usage
        source "$HERE/provision/install.sh"
        install_packages
        install_source "$2"
        install_python "${3:-}"
        install_units
        ;;
    update)
        [[ $# == 2 ]] || usage
        source "$HERE/provision/install.sh"
        install_source "$2"
        install_units
        ;;
    configure)
        [[ $# == 3 ]] || usage
        source "$HERE/provision/install.sh"
        source "$HERE/provision/configure.sh"
        source "$HERE/provision/fabric.sh"
        configure "$2" "$3"
        ;;
    *) usage ;;
esac
