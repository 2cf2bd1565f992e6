#!/bin/bash
# Fetches what Thaw needs from Debian, and is the only file that does.
#
#   fetch.sh packages NAME…      installs Debian packages on this machine, if they are absent
#   fetch.sh criu [--into DIR]   prints the path of a criu that works (4.2 or newer)
#   fetch.sh containerd LANE     prints a folder with containerd, ctr and the runc shim; LANE: 1.6, 1.7 or 2.x
#   fetch.sh runc | busybox      prints the path of that executable
#   fetch.sh cni                 prints the folder of the CNI plugins
#   fetch.sh registry | skopeo   prints the path of docker-registry, or of a skopeo that runs anywhere
#   fetch.sh etcd                prints the path of an etcd server
#
# Only `packages` changes the machine. Everything else is unpacked privately into the cache
# (THAW_CACHE, /var/cache/thaw by default), so no package script runs and no system daemon starts.
# A thing appears in the cache by one rename: whatever is there is whole, an interrupted fetch leaves
# nothing that looks like one, and apt goes on with a half-loaded file where it stopped. All of the
# cache may be deleted at any time.
#
# The mirror is the one that this machine's own apt uses; THAW_DEBIAN_MIRROR names another (it must
# on a machine that is not Debian).
set -euo pipefail

readonly cache=${THAW_CACHE:-/var/cache/thaw}
readonly keyring=/usr/share/keyrings/debian-archive-keyring.gpg
readonly criu_minimum=4.2

fail() {
    echo "fetch: $*" >&2
    exit 1
}

note() {
    echo "fetch: $*" >&2
}

# --- apt, with a state of its own -------------------------------------------------------------------

mirror() {
    if [[ -n ${THAW_DEBIAN_MIRROR:-} ]]; then
        echo "$THAW_DEBIAN_MIRROR"
        return
    fi
    local codename uri
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    # shellcheck disable=SC2016 # apt expands these
    uri=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(CODENAME)' 'Created-By: Packages' |
        awk -v codename="$codename" '($2 == codename || $3 == codename) && !seen++ { print $1 }')
    if ! grep -q '^ID=debian$' /etc/os-release || [[ -z $uri ]]; then
        fail "no Debian mirror in this machine's apt sources (name one: THAW_DEBIAN_MIRROR=URI)"
    fi
    echo "$uri"
}

# private_apt SUITE ARGUMENT…: apt-get that sees one suite and believes that nothing is installed.
private_apt() {
    local state=$cache/apt/$1
    shift
    apt-get -qq -y \
        -o Dir::State="$state" -o Dir::State::status="$state/status" -o Dir::Cache="$state/cache" \
        -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
        -o APT::Install-Recommends=false -o APT::Sandbox::User=root -o Debug::NoLocking=true \
        -o APT::Update::Post-Invoke::= -o Acquire::Languages=none "$@"
}

# The lists are loaded again after a day: a pool keeps no package that its lists no longer name.
refresh_lists() {
    local suite=$1 state=$cache/apt/$1
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
    [[ -e $state/status ]] || : >"$state/status"
    [[ -n $(find "$state/fresh" -mtime -1 2>/dev/null) ]] && return
    local uri
    uri=$(mirror)
    [[ -r $keyring ]] || fail "$keyring is missing (install debian-archive-keyring)"
    echo "deb [signed-by=$keyring] $uri $suite main" >"$state/sources.list"
    note "loading the package lists of $suite"
    private_apt "$suite" update >&2
    touch "$state/fresh"
}

# download SUITE one|closure DIR PACKAGE…: the packages, or with all that they depend on, as files in DIR.
download() {
    local suite=$1 what=$2 dir=$3
    shift 3
    refresh_lists "$suite"
    if [[ $what == one ]]; then
        (cd "$dir" && private_apt "$suite" download "$@" >&2)
    else
        local archives=$cache/apt/$suite/cache/archives
        private_apt "$suite" install --download-only "$@" >&2
        mv "$archives"/*.deb "$dir/"
    fi
}

# unpacked NAME SUITE one|closure PACKAGE…: makes $cache/NAME from the packages, unless it is there.
unpacked() {
    local name=$1 suite=$2 what=$3
    shift 3
    [[ -d $cache/$name ]] && return
    local staging=$cache/.$name.new deb
    rm -rf "$staging"
    mkdir -p "$staging/debs"
    note "fetching $* from $suite"
    download "$suite" "$what" "$staging/debs" "$@"
    for deb in "$staging"/debs/*.deb; do
        dpkg -x "$deb" "$staging"
    done
    rm -rf "$staging/debs"
    mv -T "$staging" "$cache/$name"
}

# --- the things -------------------------------------------------------------------------------------

packages() {
    local name missing=()
    for name in "$@"; do
        dpkg-query -W -f '${Status}\n' "$name" 2>/dev/null | grep -q ' installed$' || missing+=("$name")
    done
    ((${#missing[@]})) || return 0
    note "installing ${missing[*]}"
    install_packages "${missing[@]}" && return
    # A source that has nothing to do with us may be broken: install what the others give.
    apt-get -qq update >&2 || note "apt-get update complained; going on with the lists it has"
    install_packages "${missing[@]}" || fail "cannot install ${missing[*]} (try: apt-get install ${missing[*]})"
}

install_packages() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$@" >&2
}

# criu_works PATH: new enough, and able to do its work on this kernel.
criu_works() {
    local version
    version=$("$1" --version 2>/dev/null | sed -n 's/^Version: *//p') || return 1
    [[ -n $version ]] && dpkg --compare-versions "$version" ge "$criu_minimum" &&
        "$1" check >/dev/null 2>&1
}

# wrapper DIR PROGRAM: a program with its own C library, started through its own loader: it neither
# needs nor touches the machine's libraries. The paths are written out, so that a link to the wrapper
# works too.
wrapper() {
    local dir=$1 program=$2 loader libraries
    loader=$(find "$dir" -name 'ld-linux-*.so.*' -o -name 'ld64.so.*' | sort | head -n 1)
    libraries=$(find "$dir" -name 'lib*.so.*' -printf '%h\n' | sort -u | grep -v gconv | paste -sd:)
    [[ -n $loader ]] || fail "no loader under $dir"
    # shellcheck disable=SC2016 # the wrapper expands its own arguments
    printf '#!/bin/sh\nexec %s --library-path %s %s "$@"\n' \
        "$loader" "$libraries" "$(find "$dir" -path "*/$program" -type f)" >"$dir/wrapper.new"
    chmod 755 "$dir/wrapper.new"
    mv "$dir/wrapper.new" "$dir/${program##*/}"
}

criu() {
    local into=$cache/criu system
    if [[ ${1:-} == --into ]]; then
        into=${2:?--into needs a folder}
    fi
    system=$(type -P criu || true)
    if [[ -n $system ]] && criu_works "$system"; then
        echo "$system"
        return
    fi
    unpacked criu sid closure criu
    if [[ $into != "$cache/criu" && ! -d $into ]]; then
        mkdir -p "${into%/*}"
        rm -rf "$into.new"
        cp -a "$cache/criu" "$into.new"
        rm -f "$into.new/criu"
        mv -T "$into.new" "$into"
    fi
    [[ -x $into/criu ]] || wrapper "$into" sbin/criu
    criu_works "$into/criu" || fail "$into/criu does not work on this kernel (see: $into/criu check)"
    echo "$into/criu"
}

containerd() {
    local lane=${1:?containerd needs a lane: 1.6, 1.7 or 2.x} suite
    case $lane in
        1.6) suite=bookworm ;;
        1.7) suite=trixie ;;
        2.x) suite=sid ;;
        *) fail "no containerd lane $lane (there are 1.6, 1.7 and 2.x)" ;;
    esac
    unpacked "containerd-$lane" "$suite" one containerd
    echo "$cache/containerd-$lane/usr/bin"
}

runc() {
    unpacked runc bookworm one runc
    echo "$cache/runc/usr/sbin/runc"
}

busybox() {
    unpacked busybox bookworm one busybox-static
    find "$cache/busybox" -path '*/bin/busybox' -type f
}

cni() {
    unpacked cni bookworm one containernetworking-plugins
    echo "$cache/cni/usr/lib/cni"
}

registry() {
    unpacked registry bookworm one docker-registry
    echo "$cache/registry/usr/bin/docker-registry"
}

etcd() {
    unpacked etcd bookworm one etcd-server
    echo "$cache/etcd/usr/bin/etcd"
}

skopeo() {
    unpacked skopeo bookworm closure skopeo
    [[ -x $cache/skopeo/skopeo ]] || wrapper "$cache/skopeo" bin/skopeo
    echo "$cache/skopeo/skopeo"
}

main() {
    local verb=${1:-}
    case $verb in
        packages | criu | containerd | runc | busybox | cni | registry | skopeo | etcd) shift ;;
        *)
            sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2
            exit 2
            ;;
    esac
    [[ $EUID == 0 ]] || fail "must run as root"
    mkdir -p "$cache"
    exec 9>"$cache/.lock"
    flock 9
    if [[ $verb == packages ]]; then
        "$verb" "$@" 9>&- # what a package starts must not hold the lock
    else
        "$verb" "$@" # and so does an apt-get that outlives us
    fi
}

main "$@"
