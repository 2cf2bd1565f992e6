#!/bin/bash
# Takes away what install.sh has installed, as root. Snapshots stay, and so does an edited configuration.
#
#   uninstall.sh [options]
#     --purge        remove the snapshots and the configuration too
#     --force        even while Thaw's shims run (their pods can then not be stopped properly)
#     --restart      restart containerd, if its configuration changed
#     --dry-run      say what would be done, and do nothing
#     --prefix DIR   where Thaw was installed (/opt/thaw)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here

prefix=/opt/thaw
purge=
force=
restart=
dry_run=

say() {
    echo "thaw: $*"
}

fail() {
    echo "thaw: $*" >&2
    exit 1
}

parse() {
    while (($#)); do
        case $1 in
            --purge) purge=yes ;;
            --force) force=yes ;;
            --restart) restart=yes ;;
            --dry-run) dry_run=yes ;;
            --help | -h) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" && exit 0 ;;
            --prefix)
                (($# > 1)) || fail "$1 needs a value"
                prefix=$2
                shift
                ;;
            *) fail "unknown option $1 (see: uninstall.sh --help)" ;;
        esac
        shift
    done
    [[ $EUID == 0 ]] || fail "must run as root"
}

# do_it COMMAND…: run it, or say so.
do_it() {
    if [[ -n $dry_run ]]; then
        say "would $*"
    else
        "$@"
    fi
}

choice() {
    sed -n "s/^$1=//p" "$prefix/installed"
}

# The interpreter of what is installed.
own_python() {
    find "$prefix"/environment-*/bin/python | head -n 1
}

# Pids of shims that were started from this installation; the cache's holder is none.
shims() {
    local directory
    for directory in /proc/[0-9]*; do
        grep -qsF shim.cache.holder "$directory/cmdline" && continue
        if grep -qsF "$prefix/environment-" "$directory/cmdline" "$directory/maps"; then
            echo "${directory#/proc/}"
        fi
    done
}

# The holder of the cache, and what it holds.
remove_holder() {
    local unit=/etc/systemd/system/thaw-cache.service config python
    [[ $prefix == /opt/thaw && -e $unit ]] || return 0
    do_it systemctl disable -q --now thaw-cache
    do_it rm "$unit"
    do_it systemctl daemon-reload
    config=$(choice config)
    [[ -e $config ]] || config=
    python=$(own_python)
    do_it "$python" -I -m shim.cache.holder --remove ${config:+--config "$config"} ||
        say "the cache's memory was not given back (umount the folder \`cache\` of Thaw's state)"
}

remove_from_containerd() {
    local python containerd=$1 main=$2 said
    python=$(own_python)
    if ! type -P "$containerd" >/dev/null; then
        [[ ! -e $main ]] || say "no containerd here ($containerd): $main is left as it is"
        return
    fi
    said=$("$python" -I "$here/containerd_config.py" remove --main "$main" \
        --containerd "$containerd" ${dry_run:+--dry-run})
    echo "$said"
    [[ $said != *nothing\ to\ change* && -z $dry_run ]] || return 0
    if [[ -n $restart ]]; then
        systemctl restart containerd || fail "cannot restart containerd (restart it by hand)"
    else
        say "containerd knows the handler thaw until it is restarted"
    fi
}

remove_links() {
    local bin=$1 name
    for name in containerd-shim-thaw-v1 thaw thaw-hook-network; do
        if [[ $(readlink "$bin/$name") == "$prefix"/* ]]; then
            do_it rm "$bin/$name"
        fi
    done
}

remove_config() {
    local config=$1 sum=$2
    [[ -e $config ]] || return 0
    if [[ -n $purge || $(sha256sum <"$config" | cut -d ' ' -f 1) == "$sum" ]]; then
        do_it rm "$config"
        do_it rmdir --ignore-fail-on-non-empty "$(dirname "$config")"
    else
        say "$config was edited, and stays (--purge removes it)"
    fi
}

remove_snapshots() {
    local snapshots=$1
    [[ -d $snapshots ]] || return 0
    if [[ -n $purge ]]; then
        do_it rm -rf "$snapshots"
    elif [[ -z $(ls -A "$snapshots") ]]; then
        do_it rmdir "$snapshots"
    else
        say "the snapshots in $snapshots stay (--purge removes them)"
    fi
}

# What snapshots that stay need stays, too.
remove_libraries() {
    local libraries=$1 snapshots=$2
    [[ -n $libraries && -d $libraries && ! -d $snapshots ]] || return 0
    do_it find "$libraries" -maxdepth 1 -type f -name "*libthaw-gpu-*" -delete
    do_it rmdir --ignore-fail-on-non-empty "$libraries"
}

main() {
    parse "$@"
    if [[ ! -e $prefix/installed ]]; then
        say "nothing is installed in $prefix"
        return
    fi
    local running
    running=$(shims | tr '\n' ' ')
    [[ -z $running || -n $force ]] ||
        fail "shims are running: $running(remove their pods first, or: --force)"
    remove_holder
    remove_from_containerd "$(choice containerd)" "$(choice containerd_config)"
    remove_links "$(choice bin)"
    remove_config "$(choice config)" "$(choice config_sum)"
    remove_snapshots "$(choice snapshots)"
    remove_libraries "$(choice libraries)" "$(choice snapshots)"
    do_it rm -rf "$prefix"
    [[ ! -d /run/thaw ]] || do_it rmdir --ignore-fail-on-non-empty /run/thaw
    [[ -n $dry_run ]] || say "removed $prefix"
}

main "$@"
