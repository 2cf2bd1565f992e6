#!/bin/bash
# Installs Thaw on a node, as root. Running it again brings everything up to date; nothing is done twice.
#
#   install.sh [options]
#     --print-containerd       print what containerd's configuration needs (the default)
#     --write-containerd       write it: a drop-in on 2.x, a marked block in the main file on 1.6 and 1.7
#     --restart                then restart containerd, if its configuration changed; pods keep running
#     --dry-run                say what would be done, and do nothing
#     --package PATH           a checkout or a wheel of Thaw (default: the checkout that this lies in)
#     --prefix DIR             Thaw's own environment, and CRIU if the system's is too old (/opt/thaw)
#     --bin DIR                where the commands are linked; must be in containerd's PATH (/usr/local/bin)
#     --config PATH            Thaw's configuration, written if absent (/etc/thaw/config.toml)
#     --snapshots DIR          where snapshots lie (/var/lib/thaw/snapshots)
#     --containerd EXE         containerd's executable (from PATH)
#     --containerd-config PATH its main configuration file (/etc/containerd/config.toml)
#
# uninstall.sh takes all of it away again.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here python=/usr/bin/python3

package=$(dirname "$here")
prefix=/opt/thaw
bin=/usr/local/bin
config=/etc/thaw/config.toml
snapshots=/var/lib/thaw/snapshots
containerd=containerd
containerd_config=/etc/containerd/config.toml
unit=/etc/systemd/system/thaw-cache.service
write_containerd=
restart=
dry_run=
config_sum=

say() {
    echo "thaw: $*"
}

fail() {
    echo "thaw: $*" >&2
    exit 1
}

usage() {
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
}

parse() {
    while (($#)); do
        case $1 in
            --print-containerd) write_containerd= ;;
            --write-containerd) write_containerd=yes ;;
            --restart) restart=yes ;;
            --dry-run) dry_run=yes ;;
            --help | -h) usage && exit 0 ;;
            --package | --prefix | --bin | --config | --snapshots | --containerd | --containerd-config)
                (($# > 1)) || fail "$1 needs a value"
                local name=${1#--}
                printf -v "${name//-/_}" %s "$2"
                shift
                ;;
            *) fail "unknown option $1 (see: install.sh --help)" ;;
        esac
        shift
    done
    [[ -z $restart || -n $write_containerd ]] || fail "--restart goes with --write-containerd"
    [[ $EUID == 0 ]] || fail "must run as root"
    [[ -e $package ]] || fail "no package at $package"
    package=$(readlink -f "$package")
}

# --- the parts --------------------------------------------------------------------------------------

# One folder per state of the package: shims of running pods go on with the one they started from.
environment_folder() {
    local state
    if [[ -d $package ]]; then
        state=$(cd "$package" &&
            find pyproject.toml native shim oci_hooks -type f ! -path '*__pycache__*' -print0 |
            sort -z | xargs -0 sha256sum)
    else
        state=$(sha256sum <"$package")
    fi
    echo "$prefix/environment-$({ echo "$state"; "$python" --version; } | sha256sum | cut -c 1-12)"
}

install_environment() {
    local place=$1
    if [[ -e $place/complete ]]; then
        say "$place is up to date"
        return
    fi
    if [[ -n $dry_run ]]; then
        say "would install $package into $place"
        return
    fi
    "$here/fetch.sh" packages python3-venv ca-certificates
    [[ ! -d $package ]] ||
        "$here/fetch.sh" packages cmake gcc libc6-dev ninja-build python3-dev
    say "installing $package into $place"
    rm -rf "$place"
    "$python" -m venv "$place"
    "$place/bin/python" -m pip install -qq "$package" tomlkit
    touch "$place/complete"
}

link_commands() {
    local place=$1 name
    for name in containerd-shim-thaw-v1 thaw thaw-hook-network; do
        if [[ $(readlink "$bin/$name" 2>/dev/null) == "$place/bin/$name" ]]; then
            continue
        fi
        [[ ! -e $bin/$name || -L $bin/$name ]] || fail "$bin/$name is not a link of ours (move it away)"
        if [[ -n $dry_run ]]; then
            say "would link $bin/$name"
            continue
        fi
        mkdir -p "$bin"
        ln -sfn "$place/bin/$name" "$bin/.$name.new"
        mv -T "$bin/.$name.new" "$bin/$name"
        say "linked $bin/$name"
    done
}

# Environments of earlier states go, unless a shim that was started from one still runs.
remove_old_environments() {
    local current=$1 place
    for place in "$prefix"/environment-*; do
        [[ -d $place && $place != "$current" ]] || continue
        grep -qsF "$place/" /proc/[0-9]*/cmdline /proc/[0-9]*/maps && continue
        if [[ -n $dry_run ]]; then
            say "would remove $place"
        else
            rm -rf "$place"
            say "removed $place"
        fi
    done
}

# criu_setting: what the configuration says about CRIU; "" is the one in PATH.
criu_setting() {
    if [[ -n $dry_run ]]; then
        echo "$prefix/criu/criu"
        return
    fi
    local path
    path=$("$here/fetch.sh" criu --into "$prefix/criu")
    [[ $path == "$prefix/criu/criu" ]] && echo "$path" || echo ""
}

has_containerd() {
    type -P "$containerd" >/dev/null
}

containerd_tool() {
    local place=$1 verb=$2
    shift 2
    "$place/bin/python" -I "$here/containerd_config.py" "$verb" --main "$containerd_config" \
        --thaw-config "$config" --containerd "$containerd" "$@"
}

write_config() {
    local place=$1 criu=$2 systemd=false
    if [[ -e $config ]]; then
        say "$config is there already, and stays as it is"
        return
    fi
    if [[ -n $dry_run ]]; then
        say "would write $config"
        return
    fi
    # Restored containers have to be where the node's other containers are.
    if has_containerd; then
        systemd=$(containerd_tool "$place" systemd-cgroup) || systemd=false
    fi
    mkdir -p "$(dirname "$config")"
    cat >"$config.new" <<TOML
# Thaw's configuration on this node.
snapshots = "$snapshots"
gpu.preloaded = "$(libraries_folder)"
criu = "$criu"                 # "": from PATH
SystemdCgroup = $systemd       # the same as in the runc handler's options
TOML
    mv "$config.new" "$config"
    config_sum=$(sha256sum <"$config" | cut -d ' ' -f 1)
    say "wrote $config"
}

# Versions of the GPU memory library, which the first container that gets one makes: running containers
# and snapshots need those of earlier states, so that they outlive an environment.
libraries_folder() {
    echo "$(dirname "$snapshots")/libraries"
}

make_snapshots_folder() {
    [[ ! -d $snapshots ]] || return 0
    if [[ -n $dry_run ]]; then
        say "would make $snapshots"
        return
    fi
    mkdir -p "$snapshots"
    chmod 700 "$snapshots"
    say "made $snapshots"
}

# What uninstall.sh has to know.
remember() {
    [[ -z $dry_run ]] || return 0
    # The sum of the configuration as one of our runs wrote it; none, if it was there before us.
    if [[ -z $config_sum && -e $prefix/installed ]]; then
        config_sum=$(sed -n 's/^config_sum=//p' "$prefix/installed")
    fi
    cat >"$prefix/installed" <<CHOICES
bin=$bin
config=$config
config_sum=$config_sum
snapshots=$snapshots
libraries=$(libraries_folder)
containerd=$containerd
containerd_config=$containerd_config
CHOICES
}

# The process that holds the node's cache of GPU memory, if the configuration has one: otherwise it ends at
# once. Only systemd starts it, as pods and engines come and go, and what it holds is to stay. There is one
# a node, so only an installation in the usual place has it.
install_holder() {
    local place=$1
    [[ $prefix == /opt/thaw && -d /run/systemd/system ]] || return 0
    if [[ -n $dry_run ]]; then
        say "would write $unit, if that is not what it says"
        return
    fi
    holder_unit "$place" >"$unit.new"
    if cmp -s "$unit.new" "$unit"; then
        rm "$unit.new"
        return
    fi
    mv "$unit.new" "$unit"
    systemctl daemon-reload
    systemctl enable -q thaw-cache
    systemctl restart --no-block thaw-cache
    say "wrote $unit (once cache.size is set in $config: systemctl restart thaw-cache)"
}

holder_unit() {
    cat <<UNIT
[Unit]
Description=Thaw's cache of GPU memory

[Service]
Type=notify
ExecStart=$1/bin/python -I -m shim.cache.holder --config $config
Restart=on-failure
RestartSec=5
TimeoutStartSec=300
LimitMEMLOCK=infinity
LimitNOFILE=1048576
OOMScoreAdjust=-500

[Install]
WantedBy=multi-user.target
UNIT
}

configure_containerd() {
    local place=$1
    if ! has_containerd; then
        say "no containerd here ($containerd): nothing to configure (name it: --containerd PATH)"
    elif [[ ! -e $place/complete ]]; then
        say "would ${write_containerd:+write}${write_containerd:-print} the handler thaw for $containerd_config"
    elif [[ -z $write_containerd ]]; then
        say "containerd needs this, and a restart (or run install.sh --write-containerd --restart):"
        containerd_tool "$place" print
    else
        local said
        said=$(containerd_tool "$place" write ${dry_run:+--dry-run})
        echo "$said"
        [[ $said == *nothing\ to\ change* ]] || restart_containerd
    fi
}

restart_containerd() {
    if [[ -n $dry_run || -z $restart ]]; then
        say "containerd has to be restarted to know the handler thaw"
        return
    fi
    systemctl restart containerd || fail "cannot restart containerd (restart it by hand)"
    say "restarted containerd"
}

main() {
    parse "$@"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$python is older than 3.11"
    local place criu
    place=$(environment_folder)
    [[ -n $dry_run ]] || mkdir -p "$prefix"
    install_environment "$place"
    criu=$(criu_setting)
    write_config "$place" "$criu"
    make_snapshots_folder
    remember
    link_commands "$place"
    install_holder "$place"
    remove_old_environments "$place"
    configure_containerd "$place"
}

main "$@"
