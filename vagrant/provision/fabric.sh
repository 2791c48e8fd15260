# Fibre Channel over the SAN's Ethernet interface (FCoE, VN2VN). Sourced by provision.sh.

configure_fabric() {
    say "fabric"
}
