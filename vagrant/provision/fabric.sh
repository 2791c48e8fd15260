# Fibre Channel over the SAN's Ethernet interface: FCoE between two end points without a switch (FC-BB-6, VN2VN).
# Sourced by provision.sh. With real host bus adapters nothing of this is needed: docs/lab.md says what is.

configure_fabric() {
    local interface
    interface=$(interface_of "$(address san "$site")")
    say "Fibre Channel over $interface"
    printf 'INTERFACE=%s\n' "$interface" >"$CONFIG/fabric"
    # Here, and at every boot to come: the subsystem may not load modules itself.
    printf 'fcoe\ntcm_fc\n' >/etc/modules-load.d/replctl-fabric.conf
    modprobe -a fcoe tcm_fc
    switch_units enable replctl-fabric.service
}

interface_of() { # ADDRESS
    local found
    found=$(ip -brief address show to "$1" | cut -d ' ' -f 1)
    [[ $found ]] || fail "no interface has the SAN address $1"
    printf '%s' "$found"
}

# Peers read the journals, hosts use the volumes; who is in neither list sees nothing.
fabric_table() {
    local peer port peers=() hosts=()
    for peer in $sites; do [[ $peer == "$site" ]] || peers+=("\"$(address wwpn "$peer")\""); done
    for port in ${wwpn_hosts:-}; do hosts+=("\"$port\""); done
    local IFS=,
    printf '[target.fc]\nports = ["%s"]\npeers = [%s]\ninitiators = [%s]\n\n' \
        "$(address wwpn "$site")" "${peers[*]}" "${hosts[*]}"
}
