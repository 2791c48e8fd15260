# What a machine has before it knows which site it is. Sourced by provision.sh; may run in a chroot.

SOURCES=(target hostagent vagrant pyproject.toml README.md)

install_packages() {
    local package missing=()
    while read -r package _; do
        [[ $package && $package != '#'* ]] || continue
        [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done <"$HERE/packages"
    ((${#missing[@]})) || return 0
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q update
    apt-get -q -y install --no-install-recommends "${missing[@]}"
}

install_source() { # SOURCE: a checkout, or an archive of one, with its byte code or without
    mkdir -p "$SOURCE"
    [[ $1 -ef $SOURCE ]] && return 0
    if [[ -f $1 ]]; then
        rm -rf "$SOURCE.new"
        mkdir "$SOURCE.new"
        tar -xf "$1" -C "$SOURCE.new"
        rm -rf "$SOURCE"
        mv "$SOURCE.new" "$SOURCE"
        [[ -e $SOURCE/target/__pycache__ ]] || compile_source
        return 0
    fi
    (cd "$1" && rsync -a --delete --exclude __pycache__ --no-owner --no-group "${SOURCES[@]}" "$SOURCE/")
    compile_source
}

# The daemons may not write here, and a machine without hardware acceleration takes seconds to compile.
compile_source() {
    [[ ! -x $VENV/bin/python ]] || "$VENV/bin/python" -m compileall -q "$SOURCE/target" "$SOURCE/hostagent" ||
        say "not all of $SOURCE compiles"
}

# What pyproject.toml names is installed once: in a machine without hardware acceleration pip takes most of a minute.
install_python() { # [WHEELS]
    local from=() pip=("$VENV/bin/python" -m pip install --quiet --disable-pip-version-check)
    local stamp=$VENV/installed wanted
    wanted=$(sha256sum <"$SOURCE/pyproject.toml")
    [[ -e $stamp && $(<"$stamp") == "$wanted" ]] && return 0
    [[ -z $1 ]] || from=(--no-index --find-links "$1")
    # rtslib and pyudev are Debian's: they have to fit its kernel and its udev.
    [[ -x $VENV/bin/python ]] || python3 -m venv --system-site-packages "$VENV"
    "${pip[@]}" "${from[@]}" 'setuptools>=68' wheel
    "${pip[@]}" "${from[@]}" --no-build-isolation --config-settings editable_mode=compat --editable "$SOURCE"
    compile_source
    "$VENV/bin/python" -m compileall -q "$VENV/lib"
    ln -sf "$VENV"/bin/{replctl,replctl-target,replctl-hostagent} /usr/local/bin/
    printf %s "$wanted" >"$stamp"
}

# Without the reloads that each would bring, and those of update-rc.d: one alone takes a machine without hardware
# acceleration seconds.
switch_units() { # enable|disable UNIT...
    SYSTEMCTL_SKIP_SYSV=1 systemctl --quiet --no-reload "$@"
}

install_units() {
    local unit changed=''
    for unit in "$HERE"/systemd/*.service; do
        cmp --quiet "$unit" "/etc/systemd/system/${unit##*/}" && continue
        install -m 644 "$unit" /etc/systemd/system/
        changed=1
    done
    [[ $changed ]] || return 0
    install -m 644 "$HERE/systemd/modules.conf" /etc/modules-load.d/replctl.conf
    # LIO's database of reservations and ALUA states: where Debian's rtslib puts it, and where the kernel looks.
    mkdir -p "$CONFIG" "$STATE" /etc/rtslib-fb-target/{pr,alua} /etc/target/{pr,alua}
    # LIO is configured by the subsystem alone, the FCoE ports by replctl-fabric.service.
    switch_units disable rtslib-fb-targetctl.service fcoe-utils.service 2>/dev/null || true
    [[ ! -d /run/systemd/system ]] || systemctl daemon-reload
}
