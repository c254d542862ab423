# Sourced by scripts that need a Debian of their own, which takes root and debootstrap.

# Whether there can be one.
can_have_debian() {
    [ "$(id -u)" = 0 ] && command -v debootstrap >/dev/null
}

# debian SUITE FOLDER PACKAGES: makes one with few packages and these in FOLDER, or leaves the one that is there.
debian() {
    [ ! -e "$2/made" ] || return 0
    rm -rf "$2"
    debootstrap --variant=minbase --include="$3" "$1" "$2" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" \
        >"$2-debootstrap.log" || { tail "$2-debootstrap.log" >&2; return 1; }
    touch "$2/made"
}

# in_debian FOLDER [SOURCE:PLACE]... -- COMMAND...: runs it there, without this system's environment, with folders or
# files of this system in places below FOLDER, which nobody else sees.
in_debian() {
    # shellcheck disable=SC2016 # that shell's own
    unshare --mount sh -eu -c '
        root=$1
        shift
        mount -t proc proc "$root/proc"
        while [ "$1" != -- ]; do
            place=$root${1##*:}
            [ -e "$place" ] || mkdir -p "$place"
            mount --bind "${1%:*}" "$place"
            shift
        done
        shift
        exec chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
    ' sh "$@"
}
