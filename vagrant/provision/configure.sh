# What makes a machine one of the sites. Sourced by provision.sh, with fabric.sh.
#
# SETTINGS is a file of NAME="value" lines:
#     site               this site's name; sites: all of them
#     management_SITE    addresses of each site, in each network
#     san_SITE
#     front_SITE
#     disk               block device for the volumes, by LVM: everything on it is lost when it has no volume group
#                        of ours yet. Without it they are files
#     front_end          embedded or lio
#     fabric             iscsi, or fc: FCoE on the SAN's interface; then wwpn_SITE, and wwpn_hosts that use volumes
#     volumes            "NAME:MiB NAME:MiB"; journal: its MiB

VOLUME_GROUP=replctl
GROUP=group1
IQN=iqn.2026-01.org.replctl

configure() { # SETTINGS KEYS
    volumes="data:64 log:64" journal=96 disk=
    front_end=embedded fabric=iscsi
    # shellcheck source=/dev/null
    source "$1"
    make_volumes
    write_keys "$2"
    write_site_toml
    write_multipath_conf
    write_unit_dependencies
    [[ $fabric != fc ]] || configure_fabric
    switch_units enable replctl-target.service replctl-hostagent.service
    # Without a reload, which takes long: what is new beside the units is for the boots to come.
    systemctl start replctl-target.service replctl-hostagent.service
    # Last, so that the port is a target when its peer meets it; enabled before, for the boots to come. One that is up stays.
    [[ $fabric != fc ]] || systemctl start replctl-fabric.service
}

address() { # NETWORK SITE
    local name=$1_$2
    printf '%s' "${!name}"
}

volume_path() { # NAME
    if [[ $disk ]]; then printf '/dev/%s/%s' "$VOLUME_GROUP" "$1"; else printf '%s/%s.img' "$STATE" "$1"; fi
}

make_volumes() {
    local volume missing=()
    [[ $disk ]] || return 0 # the subsystem makes files itself
    for volume in $volumes "$GROUP-journal:$journal"; do
        [[ -e /dev/$VOLUME_GROUP/${volume%:*} ]] ||
            missing+=("lvcreate -q -y -Wy -L ${volume#*:}m -n ${volume%:*} $VOLUME_GROUP")
    done
    ((${#missing[@]})) || return 0
    if ! vgs "$VOLUME_GROUP" >/dev/null 2>&1; then
        missing=("pvcreate -q -y $disk" "vgcreate -q -y $VOLUME_GROUP $disk" "${missing[@]}")
    fi
    say "making volumes on $disk"
    # All by one process: each costs a machine without hardware acceleration half a second. The first error ends it.
    printf '%s\n' '#!/sbin/lvm' "${missing[@]}" >"$STATE/volumes.lvm"
    lvm "$STATE/volumes.lvm" >/dev/null
    rm "$STATE/volumes.lvm"
}

write_keys() { # KEYS
    local peer
    install -m 600 "$1/$site/id_ed25519" "$1/$site/ssh_host_ed25519_key" "$CONFIG/"
    for peer in $sites; do
        [[ $peer == "$site" ]] || cat "$1/$peer.pub"
    done >"$CONFIG/authorized_keys"
    chmod 600 "$CONFIG/authorized_keys"
    for peer in $sites; do
        cut -d ' ' -f 1,2 "$1/$peer.host.pub" >"$CONFIG/$peer.host.pub"
    done
}

write_site_toml() {
    local peer volume lun=0
    {
        printf '[site]\nname = "%s"\nstate_dir = "%s"\n\n' "$site" "$STATE"
        printf '[target]\nfront_end = "%s"\ncontrol_socket = "/run/replctl-target/control.sock"\n\n' "$front_end"
        # Hosts come in by two paths, so that they live on when they lose one.
        printf '[target.iscsi]\nname = "%s:%s"\nportals = ["%s:3260", "%s:3260"]\ninitiators = []\n\n' \
            "$IQN" "$site" "$(address front "$site")" "$(address san "$site")"
        printf '[target.san]\nname = "%s:%s.san"\nportal = "%s:3261"\ninitiator_name = "%s:%s"\n' \
            "$IQN" "$site" "$(address san "$site")" "$IQN" "$site"
        printf 'initiators = ['
        for peer in $sites; do [[ $peer == "$site" ]] || printf '"%s:%s", ' "$IQN" "$peer"; done
        printf ']\n\n'
        [[ $fabric != fc ]] || fabric_table
        printf '[[group]]\nname = "%s"\njournal = "%s"\njournal_size = "%sMiB"\nsan_lun = 0\n\n' \
            "$GROUP" "$(volume_path "$GROUP-journal")" "$journal"
        for volume in $volumes; do
            printf '[[group.volume]]\nname = "%s"\npath = "%s"\nsize = "%sMiB"\nlun = %s\n\n' \
                "${volume%:*}" "$(volume_path "${volume%:*}")" "${volume#*:}" "$lun"
            lun=$((lun + 1))
        done
        printf '[hostagent]\nsocket = "/run/replctl-hostagent/agent.sock"\ndatabase = "%s/hostagent.sqlite"\n' "$STATE"
        printf 'ssh_listen = "%s:2022"\nhost_key_file = "ssh_host_ed25519_key"\n' "$(address management "$site")"
        printf 'identity_file = "id_ed25519"\nauthorized_keys_file = "authorized_keys"\n'
        for peer in $sites; do
            [[ $peer == "$site" ]] && continue
            printf '\n[[peer]]\nname = "%s"\nssh = "%s:2022"\nhost_key = "%s"\n' \
                "$peer" "$(address management "$peer")" "$(<"$CONFIG/$peer.host.pub")"
            if [[ $fabric == fc ]]; then # the kernel finds the peer's journal itself
                printf 'san_portal = "kernel"\n'
            else
                printf 'san_portal = "%s:3261"\nsan_target = "%s:%s.san"\n' "$(address san "$peer")" "$IQN" "$peer"
            fi
        done
    } >"$CONFIG/site.toml.new"
    mv "$CONFIG/site.toml.new" "$CONFIG/site.toml"
}

# Hosts' multipathing takes replctl's volumes and nothing else, and gives up no write while all paths are gone.
write_multipath_conf() {
    cat >/etc/multipath.conf <<'CONF'
defaults {
    user_friendly_names no
    find_multipaths yes
    polling_interval 2
}
blacklist {
    device {
        vendor ".*"
        product ".*"
    }
}
blacklist_exceptions {
    device {
        vendor "REPLCTL"
        product "VOLUME"
    }
}
devices {
    device {
        vendor "REPLCTL"
        product "VOLUME"
        path_checker tur
        path_grouping_policy multibus
        path_selector "service-time 0"
        no_path_retry queue
        fast_io_fail_tmo 5
        dev_loss_tmo 600
    }
}
CONF
}

# The devices of the volumes, by which systemd waits for LVM, or multipath, whichever brings them.
write_unit_dependencies() {
    local volume device directory=/etc/systemd/system/replctl-target.service.d
    [[ $disk ]] || return 0
    mkdir -p "$directory"
    {
        printf '[Unit]\n'
        for volume in $volumes "$GROUP-journal:"; do
            device=$(systemd-escape --path --suffix=device "$(volume_path "${volume%:*}")")
            printf 'Wants=%s\nAfter=%s\n' "$device" "$device"
        done
    } >"$directory/volumes.conf"
}
