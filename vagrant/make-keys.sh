#!/usr/bin/env bash
# Makes the keys of the host agents: make-keys.sh DIR SITE...
# DIR/SITE/ gets what this site alone may have, DIR/SITE.pub and DIR/SITE.host.pub what every site knows. Keys that are
# there stay.
set -euo pipefail
directory=$1
shift
for site; do
    mkdir -p "$directory/$site"
    chmod 700 "$directory/$site"
    [[ -e $directory/$site/id_ed25519 ]] ||
        ssh-keygen -q -t ed25519 -N '' -C "$site" -f "$directory/$site/id_ed25519"
    [[ -e $directory/$site/ssh_host_ed25519_key ]] ||
        ssh-keygen -q -t ed25519 -N '' -C "$site" -f "$directory/$site/ssh_host_ed25519_key"
    cp "$directory/$site/id_ed25519.pub" "$directory/$site.pub"
    cp "$directory/$site/ssh_host_ed25519_key.pub" "$directory/$site.host.pub"
done
